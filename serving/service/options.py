"""What a request may ask for beside its rows, from the query string or the members of a JSON body."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from serving.service.problems import Problem, shortened

MAX_DRAWS = 100
IDS = "ids"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to answer.

    Attributes
    ----------
    alpha : float, optional
        False alarm rate of the verdicts; the model's own by default.
    scores : tuple of str, optional
        Which scores to name beside the one that decides; all by default.
    ids : tuple of str or int, optional
        One a row, returned with the answers; random draws follow them.
    draws : int, optional
        Multiple imputations.
    seed : int
        Of the draws.
    convert : bool
        Adapt a picture that does not fit the model.
    strict : bool
        Refuse a category that was not in training, in place of calling it missing.
    """

    alpha: float | None = None
    scores: tuple[str, ...] | None = None
    ids: tuple[str | int, ...] | None = field(default=None)
    draws: int | None = None
    seed: int = 0
    convert: bool = False
    strict: bool = False


DEFAULT = Options()
NAMES = tuple(item.name for item in fields(Options))
FOR_ENTRY = {
    "score": ("alpha", "scores", "ids", "convert", "strict"),
    "explain": ("ids", "convert", "strict"),
    "impute": ("ids", "draws", "seed", "convert", "strict"),
}


def from_query(query: bytes) -> dict[str, Any]:
    """Options as text, as the query string has them.

    Raises
    ------
    Problem
        400 if it is not well formed.
    """
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=len(NAMES)
        )
    except ValueError as error:
        detail = "the query string is not UTF-8, or has too many parts"
        raise Problem(400, "bad_query", detail, hint=f"options are {', '.join(NAMES)}") from error
    if len(found := dict(pairs)) != len(pairs):
        raise Problem(422, "bad_option", "an option of the query string is given twice", hint="give it once")
    return found


def read_options(
    known: tuple[str, ...],
    members: Mapping[str, Any],
    where: str,
    query: Mapping[str, str] = MappingProxyType({}),
) -> Options:
    """Both sources as one, every value checked.

    Parameters
    ----------
    known : tuple of str
        Options that apply.
    members : mapping
        Of the JSON body, without the rows.
    where : str
        What is asked, for messages.
    query : mapping of str to str

    Raises
    ------
    Problem
        422 for an option that is unknown, given twice or of the wrong type.
    """
    if not query and not members:
        return DEFAULT
    for name in (*query, *members):
        if name not in known:
            raise _unknown(name, known, where)
    if both := set(query) & set(members):
        raise _bad(min(both), "is given in the query string and in the body", "give it once")
    found: dict[str, Any] = {}
    for name, text in query.items():
        found[name] = QUERY_READERS[name](name, text)
    for name, value in members.items():
        found[name] = MEMBER_READERS[name](name, value)
    _check(found)
    return Options(**{name: value for name, value in found.items() if value is not None})


def check_scores(asked: Iterable[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The scores to name.

    Raises
    ------
    Problem
        422 for one that the model does not have.
    """
    if asked is None:
        return known
    for name in asked:
        if name not in known:
            close = get_close_matches(name[:80], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise _bad(
                "scores", f"names a score that this model does not have: {shortened(name, 40)!r}", hint
            )
    return tuple(name for name in known if name in set(asked))


def _check(found: Mapping[str, Any]) -> None:
    draws, ids = found.get("draws"), found.get(IDS)
    if draws is not None and not 1 <= draws <= MAX_DRAWS:
        raise _bad("draws", f"is {draws}", f"choose 1 to {MAX_DRAWS}")
    if not 0 <= (found.get("seed") or 0) < 2**63:
        raise _bad("seed", "is out of range", "choose a whole number of 0 or more")
    if ids is not None and len(set(ids)) != len(ids):
        seen: set[Any] = set()
        row = next(i for i, value in enumerate(ids) if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        raise Problem(422, "duplicate_ids", "an id occurs twice", hint="make ids unique", field=IDS, row=row)


def _bad(name: str, problem: str, hint: str) -> Problem:
    return Problem(422, "bad_option", f"option {name} {problem}", hint=hint, field=name)


def _unknown(name: str, known: tuple[str, ...], where: str) -> Problem:
    close = get_close_matches(name[:80], known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known) or 'none'}"
    shown = shortened(name, 40)
    return Problem(422, "bad_option", f"{where} has no option {shown!r}", hint=hint, field=shown)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise _bad(name, "is no number", "give a number such as 0.05") from error


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _bad(name, "is no whole number", "give digits only")
    return int(text)


def _switch(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise _bad(name, "is neither true nor false", "give true or false")
    return text == "true"


def _names(name: str, text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _of_type(kinds: type | tuple[type, ...], expected: str) -> Callable[[str, Any], Any]:
    def read(name: str, value: Any) -> Any:
        if value is not None and (
            not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool)
        ):
            raise _bad(name, "has the wrong type", f"give {expected}")
        return value

    return read


def _list_of(kinds: type | tuple[type, ...], expected: str) -> Callable[[str, Any], Any]:
    def read(name: str, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, list) or not all(
            isinstance(part, kinds) and not isinstance(part, bool) for part in value
        ):
            raise _bad(name, "has the wrong type", f"give {expected}")
        return tuple(value)

    return read


QUERY_READERS: dict[str, Callable[[str, str], Any]] = {
    "alpha": _number,
    "scores": _names,
    "ids": _names,
    "draws": _whole,
    "seed": _whole,
    "convert": _switch,
    "strict": _switch,
}
MEMBER_READERS: dict[str, Callable[[str, Any], Any]] = {
    "alpha": _of_type((int, float), "a number such as 0.05"),
    "scores": _list_of(str, "a list of names"),
    "ids": _list_of((str, int), "a list of texts or whole numbers"),
    "draws": _of_type(int, "a whole number"),
    "seed": _of_type(int, "a whole number"),
    "convert": _of_type(bool, "true or false"),
    "strict": _of_type(bool, "true or false"),
}
