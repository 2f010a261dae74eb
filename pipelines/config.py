"""Frozen dataclasses read from TOML, strictly: a typing slip is an error that names the near miss.

Nothing here knows the settings themselves. Any dataclass will do whose fields are strings,
numbers, booleans, `Literal`, `Optional`, tuples of these, mappings of text to these, or further
dataclasses (TOML tables).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vae_anomaly.exceptions import ConfigError

T = TypeVar("T")

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
# Of what is known, in a message.
MOST_NAMED = 20
TOML_VALUES = (str, int, float, bool, list, dict)


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass ``cls`` from a TOML table.

    Parameters
    ----------
    cls : dataclass
    mapping : mapping
        As `tomllib` returns it; fields with a default may be absent.
    where : str
        Dotted name of the table, for messages.

    Raises
    ------
    ConfigError
        If a key is unknown or missing, or a value has the wrong type.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"{cls!r} is no dataclass")
    place = f"in [{where}]" if where else "at the top level"
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in mapping:
        if key not in fields:
            raise ConfigError(f"unknown key {str(key)!r} {place}; {near_miss(str(key), fields)}")
    for name, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if name not in mapping and not optional:
            raise ConfigError(f"missing key {name!r} {place}; add it")
    hints = get_type_hints(cls)
    values = {key: _read(hints[key], value, _join(where, key)) for key, value in mapping.items()}
    return cls(**values)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises
    ------
    ConfigError
        If the file is absent, unreadable or no valid TOML; the message gives line and column.
    """
    try:
        return tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings from {path}: {error.strerror or error}") from error
    except ValueError as error:  # bad TOML and bad UTF-8 alike
        raise ConfigError(f"{path} is no valid TOML: {error}") from error


def overrides(mapping: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of ``mapping`` changed by ``--set key=value`` assignments.

    Values are read as TOML; what is no TOML is text, so quotes may be left out, and a bare
    ``none`` clears an optional setting.

    Raises
    ------
    ConfigError
        If an assignment has no ``=``, or its path runs through a value that is no table.

    Examples
    --------
    >>> overrides({"training": {"epochs": 10}}, ["training.epochs=3", "data.source=digits"])
    {'training': {'epochs': 3}, 'data': {'source': 'digits'}}
    """
    changed = copy.deepcopy(dict(mapping))
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not separator or not all(keys):
            raise ConfigError(f"cannot read the setting {assignment!r}; write it as table.key=value")
        table = changed
        for depth, key in enumerate(keys[:-1], start=1):
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{'.'.join(keys[:depth])!r} in {assignment!r} is a value, not a table")
        table[keys[-1]] = _parse(text.strip())
    return changed


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package, sorted."""
    return tuple(sorted(path.stem for path in _recipe_folder().glob("*.toml")))


def recipe_path(name: str) -> Path:
    """The file of a recipe that comes with the package.

    Raises
    ------
    ConfigError
        If there is none of that name; the near miss is suggested.
    """
    if name not in recipe_names():
        raise ConfigError(f"unknown recipe {name!r}; {near_miss(name, recipe_names())}")
    return _recipe_folder() / f"{name}.toml"


def near_miss(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The second half of a message on an unknown word.

    Examples
    --------
    >>> near_miss("epoch", ["epochs", "batch_size"])
    "did you mean 'epochs'?"
    >>> near_miss("colour", ["epochs", "batch_size"])
    'known: epochs, batch_size'
    """
    close = get_close_matches(word, list(known), n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    names = list(known)[:MOST_NAMED]
    return f"known: {', '.join(names) or 'none'}" + (", ..." if len(known) > len(names) else "")


def _recipe_folder() -> Path:
    return Path(str(resources.files("pipelines"))) / "recipes"


def _parse(text: str) -> Any:
    if text == "none":
        return None
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = table["value"]
    # Dates and anything that smuggles a second key in stay text.
    return value if len(table) == 1 and isinstance(value, TOML_VALUES) else text


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _read(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint``, or a ConfigError that names ``where``."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _read_union(hint, value, where)
    if origin is Literal:
        return _read_literal(hint, value, where)
    if origin is tuple:
        return _read_tuple(hint, value, where)
    if origin is dict:
        return _read_table(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    if hint is float and type(value) is int:
        value = float(value)
    # `type is`, not isinstance: True is an int for Python, not for a reader.
    if type(value) is not hint or (hint is float and math.isnan(value)):
        raise _wrong(where, value, hint)
    return value


def _read_union(hint: Any, value: Any, where: str) -> Any:
    members = get_args(hint)
    exact = [member for member in members if type(value) is member]
    structured = [m for m in members if get_origin(m) is not None or dataclasses.is_dataclass(m)]
    for member in exact or [member for member in members if member not in structured]:
        try:
            return _read(member, value, where)
        except ConfigError:
            continue
    if len(structured) == 1 and isinstance(value, list | tuple | Mapping | str):
        return _read(structured[0], value, where)  # its own message says more than the union's
    raise _wrong(where, value, hint)


def _read_literal(hint: Any, value: Any, where: str) -> Any:
    choices = get_args(hint)
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return value
    known = [str(choice) for choice in choices]
    raise ConfigError(f"{where} is {value!r}; {near_miss(str(value), known)}")


def _read_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    members = get_args(hint)
    if not isinstance(value, list | tuple):
        raise _wrong(where, value, hint)
    if members[-1:] == (Ellipsis,):
        members = members[:1] * len(value)
    if len(value) != len(members):
        raise _wrong(where, value, hint)
    return tuple(
        _read(member, item, f"{where}[{i}]")
        for i, (member, item) in enumerate(zip(members, value, strict=True))
    )


def _read_table(hint: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, value, hint)
    return {str(key): _read(get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()}


def _wrong(where: str, value: Any, hint: Any) -> ConfigError:
    return ConfigError(f"{where} is {value!r}; expected {_words(hint)}")


def _words(hint: Any) -> str:
    """The type as a user would say it."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(member) for member in members)
    if origin is Literal:
        return " or ".join(repr(member) for member in members)
    if origin is tuple:
        if members[-1:] == (Ellipsis,):
            return f"a list, each {_words(members[0])}"
        if len(set(members)) == 1:
            return f"a list of {len(members)}, each {_words(members[0])}"
        return f"a list of {len(members)}: " + ", ".join(_words(member) for member in members)
    return "a table" if dataclasses.is_dataclass(hint) or origin is dict else WORDS.get(hint, str(hint))
