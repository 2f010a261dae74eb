"""Imputation errors: hide cells that are known, fill them by several means, compare on the same cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.impute import KNNImputer

from pipelines.report.metrics import Array, Bools, Floats
from vae_anomaly import masks
from vae_anomaly.schema import ImageSchema, Samples, Schema

MCAR_SHARE = 0.3

# (values, observed) -> values of the same shape with every hidden cell filled.
Imputer = Callable[[Array, Bools], Array]


@dataclass(frozen=True)
class Errors:
    """Errors on the hidden cells.

    Attributes
    ----------
    cells : int
        How many were hidden.
    rmse, mae : float or None
        In raw units; for tables they mix the units of the columns. None when no cell was hidden.
    nrmse, nmae : float or None
        The same after dividing each cell by its scale: the range of the pixels, or the
        standard deviation of the column over training rows. Mean fill of a column has nrmse near 1.
    psnr : float or None
        -20 log10(nrmse) in decibels, for images only.
    """

    cells: int
    rmse: float | None
    mae: float | None
    nrmse: float | None
    nmae: float | None
    psnr: float | None


def errors(truth: Array, filled: Array, hidden: Bools, scale: Array | float, image: bool) -> Errors:
    """Compare ``filled`` with ``truth`` on the cells where ``hidden`` is True.

    Parameters
    ----------
    truth, filled : ndarray, shape (B, ...)
    hidden : bool ndarray, of the same shape
    scale : float or ndarray
        Broadcasts against ``truth``; positive.
    image : bool
        Whether a peak signal-to-noise ratio makes sense.
    """
    cells = int(hidden.sum())
    if not cells:
        return Errors(0, None, None, None, None, None)
    raw = (np.asarray(filled, np.float64) - np.asarray(truth, np.float64))[hidden]
    scaled = raw / np.broadcast_to(np.asarray(scale, np.float64), truth.shape)[hidden]
    rmse, nrmse = (float(np.sqrt(np.mean(part**2))) for part in (raw, scaled))
    mae, nmae = (float(np.mean(np.abs(part))) for part in (raw, scaled))
    psnr = -20 * float(np.log10(nrmse)) if image and nrmse > 0 else None
    return Errors(cells, rmse, mae, nrmse, nmae, psnr)


def hidden_patterns(schema: Schema, observed: Bools, seed: int) -> dict[str, Bools]:
    """What to hide, by name: True = was observed and gets hidden, shape as ``observed``.

    Always 30 % of the observed cells completely at random; for images also one block of half
    the height and width per image, and the lower half.
    """
    shape = observed.shape
    visible = {"random": masks.mcar(shape, MCAR_SHARE, seed)}
    if isinstance(schema, ImageSchema):
        visible["block"] = masks.block(shape, (schema.height // 2, schema.width // 2), seed)
        visible["lower half"] = masks.half(shape, "bottom")
    return {name: observed & ~seen for name, seen in visible.items()}


def scales(schema: Schema, train: Samples) -> Floats:
    """What one unit of error is worth per element, shape (1, 1, 1) or (D,)."""
    if isinstance(schema, ImageSchema):
        return np.full((1, 1, 1), schema.high - schema.low, dtype=np.float64)
    spread = np.array([_spread(train.values[seen, i]) for i, seen in enumerate(train.observed.T)])
    return np.where(spread > 0, spread, 1.0)


def _spread(column: Array) -> float:
    return float(np.std(column)) if column.size else 0.0


def constant_fill(train: Samples, statistic: Callable[[Array], Any]) -> Imputer:
    """Fill with one number per element: ``statistic`` (mean, median) of its observed training values."""
    rows = len(train.values)
    columns = np.ascontiguousarray(train.values.reshape(rows, -1).T)
    seen = np.ascontiguousarray(train.observed.reshape(rows, -1).T)
    pairs = zip(columns, seen, strict=True)
    numbers = [float(statistic(column[present])) if present.any() else 0.0 for column, present in pairs]
    fill = np.array(numbers).reshape(train.values.shape[1:])
    return lambda values, observed: np.where(observed, values, fill)


def neighbour_fill(train: Samples, scale: Floats, neighbours: int) -> Imputer:
    """scikit-learn's KNNImputer on cells in units of ``scale``."""
    model = KNNImputer(n_neighbors=neighbours, keep_empty_features=True)
    model.fit(_with_gaps(train.values / scale, train.observed))

    def fill(values: Array, observed: Bools) -> Array:
        filled = model.transform(_with_gaps(values / scale, observed)).reshape(values.shape)
        return np.where(observed, values, filled * scale)

    return fill


def _with_gaps(values: Array, observed: Bools) -> Floats:
    return np.where(observed, values, np.nan).reshape(len(values), -1)


def take(samples: Samples, rows: Array) -> Samples:
    """Those rows of the samples."""
    return Samples(samples.values[rows], samples.observed[rows])


def subsample(samples: Samples, at_most: int, seed: int) -> Samples:
    """At most that many rows, drawn without replacement, in their own order."""
    rows = np.random.default_rng(seed).permutation(len(samples.values))[:at_most]
    return take(samples, np.sort(rows))


def compare(
    schema: Schema, test: Samples, imputers: dict[str, Imputer], scale: Floats, seed: int
) -> dict[str, dict[str, Any]]:
    """Errors of every imputer on identical masks, by name of the pattern.

    Returns
    -------
    dict
        ``{pattern: {"cells": int, "methods": {imputer: Errors as a dict}, "columns": {...}}}``;
        ``columns`` (tables only) holds nrmse per column and imputer, in schema order.
    """
    patterns = hidden_patterns(schema, test.observed, seed)
    return {name: _one_pattern(schema, test, imputers, scale, hidden) for name, hidden in patterns.items()}


def _one_pattern(
    schema: Schema, test: Samples, imputers: dict[str, Imputer], scale: Floats, hidden: Bools
) -> dict[str, Any]:
    image = isinstance(schema, ImageSchema)
    filled = {name: fill(test.values, test.observed & ~hidden) for name, fill in imputers.items()}
    methods = {
        name: asdict(errors(test.values, values, hidden, scale, image)) for name, values in filled.items()
    }
    result = {"cells": int(hidden.sum()), "methods": methods}
    if not image:
        result["columns"] = {name: column_errors(test.values, v, hidden, scale) for name, v in filled.items()}
    return result


def column_errors(truth: Floats, filled: Array, hidden: Bools, scale: Floats) -> list[float | None]:
    """nrmse of each column of a table, None where nothing was hidden."""
    return [
        errors(truth[:, [i]], filled[:, [i]], hidden[:, [i]], scale[i], image=False).nrmse
        for i in range(truth.shape[1])
    ]
