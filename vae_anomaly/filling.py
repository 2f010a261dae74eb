"""Puts imputed values beside the caller's own: observed cells are never touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from vae_anomaly.schema import Array, ImageSchema, Mask, Schema


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
        other integers with gaps become float64.
    """
    if isinstance(x, pd.DataFrame):
        flat = (len(observed), schema.elements)
        return _fill_frame(schema, x, observed.reshape(flat), imputed.reshape(flat))
    filled = np.array(x)
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
        filled[place] = _fill_column(x.iloc[:, place], observed[:, model_place], imputed[:, model_place])
    frame = pd.DataFrame(filled, index=x.index)
    frame.columns = x.columns
    return frame


def _fill_column(column: pd.Series[Any], observed: Array, imputed: Array) -> pd.Series[Any]:
    if observed.all():
        return column
    if pd.api.types.is_float_dtype(column.dtype):
        return column.where(observed, pd.Series(imputed, index=column.index).astype(column.dtype))
    # As objects, because no other dtype takes a number in place of each kind of null.
    values = column.astype(object).where(observed, 0).astype("float64")
    return values.where(observed, imputed)
