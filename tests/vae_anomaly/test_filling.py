"""Observed cells are the caller's own, to the bit."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest

from vae_anomaly.filling import fill
from vae_anomaly.schema import Column, ImageSchema, TableSchema

ABC = TableSchema((Column("a"), Column("b"), Column("c")))
BARE = TableSchema(ABC.columns, named=False)
GREY = ImageSchema(1, 8, 9)
FLOAT = ImageSchema(1, 8, 9, "float32", 0.0, 1.0)
NAN = float("nan")
# Zero of either sign, the smallest and largest numbers, one with all its digits, one with none.
ODD = np.array(
    [[-0.0, 5e-324, NAN], [1.7976931348623157e308, NAN, 0.1 + 0.2], [NAN, -1e-310, 4503599627370497.5]]
)
SEEN = ~np.isnan(ODD)
FILLING = np.arange(10.0, 19.0).reshape(3, 3)


def bits(values: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)


def test_observed_cells_keep_their_bits_and_gaps_take_the_filling() -> None:
    filled = fill(BARE, ODD, SEEN, FILLING)
    assert np.array_equal(bits(filled)[SEEN], bits(ODD)[SEEN])
    assert filled[~SEEN].tolist() == [12.0, 14.0, 16.0]
    assert np.isnan(ODD[0, 2]), "the caller's array is not written to"


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64", ">f8", "longdouble"])
def test_float_arrays_keep_their_dtype(dtype: str) -> None:
    x = np.array([[1.5, NAN, -2.0]], dtype)
    filled = fill(BARE, x, ~np.isnan(x), FILLING[:1])
    assert filled.dtype == np.dtype(dtype)
    assert filled.tolist() == [[1.5, 11.0, -2.0]]
    assert filled[:, [0, 2]].tobytes() == x[:, [0, 2]].tobytes()


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16", "bool", "object"])
def test_other_arrays_with_gaps_become_float64(dtype: str) -> None:
    x = np.array([[1, 0, 1]]).astype(dtype)
    filled = fill(BARE, x, np.array([[True, False, True]]), FILLING[:1] + 0.25)
    assert filled.dtype == np.float64
    assert filled.tolist() == [[1.0, 11.25, 1.0]]


COUNTS = TableSchema((Column("n", "integer"), Column("ok", "binary", 0.0, 1.0), Column("m", "integer")))


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16", "bool"])
def test_whole_numbers_stay_where_the_columns_are_whole(dtype: str) -> None:
    x, observed = np.array([[1, 0, 1]]).astype(dtype), np.array([[True, False, True]])
    filled = fill(COUNTS, x, observed, np.array([[5.0, 1.0, 7.0]]))
    assert filled.dtype == np.dtype(dtype)
    assert filled.tolist() == [[1, 1, 1]]


def test_observed_integers_keep_digits_that_a_float_has_not() -> None:
    large = 2**53 + 1
    observed = np.array([[True, True, False], [False, True, True]])
    filling = np.array([[3.0, 1.0, 4.0], [5.0, 0.0, 6.0]])
    x = np.array([[large, 1, 0], [0, 0, large]])
    assert fill(COUNTS, x, observed, filling).tolist() == [[large, 1, 4], [5, 0, large]]
    frame = pd.DataFrame({"n": x[:, 0], "ok": [True, False], "m": x[:, 2]})
    filled = fill(COUNTS, frame, observed, filling)
    assert filled.dtypes.tolist() == frame.dtypes.tolist()
    assert filled["n"].tolist() == [large, 5]
    assert filled["m"].tolist() == [4, large]


@pytest.mark.parametrize("dtype", ["int64", "Int64", "int64[pyarrow]", "uint64"])
def test_integers_beyond_floats_stay_integers_whatever_their_column_is(dtype: str) -> None:
    large = 1_700_000_000_000_000_001
    observed = np.array([[True, True, False], [False, True, True]])
    frame = pd.DataFrame({"a": [large, 7], "b": [1, 2], "c": [3, 2**53]}).astype(dtype)
    filled = fill(ABC, frame, observed, FILLING[:2] + 0.75)
    assert filled["a"].tolist() == [large, 14]
    assert filled["a"].dtype == frame["a"].dtype
    assert filled["c"].dtype == np.float64
    bare = fill(BARE, frame.to_numpy(np.int64), observed, FILLING[:2] + 0.75)
    assert bare.tolist() == [[large, 1, 13], [14, 2, 2**53]]


@pytest.mark.parametrize("dtype", ["int64", "uint16", "bool"])
def test_without_gaps_a_dtype_is_kept(dtype: str) -> None:
    x = np.array([[1, 0, 1]]).astype(dtype)
    assert fill(BARE, x, np.ones((1, 3), bool), FILLING[:1]).dtype == x.dtype


def test_lists_come_back_as_arrays() -> None:
    filled = fill(BARE, [[1.0, None, 3]], np.array([[True, False, True]]), FILLING[:1])
    assert filled.dtype == np.float64
    assert filled.tolist() == [[1.0, 11.0, 3.0]]


@pytest.mark.parametrize("shape", [(2, 1, 8, 9), (2, 8, 9), (2, 72)], ids=str)
def test_uint8_images_are_rounded_and_keep_their_shape(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    observed = np.random.default_rng(1).random((2, 1, 8, 9)) < 0.5
    imputed = np.random.default_rng(2).uniform(0, 255, (2, 1, 8, 9)).astype(np.float32)
    imputed[~observed][:2] = [254.6, 0.4]
    filled = fill(GREY, x, observed, imputed)
    mask = observed.reshape(shape)
    assert (filled.dtype, filled.shape) == (np.uint8, shape)
    assert np.array_equal(filled[mask], x[mask])
    assert np.array_equal(filled[~mask], np.rint(imputed.reshape(shape)[~mask]))


def test_uint8_input_of_a_float_model_is_not_rounded() -> None:
    """A model of pixels in 0..1 has nothing to round to."""
    x, observed = np.ones((1, 8, 9), np.uint8), np.ones((1, 1, 8, 9), bool)
    observed[0, 0, 0, 0] = False
    filled = fill(FLOAT, x, observed, np.full((1, 1, 8, 9), 0.25, np.float32))
    assert filled.dtype == np.float64
    assert filled[0, 0, :2].tolist() == [0.25, 1.0]


def test_a_frame_keeps_index_column_order_and_dtypes() -> None:
    columns = {
        "c": np.array([1.5, NAN], np.float32),
        "a": [7, 8],
        "b": pd.array([None, 3], dtype="Int64"),
    }
    frame = pd.DataFrame(columns, index=pd.Index(["p", "q"], name="who"))
    observed = np.array([[True, False, True], [True, True, False]])
    filled = fill(ABC, frame, observed, FILLING[:2])
    expected = pd.DataFrame(
        {"c": np.array([1.5, 15.0], np.float32), "a": [7, 8], "b": [11.0, 3.0]}, index=frame.index
    )
    pd.testing.assert_frame_equal(filled, expected)
    assert np.isnan(frame.loc["q", "c"])


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        (pd.array([1.5, None, 3.0], dtype="Float64"), "Float64"),
        (pd.array([1.5, None, 3.0], dtype="Float32"), "Float32"),
        (pd.array([1, None, 3], dtype="Int64"), "float64"),
        (pd.array([1, None, 3], dtype="UInt8"), "float64"),
        (pd.array([True, None, False], dtype="boolean"), "float64"),
        (np.array([1, None, 3], dtype=object), "float64"),
        (np.array([1, pd.NA, 3], dtype=object), "float64"),
        (pd.array([1.5, None, 3.0], dtype="float64[pyarrow]"), "double[pyarrow]"),
        (pd.array([1, None, 3], dtype="int64[pyarrow]"), "float64"),
    ],
    ids=str,
)
def test_every_kind_of_column_is_filled(column: object, dtype: str) -> None:
    schema = TableSchema((Column("a"),))
    frame = pd.DataFrame({"a": column}, index=[5, 5, 6])
    values, observed = schema.read(frame)
    filled = fill(schema, frame, observed, np.array([[10.0], [11.0], [12.0]]))
    assert str(filled["a"].dtype) == dtype
    assert filled["a"].astype("float64").tolist() == [values[0, 0], 11.0, values[2, 0]]
    assert filled.index.tolist() == [5, 5, 6]


def test_integer_column_names_and_unnamed_models() -> None:
    frame = pd.DataFrame([[1.0, NAN, 3.0]], columns=[10, 20, 30])
    filled = fill(BARE, frame, np.array([[True, False, True]]), FILLING[:1])
    assert filled.columns.tolist() == [10, 20, 30]
    assert filled.to_numpy().tolist() == [[1.0, 11.0, 3.0]]


def test_a_frame_of_pixels_is_filled_in_place() -> None:
    frame = pd.DataFrame(np.zeros((2, 72), np.float32))
    observed = np.ones((2, 1, 8, 9), bool)
    observed[1, 0, 7, 8] = False
    imputed = np.arange(144, dtype=np.float32).reshape(2, 1, 8, 9)
    filled = fill(FLOAT, frame, observed, imputed)
    assert filled.to_numpy().sum() == 143.0
    assert filled.iloc[1, 71] == 143.0


@pytest.mark.parametrize("x", [np.empty((0, 3)), pd.DataFrame(columns=list("abc"), dtype=float)])
def test_no_rows(x: object) -> None:
    filled = fill(ABC, x, np.empty((0, 3), bool), np.empty((0, 3)))
    assert filled.shape == (0, 3)
    assert type(filled) is type(x)


WHOLE = Column("a", "integer", 0.0, 250.0, "int64")
TRUTH = Column("a", "binary", 0.0, 1.0, "bool")


@pytest.mark.parametrize(
    ("column", "cells", "imputed", "expected"),
    [
        (WHOLE, pd.array([250, None], dtype="UInt8"), 266.0, pd.array([250, 255], dtype="UInt8")),
        (WHOLE, pd.array([1, None], dtype="Int8"), -266.0, pd.array([1, -128], dtype="Int8")),
        (WHOLE, pd.array([1, None], dtype="uint8[pyarrow]"), 266.0, pd.array([1, 255], "uint8[pyarrow]")),
        (TRUTH, np.array([True, None], dtype=object), 1.0, np.array([True, True])),
        (TRUTH, np.array([None], dtype=object), 1.0, np.array([True])),
        (TRUTH, np.array([False], dtype=object), 1.0, np.array([False])),
        (TRUTH, np.array([5, None], dtype=object), 1.0, np.array([5, True], dtype=object)),
        (TRUTH, pd.array([True, None], dtype="bool[pyarrow]"), 0.0, pd.array([True, False], "bool[pyarrow]")),
        (WHOLE, np.array([3, None], dtype=object), 4.0, np.array([3, 4])),
        (WHOLE, np.array([None], dtype=object), 4.0, np.array([4])),
        (WHOLE, np.array([2.5, None], dtype=object), 4.0, np.array([2.5, 4], dtype=object)),
        (Column("a", "binary", 0.5, 1.5), np.array([0.5, None], dtype=object), 1.5, np.array([0.5, 1.5])),
        (Column("a", "integer", dtype="object"), np.array([None], dtype=object), 4.0,
         np.array([4], dtype=object)),
        (Column("a", "integer", dtype="Int16"), np.array([None], dtype=object), 4.0,
         pd.array([4], dtype="Int16")),
    ],
    ids=[
        "uint8", "int8", "arrow-uint8", "truths", "one-truth", "no-gap", "unseen", "arrow-truths", "whole",
        "one-whole", "half", "two-halves", "objects", "nullable",
    ],
)  # fmt: skip
def test_filled_cells_keep_to_the_columns_dtype(
    column: Column, cells: Any, imputed: float, expected: Any
) -> None:
    frame = pd.DataFrame({"a": cells})
    filled = fill(TableSchema((column,)), frame, frame.notna().to_numpy(), np.full((len(frame), 1), imputed))
    pd.testing.assert_frame_equal(filled, pd.DataFrame({"a": expected}))


ZIP = Column("zip", "categorical", 0.0, 2.0, "str", ("1", "10", "300"))


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [
        (ZIP, [10.0, NAN], [10.0, 300.0]),
        (ZIP, np.array([10.0, NAN], np.float32), np.array([10.0, 300.0], np.float32)),
        (ZIP, pd.array([4, None], dtype="Int64"), pd.array([4, 300], dtype="Int64")),
        (ZIP, pd.array([10, None], dtype="int16[pyarrow]"), pd.array([10, 300], dtype="int16[pyarrow]")),
        # 300 is none of int8.
        (ZIP, pd.array([10, None], dtype="Int8"), pd.Series([10, "300"], dtype=object)),
        (replace(ZIP, categories=("1", "10", "n/a")), [10.0, NAN], pd.Series([10.0, "n/a"], dtype=object)),
        (replace(ZIP, categories=("1", "10", "007")), [10.0, NAN], pd.Series([10.0, "007"], dtype=object)),
        (ZIP, ["10", None], ["10", "300"]),
        (ZIP, [NAN, NAN], pd.Series([NAN, "300"], dtype=object)),
    ],
    ids=["float", "float32", "Int64", "arrow", "int8", "word", "zeros", "text", "blank"],
)
def test_names_fill_a_column_of_numbers_as_the_numbers_they_are(
    column: Column, cells: Any, expected: Any
) -> None:
    frame, observed = pd.DataFrame({"zip": cells}), np.array([[True], [False]])
    filled = fill(TableSchema((column,)), frame, observed, np.array([[NAN], [2.0]]))
    pd.testing.assert_frame_equal(filled, pd.DataFrame({"zip": expected}))
    assert TableSchema((column,)).read(filled).values[1, 0] == 2.0


MONEY = [Decimal("1.10"), None, Decimal("-3.00")]


@pytest.mark.parametrize(
    ("dtype", "imputed", "expected"),
    [
        (pd.ArrowDtype(pa.decimal128(10, 2)), 60.754, "60.75"),
        (pd.ArrowDtype(pa.decimal256(4, 2)), -1e6, "-99.99"),
        ("object", 60.754, "60.754"),
    ],
    ids=["arrow", "beyond its digits", "objects"],
)
@pytest.mark.parametrize("kind", ["real", "integer"])
def test_decimals_stay_decimals(kind: str, dtype: Any, imputed: float, expected: str) -> None:
    frame = pd.DataFrame({"a": pd.Series(MONEY, dtype=dtype)})
    schema = TableSchema((Column("a", kind),))
    filled = fill(schema, frame, frame.notna().to_numpy(), np.full((3, 1), imputed))
    assert filled["a"].dtype == dtype
    assert [str(cell) for cell in filled["a"]] == ["1.10", expected, "-3.00"]


def test_a_dictionary_of_arrow_is_filled_by_name() -> None:
    kind = pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))
    city = Column("city", "categorical", 0.0, 1.0, "category", ("lima", "rome"))
    frame = pd.DataFrame({"city": pd.Series(["bonn", None], dtype=kind)})
    filled = fill(TableSchema((city,)), frame, np.array([[True], [False]]), np.ones((2, 1)))
    assert filled["city"].dtype == kind
    assert filled["city"].tolist() == ["bonn", "rome"]
