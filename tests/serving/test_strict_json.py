"""JSON as the standard has it: what Python alone lets pass is refused, all else is Python's own answer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from serving.service.problems import Problem, problem_of, shortened
from serving.service.refusals import Expired, Overloaded
from serving.service.strict_json import Bounds, parse, written
from vae_anomaly.exceptions import DeviceError, SchemaError

GOOD = [
    b"{}",
    b"[1, -2.5e3, null, true, false]",
    '{"é": "ü", "a": "\\u00e9\\ud83d\\ude00"}'.encode(),
    b"1e308",
    b"1e-999",
    b"9" * 308,
    b"[" + b"9" * 199 + b"e99, 1e-999, 1E+05]",
    b"[[[[[[[[]]]]]]]]",
    b' "[[[[[[[[[["',
    b'{"a" : {"b": [1, {"c": 2}]}, "d": ["{:", [3]]}',
    b'{"time": "12:00:00", "note": "{a: b}"}',
    b"[18446744073709551615, -9223372036854775808]",
    b"[18446744073709551616, 123456789012345678901234567890]",
    b"[-9223372036854775809]",
    b"[-18446744073709551616, 0.1234567890123456789]",
    b"[0.00012345678901234567, 1.5, 0.1000000000000000055511151231257827]",
]


@pytest.mark.parametrize("body", GOOD, ids=map(str, range(len(GOOD))))
def test_plain_json_is_what_it_says(body: bytes) -> None:
    found, expected = parse(body), json.loads(body)
    assert found == expected
    # Whole numbers stay whole, whichever parser read them.
    assert repr(found) == repr(expected)


@pytest.mark.parametrize(
    ("body", "code", "detail"),
    [
        (b"NaN", "bad_json", "NaN is not a number in JSON"),
        (b"[-Infinity]", "bad_json", "-Infinity is not a number in JSON"),
        (b"-1e999", "bad_json", "a number is beyond the range of float64"),
        (b"1" * 309, "bad_json", "a whole number has 309 digits"),
        (b"1" * 220 + b".5e99", "bad_json", "a number is beyond the range of float64"),
        (b'{"a": 1, "a": 2}', "bad_json", "an object has a key twice"),
        (b'[{"b": {"a": 1, "\\u0061": 2}}]', "bad_json", "an object has a key twice"),
        (b'[0, {"a": 1, "a": 2}]', "bad_json", "an object has a key twice"),
        (b'{"a": [null, {"b": 1}], "a": ":"}', "bad_json", "an object has a key twice"),
        (b'["\\udC00"]', "bad_json", "a text holds half of a surrogate pair"),
        (b'{"\\ud83d": 1}', "bad_json", "a text holds half of a surrogate pair"),
        (b'"\xff"', "bad_json", "the body is not UTF-8 at byte 1"),
        (b'"\xed\xa0\x80"', "bad_json", "the body is not UTF-8 at byte 1"),
        (b"\xef\xbb\xbf{}", "bad_json", "the body is not JSON: Expecting value at character 0"),
        (b"", "bad_json", "the body is not JSON: Expecting value at character 0"),
        (b"{} {}", "bad_json", "the body is not JSON: Extra data at character 3"),
        (b"[[[[[[[[[]]]]]]]]]", "too_deep", "the JSON is nested deeper than 8"),
        (b'{"a":' * 9 + b"1" + b"}" * 9, "too_deep", "the JSON is nested deeper than 8"),
        (b"[" * 10**6, "too_deep", "the JSON is nested deeper than 8"),
    ],
    ids=[
        "nan", "infinity", "1e999", "309-digits", "long-and-e99", "twice", "twice-escaped", "twice-late",
        "twice-colon", "half-pair", "half-pair-key", "latin-1", "surrogate-bytes", "bom", "empty", "two",
        "nine-lists", "nine-objects", "million",
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(body: bytes, code: str, detail: str) -> None:
    with pytest.raises(Problem) as caught:
        parse(body)
    assert (caught.value.status, caught.value.code, caught.value.detail) == (400, code, detail)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[" + b"[]," * 200 + b"0]", "too_many_cells"),
        (b"[" + b"0," * 201 + b"0]", "too_many_cells"),
        (b"[" + b"{}," * 50 + b"0]", "too_many_rows"),
    ],
    ids=["lists", "numbers", "objects"],
)
def test_more_than_any_request_has_is_not_even_parsed(body: bytes, code: str) -> None:
    with pytest.raises(Problem) as caught:
        parse(body, Bounds(values=100, objects=4))
    assert (caught.value.status, caught.value.code) == (413, code)
    assert parse(body, Bounds(values=300, objects=10))


def test_what_is_written_reads_the_same() -> None:
    value = {"a": [1.5, 0.1, 1e-7, 1e300, None, True], "é": "\U0001f600", "n": 2**63, "m": [[], {}]}
    assert parse(written(value)) == value
    assert written([math.nan, np.float64(0.5), np.int64(3)]) == b"[null,0.5,3]"


def test_whole_numbers_of_any_length_are_written() -> None:
    assert json.loads(written({"id": 2**70})) == {"id": 2**70}


def test_numbers_keep_their_digits() -> None:
    assert parse(b"0.1") == 0.1
    assert parse(str(2**60 + 1).encode()) == 2**60 + 1
    assert math.copysign(1, parse(b"-0.0")) == -1


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("too much waits; come back", 7), 503, "overloaded"),
        (Expired("too late"), 503, "deadline_exceeded"),
        (TimeoutError(), 503, "deadline_exceeded"),
        (DeviceError("the device is gone"), 503, "device_unavailable"),
        (SchemaError("rows are odd; send others"), 422, "bad_sample"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
    ],
    ids=["overloaded", "expired", "timeout", "device", "schema", "unforeseen"],
)
def test_one_table_from_exceptions_to_statuses(error: Exception, status: int, code: str) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code) == (status, code)
    assert ("retry-after" in problem.headers) == (status == 503)
    assert "secret" not in str(problem)


def test_retry_after_is_what_the_queue_says() -> None:
    assert problem_of(Overloaded("too much waits", 7)).headers["retry-after"] == "7"


@pytest.mark.parametrize(
    "text", ['"' * 9000, "é" * 9000, "\U0001f600" * 9000, "\\" * 9000], ids=["q", "e", "s", "b"]
)
def test_a_problem_stays_below_2_kb(text: str) -> None:
    problem = Problem(422, "bad_sample", text, hint=text, field=text, row=10**9)
    assert len(problem.body("x" * 64)) < 2048


def test_texts_are_cut_by_bytes_and_made_printable() -> None:
    assert shortened("a\x00\r\nb", 10) == "a???b"
    assert shortened("é" * 10, 10) == "ééé..."
    assert shortened("abc", 3) == "abc"
