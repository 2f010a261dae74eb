"""What callers hold becomes what the model knows, or a sentence that says what to do."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vae_anomaly.exceptions import SchemaError
from vae_anomaly.schema import Column, ImageSchema, Schema, TableSchema, infer_schema, schema_from_dict

GREY = ImageSchema(1, 8, 9)
FLOAT = ImageSchema(1, 8, 9, "float32", 0.0, 1.0)
RGB = ImageSchema(3, 8, 9)
WEATHER = TableSchema((Column("temperature"), Column("pressure")))
BARE = TableSchema((Column("x0"), Column("x1")), named=False)


def refused(schema: Schema, x: Any, message: str, observed: Any = None) -> None:
    with pytest.raises(SchemaError, match=f"^{re.escape(message)}$"):
        schema.read(x, observed)


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


@pytest.mark.parametrize("shape", [(2, 1, 8, 9), (2, 8, 9), (2, 72)], ids=str)
def test_images_come_in_three_shapes(shape: tuple[int, ...]) -> None:
    x = np.arange(144, dtype=np.uint8).reshape(shape)
    values, observed = GREY.read(x)
    assert values.shape == observed.shape == (2, 1, 8, 9)
    assert values.ravel().tolist() == list(range(144))
    assert observed.all()


@pytest.mark.parametrize(
    ("schema", "shape", "message"),
    [
        (RGB, (2, 8, 9, 3), "images have shape (2, 8, 9, 3), channels last; expected (B, 3, 8, 9); "
         "move the channels with x.transpose(0, 3, 1, 2)"),
        (RGB, (2, 4, 8, 9), "images have shape (2, 4, 8, 9); expected (B, 3, 8, 9)"),
        (RGB, (3, 8, 9), "got one image of shape (3, 8, 9); expected a batch (B, 3, 8, 9); pass x[None]"),
        (GREY, (8, 9), "got one image of shape (8, 9); expected a batch (B, 1, 8, 9); pass x[None]"),
        (GREY, (2, 9, 8), "images have shape (2, 9, 8); expected (B, 1, 8, 9)"),
        (GREY, (), "images have shape (); expected (B, 1, 8, 9)"),
    ],
    ids=["channels-last", "four-channels", "one-rgb", "one-grey", "turned", "scalar"],
)  # fmt: skip
def test_other_shapes_name_expected_and_received(
    schema: ImageSchema, shape: tuple[int, ...], message: str
) -> None:
    refused(schema, np.zeros(shape, np.uint8), message)


@pytest.mark.parametrize("dtype", ["int64", ">i2", "float32", ">f8", "float16", object], ids=str)
def test_safe_casts_to_uint8_keep_the_values(dtype: Any) -> None:
    x = (np.arange(72).reshape(1, 8, 9) % 2).astype(dtype)
    values, observed = GREY.read(x)
    assert values.dtype == np.uint8
    assert observed.all()
    np.testing.assert_array_equal(values.ravel(), np.arange(72) % 2)


@pytest.mark.parametrize("dtype", ["bool", "float64", ">f4", "float16"])
def test_safe_casts_to_float32_keep_the_values(dtype: str) -> None:
    values, _ = FLOAT.read((np.arange(72).reshape(1, 8, 9) % 2).astype(dtype))
    assert values.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(values.ravel(), np.arange(72) % 2)


def test_missing_pixels_are_those_that_are_nan_or_not_observed() -> None:
    x = np.full((1, 1, 8, 9), 7.0)
    x[0, 0, 0, 0] = np.nan
    mask = np.ones((1, 8, 9), bool)
    mask[0, 7, 8] = False
    values, observed = GREY.read(x, mask)
    assert values.dtype == np.uint8
    expected = np.ones((8, 9), bool)
    expected[0, 0] = expected[7, 8] = False
    np.testing.assert_array_equal(observed[0, 0], expected)
    np.testing.assert_array_equal(values[observed], 7)


def test_one_mask_hides_all_channels() -> None:
    mask = np.ones((2, 8, 9), int)
    mask[1, 3, 4] = 0
    _, observed = RGB.read(np.zeros((2, 3, 8, 9), np.uint8), mask)
    assert np.argwhere(~observed).tolist() == [[1, 0, 3, 4], [1, 1, 3, 4], [1, 2, 3, 4]]
    _, flat = RGB.read(np.zeros((2, 3, 8, 9), np.uint8), observed.reshape(2, -1))
    np.testing.assert_array_equal(flat, observed)


ONE = np.full((1, 8, 9), 100, np.uint8)
INFINITE = np.where(np.eye(8, 9) > 0, np.inf, 0.5)


@pytest.mark.parametrize(
    ("schema", "x", "message"),
    [
        (GREY, ONE + 0.5, "pixels are not whole numbers, the model was trained on uint8; round them first"),
        (GREY, ONE / 255, "pixels run from 0.392157 to 0.392157, the model was trained on 0 to 255; "
         "rescale them to the trained range"),
        (GREY, ONE.astype(np.uint16) * 300,
         "pixels run from 30000 to 30000, the model was trained on 0 to 255; "
         "rescale them to the trained range"),
        (FLOAT, ONE, "pixels run from 100 to 100, the model was trained on 0 to 1; "
         "rescale them to the trained range"),
        (FLOAT, ONE * 1.0, "pixels run from 100 to 100, the model was trained on 0 to 1; "
         "rescale them to the trained range"),
        (FLOAT, np.stack([ONE[0] / 255, INFINITE, INFINITE]),
         "infinite values in image [1, 2]; use NaN for a missing value"),
        (GREY, ONE + 1j, "pixels have dtype complex128; expected numbers"),
        (GREY, ONE.astype(str), "pixels have dtype <U3; expected numbers"),
        (GREY, [[1, 2], [3]], "pixels are ragged; give every row the same length"),
    ],
    ids=["fractions", "0-to-1", "16-bit", "bytes-for-floats", "0-to-255", "inf", "complex", "text", "ragged"],
)  # fmt: skip
def test_pixels_in_other_units_are_refused(schema: ImageSchema, x: Any, message: str) -> None:
    refused(schema, x, message)


DARK = np.where(np.arange(720).reshape(10, 8, 9) % 9 == 4, 40 + np.arange(720).reshape(10, 8, 9) % 200, 0)
SYMMETRIC = ImageSchema(1, 8, 9, "float32", -1.0, 1.0)
LEVELS = ImageSchema(1, 8, 9, "float32", 0.0, 16.0)


@pytest.mark.parametrize("rows", [slice(None), slice(3, 4)], ids=["batch", "one"])
@pytest.mark.parametrize(
    ("schema", "dtype", "trained"),
    [
        (FLOAT, "uint8", "0 to 1"),
        (FLOAT, "float32", "0 to 1"),
        (SYMMETRIC, "uint8", "-1 to 1"),
        (SYMMETRIC, "int64", "-1 to 1"),
        (LEVELS, "uint8", "0 to 16"),
        (GREY, "uint16", "0 to 255"),
    ],
    ids=["bytes", "floats", "symmetric", "whole", "levels", "16-bit"],
)
def test_dark_pixels_in_other_units_are_refused(
    schema: ImageSchema, dtype: str, trained: str, rows: slice
) -> None:
    x = (DARK * (256 if schema is GREY else 1)).astype(dtype)[rows]
    refused(schema, x, f"pixels run from 0 to {x.max():g}, the model was trained on {trained}; rescale them "
            "to the trained range")  # fmt: skip


def test_bytes_beyond_0_to_1_are_other_units_however_few() -> None:
    x = np.zeros((1, 8, 9), np.uint8)
    assert FLOAT.read(x + 1).observed.all()
    x[0, 0, 0] = 2
    refused(FLOAT, x, "pixels run from 0 to 2, the model was trained on 0 to 1; rescale them to the trained "
            "range")  # fmt: skip
    assert LEVELS.read(x).values.max() == 2


def test_a_dark_row_with_strays_is_read_alone_as_in_a_batch() -> None:
    x = DARK / 255
    x[3], x[3, 0, 0] = 0.0, 9.0
    for rows in (slice(None), slice(3, 4)):
        np.testing.assert_array_equal(FLOAT.read(x[rows]).values[:, 0], x[rows].astype(np.float32))


def test_booleans_are_not_levels() -> None:
    x = np.eye(8, 9, dtype=bool)[None]
    refused(
        GREY, x, "pixels are booleans, the model was trained on 0 to 255; rescale them to the trained range"
    )
    refused(
        LEVELS, x, "pixels are booleans, the model was trained on 0 to 16; rescale them to the trained range"
    )
    assert FLOAT.read(x).values.sum() == 8
    assert GREY.read(x.astype(np.uint8)).values.sum() == 8


def test_hidden_pixels_have_no_say_about_units() -> None:
    x = np.full((1, 8, 9), 0.5)
    x[0, :6] = 200.0
    refused(FLOAT, x, "pixels run from 0.5 to 200, the model was trained on 0 to 1; "
            "rescale them to the trained range")  # fmt: skip
    values, observed = FLOAT.read(x, x < 1)
    assert observed.sum() == 18
    assert (values[observed] == 0.5).all()


def test_a_finite_pixel_far_outside_stays_finite() -> None:
    x = np.full((1, 8, 9), 0.5)
    x[0, 0, 0] = 1e300
    assert FLOAT.read(x).values[0, 0, 0, 0] == np.finfo(np.float32).max
    x = np.zeros((1, 8, 9))
    x[0, 0, 0] = 1e300
    assert GREY.read(x).values[0, 0, 0, 0] == 255


@pytest.mark.parametrize(
    ("schema", "x", "observed", "message"),
    [
        (GREY, ONE, np.ones((1, 8, 8), bool),
         "observed has shape (1, 8, 8); expected (1, 1, 8, 9), as the images"),
        (GREY, ONE, np.full((1, 8, 9), 0.5),
         "observed has dtype float64; expected True where a value is present"),
        (WEATHER, [[1.0, 2.0]], [[True]], "observed has shape (1, 1); expected (1, 2), as the rows"),
        (WEATHER, [[1.0, 2.0]], [[np.nan, 1.0]],
         "observed has dtype float64; expected True where a value is present"),
        (WEATHER, [[1.0, 2.0]] * 2, [[True], [True, False]],
         "cells of observed are ragged; give every row the same length"),
    ],
    ids=["shape", "share", "columns", "values-for-mask", "ragged"],
)  # fmt: skip
def test_a_mask_that_does_not_fit_is_refused(schema: Schema, x: Any, observed: Any, message: str) -> None:
    refused(schema, x, message, observed)


@pytest.mark.parametrize(
    "x",
    [
        [[20.0, 1000.0], [None, 990.0]],
        np.array([[20, 1000], [np.nan, 990]], dtype=">f4"),
        np.array([[20, 1000], [None, 990]], dtype=object),
        frame(pressure=[1000, 990], temperature=[20, None]),
        frame(pressure=["drop"] * 2, temperature=[20, None]).assign(pressure=[1000, 990]),
        frame(
            temperature=pd.array([20, None], dtype="Int64"), pressure=pd.array([1000, 990], dtype="Float32")
        ),
        frame(temperature=[20, None], pressure=[1000, 990]).astype(object),
    ],
    ids=["lists", "big-endian", "object", "reordered", "assigned", "nullable", "object-frame"],
)
def test_rows_are_read_as_float64_by_name(x: Any) -> None:
    values, observed = WEATHER.read(x)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, [[20, 1000], [np.nan, 990]])
    np.testing.assert_array_equal(observed, [[True, True], [False, True]])


def test_the_mask_follows_the_order_of_the_callers_columns() -> None:
    rows = frame(pressure=[1000.0], temperature=[20.0])
    _, observed = WEATHER.read(rows, [[False, True]])
    assert observed.tolist() == [[True, False]]


def test_a_frame_of_what_is_observed_goes_by_name() -> None:
    mask = frame(temperature=[True, False], pressure=[True, True])
    rows = frame(pressure=[1000.0, 990.0], temperature=[20.0, 10.0])
    for x in (rows, [[20.0, 1000.0], [10.0, 990.0]]):
        assert WEATHER.read(x, mask).observed.tolist() == [[True, True], [False, True]]
        assert WEATHER.read(x, mask[["pressure", "temperature"]]).observed.tolist()[1] == [False, True]
    # The rows' own names, which the model does not know.
    named = frame(b=[1.0], a=[2.0])
    assert BARE.read(named, frame(a=[False], b=[True])).observed.tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        (frame(temperature=[True], presure=[True]),
         "observed has a column 'presure' that the rows do not have; give it their names, or pass "
         "observed.to_numpy() in their order"),
        (pd.DataFrame([[True, False]]),
         "observed has a column '0' that the rows do not have; give it their names, or pass "
         "observed.to_numpy() in their order"),
        (frame(temperature=[True]),
         "observed has 1 columns and the rows 2; give each of their names once, or pass "
         "observed.to_numpy() in their order"),
    ],
    ids=["typo", "numbers", "absent"],
)  # fmt: skip
def test_a_frame_of_what_is_observed_with_other_names_is_refused(
    observed: pd.DataFrame, message: str
) -> None:
    refused(WEATHER, frame(temperature=[20.0], pressure=[1000.0]), message, observed)
    refused(WEATHER, [[20.0, 1000.0]], message, observed)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["temprature", "pressure"], "unknown column 'temprature'; did you mean 'temperature'?"),
        (["temperature", "pressure", "q9"], "unknown column 'q9'; known: temperature, pressure"),
        (["temperature", "pressure", "q9", "q8"],
         "unknown column 'q9'; known: temperature, pressure (also unknown: 'q8')"),
        (["pressure"],
         "missing columns ['temperature']; to leave a value out, keep the column and set it to NaN"),
        (["pressure", "temperature", "pressure"],
         "column 'pressure' appears more than once; drop the repeats"),
    ],
    ids=["typo", "stranger", "strangers", "absent", "repeated"],
)  # fmt: skip
def test_names_that_do_not_fit_are_named(names: list[str], message: str) -> None:
    refused(WEATHER, pd.DataFrame(np.zeros((1, len(names))), columns=names), message)


def test_five_names_are_enough() -> None:
    wide = TableSchema(tuple(Column(f"c{i}") for i in range(8)))
    refused(wide, frame(c7=[1.0]), "missing columns ['c0', 'c1', 'c2', 'c3', 'c4'] and 2 more; "
            "to leave a value out, keep the column and set it to NaN")  # fmt: skip
    refused(wide, frame(zz=[1.0]), "unknown column 'zz'; known: c0, c1, c2, c3, c4, ...")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0, 2.0, 3.0]], "rows have shape (1, 3); expected (B, 2)"),
        ([1.0, 2.0], "rows have shape (2,); expected (B, 2)"),
        ([[1.0, 2.0], [3.0]], "cells are ragged; give every row the same length"),
        ([["1", "2"]], "cells have dtype <U1; expected numbers"),
        ([[None, "2"]], "cells hold str values; expected numbers: leave them out"),
        ([[10**400, 1]], "cells have dtype object and do not convert to numbers"),
        (frame(temperature=[[1, 2]], pressure=[1.0]),
         "column 'temperature': cells hold list values; expected numbers: leave them out"),
        ([[1.0, np.inf], [1.0, 2.0], [-np.inf, 1.0]],
         "infinite values in row [0, 2] of columns ['temperature', 'pressure']; use NaN for a missing value"),
        (frame(temperature=["a"], pressure=[1.0]),
         "column 'temperature' has dtype str; expected numbers: convert it or leave it out"),
        (frame(temperature=[1j], pressure=[1.0]),
         "column 'temperature' has dtype complex128; expected numbers: convert it or leave it out"),
        (frame(temperature=pd.Series(["a"], dtype=object), pressure=[1.0]),
         "column 'temperature': cells hold str values; expected numbers: leave them out"),
        (frame(temperature=pd.to_datetime(["2020-01-01"]), pressure=[1.0]).astype({"temperature": "M8[s]"}),
         "column 'temperature' has dtype datetime64[s]; expected numbers: convert it or leave it out"),
    ],
    ids=["wide", "one-row", "ragged", "text", "mixed", "huge", "lists", "inf", "str", "complex", "object",
         "dates"],
)  # fmt: skip
def test_cells_that_are_no_numbers_are_refused(x: Any, message: str) -> None:
    refused(WEATHER, x, message)


def test_a_model_of_a_bare_array_reads_any_names_by_place() -> None:
    rows = frame(b=[1.0], a=[2.0])
    assert BARE.read(rows).values.tolist() == [[1.0, 2.0]]
    assert BARE.read(frame(x1=[1.0], x0=[2.0])).values.tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize(
    ("schema", "x", "shape"),
    [
        (WEATHER, np.zeros((0, 2)), (0, 2)),
        (WEATHER, frame(temperature=[], pressure=[]), (0, 2)),
        (GREY, np.zeros((0, 8, 9), np.uint8), (0, 1, 8, 9)),
        (FLOAT, np.zeros((0, 72)), (0, 1, 8, 9)),
    ],
    ids=["rows", "frame", "grey", "float"],
)
def test_no_rows_are_a_batch_too(schema: Schema, x: Any, shape: tuple[int, ...]) -> None:
    values, observed = schema.read(x)
    assert values.shape == observed.shape == shape


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.zeros((2, 8, 9), np.uint8), GREY),
        (np.full((2, 3, 8, 9), 255, np.uint8), RGB),
        (np.arange(144, dtype=np.int64).reshape(2, 8, 9) % 17, ImageSchema(1, 8, 9, "float32", 0.0, 16.0)),
        (np.arange(144, dtype=np.int16).reshape(2, 8, 9) - 9, ImageSchema(1, 8, 9, "float32", -9.0, 134.0)),
        (np.zeros((2, 8, 9), np.int64), FLOAT),
        (np.zeros((2, 8, 9), bool), FLOAT),
        (np.linspace(0.2, 0.9, 144).reshape(2, 8, 9), FLOAT),
        (np.linspace(-1, 3, 144).reshape(2, 8, 9), ImageSchema(1, 8, 9, "float32", -1.0, 3.0)),
        (np.full((2, 8, 9), 5.0), ImageSchema(1, 8, 9, "float32", 5.0, 6.0)),
        (np.full((2, 8, 9), np.nan), FLOAT),
        ([[1.0, np.nan], [3.0, np.nan]],
         TableSchema((Column("x0", "real", 1.0, 3.0), Column("x1")), named=False)),
        (frame(n=[1, 2], ok=[True, False]),
         TableSchema((Column("n", "integer", 1.0, 2.0, "int64", lower=0.0),
                      Column("ok", "binary", 0.0, 1.0, "bool")))),
    ],
    ids=["uint8", "colour", "int64", "int16", "dark", "bool", "unit-range", "range", "constant",
         "all-missing", "array", "frame"],
)  # fmt: skip
def test_the_schema_follows_from_the_data(x: Any, expected: Schema) -> None:
    assert infer_schema(x) == expected


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3), "data has shape (3,); expected a table (B, D) or images (B, H, W) or (B, C, H, W)"),
        (np.zeros((2, 32, 32, 3)), "images have shape (2, 32, 32, 3), channels last; "
         "move them with x.transpose(0, 3, 1, 2)"),
        (np.zeros((2, 7, 9)), "images are 7x9; both sides must be at least 8 pixels"),
        (INFINITE[None], "infinite values in image [0]; use NaN for a missing value"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "column 'a' appears more than once; drop the repeats"),
        ([[1.0], [2.0, 3.0]], "cells are ragged; give every row the same length"),
    ],
    ids=["vector", "channels-last", "small", "inf", "repeated", "ragged"],
)  # fmt: skip
def test_data_without_a_schema_is_refused(x: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=f"^{re.escape(message)}$"):
        infer_schema(x)


@pytest.mark.parametrize("schema", [GREY, FLOAT, RGB, WEATHER, BARE], ids=repr)
def test_a_schema_survives_its_dictionary(schema: Schema) -> None:
    assert schema_from_dict(schema.to_dict()) == schema


def test_sizes_by_hand() -> None:
    assert (RGB.shape, RGB.elements) == ((3, 8, 9), 216)
    assert (WEATHER.shape, WEATHER.elements, WEATHER.names) == ((2,), 2, ("temperature", "pressure"))


def test_a_masked_array_is_refused_where_it_hides_something() -> None:
    values = np.ma.masked_array(np.ones((3, 2)), mask=False)
    schema = infer_schema(values)
    values[1, 1] = np.ma.masked
    sentence = (
        "cells are a masked array, whose mask would be lost; pass x.astype(float).filled(numpy.nan), "
        "or to a bundle x.data with observed=~x.mask"
    )
    for ask in (infer_schema, schema.read):
        with pytest.raises(SchemaError, match=f"^{re.escape(sentence)}$"):
            ask(values)
