"""A bundle's imputations: the gallery, and the comparison with simpler means."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.report import imputation
from pipelines.report.context import Context
from pipelines.report.imputed_draws import judge_draws
from pipelines.report.metrics import Floats
from pipelines.report.results import GalleryItem, HiddenCells
from vae_anomaly.exceptions import UnsupportedError
from vae_anomaly.schema import Samples, Schema

GALLERY_COLUMNS = 8
# Statistics of mean and median fill: more training cells than this change no digit that is shown.
STATISTIC_ROWS, STATISTIC_CELLS = 10_000, 20_000_000
# scikit-learn's KNNImputer walks over the columns in Python, about half a millisecond each: 3x64x64
# images take five seconds per pattern, and larger ones go without.
NEIGHBOUR_CELLS, NEIGHBOUR_ELEMENTS = 2_000_000, 20_000


def judge_imputation(
    context: Context, train_values: Any
) -> tuple[tuple[GalleryItem, ...], dict[str, Any], HiddenCells | None]:
    """Hide cells of normal rows and fill them; a ``reason`` in place of numbers where that cannot be."""
    rows = context.some(context.normal_rows, context.options.imputed_rows)
    if not len(rows):
        return (), {"reason": "there is no normal test row to hide cells of"}, None
    test = imputation.take(context.test, rows)
    try:
        gallery = _gallery(context, test)
        return gallery, *_compare(context, test, train_values)
    except UnsupportedError as error:
        return (), {"reason": str(error)}, None


def _compare(context: Context, test: Samples, train_values: Any) -> tuple[dict[str, Any], HiddenCells | None]:
    bundle, schema, seed = context.bundle, context.bundle.schema, context.options.seed
    facts: dict[str, Any] = {"rows": len(test.values), "known_normal": context.labels is not None}
    imputers: dict[str, imputation.Imputer] = {
        "model": lambda values, seen: np.asarray(bundle.impute(values, seen).mean, np.float64)
    }
    scale = imputation.scales(schema, test)
    if train_values is not None:
        train = imputation.subsample(
            schema.read(train_values), _at_most(STATISTIC_ROWS, STATISTIC_CELLS, schema), seed
        )
        scale = imputation.scales(schema, train)
        simpler, found = _simpler_imputers(context, train, scale)
        imputers, facts = imputers | simpler, facts | found
    patterns = imputation.compare(schema, test, imputers, scale, seed)
    honesty, cells = judge_draws(context, test, scale)
    for name, found in honesty.items():
        patterns[name]["draws"] = found
    return {**facts, "patterns": patterns}, cells


def _simpler_imputers(
    context: Context, train: Samples, scale: Floats
) -> tuple[dict[str, imputation.Imputer], dict[str, int]]:
    """Mean, median and neighbour fill, and from how many training rows."""
    schema, options = context.bundle.schema, context.options
    imputers = {
        "mean": imputation.constant_fill(train, np.mean),
        "median": imputation.constant_fill(train, np.median),
    }
    facts = {"statistic_rows": len(train.values)}
    if schema.elements > NEIGHBOUR_ELEMENTS:
        return imputers, facts
    near = imputation.subsample(
        train, _at_most(options.neighbour_rows, NEIGHBOUR_CELLS, schema), options.seed
    )
    imputers["knn"] = imputation.neighbour_fill(near, scale, options.neighbours)
    if context.table and schema.elements <= imputation.REGRESSED_AT_MOST:
        imputers["regression"] = imputation.regression_fill(near, scale)
    facts |= {"neighbour_rows": len(near.values), "neighbours": min(options.neighbours, len(near.values))}
    return imputers, facts


def _at_most(rows: int, cells: int, schema: Schema) -> int:
    """As many training rows as asked, fewer where samples are large."""
    return max(1, min(rows, cells // max(schema.elements, 1)))


def _gallery(context: Context, test: Samples) -> tuple[GalleryItem, ...]:
    if context.table:
        return ()
    few = imputation.subsample(test, GALLERY_COLUMNS, context.options.seed)
    patterns = imputation.hidden_patterns(context.bundle.schema, few, context.options.seed)
    items = []
    for pattern, hidden in patterns.items():
        filled = context.bundle.impute(few.values, few.observed & ~hidden)
        items.append(GalleryItem(pattern, few, hidden, np.asarray(filled.mean), np.asarray(filled.std)))
    return tuple(items)
