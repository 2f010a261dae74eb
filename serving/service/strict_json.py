"""JSON as the standard has it and no more: what Python's parser lets pass is refused here.

orjson reads most bodies, several times as fast. It does not tell of a key that appears twice, makes floats
of long whole numbers and says little of what is wrong: whatever it refuses, or may have read otherwise, is
read once more by Python's parser.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from serving.service.problems import Problem

# Digits and exponents in one shape: finding a text in bytes takes a tenth of matching a pattern.
SHAPES = bytes.maketrans(b"0123456789E", b"0000000000e")
# Without any of them no number can be beyond float64: below 1e200 times at most 1e99.
MAY_BE_LARGE = (b"0" * 200, b"e000", b"e+000")
# orjson keeps whole numbers of up to 64 bits; small fractions have long runs of digits, too.
MAY_BE_LONG = b"0" * 19
LONG = re.compile(rb"(?<![.0-9])([0-9]{20}|(?<=-)[0-9]{19})")
# Half of a surrogate pair can only come from an escape: strict UTF-8 has none.
ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
DIGITS = 308  # of the largest float64
CONTAINERS = {dict, list}
UNREAD = object()
HINT = "send plain JSON in UTF-8; a missing value is null"


@dataclass(frozen=True)
class Bounds:
    """How much JSON may hold.

    Attributes
    ----------
    depth : int
        Of nesting.
    values : int
        Twice as many separators are let pass, since texts may hold some too.
    objects : int
        Ten times as many braces are let pass.
    """

    depth: int = 8
    values: int = 2_000_000
    objects: int = 10_000


def parse(body: bytes, bounds: Bounds = Bounds()) -> Any:
    """The value that a body holds.

    Raises
    ------
    Problem
        400 ``bad_json`` for bad syntax or UTF-8, NaN, Infinity, a number beyond float64, a lone
        surrogate, a key that appears twice; 400 ``too_deep`` for deeper nesting; 413 for more values or
        objects than any request has.
    """
    objects, lists = body.count(b"{"), body.count(b"[")
    _check_counts(objects, objects + lists + body.count(b","), bounds)
    shapes = body.translate(SHAPES)
    long = MAY_BE_LONG in shapes
    large = any(large in shapes for large in MAY_BE_LARGE[not long :])
    try:
        value = UNREAD if large or (long and LONG.search(body)) else orjson.loads(body)
    except orjson.JSONDecodeError:
        value = UNREAD
    if value is UNREAD or _members(value) != (objects, body.count(b":")):
        value = _read(body, large, bounds)
    if objects + lists > bounds.depth:
        _check_depth(value, bounds.depth)
    return value


def written(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """JSON in UTF-8, NaN as null; ``default`` makes something else of what JSON does not have."""
    try:
        return orjson.dumps(value, default, orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # such as a whole number of more than 64 bits that a client sent
        return json.dumps(value, allow_nan=False, default=default).encode()


def _members(value: Any) -> tuple[int, int]:
    """Objects and keys; lists that begin with a plain value are taken to hold nothing else.

    As many objects and keys as braces and colons in the body: none was hidden, no key came twice.
    """
    objects = keys = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is dict:
            objects += 1
            keys += len(item)
            if not CONTAINERS.isdisjoint(map(type, item.values())):
                waiting += item.values()
        elif type(item) is list and item and type(item[0]) in CONTAINERS:
            waiting += item
    return objects, keys


def _read(body: bytes, large: bool, bounds: Bounds) -> Any:
    """By Python's parser, every number looked at where one may be too large."""
    try:
        value = (CAREFUL if large else QUICK).decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _bad(f"the body is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise _deep(bounds.depth) from error
    except json.JSONDecodeError as error:
        raise _bad(f"the body is not JSON: {error.msg} at character {error.pos}") from error
    if b"\\u" in body and ESCAPED_SURROGATE.search(body):
        _check_text(value)
    return value


def _check_counts(objects: int, values: int, bounds: Bounds) -> None:
    """Before parsing: three bytes of empty list become twenty times as many in memory."""
    hint = "send fewer rows at once, or use the batch job"
    if objects > 10 * bounds.objects:
        raise Problem(413, "too_many_rows", f"the JSON holds {objects} objects", hint=hint)
    if values > 2 * bounds.values:
        raise Problem(413, "too_many_cells", f"the JSON holds some {values} values", hint=hint)


def _bad(detail: str) -> Problem:
    return Problem(400, "bad_json", detail, hint=HINT)


def _deep(max_depth: int) -> Problem:
    return Problem(
        400, "too_deep", f"the JSON is nested deeper than {max_depth}", hint="send rows in one flat list"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise _bad("an object has a key twice")
    return data


def _no_constant(name: str) -> None:
    raise _bad(f"{name} is not a number in JSON")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise _bad("a number is beyond the range of float64")
    return value


def _bounded(text: str) -> int:
    if len(text) > DIGITS:
        raise _bad(f"a whole number has {len(text)} digits")
    return int(text)


def _check_depth(value: Any, max_depth: int) -> None:
    """Level by level, so that the depth of the input is not the depth of a recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(max_depth):
        inside = [parent.values() if isinstance(parent, dict) else parent for parent in level]
        level = [
            child
            for children in inside
            if not CONTAINERS.isdisjoint(map(type, children))
            for child in children
            if type(child) in CONTAINERS
        ]
        if not level:
            return
    raise _deep(max_depth)


def _check_text(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise _bad("a text holds half of a surrogate pair") from error


# A hook that is called for each number takes longer than all the rest.
QUICK = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
CAREFUL = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded
)
