"""The test rows that the page shows: the strangest, the most ordinary, and some at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pipelines.report import imputation
from pipelines.report.context import Context, column
from pipelines.report.metrics import Array, finite
from pipelines.report.results import ShownRows
from vae_anomaly.explanation import ranked_columns
from vae_anomaly.schema import TableSchema

RANDOM_ROWS = 32
RANKED_COLUMNS = 8


def shown_rows(context: Context, verdicts: pd.DataFrame) -> tuple[ShownRows, ShownRows, ShownRows | None]:
    """The most and the least anomalous rows, and random ones where rows are images."""
    scores = column(verdicts, "score")
    ranked = np.argsort(-scores, kind="stable")
    ranked = ranked[~np.isnan(scores[ranked])]
    count = min(context.options.shown, len(ranked))
    most, least = ranked[:count], ranked[::-1][:count]
    random = context.generator.permutation(len(scores))[:RANDOM_ROWS]
    return (
        _show(context, most, verdicts),
        _show(context, least, verdicts),
        None if context.table else _show(context, random, verdicts),
    )


def _show(context: Context, rows: Array, verdicts: pd.DataFrame) -> ShownRows:
    samples = imputation.take(context.test, rows)
    explained = context.bundle.explain(samples.values, samples.observed)
    scores, p = column(verdicts, "score"), column(verdicts, "p_value")
    described = [_facts(context, row, scores[row], p[row]) for row in rows.tolist()]
    for place, (entry, reason) in enumerate(zip(described, explained.reasons(), strict=True)):
        ranks = zip(explained.score_names, explained.ranks[place].tolist(), strict=True)
        entry["reason"], entry["ranks"] = reason, {name: finite(rank) for name, rank in ranks}
    if isinstance(schema := context.bundle.schema, TableSchema):
        lines = ranked_columns(explained, samples, schema, RANKED_COLUMNS)
        for place, entry in enumerate(described):
            own = lines.loc[lines["row"] == place]
            entry["columns"] = [_said(line) for line in own.to_dict("records")]
    parts = np.asarray(explained.contributions, np.float64)
    return ShownRows(samples, np.asarray(explained.reconstruction), parts, described)


def _facts(context: Context, row: int, score: float, p_value: float) -> dict[str, Any]:
    return {
        "row": row,
        "id": context.ids[row],
        "class": context.classes[row] if context.classes else None,
        "anomaly": None if context.labels is None else bool(context.labels[row]),
        "score": finite(score),
        "p_value": finite(p_value),
    }


def _said(line: dict[Any, Any]) -> dict[str, Any]:
    """One of the `ranked_columns`."""
    cells = {name: line[name] for name in ("value", "expected", "low", "high", "contribution")}
    told = {k: str(v) if isinstance(v, str | bool) else finite(v) for k, v in cells.items()}
    return {"name": line["column"], **told}
