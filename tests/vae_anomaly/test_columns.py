"""Kinds of columns: what they are taken for, how cells become numbers, and how numbers are named again."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from vae_anomaly.columns import Column, bounded, infer_column, plain
from vae_anomaly.exceptions import ConfigError, SchemaError
from vae_anomaly.schema import TableSchema, infer_schema, schema_from_dict

NAN = np.nan
TWO_NUMBERS = "give a lower and an upper number, None for no bound"
CITY = Column("city", "categorical", 0.0, 2.0, "category", ("lima", "oslo", "rome"))
SIZE = Column("size", "ordinal", 0.0, 2.0, "category", ("s", "m", "l"))
ZIP = Column("zip", "categorical", 0.0, 2.0, "str", ("1", "10", "2"))
GRADE = Column("grade", "ordinal", 3.0, 9.0, "int64", (3, 7, 9))


def category(values: list[Any], order: list[Any], ordered: bool) -> pd.Series[Any]:
    return pd.Series(pd.Categorical(values, categories=order, ordered=ordered))


def arrow_dictionary(values: list[str | None]) -> pd.Series[Any]:
    return pd.Series(values, dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())))


@pytest.mark.parametrize(
    ("cells", "kind", "categories", "ends"),
    [
        (pd.Series([0.5, 1.0, NAN]), "real", (), (None, None)),
        (pd.Series([3.0, 1.0, 2.0]), "real", (), (None, None)),
        (pd.Series([3.0, NAN, 2.0]), "integer", (), (0.0, None)),
        (pd.Series([0.0, NAN, 1.0]), "integer", (), (0.0, 1.0)),
        (pd.Series([3, -1]), "integer", (), (None, None)),
        (pd.Series([3, 0], dtype="Int64"), "integer", (), (0.0, None)),
        (pd.Series([0, 1, 1]), "integer", (), (0.0, 1.0)),
        (pd.Series([0, 1, None], dtype=object), "integer", (), (0.0, 1.0)),
        (pd.Series([True, True]), "binary", (), (None, None)),
        (pd.Series([True, None, False], dtype="boolean"), "binary", (), (None, None)),
        (pd.Series([True, None, False], dtype=object), "binary", (), (None, None)),
        (pd.Series([True, None], dtype="bool[pyarrow]"), "binary", (), (None, None)),
        (arrow_dictionary(["m", None, "s", "m"]), "categorical", ("m", "s"), (None, None)),
        (pd.Series(["b", "a", "b", "a", None]), "categorical", ("a", "b"), (None, None)),
        (pd.Series(["b", "a", "b", "a", None], dtype=object), "categorical", ("a", "b"), (None, None)),
        (category(["m", "s", None], ["s", "m", "l"], True), "ordinal", ("s", "m"), (None, None)),
        (category([7, 3, 7], [9, 7, 3], False), "categorical", (7, 3), (None, None)),
    ],
    ids=[
        "float", "whole-float", "whole-with-gaps", "flags-with-gaps", "int", "nullable", "flags",
        "flag-objects", "bool", "boolean", "bool-objects", "arrow-bool", "arrow-dictionary",
        "text", "objects", "ordered", "numbers",
    ],
)  # fmt: skip
def test_kind_follows_from_dtype_and_values(
    cells: pd.Series[Any], kind: str, categories: tuple[Any, ...], ends: tuple[Any, Any]
) -> None:
    column = infer_column(cells, "c")
    assert (column.kind, column.categories, (column.lower, column.upper)) == (kind, categories, ends)


def test_the_columns_of_a_bare_array_are_real_unless_told() -> None:
    x = [[0.0, 3.0, 1.5], [1.0, 7.0, NAN], [1.0, 3.0, 2.5]]
    kinds = [column.kind for column in infer_schema(x).columns]  # type: ignore[union-attr]
    assert kinds == ["real", "real", "real"]
    told = infer_schema(x, {0: "binary", "x1": [7, 3]})
    assert isinstance(told, TableSchema)
    assert [column.kind for column in told.columns] == ["binary", "ordinal", "real"]
    assert told.columns[1].categories == (7, 3)
    assert told.read(x).values.tolist()[0] == [0.0, 3.0, 1.5]


@pytest.mark.parametrize(
    ("cells", "kind", "error", "message"),
    [
        (["a", "b", "c"], None, SchemaError,
         "column 'c' is text with 3 different values in 3 cells, names rather than categories; leave it out, "
         "group its values, or say by kinds what it is"),
        (["1", " 2.5", None, "-3e2"], None, SchemaError,
         "column 'c' is text with 3 different values in 3 cells, all of them numbers; convert it with "
         "pandas.to_numeric or leave it out"),
        (["a", "b", "b"], "ordinal", SchemaError,
         "column 'c' is text without an order; give its categories in order by kinds, or make it an ordered "
         "pandas category"),
        (["a", "b", "b"], ["a", "d"], SchemaError,
         "column 'c' holds 'b', which its categories leave out; add it"),
        (["a", "b", "c"], "binary", SchemaError,
         "column 'c' has 3 categories; a binary one has at most 2: group the rare ones, or leave it out"),
        ([1.0, 2.0, 3.0], "binary", SchemaError, "column 'c' has 3 values; a binary one has 2"),
        ([1.0, 0.0], "positive", SchemaError, "column 'c' holds 0; a positive one is above 0"),
        ([1.0, 2.5], "integer", SchemaError, "column 'c' holds 2.5; expected whole numbers"),
        (list(range(101)), "categorical", SchemaError,
         "column 'c' has 101 categories; a categorical one has at most 100: group the rare ones, or leave it "
         "out"),
        ([1.0], "ordnal", ConfigError, "kind of column 'c' is 'ordnal'; did you mean 'ordinal'?"),
        (pd.to_datetime(["2020-01-01"]).astype("M8[s]"), None, SchemaError,
         "column 'c' has dtype datetime64[s]; expected numbers: convert it or leave it out"),
    ],
    ids=["names", "numbers", "no-order", "left-out", "three-names", "three", "zero", "half", "many", "typo",
         "dates"],
)  # fmt: skip
def test_cells_that_do_not_go_with_a_kind_are_refused(
    cells: Any, kind: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        infer_column(pd.Series(cells), "c", kind)


@pytest.mark.parametrize(
    ("column", "cells", "values", "unseen"),
    [
        (CITY, ["rome", None, "lima", "bonn"], [2.0, NAN, 0.0, NAN], [False, False, False, True]),
        (CITY, pd.Categorical(["oslo", "bonn", None]), [1.0, NAN, NAN], [False, True, False]),
        (CITY, [2.0, NAN, 3.0, 0.5], [NAN] * 4, [True, False, True, True]),
        (ZIP, ["10", None, "2", "4"], [1.0, NAN, 2.0, NAN], [False, False, False, True]),
        (ZIP, [10.0, NAN, 2.0, 4.0, 0.5], [1.0, NAN, 2.0, NAN, NAN], [False, False, False, True, True]),
        (ZIP, [10, 2, 1, 0], [1.0, 2.0, 0.0, NAN], [False, False, False, True]),
        (ZIP, pd.array([10, None], dtype="Int64"), [1.0, NAN], [False, False]),
        (ZIP, np.array([10.0, 2, "1", None], dtype=object), [1.0, 2.0, 0.0, NAN], [False] * 4),
        (Column("v", "categorical", 0.0, 1.0, "str", ("1", "1.0")), [1.0, NAN], [1.0, NAN], [False, False]),
        (GRADE, [9, 3, 4], [9.0, 3.0, NAN], [False, False, True]),
        (GRADE, pd.Categorical([9, 3, None]), [9.0, 3.0, NAN], [False, False, False]),
        (Column("ok", "binary", 1.0, 2.0), [1.0, 2.0, 0.0, NAN], [1.0, 2.0, NAN, NAN],
         [False, False, True, False]),
        (Column("sex", "binary", 0.0, 1.0, "str", ("f", "m")), ["m", "f", "?"], [1.0, 0.0, NAN],
         [False, False, True]),
        (Column("n", "integer", 0.0, 1.0), [5.0, NAN], [5.0, NAN], [False, False]),
        (Column("ok", "binary", 0.0, 1.0), pd.array([True, None], dtype="bool[pyarrow]"), [1.0, NAN],
         [False, False]),
        (CITY, arrow_dictionary(["rome", None, "bonn"]), [2.0, NAN, NAN], [False, False, True]),
    ],
    ids=["names", "category", "no-codes", "digits", "floats", "ints", "nullable", "objects", "point-zero",
         "numbers", "number-category", "two-numbers", "two-names",
         "integer", "arrow-bool", "arrow-dictionary"],
)  # fmt: skip
def test_cells_are_read_as_the_model_takes_them(
    column: Column, cells: Any, values: list[float], unseen: list[bool]
) -> None:
    read, strange = column.read(pd.Series(cells))
    np.testing.assert_array_equal(read, values)
    assert strange.tolist() == unseen


def test_floats_are_names_in_a_frame_and_codes_in_a_bare_array() -> None:
    schema, cells = TableSchema((ZIP, Column("x"))), np.array([[1.0, 0.5], [10.0, 1.5], [NAN, 2.5]])
    frame = pd.DataFrame(cells, columns=["zip", "x"])
    np.testing.assert_array_equal(schema.read(frame).values[:, 0], [0.0, 1.0, NAN])
    np.testing.assert_array_equal(schema.read(cells).values[:, 0], [1.0, NAN, NAN])
    assert (schema.unseen(frame).sum(), schema.unseen(cells).tolist()[1]) == (0, [True, False])
    np.testing.assert_array_equal(schema.own_numbers(frame)[:, 0], [0.0, 1.0, NAN])
    np.testing.assert_array_equal(schema.own_numbers(cells)[:, 0], [1.0, 10.0, NAN])


@pytest.mark.parametrize(
    ("column", "values", "names", "dtype"),
    [
        (CITY, [2.0, 0.0, NAN], ["rome", "lima", NAN], "category"),
        (SIZE, [1.0, 2.0], ["m", "l"], "category"),
        (GRADE, [9.0, 3.0], [9, 3], "object"),
        (Column("n", "integer", 0.0, 5.0, "int32"), [5.0, 2.0], [5, 2], "int64"),
        (Column("ok", "binary", 0.0, 1.0, "bool"), [1.0, 0.0], [True, False], "bool"),
        (Column("x"), [0.5, NAN], [0.5, NAN], "float64"),
    ],
    ids=["category", "ordered", "numbers", "integer", "bool", "real"],
)
def test_numbers_are_named_as_the_training_data_had_them(
    column: Column, values: list[float], names: list[Any], dtype: str
) -> None:
    labelled = column.label(np.array(values))
    assert labelled.dtype == dtype
    pd.testing.assert_series_equal(labelled.astype(object), pd.Series(names, dtype=object, name=column.name))


def test_an_unseen_category_is_missing_or_refused_when_strict() -> None:
    schema = TableSchema((Column("x"), CITY))
    rows = pd.DataFrame({"x": [1.0, 2.0], "city": ["rome", "bonn"]})
    assert schema.read(rows).observed.tolist() == [[True, True], [True, False]]
    assert schema.unseen(rows).tolist() == [[False, False], [False, True]]
    assert not schema.unseen(rows, [[True, True], [True, False]]).any()
    message = (
        "column 'city' has a category in row 1 that was not in training; it had lima, oslo, rome: "
        "mend the cell, or leave strict out to call it missing"
    )
    with pytest.raises(SchemaError, match=f"^{re.escape(message)}$"):
        schema.read(rows, strict=True)


def test_a_mixed_schema_survives_its_dictionary_and_names_its_numbers() -> None:
    schema = TableSchema((Column("x", lower=0.0), CITY, GRADE))
    assert schema_from_dict(schema.to_dict()) == schema
    assert (schema.elements, schema.features, schema.mixed) == (3, 7, True)
    frame = schema.frame(np.array([[0.5, 1.0, 7.0]]), pd.Index(["a"]))
    assert frame.to_dict("index") == {"a": {"x": 0.5, "city": "oslo", "grade": 7}}


def test_a_real_column_writes_no_more_than_it_did_before_there_were_kinds() -> None:
    assert set(Column("x").to_dict()) == {"name", "kind", "low", "high", "dtype"}


@pytest.mark.parametrize(
    ("column", "bounds", "message"),
    [
        (CITY, (0, 1), "column 'city' is categorical; only numbers have bounds"),
        (Column("x", low=-1.0, high=2.0), (0, None),
         "bounds of column 'x' are 0.0 to None, its training values run from -1 to 2; widen the bounds or "
         "mend the data"),
        (Column("x"), (0,), f"bounds of column 'x' are (0,); {TWO_NUMBERS}"),
        (Column("x"), (NAN, 20), f"bounds of column 'x' are (nan, 20); {TWO_NUMBERS}"),
        (Column("x"), "0-20", f"bounds of column 'x' are '0-20'; {TWO_NUMBERS}"),
        (Column("x"), "02", f"bounds of column 'x' are '02'; {TWO_NUMBERS}"),
        (Column("x"), ("0", 20), f"bounds of column 'x' are ('0', 20); {TWO_NUMBERS}"),
        (Column("x", low=3.0, high=4.0), (20, 0),
         "bounds of column 'x' are 20.0 to 0.0, the upper one first; swap them"),
        (Column("n", "integer", low=1.0, high=1.0), (0.2, 0.8),
         "bounds of column 'n' are 0.2 to 0.8 with no whole number between them; widen the bounds"),
    ],
    ids=["category", "outside", "one", "nan", "text", "two-letters", "number-text", "reversed", "no-whole"],
)  # fmt: skip
def test_bounds_that_do_not_fit_are_refused(column: Column, bounds: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        bounded(column, bounds)


def test_a_number_and_its_name_are_one_category_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    cells = pd.Series([1, "1", "b", 1, "b", "1"], dtype=object)
    column = infer_column(cells, "zip")
    assert column.categories == ("1", "b")
    assert column.read(cells)[0].tolist() == [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert caplog.messages == [
        "column 'zip' holds '1' both as text and as a number or truth; they are one category"
    ]
    assert infer_column(pd.Series([1, "b", 1, "b"], dtype=object), "zip").categories == (1, "b")
    assert len(caplog.messages) == 1


def test_bounds_of_an_integer_column_are_rounded_inward() -> None:
    column = bounded(Column("n", "integer", 1.0, 10.0, lower=0.0), (0.5, 10.5))
    assert (column.lower, column.upper) == (1.0, 10.0)
    assert bounded(Column("n", "integer", 0.0, 1.0, lower=0.0, upper=1.0), (-np.inf, 5)).upper == 5.0


def test_kinds_of_unknown_columns_and_of_images_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^kinds or bounds name an unknown column 'citty'; did you mean 'city'\?$"
    ):
        infer_schema(pd.DataFrame({"city": [1.0]}), {"citty": "categorical"})
    with pytest.raises(ConfigError, match=r"^kinds and bounds are of the columns of a table, and got images"):
        infer_schema(np.zeros((2, 8, 8)), {0: "binary"})


def test_a_category_is_kept_as_json_has_it() -> None:
    found = [plain(v) for v in (np.int64(3), np.float64(0.5), np.bool_(True), "a", pd.Interval(0, 1))]
    assert found == [3, 0.5, True, "a", "(0, 1]"]
