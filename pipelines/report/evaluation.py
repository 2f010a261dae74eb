"""What a bundle does on test data, measured once; `pipelines.report.page` only shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipelines.report import imputation
from pipelines.report.context import Context, EvaluationOptions, column, texts
from pipelines.report.judged_imputation import judge_imputation
from pipelines.report.latent import traversal, two_dimensions
from pipelines.report.metrics import Array, Floats, as_labels, false_alarms, finite, ranking
from pipelines.report.protocols import EvaluatedBundle
from pipelines.report.results import Evaluation, LatentMap
from pipelines.report.shown import shown_rows
from vae_anomaly.calibration import threshold
from vae_anomaly.exceptions import DataError, UnsupportedError

PRIOR_SAMPLES = 64
# Enough for smooth outlines of a table's columns.
PRIOR_ROWS, REFERENCE_ROWS = 1000, 5000


def evaluate_bundle(
    bundle: EvaluatedBundle,
    values: Any,
    labels: Any = None,
    train_values: Any = None,
    history: Sequence[Mapping[str, float]] = (),
    *,
    observed: Any = None,
    classes: Any = None,
    ids: Any = None,
    options: EvaluationOptions | None = None,
) -> Evaluation:
    """Measure a bundle on test rows that it has never seen.

    Parameters
    ----------
    bundle : Bundle
    values : array-like or DataFrame
        Test rows in raw units; NaN is missing.
    labels : array-like of 0 and 1, shape (B,), optional
        1 = anomaly. Without them nothing is said about ranking or false alarms.
    train_values : array-like or DataFrame, optional
        Training rows, for the statistics of mean, median and neighbour fill. Without them
        the imputation of the model stands alone.
    history : sequence of dict
        One per epoch: losses, reconstruction, KL, active units.
    observed : bool array-like, optional
        True where a test value is present.
    classes : array-like, shape (B,), optional
        Colours of the latent scatter.
    ids : array-like, shape (B,), optional
        What to call the rows; their place in ``values`` when left out.
    options : EvaluationOptions, optional

    Raises
    ------
    DataError
        If there is no test row, or labels, classes or ids are not one per row.
    """
    options = options or EvaluationOptions()
    test = bundle.schema.read(values, observed)
    rows = len(test.values)
    if not rows:
        raise DataError("an evaluation needs test rows, got 0; pass at least one")
    context = Context(
        bundle=bundle,
        test=test,
        labels=as_labels(labels, rows),
        classes=None if classes is None else texts(classes, rows, "classes"),
        ids=[f"row {i}" for i in range(rows)] if ids is None else texts(ids, rows, "ids"),
        options=options,
        generator=np.random.default_rng(options.seed),
    )
    return _evaluate(context, train_values, history)


def _evaluate(context: Context, train_values: Any, history: Sequence[Mapping[str, float]]) -> Evaluation:
    bundle, test = context.bundle, context.test
    verdicts = bundle.verdicts(test.values, test.observed, context.asked)
    table = np.sort(np.asarray(bundle.calibration["score_score"], dtype=np.float64))
    gallery, imputed, hidden_cells = judge_imputation(context, train_values)
    most, least, random = shown_rows(context, verdicts)
    means = _latent_means(context)
    summary = {
        **_identity(context),
        **_detection(context, verdicts, table),
        "imputation": imputed,
        "history": [{key: finite(value) for key, value in epoch.items()} for epoch in history],
        "samples": {"most_anomalous": most.described, "least_anomalous": least.described},
    }
    return Evaluation(
        summary=summary,
        schema=bundle.schema,
        scores=column(verdicts, "score"),
        p_values=column(verdicts, "p_value"),
        calibration=table,
        labels=context.labels,
        latent=_latent_map(context, *means),
        most=most,
        least=least,
        random=random,
        gallery=gallery,
        hidden_cells=hidden_cells,
        prior=_prior(context),
        reference=test.values[context.some(context.normal_rows, REFERENCE_ROWS)] if context.table else None,
        traversal=None if context.table else traversal(bundle, means[1]),
    )


def _identity(context: Context) -> dict[str, Any]:
    bundle = context.bundle
    return {
        "name": bundle.manifest.name,
        "kind": bundle.kind,
        "digest": bundle.digest,
        "schema": bundle.schema.to_dict(),
        "default_score": bundle.default_score,
        "latent_size": bundle.latent_size,
        "provenance": bundle.manifest.provenance,
        "warnings": list(bundle.manifest.warnings),
        "seed": context.options.seed,
    }


def _detection(context: Context, verdicts: pd.DataFrame, calibration: Floats) -> dict[str, Any]:
    labels, asked = context.labels, context.asked
    alarms = verdicts["is_outlier"].to_numpy(dtype=np.bool_, na_value=False)
    scored = ~np.isnan(column(verdicts, "score"))
    names = ["score", *(name for name in verdicts.columns if name.startswith("score_"))]
    known = np.zeros(len(scored), np.bool_) if labels is None else labels
    anomalies = alarms[known & scored]
    normal = None if labels is None else false_alarms(alarms[~known & scored], len(calibration), asked)
    return {
        "rows": {
            "test": len(scored),
            "anomalies": None if labels is None else int(known.sum()),
            "unscored": int((~scored).sum()),
            "clipped": int((column(verdicts, "clipped") > 0).sum()) if "clipped" in verdicts else None,
            "calibration": len(calibration),
        },
        "scores": {name: ranking(labels, column(verdicts, name)) for name in names},
        "asked_false_alarm_rate": asked,
        "threshold": finite(threshold(calibration, asked)),
        "flagged": int(alarms.sum()),
        "detection_rate": float(anomalies.mean()) if anomalies.size else None,
        "false_alarms": None if normal is None else normal.to_dict(),
    }


def _latent_means(context: Context) -> tuple[Array, Floats]:
    rows = context.some(np.arange(len(context.ids)), context.options.scattered)
    part = imputation.take(context.test, rows)
    means = np.asarray(context.bundle.encode(part.values, part.observed).mean, np.float64)
    known = np.isfinite(means).all(axis=1)
    return rows[known], means[known]


def _latent_map(context: Context, rows: Array, means: Floats) -> LatentMap:
    points, axes = two_dimensions(means)
    return LatentMap(
        points=points,
        axes=axes,
        groups=[context.classes[row] for row in rows] if context.classes else None,
        anomalies=None if context.labels is None else context.labels[rows],
    )


def _prior(context: Context) -> Array | None:
    count = PRIOR_ROWS if context.table else PRIOR_SAMPLES
    try:
        return np.asarray(context.bundle.sample(count, seed=context.options.seed))
    except UnsupportedError:
        return None
