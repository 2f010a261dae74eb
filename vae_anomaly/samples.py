"""What a caller holds, as plain arrays: samples and their mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly.columns import object_numbers
from vae_anomaly.exceptions import SchemaError

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

NAMED_AT_MOST = 5


class Samples(NamedTuple):
    """Raw values in the model's dtype, and where they are present.

    Attributes
    ----------
    values : ndarray, shape (B, C, H, W) or (B, D)
        uint8 or float32 for images, float64 for tables. NaN only where not observed.
    observed : bool ndarray, of the same shape
        True where a value is present.
    """

    values: Array
    observed: Mask


def array_of(x: Any, what: str) -> Array:
    """An array of whatever is rectangular, pandas' missing objects in it as NaN.

    Raises
    ------
    SchemaError
        For ragged rows and masked arrays.
    """
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise SchemaError(
            f"{what} are a masked array, whose mask would be lost; pass x.astype(float).filled(numpy.nan), "
            "or to a bundle x.data with observed=~x.mask"
        )
    try:
        found = np.asarray(x)
    except ValueError as error:
        raise SchemaError(f"{what} are ragged; give every row the same length") from error
    return np.where(pd.isna(found), np.nan, found) if found.dtype == object else found


def numbers_of(values: Array, what: str) -> Array:
    """Native byte order, bool and object columns of numbers as numbers; text and complex refused."""
    if values.dtype.kind == "O":
        values = object_numbers(values, what)
    if values.dtype.kind not in "biuf":
        raise SchemaError(f"{what} have dtype {values.dtype}; expected numbers")
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def mask_of(observed: Any) -> Mask:
    """A mask of booleans, or of 0 and 1."""
    mask = array_of(observed, "cells of observed")
    if mask.dtype.kind != "b" and not np.isin(mask, (0, 1)).all():
        raise SchemaError(f"observed has dtype {mask.dtype}; expected True where a value is present")
    return mask.astype(np.bool_)


def refuse_infinite(values: Array, what: str, names: Sequence[str] = ()) -> None:
    """Raise `SchemaError` that names the first rows with infinite values, and by ``names`` the columns."""
    infinite = np.isinf(values)
    if infinite.any():
        rows = np.unique(np.nonzero(infinite)[0])[:NAMED_AT_MOST].tolist()
        columns = [names[i] for i in np.flatnonzero(infinite.any(axis=0))[:NAMED_AT_MOST]] if names else []
        among = f" of columns {columns}" if columns else ""
        raise SchemaError(f"infinite values in {what} {rows}{among}; use NaN for a missing value")
