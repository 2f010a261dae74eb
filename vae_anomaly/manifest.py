"""What a bundle says of itself: `manifest.json`, written and read without trust."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from reprlib import repr as shortened
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from vae_anomaly.columns import KINDS as KINDS_OF_COLUMNS
from vae_anomaly.columns import MOST_CATEGORIES, Column
from vae_anomaly.exceptions import BundleError
from vae_anomaly.schema import ImageSchema, Schema, schema_from_dict

FORMAT_VERSION = 1
READABLE_VERSIONS = (1,)
MANIFEST = "manifest.json"
KINDS = ("vae", "autoencoder")

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    tuple: "a list of texts",
    UnionType: "a number or null",
}


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself; the contents of `manifest.json`.

    Attributes
    ----------
    kind : {"vae", "autoencoder"}
    name : str
    schema : ImageSchema or TableSchema
    likelihood, architecture : dict
        As the model was built.
    scores : tuple of str
        Exported scores, in column order.
    default_score : str
    draws : int
        K, the noise vectors stored in `score.onnx`.
    imputation : dict
        Draws, chunk, noise and latent size of `impute.onnx`; empty for an autoencoder.
    latent_size : int
        L.
    false_alarm_rate : float
        Used when a caller names none.
    tolerances : dict
        Of the self-test.
    provenance : dict
        Run id, data fingerprint, seed, package versions, counts of rows, metrics, date.
    derived_from_rows : tuple of str
        What was computed from single training rows.
    warnings : tuple of str
    files : dict, name -> sha256
        Every file but the manifest; filled by `seal`.
    format_version : int
    """

    kind: str
    name: str
    schema: Schema
    likelihood: dict[str, Any]
    architecture: dict[str, Any]
    scores: tuple[str, ...]
    default_score: str
    draws: int
    imputation: dict[str, Any]
    latent_size: int
    false_alarm_rate: float
    tolerances: dict[str, Any]
    provenance: dict[str, Any]
    derived_from_rows: tuple[str, ...]
    warnings: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The same text for the same manifest: sorted keys, two spaces, a newline at the end.

        Raises
        ------
        BundleError
            If a value has no JSON, such as NaN or a numpy integer; convert it first.
        """
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        data["schema"] = self.schema.to_dict()
        try:
            return json.dumps(data, sort_keys=True, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise BundleError(f"{MANIFEST} cannot be written: {error}; use plain numbers and None") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read what `to_json` wrote.

        Raises
        ------
        BundleError
            If the text is not JSON, of an unknown format version, or a key is missing, unknown,
            of the wrong type or out of range.
        """
        data = _parse(text)
        version = data.get("format_version")
        if version not in READABLE_VERSIONS:
            known = ", ".join(map(str, READABLE_VERSIONS))
            raise BundleError(
                f"{MANIFEST} has format version {shortened(version)}, this release reads {known}; "
                "upgrade vae-anomaly"
            )
        hints = get_type_hints(cls)
        _check_keys(data, hints)
        values = {key: _typed(key, data[key], hint) for key, hint in hints.items() if key != "schema"}
        manifest = cls(schema=_read_schema(data["schema"]), **values)
        _check_ranges(manifest)
        _check_files(manifest.files)
        return manifest


def _parse(text: str | bytes) -> dict[str, Any]:
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        data = json.loads(
            decoded, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not valid JSON: {error}; fetch the bundle again") from error
    if not isinstance(data, dict):
        raise BundleError(f"{MANIFEST} holds {shortened(data)}, expected an object; fetch the bundle again")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key appears twice")
    return data


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number is too large")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _check_keys(data: dict[str, Any], known: Mapping[str, Any]) -> None:
    if unknown := sorted(set(data) - set(known)):
        close = get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "upgrade vae-anomaly or export the bundle again"
        raise BundleError(f"{MANIFEST} has the unknown key {shortened(unknown[0])}; {hint}")
    if missing := [key for key in known if key not in data]:
        raise BundleError(f"{MANIFEST} lacks {missing[0]!r}; export the bundle again")


def _typed(key: str, value: Any, hint: Any) -> Any:
    """The value as the type that the dataclass declares, or a refusal."""
    if not _fits(value, hint):
        raise _wrong(key, value, WORDS[get_origin(hint) or hint])
    return tuple(value) if get_origin(hint) is tuple else value


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is UnionType:
        return any(_fits(value, arg) for arg in args)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, args[1]) for item in value.values())
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _wrong(key: str, value: Any, expected: str) -> BundleError:
    return BundleError(
        f"{MANIFEST}: {key} is {shortened(value)}, expected {expected}; export the bundle again"
    )


def _check_ranges(manifest: Manifest) -> None:
    repeats = len(set(manifest.scores)) < len(manifest.scores)
    for key, good, expected in (
        ("kind", manifest.kind in KINDS, " or ".join(KINDS)),
        ("scores", manifest.scores and not repeats, "one or more, none twice"),
        ("draws", manifest.draws >= 0, "0 or more"),
        ("latent_size", manifest.latent_size >= 1, "1 or more"),
        ("false_alarm_rate", 0 < manifest.false_alarm_rate < 1, "a number above 0 and below 1"),
    ):
        if not good:
            raise _wrong(key, getattr(manifest, key), expected)


def _check_files(files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        if not FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise BundleError(
                f"{MANIFEST} lists the file {shortened(name)}; expected plain names of letters, digits, "
                "dots, dashes and underscores, without folders"
            )
        if not SHA256.fullmatch(digest):
            raise _wrong(f"the sha256 of {name}", digest, "64 hexadecimal digits")


def _read_schema(data: Any) -> Schema:
    if not isinstance(data, dict) or data.get("kind") not in ("image", "table"):
        raise _wrong("schema", data, "an image or a table")
    try:
        schema = schema_from_dict(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{MANIFEST}: schema cannot be read: {str(error)[:200]}; export the bundle again"
        ) from error
    if isinstance(schema, ImageSchema):
        _check_fields(schema)
        sizes_fit = min(schema.shape) >= 1 and schema.low < schema.high
        if not sizes_fit or schema.dtype not in ("uint8", "float32"):
            raise _wrong("schema", data, "sizes of 1 or more, low below high, dtype uint8 or float32")
        return schema
    if not isinstance(schema.named, bool):
        raise _wrong("schema.named", schema.named, WORDS[bool])
    for column in schema.columns:
        _check_column(column)
    if not schema.columns or len(set(schema.names)) < len(schema.names):
        raise _wrong("schema.columns", schema.names, "one or more, none twice")
    return schema


def _check_column(column: Column) -> None:
    _check_fields(column)
    categories, most = column.categories, 2 if column.kind == "binary" else MOST_CATEGORIES
    if column.kind not in KINDS_OF_COLUMNS:
        raise _wrong("schema.kind", column.kind, ", ".join(KINDS_OF_COLUMNS))
    needed = column.kind in ("categorical", "ordinal")
    if len(set(categories)) < len(categories) or not needed <= len(categories) <= most:
        raise _wrong("schema.categories", categories, f"at most {most} categories, none twice")
    if categories and not (needed or column.kind == "binary"):
        raise _wrong("schema.categories", categories, f"none in a column that is {column.kind}")


def _check_fields(part: ImageSchema | Column) -> None:
    for key, hint in get_type_hints(type(part)).items():
        value = getattr(part, key)
        if get_origin(hint) is not ClassVar:
            _typed(f"schema.{key}", list(value) if isinstance(value, tuple) else value, hint)
