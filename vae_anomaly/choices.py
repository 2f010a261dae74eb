"""Settings of a kind that is enforced: one word of the few that a `Literal` lists, a number."""

from __future__ import annotations

import numbers
import operator
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vae_anomaly.exceptions import ConfigError


def check_choices(config: object) -> None:
    """Raise `ConfigError` unless every `Literal` field of a dataclass holds one of its words.

    Examples
    --------
    >>> from vae_anomaly.objectives import ObjectiveConfig
    >>> ObjectiveConfig(bound="elbow")
    Traceback (most recent call last):
    vae_anomaly.exceptions.ConfigError: bound is 'elbow'; did you mean 'elbo'?
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is not Literal or value in get_args(hint):
            continue
        words = [str(word) for word in get_args(hint)]
        close = get_close_matches(str(value), words, n=1)
        hint_text = f"did you mean {close[0]!r}?" if close else f"choose {', '.join(words)}"
        raise ConfigError(f"{name} is {value!r}; {hint_text}")


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
