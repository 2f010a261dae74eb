"""Settings of a kind that is enforced: one word of the few that a `Literal` lists, a number."""

from __future__ import annotations

import numbers
import operator
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from vae_anomaly.exceptions import ConfigError

# Other classes that do for the one that a field is declared as, and what to call it.
ACCEPTED: dict[type, Any] = {bool: bool | np.bool_, tuple: tuple | list}
TOLD: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    tuple: "a tuple",
    NoneType: "None",
}


def check_fields(config: object) -> None:
    """Raise `ConfigError` unless every field of a dataclass holds what it is declared as.

    Words are those that a `Literal` lists; numbers may be of any type that is one.

    Examples
    --------
    >>> from vae_anomaly.objectives import ObjectiveConfig
    >>> ObjectiveConfig(bound="elbow")
    Traceback (most recent call last):
    vae_anomaly.exceptions.ConfigError: bound is 'elbow'; did you mean 'elbo'?
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            _check_word(name, value, [str(word) for word in get_args(hint)])
        elif not any(_is_a(value, kind) for kind in _kinds(hint)):
            wanted = " or ".join(TOLD.get(kind, kind.__name__) for kind in _kinds(hint))
            raise ConfigError(f"{name} is {value!r}; give {wanted}")


def _kinds(hint: Any) -> list[type]:
    """The classes that a field takes: those of a union, a tuple of anything as a tuple."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return [get_origin(part) or part for part in parts]


def _is_a(value: object, kind: type) -> bool:
    if kind is float:
        return is_number(value)
    if kind is int:
        return isinstance(value, numbers.Integral)
    return isinstance(value, ACCEPTED.get(kind, kind))


def _check_word(name: str, value: object, words: list[str]) -> None:
    if value in words:
        return
    close = get_close_matches(str(value), words, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose {', '.join(words)}"
    raise ConfigError(f"{name} is {value!r}; {hint}")


def whole_number(name: str, value: Any) -> int:
    """A whole number of any integer type; `ConfigError` for anything else.

    Examples
    --------
    >>> whole_number("seed", 2.5)
    Traceback (most recent call last):
    vae_anomaly.exceptions.ConfigError: seed is 2.5; give a whole number
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise ConfigError(f"{name} is {value!r}; give a whole number") from error


def is_number(value: Any) -> bool:
    """Whether a value compares with numbers, and is neither text nor None nor an array."""
    return isinstance(value, numbers.Real)
