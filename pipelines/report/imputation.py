"""Imputation errors: hide cells that are known, fill them by several means, compare on the same cells."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from pipelines.report.metrics import Array, Bools, Floats
from vae_anomaly import masks, mechanisms
from vae_anomaly.imputation_metrics import column_errors, errors, wrong_share
from vae_anomaly.schema import ImageSchema, Samples, Schema, TableSchema

MCAR_SHARE = 0.3
# Columns of a table in which some decide what others miss.
DECIDED_BY = 3
# scikit-learn's IterativeImputer regresses each column on all others: seconds at a hundred.
REGRESSED_AT_MOST = 100
DISCRETE = ("binary", "categorical", "ordinal")

# (values, observed) -> values of the same shape with every hidden cell filled.
Imputer = Callable[[Array, Bools], Array]


def hidden_patterns(schema: Schema, samples: Samples, seed: int) -> dict[str, Bools]:
    """What to hide, by name: True = was observed and gets hidden, shape as ``samples.observed``.

    Always 30 % of the observed cells completely at random. For images also one block of half
    the height and width per image, and the lower half; for tables of three columns and more also as
    many cells by the values of other columns, and by their own values, the high ones first.
    """
    observed, shape = samples.observed, samples.observed.shape
    visible = {"random": masks.mcar(shape, MCAR_SHARE, seed)}
    if isinstance(schema, TableSchema) and schema.elements >= DECIDED_BY:
        values = np.where(observed, samples.values, np.nan)
        visible["by others"] = mechanisms.mar(values, MCAR_SHARE, seed)
        visible["by themselves"] = mechanisms.mnar(values, MCAR_SHARE, seed)
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


def regression_fill(train: Samples, scale: Floats) -> Imputer:
    """scikit-learn's IterativeImputer with its defaults, on cells in units of ``scale``."""
    model = IterativeImputer(random_state=0, keep_empty_features=True)
    with warnings.catch_warnings():
        # Ten rounds are its default, whether or not they were enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(_with_gaps(train.values / scale, train.observed))

    def fill(values: Array, observed: Bools) -> Array:
        filled = model.transform(_with_gaps(values / scale, observed)).reshape(values.shape)
        return np.where(observed, values, filled * scale)

    return fill


def columns_in_detail(
    schema: TableSchema, truth: Floats, filled: Array, hidden: Bools, scale: Floats
) -> list[dict[str, Any]]:
    """Errors of each column of a table, and the share of wrong categories where it holds those."""
    found = [asdict(part) for part in column_errors(truth, filled, hidden, scale)]
    for i, (part, column) in enumerate(zip(found, schema.columns, strict=True)):
        del part["psnr"]
        part["wrong"] = None
        if column.kind in DISCRETE:
            # What averages categories is taken by the nearest one.
            nearest = np.abs(filled[:, i, None] - column.levels).argmin(axis=1)
            part["wrong"] = wrong_share(truth[:, i], column.levels[nearest], hidden[:, i])
    return found


def discrete(schema: Schema) -> Bools:
    """Columns that hold codes of categories, shape (D,); False for images."""
    if not isinstance(schema, TableSchema):
        return np.zeros(1, np.bool_)
    return np.array([column.kind in DISCRETE for column in schema.columns])


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
    patterns = hidden_patterns(schema, test, seed)
    return {name: _one_pattern(schema, test, imputers, scale, hidden) for name, hidden in patterns.items()}


def _one_pattern(
    schema: Schema, test: Samples, imputers: dict[str, Imputer], scale: Floats, hidden: Bools
) -> dict[str, Any]:
    image = isinstance(schema, ImageSchema)
    filled = {name: fill(test.values, test.observed & ~hidden) for name, fill in imputers.items()}
    numbers = hidden & ~discrete(schema)
    methods = {
        name: asdict(errors(test.values, values, numbers, scale, image)) for name, values in filled.items()
    }
    result = {"cells": int(hidden.sum()), "methods": methods}
    if isinstance(schema, TableSchema):
        result["column_errors"] = {
            name: columns_in_detail(schema, test.values, v, hidden, scale) for name, v in filled.items()
        }
        result["columns"] = {
            name: [found.nrmse for found in column_errors(test.values, v, hidden, scale)]
            for name, v in filled.items()
        }
    return result
