"""Puts imputed values beside the caller's own: observed cells are never touched."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from vae_anomaly.columns import Column, plain, without_arrow
from vae_anomaly.schema import Array, ImageSchema, Mask, Schema, TableSchema

# Kinds of columns whose values are whole numbers.
WHOLE = ("integer", "binary")
# Whole numbers up to here are floats too; not all beyond are.
EXACT = 2**53


def fill(schema: Schema, x: Any, observed: Mask, imputed: Array) -> Any:
    """The caller's samples with the missing cells replaced.

    Parameters
    ----------
    schema : Schema
    x : DataFrame or array-like
        As the caller gave it.
    observed : bool ndarray, shape (n, *sample shape)
        In model order.
    imputed : ndarray, shape (n, *sample shape)
        In model order, raw units.

    Returns
    -------
    DataFrame or ndarray
        Of the shape, column order and index of ``x``. Observed cells are bit-identical; the dtype
        is kept where it can hold the filled values: images of a uint8 model stay uint8, rounded;
        so do integers and booleans whose columns are such to the model, where ``observed`` says the gaps;
        decimals stay decimals, Arrow's with the digits of their type; other integers with gaps become
        float64, but stay integers, their gaps rounded, where observed ones are beyond 2^53 and would change.
        Categories come by name, in a column of numbers as the numbers that they are written as,
        where all are; but as codes in an array of numbers.
    """
    if isinstance(x, pd.DataFrame):
        flat = (len(observed), schema.elements)
        return _fill_frame(schema, x, observed.reshape(flat), imputed.reshape(flat))
    filled = np.array(x)
    if isinstance(schema, TableSchema) and schema.has_categories and filled.dtype.kind == "O":
        return np.where(observed, filled, schema.frame(imputed).astype(object).to_numpy())
    if observed.all() and filled.dtype.kind != "O":
        return filled
    pixels = isinstance(schema, ImageSchema) and schema.dtype == "uint8" and filled.dtype == np.uint8
    whole = isinstance(schema, TableSchema) and all(column.kind in WHOLE for column in schema.columns)
    kept = pixels or (
        filled.dtype.kind in "biu"
        and (whole or _beyond_floats(filled[observed.reshape(filled.shape)], filled.dtype))
    )
    if filled.dtype.kind != "f" and not kept:
        filled = filled.astype(np.float64)
    values = imputed if filled.dtype.kind == "f" else cast_array(imputed, filled.dtype)
    missing = ~observed.reshape(filled.shape)
    filled[missing] = values.reshape(filled.shape)[missing]
    return filled


def cast_array(imputed: Array, dtype: np.dtype[np.generic]) -> Array:
    """Floats in another dtype: integers rounded and held to their range, booleans by a half."""
    if dtype.kind == "b":
        return np.asarray(imputed >= 0.5)
    if dtype.kind not in "iu":
        return imputed.astype(dtype)
    low, high = _limits(dtype)
    return np.clip(np.rint(imputed), low, high).astype(dtype)


def numbers_of_names(column: Column, dtype: np.dtype[np.generic]) -> Array | None:
    """The number that each category is written as, "4" as 4; None where the dtype cannot hold them all."""
    words = pd.Series([str(category) for category in column.categories])
    numbers = pd.to_numeric(words, errors="coerce").fillna(0).to_numpy(np.float64)
    held = cast_array(numbers, dtype)
    return held if np.array_equal(column.read(pd.Series(held))[0], column.numbers) else None


def cast_decimals(imputed: Array, kind: pa.DataType) -> pa.Array:
    """Floats as decimals of a type of Arrow, held to its range."""
    # Beyond the precision a cast would give zero; of many digits a float's own last one counts.
    end = 10.0 ** (kind.precision - kind.scale)
    most = float(min(end - 10.0**-kind.scale, np.nextafter(end, 0)))
    return pa.array(np.clip(imputed, -most, most)).cast(kind, safe=False)


def _beyond_floats(values: Any, dtype: np.dtype[np.generic]) -> bool:
    """Whether integers are too large for float64 to hold each of them."""
    return dtype.kind in "iu" and values.size > 0 and not -EXACT <= values.min() <= values.max() <= EXACT


def _limits(dtype: np.dtype[np.generic]) -> tuple[float, float]:
    """Ends of an integer dtype as floats that convert back inside it."""
    info = np.iinfo(np.dtype(dtype.str))
    high = float(info.max)
    return float(info.min), high if int(high) <= info.max else float(np.nextafter(high, 0))


def _fill_frame(schema: Schema, x: pd.DataFrame, observed: Mask, imputed: Array) -> pd.DataFrame:
    names = [str(name) for name in x.columns]
    model_names = schema.names if not isinstance(schema, ImageSchema) else tuple(names)
    by_name = set(model_names) == set(names)
    filled = {}
    for place, name in enumerate(names):
        model_place = model_names.index(name) if by_name else place
        column = schema.columns[model_place] if isinstance(schema, TableSchema) else None
        own, values = observed[:, model_place], imputed[:, model_place]
        filled[place] = _fill_column(x.iloc[:, place], own, values, column)
    frame = pd.DataFrame(filled, index=x.index)
    frame.columns = x.columns
    return frame


def _fill_column(
    cells: pd.Series[Any], observed: Array, imputed: Array, column: Column | None
) -> pd.Series[Any]:
    whole = column is not None and column.kind in WHOLE
    # Objects take the dtype of the column whether or not one of them is missing.
    if observed.all() and not (whole and cells.dtype == object):
        return cells
    # A column without any value is of floats in pandas, whatever belongs there.
    numeric = pd.api.types.is_numeric_dtype(cells.dtype) and bool(cells.notna().any())
    if column is not None and column.categories:
        # What stands in observed cells has no meaning, and need not be a category.
        named = column.label(np.where(observed, np.nan, imputed)).set_axis(cells.index)
        if numeric and column.named:
            return _fill_numbered(cells, observed, imputed, column, named)
        if not (numeric and pd.api.types.is_float_dtype(cells.dtype)):
            filled = _fill_categories(without_arrow(cells), observed, named)
            return filled.astype(cells.dtype) if isinstance(cells.dtype, pd.ArrowDtype) else filled
    values = pd.Series(imputed, index=cells.index)
    if pd.api.types.is_float_dtype(cells.dtype):
        return cells.where(observed, values.astype(cells.dtype))
    if (decimals := _as_decimals(cells, imputed)) is not None:
        return cells.where(observed, decimals)
    plain_dtype: Any = getattr(cells.dtype, "numpy_dtype", cells.dtype)
    if plain_dtype.kind in "biu" and (whole or _beyond_floats(cells[observed], plain_dtype)):
        rounded = pd.Series(cast_array(imputed, plain_dtype), cells.index)
        return cells.where(observed, rounded.astype(cells.dtype))
    if column is not None and whole and cells.dtype == object and not np.any(imputed % 1):
        return _fill_objects(cells, observed, imputed, column)
    # As objects, because no other dtype takes a number in place of each kind of null.
    return cells.astype(object).where(observed, 0).astype("float64").where(observed, imputed)


def _fill_numbered(
    cells: pd.Series[Any], observed: Array, imputed: Array, column: Column, named: pd.Series[Any]
) -> pd.Series[Any]:
    """Names in a column of numbers: as numbers, or where some are none as names among objects."""
    dtype: Any = cells.dtype
    numbers = numbers_of_names(column, getattr(dtype, "numpy_dtype", dtype))
    if numbers is None:
        return cells.astype(object).where(observed, named.astype(object))
    codes = np.where(observed, 0, imputed).astype(np.int64)
    return cells.where(observed, pd.Series(numbers[codes], cells.index).astype(dtype))


def _as_decimals(cells: pd.Series[Any], imputed: Array) -> pd.Series[Any] | None:
    """The imputed values as the decimals that the cells are, Arrow's or Python's; None if they are none."""
    if isinstance(cells.dtype, pd.ArrowDtype) and pa.types.is_decimal(cells.dtype.pyarrow_dtype):
        own = cast_decimals(imputed, cells.dtype.pyarrow_dtype)
        return pd.Series(pd.arrays.ArrowExtensionArray(own), cells.index)
    if cells.dtype == object and pd.api.types.infer_dtype(cells) == "decimal":
        return pd.Series([Decimal(str(value)) for value in imputed.tolist()], cells.index, object)
    return None


def _fill_objects(cells: pd.Series[Any], observed: Array, imputed: Array, column: Column) -> pd.Series[Any]:
    """Whole numbers or booleans among objects, in the training dtype where every cell fits it."""
    own: Any = np.dtype(np.bool_ if column.truths else np.int64)
    filled = cells.where(observed, pd.Series(cast_array(imputed, own).tolist(), cells.index, object))
    if column.dtype == "object":
        return filled
    numeric = pd.api.types.is_numeric_dtype(column.dtype)
    dtype: Any = pd.api.types.pandas_dtype(column.dtype) if numeric else own
    numbers = filled.to_numpy(np.float64)
    fits = np.array_equal(cast_array(numbers, getattr(dtype, "numpy_dtype", dtype)), numbers)
    return filled.astype(dtype) if fits else filled


def _fill_categories(cells: pd.Series[Any], observed: Array, named: pd.Series[Any]) -> pd.Series[Any]:
    if isinstance(cells.dtype, pd.CategoricalDtype):
        own = {plain(category): category for category in cells.dtype.categories}
        named = named.astype(object).map(lambda category: own.get(category, category), na_action="ignore")
        strange = [name for name in named.dropna().unique() if name not in set(cells.dtype.categories)]
        return cells.cat.add_categories(strange).where(observed, named)
    if pd.api.types.is_extension_array_dtype(cells.dtype):
        return cells.where(observed, named.astype(object).astype(cells.dtype))
    return cells.astype(object).where(observed, named.astype(object))
