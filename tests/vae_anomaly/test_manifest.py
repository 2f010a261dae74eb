"""The manifest is read without trust: every key, type and range."""

import json
import re
from typing import Any

import numpy as np
import pytest

from vae_anomaly.exceptions import BundleError
from vae_anomaly.manifest import Manifest
from vae_anomaly.schema import Column, ImageSchema, Schema, TableSchema

TABLE = TableSchema((Column("speed", "real", -1.5, 2.0, "int64"), Column("größe")), named=False)
IMAGES = ImageSchema(3, 32, 24, "float32", 0.0, 1.0)
EXPORT = "; export the bundle again"


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "kind": "autoencoder",
        "name": "digits",
        "schema": IMAGES,
        "likelihood": {"name": "laplace", "scale": 1},
        "architecture": {"hidden": [64, 32]},
        "scores": ("recon", "latent_maha"),
        "default_score": "recon",
        "draws": 0,
        "imputation": {},
        "latent_size": 16,
        "false_alarm_rate": 0.05,
        "tolerances": {"score": 1e-5},
        "provenance": {"metrics": {"auroc": None}},
        "derived_from_rows": ("latent_bank",),
        "warnings": (),
        "files": {"score.onnx": "0a" * 32},
    }
    return Manifest(**(fields | changes))


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(manifest().to_json()) | changes)


def changed_schema(schema: Schema = IMAGES, **changes: Any) -> str:
    return changed(schema=schema.to_dict() | changes)


def changed_column(**changes: Any) -> str:
    return changed_schema(TABLE, columns=[{"name": "speed"} | changes])


def refused(text: str | bytes, message: str) -> None:
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        Manifest.from_json(text)


@pytest.mark.parametrize("schema", [TABLE, IMAGES, ImageSchema(1, 8, 8)], ids=["table", "float", "uint8"])
def test_reading_gives_back_what_was_written(schema: Schema) -> None:
    original = manifest(schema=schema)
    text = original.to_json()
    assert Manifest.from_json(text) == original
    assert Manifest.from_json(text.encode()).to_json() == text


def test_keys_are_sorted_and_the_text_ends_with_a_newline() -> None:
    text = manifest().to_json()
    assert text.startswith('{\n  "architecture": {\n    "hidden": [\n      64,\n      32\n    ]\n  },\n')
    assert text.endswith('  "warnings": []\n}\n')
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize("value", [np.nan, np.inf, np.int64(3), {1, 2}], ids=str)
def test_what_has_no_json_is_refused_when_written(value: object) -> None:
    with pytest.raises(
        BundleError, match=r"^manifest.json cannot be written: .*; use plain numbers and None$"
    ):
        manifest(provenance={"auroc": value}).to_json()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"\xff\xfe{", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        ('{"a": 1, "a": 2}', "a key appears twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e999}', "a number is too large"),
    ],
    ids=["empty", "utf-16", "twice", "nan", "infinity", "1e999"],
)
def test_what_is_not_strict_json_is_refused(text: str | bytes, problem: str) -> None:
    refused(text, f"manifest.json is not valid JSON: {problem}; fetch the bundle again")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 10_000 + "}"], ids=["deep", "long-number"])
def test_what_would_exhaust_the_parser_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"^manifest.json is not valid JSON: .*; fetch the bundle again$"):
        Manifest.from_json(text)


def test_another_kind_of_json_is_refused() -> None:
    refused("[1, 2]", "manifest.json holds [1, 2], expected an object; fetch the bundle again")


@pytest.mark.parametrize("version", [2, 0, "1", None, [1]], ids=str)
def test_an_unknown_format_version_is_refused_first(version: object) -> None:
    text = json.dumps({"format_version": version, "of_the_future": 1})
    message = f"manifest.json has format version {version!r}, this release reads 1; upgrade vae-anomaly"
    refused(text, message)


