"""How honest a model's multiple imputations are: intervals, CRPS, and what they do to column means."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from pipelines.report import imputation
from pipelines.report.context import Context
from pipelines.report.metrics import Array, Bools, Floats
from pipelines.report.results import HiddenCells
from vae_anomaly.imputation_metrics import crps, intervals
from vae_anomaly.pooling import pool_estimates
from vae_anomaly.schema import Samples

# The fewest whose quantiles make an interval of 95 %.
DRAWS = 39
# Numbers of all draws at once: fewer rows where samples are large, and where each draw is a Markov chain.
CELLS, STEPPED_CELLS = 10_000_000, 1_000_000
LEVEL = 0.95


def judge_draws(
    context: Context, test: Samples, scale: Floats
) -> tuple[dict[str, dict[str, Any]], HiddenCells | None]:
    """Per pattern of hidden cells the intervals and CRPS of the draws; of tables the pooled means too.

    Columns of categories are left out: nothing lies between two of them.

    Returns
    -------
    dict
        ``{pattern: {"draws": M, "rows": int, "intervals": [...], "crps": float, "pooled": [...]}}``.
    HiddenCells or None
        Of the first pattern, for tables.
    """
    cells_at_most = STEPPED_CELLS if "steps" in context.bundle.manifest.imputation else CELLS
    rows = max(1, cells_at_most // (DRAWS * context.bundle.schema.elements))
    test = imputation.subsample(test, rows, context.options.seed)
    patterns = imputation.hidden_patterns(context.bundle.schema, test, context.options.seed)
    found: dict[str, dict[str, Any]] = {}
    cells = None
    numbers = ~imputation.discrete(context.bundle.schema)
    for name, hidden in patterns.items():
        drawn, hidden = _draws(context, test, hidden), hidden & numbers
        found[name] = {
            "draws": DRAWS,
            "rows": len(test.values),
            "intervals": [asdict(part) for part in intervals(test.values, drawn, hidden, scale)],
            "crps": crps(test.values, drawn, hidden, scale),
        }
        if context.table:
            found[name]["pooled"] = pooled_means(test, drawn, hidden)
            cells = cells or HiddenCells(
                np.where(test.observed, test.values, np.nan), np.where(hidden, drawn[0], np.nan)
            )
    return found, cells


def _draws(context: Context, test: Samples, hidden: Bools) -> Array:
    seed = context.options.seed
    found = context.bundle.impute(test.values, test.observed & ~hidden, draws=DRAWS, seed=seed).draws
    if found is None:
        raise TypeError("an imputation with draws holds them")
    return np.asarray(found)


def pooled_means(test: Samples, drawn: Array, hidden: Bools) -> list[dict[str, float | None]]:
    """Mean of each column from its draws by Rubin's rules, beside the mean before cells were hidden.

    Parameters
    ----------
    test : Samples, shape (B, D)
    drawn : ndarray, shape (M, B, D)
    hidden : bool ndarray, shape (B, D)
    """
    return [_pooled(test, drawn[:, :, i], hidden, i) for i in range(test.values.shape[1])]


def _pooled(test: Samples, drawn: Array, hidden: Bools, i: int) -> dict[str, float | None]:
    known = test.observed[:, i]
    rows = int(known.sum())
    if rows < 3 or not hidden[:, i].any():
        return dict.fromkeys(("estimate", "low", "high", "complete", "missing_information"))
    tables = np.asarray(drawn[:, known], np.float64)
    squares = tables.var(axis=1, ddof=1) / rows
    pooled = pool_estimates(tables.mean(axis=1), squares, complete_degrees_of_freedom=rows - 1)
    low, high = pooled.interval(LEVEL)
    return {
        "estimate": float(pooled.estimate),
        "low": float(low),
        "high": float(high),
        "complete": float(test.values[known, i].mean()),
        "missing_information": float(pooled.missing_information),
    }
