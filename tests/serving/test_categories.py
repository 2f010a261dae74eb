"""Categories in files: text and dictionaries come in as the model's numbers and go out by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.filling import fill_table, filled_schema
from serving.formats import ReadOptions, open_source
from serving.tables import TableSource, to_model
from vae_anomaly.columns import Column
from vae_anomaly.exceptions import DataError, SchemaError
from vae_anomaly.schema import TableSchema

SIZES = ("s", "m", "l")
SCHEMA = TableSchema(
    (
        Column("x"),
        Column("city", "categorical", 0.0, 1.0, "str", ("lima", "rome")),
        Column("ok", "binary", 0.0, 1.0, "bool"),
        Column("size", "ordinal", 0.0, 2.0, "category", SIZES),
        Column("grade", "ordinal", 3.0, 9.0, "int64", (3, 7, 9)),
    )
)
FRAME = pd.DataFrame(
    {
        "x": [0.5, 1.5, np.nan, 2.5],
        "city": ["rome", None, "bonn", "lima"],
        "ok": pd.array([True, None, False, True], dtype="boolean"),
        "size": pd.Categorical(["m", "l", None, "s"], categories=SIZES, ordered=True),
        "grade": pd.array([9, 3, 4, None], dtype="Int64"),
    }
)
NAN = np.nan
VALUES = [[0.5, 1, 1, 1, 9], [1.5, NAN, NAN, 2, 3], [NAN, NAN, 0, NAN, NAN], [2.5, 0, 1, 0, NAN]]
UNSEEN = [[False] * 5, [False] * 5, [False, True, False, False, True], [False] * 5]


def write(path: Path) -> Path:
    if path.suffix == ".csv":
        FRAME.to_csv(path, index=False)
    else:
        FRAME.to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_categories_are_read_as_the_model_takes_them(tmp_path: Path, name: str) -> None:
    chunk = next(iter(open_source(write(tmp_path / name), SCHEMA).chunks()))
    np.testing.assert_array_equal(chunk.values, VALUES)
    assert chunk.unseen is not None
    assert chunk.unseen.tolist() == UNSEEN


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_strict_stops_at_the_first_unseen_category(tmp_path: Path, name: str) -> None:
    source = open_source(write(tmp_path / name), SCHEMA, ReadOptions(strict=True))
    message = "row 2: column 'city' holds a category that was not in training; strict stops at the first"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        next(iter(source.chunks()))


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_filled_categories_have_their_names_and_their_order(tmp_path: Path, name: str) -> None:
    source = open_source(write(tmp_path / name), SCHEMA, everything=True)
    assert isinstance(source, TableSource)
    chunk = next(iter(source.chunks()))
    assert chunk.table is not None
    assert chunk.unseen is not None
    own = chunk.observed | chunk.unseen
    imputed = np.tile([9.0, 1.0, 0.0, 1.0, 7.0], (4, 1))
    filled = fill_table(chunk.table, source.roles.features, source.known, imputed, own)
    assert filled.schema.equals(filled_schema(source.columns, source.roles.features, source.known, False))
    rows = filled.to_pydict()
    assert rows["x"] == [0.5, 1.5, 9.0, 2.5]
    assert rows["city"] == ["rome", "rome", "bonn", "lima"]
    assert rows["size"] == ["m", "l", "m", "s"]
    assert rows["grade"] == [9, 3, 4, 7]
    truths = [True, False, False, True]
    assert rows["ok"] == (truths if name.endswith("parquet") else [str(truth) for truth in truths])
    if pa.types.is_dictionary(filled["size"].type):
        assert filled["size"].chunk(0).dictionary.to_pylist() == list(SIZES)


DIGITS = TableSchema((Column("x"), Column("zip", "categorical", 0.0, 2.0, "str", ("1", "10", "2"))))
BIG = TableSchema((Column("zip", "categorical", 0.0, 1.0, "str", ("9007199254740993", "9007199254740995")),))


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int64(), pa.int8(), pa.string()], ids=str)
def test_numbers_in_a_column_of_names_are_read_and_filled_by_name(tmp_path: Path, kind: pa.DataType) -> None:
    cells = pa.array(["1", "10", None, "4"]).cast(kind)
    pq.write_table(pa.table({"x": [0.5] * 4, "zip": cells}), tmp_path / "rows.parquet")
    source = open_source(tmp_path / "rows.parquet", DIGITS, everything=True)
    assert isinstance(source, TableSource)
    chunk = next(iter(source.chunks()))
    np.testing.assert_array_equal(chunk.values[:, 1], [0, 1, NAN, NAN])
    assert chunk.unseen is not None
    assert chunk.unseen[:, 1].tolist() == [False, False, False, True]
    own = chunk.observed | chunk.unseen
    filled = fill_table(chunk.table, source.roles.features, source.known, np.full((4, 2), 2.0), own)
    assert filled["zip"].type == kind
    assert filled["zip"].cast(pa.string()).to_pylist() == ["1", "10", "2", "4"]
    assert filled.schema.equals(filled_schema(source.columns, source.roles.features, source.known, False))


def test_whole_numbers_beside_a_gap_keep_their_digits() -> None:
    cells = pa.chunked_array([pa.array([9007199254740993, None, 9007199254740995])])
    values, unseen = to_model(cells, BIG.columns[0])
    np.testing.assert_array_equal(values, [0, NAN, 1])
    assert not unseen.any()


@pytest.mark.parametrize(
    ("kind", "categories", "strange"),
    [
        (pa.float64(), ("lima", "rome"), "lima"),
        (pa.int8(), ("1", "300"), "300"),
        (pa.float64(), ("1", "007"), "007"),
        (pa.int64(), ("1", "2.5"), "2.5"),
    ],
    ids=["words", "too-large", "zeros", "half"],
)
def test_a_type_that_cannot_hold_the_names_is_refused(
    kind: pa.DataType, categories: tuple[str, ...], strange: str
) -> None:
    column = Column("zip", "categorical", 0.0, 1.0, "str", categories)
    message = (
        f"column 'zip' has type {kind}, which cannot hold its category {strange!r}; "
        "convert the column to text"
    )
    with pytest.raises(SchemaError, match=f"^{re.escape(message)}$"):
        filled_schema(pa.schema([("zip", kind)]), ("zip",), (column,), False)