def test_missing_and_unknown_keys_are_named() -> None:
    data = json.loads(manifest().to_json())
    data["drawz"] = data.pop("draws")
    refused(json.dumps(data), "manifest.json has the unknown key 'drawz'; did you mean 'draws'?")
    del data["drawz"]
    refused(json.dumps(data), f"manifest.json lacks 'draws'{EXPORT}")
    text = changed(qqqq=1)
    refused(text, "manifest.json has the unknown key 'qqqq'; upgrade vae-anomaly or export the bundle again")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", 7, "text"),
        ("draws", "8", "a whole number"),
        ("draws", True, "a whole number"),
        ("draws", 8.0, "a whole number"),
        ("draws", -1, "0 or more"),
        ("latent_size", 0, "1 or more"),
        ("format_version", True, "a whole number"),
        ("format_version", 1.0, "a whole number"),
        ("false_alarm_rate", "0.05", "a number"),
        ("false_alarm_rate", 1, "a number above 0 and below 1"),
        ("false_alarm_rate", 0.0, "a number above 0 and below 1"),
        ("scores", "recon", "a list of texts"),
        ("scores", [1], "a list of texts"),
        ("warnings", None, "a list of texts"),
        ("likelihood", [], "an object"),
        ("kind", "gan", "vae or autoencoder"),
        ("files", ["score.onnx"], "an object"),
        ("files", {"score.onnx": 1}, "an object"),
        ("schema", None, "an image or a table"),
        ("schema", {"kind": "audio"}, "an image or a table"),
    ],
)
def test_types_and_ranges_are_checked(key: str, value: object, expected: str) -> None:
    refused(changed(**{key: value}), f"manifest.json: {key} is {value!r}, expected {expected}{EXPORT}")


@pytest.mark.parametrize("scores", [(), ("recon", "recon")], ids=["none", "twice"])
def test_scores_are_some_and_none_twice(scores: tuple[str, ...]) -> None:
    text = changed(scores=scores)
    refused(text, f"manifest.json: scores is {scores!r}, expected one or more, none twice{EXPORT}")


@pytest.mark.parametrize(
    "digest", ["", "0a", "0A" * 32, "0a" * 32 + "\n"], ids=["empty", "short", "upper", "line"]
)
def test_a_hash_has_64_digits(digest: str) -> None:
    with pytest.raises(BundleError, match=r"^manifest.json: the sha256 of score.onnx is .*, expected 64 hex"):
        Manifest.from_json(changed(files={"score.onnx": digest}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed_schema(height="8"), "schema.height is '8', expected a whole number"),
        (changed_schema(low=None), "schema.low is None, expected a number"),
        (changed_schema(TABLE, named=1), "schema.named is 1, expected true or false"),
        (changed_column(name=5), "schema.name is 5, expected text"),
        (changed_column(high="9"), "schema.high is '9', expected a number or null"),
        (changed_schema(TABLE, columns=[]), "schema.columns is (), expected one or more, none twice"),
        (
            changed_schema(TABLE, columns=[{"name": "a"}, {"name": "a"}]),
            "schema.columns is ('a', 'a'), expected one or more, none twice",
        ),
        (changed(schema={"kind": "table"}), "schema cannot be read: 'columns'"),
        (
            changed_column(colour="red"),
            "schema cannot be read: Column.__init__() got an unexpected keyword argument 'colour'",
        ),
    ],
    ids=["text-size", "no-range", "flag", "name", "bound", "no-columns", "repeats", "no-key", "stranger"],
)
def test_the_schema_is_checked_too(text: str, message: str) -> None:
    refused(text, f"manifest.json: {message}{EXPORT}")


@pytest.mark.parametrize("change", [{"width": 0}, {"dtype": "float64"}, {"low": 1.0}], ids=str)
def test_an_image_schema_must_make_sense(change: dict[str, object]) -> None:
    expected = "expected sizes of 1 or more, low below high, dtype uint8 or float32; export the bundle again$"
    with pytest.raises(BundleError, match=rf"^manifest.json: schema is .*, {expected}"):
        Manifest.from_json(changed_schema(IMAGES, **change))


def test_a_message_stays_short_whatever_the_manifest_holds() -> None:
    for text in (changed(kind="x" * 10**6), changed(**{"x" * 10**6: 1}), changed_column(**{"x" * 10**6: 1})):
        with pytest.raises(BundleError) as caught:
            Manifest.from_json(text)
        assert len(str(caught.value)) < 400
