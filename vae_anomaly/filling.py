"""Puts imputed values beside the caller's own: observed cells are never touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from vae_anomaly.columns import Column, plain
from vae_anomaly.schema import Array, ImageSchema, Mask, Schema, TableSchema


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
        other integers with gaps become float64. Categories come by name, but as codes in an array of
        numbers.
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
    if filled.dtype.kind != "f" and not pixels:
        filled = filled.astype(np.float64)
    values = np.rint(imputed) if pixels else imputed
    missing = ~observed.reshape(filled.shape)
    filled[missing] = values.reshape(filled.shape)[missing]
    return filled


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
    if observed.all():
        return cells
    # Categories as numbers, where the caller has them so, are what the model gives.
    coded = pd.api.types.is_float_dtype(cells.dtype) and bool(cells.notna().any())
    if column is not None and column.categories and not coded:
        # What stands in observed cells has no meaning, and need not be a category.
        named = column.label(np.where(observed, np.nan, imputed))
        return _fill_categories(cells, observed, named.set_axis(cells.index))
    values = pd.Series(imputed, index=cells.index)
    if pd.api.types.is_float_dtype(cells.dtype):
        return cells.where(observed, values.astype(cells.dtype))
    if column is not None and column.kind in ("integer", "binary"):
        if pd.api.types.is_extension_array_dtype(cells.dtype):
            return cells.where(observed, values.astype(cells.dtype))
        if cells.dtype == object:
            kind = bool if any(isinstance(cell, bool | np.bool_) for cell in cells) else int
            return cells.where(observed, pd.Series([kind(value) for value in imputed], cells.index, object))
    # As objects, because no other dtype takes a number in place of each kind of null.
    return cells.astype(object).where(observed, 0).astype("float64").where(observed, imputed)


def _fill_categories(cells: pd.Series[Any], observed: Array, named: pd.Series[Any]) -> pd.Series[Any]:
    if isinstance(cells.dtype, pd.CategoricalDtype):
        own = {plain(category): category for category in cells.dtype.categories}
        named = named.astype(object).map(lambda category: own.get(category, category), na_action="ignore")
        strange = [name for name in named.dropna().unique() if name not in set(cells.dtype.categories)]
        return cells.cat.add_categories(strange).where(observed, named)
    if pd.api.types.is_extension_array_dtype(cells.dtype):
        return cells.where(observed, named.astype(object).astype(cells.dtype))
    return cells.astype(object).where(observed, named.astype(object))
