"""The scores of held-out normal rows as a histogram: what a score is compared with, by eye."""

from __future__ import annotations

from typing import Any

import numpy as np

from vae_anomaly.calibration import threshold
from vae_anomaly.exceptions import CalibrationError
from vae_anomaly.gaps import Tables
from vae_anomaly.schema import Array

BINS = 40
# Beyond these shares the outermost bins take all: a few extreme rows would flatten the rest.
SHOWN = (0.001, 0.995)


def calibration_histograms(tables: Tables, false_alarm_rate: float) -> list[dict[str, Any]]:
    """One per bin of missing share; a row belongs to the first that its share does not exceed."""
    return [
        {
            "missing_up_to": end,
            **calibration_histogram(tables.comparable_table(place, false_alarm_rate), false_alarm_rate),
        }
        for place, end in enumerate(tables.ends)
    ]


def calibration_histogram(sorted_scores: Array, false_alarm_rate: float) -> dict[str, Any]:
    """Counts of the calibration scores.

    Parameters
    ----------
    sorted_scores : ndarray, shape (n,)
        Ascending.
    false_alarm_rate : float
        Marks the threshold; null if too few rows were held out for it.

    Returns
    -------
    dict
        ``edges`` (bins + 1), ``counts`` (bins), summing to ``rows``, and ``threshold``.
    """
    low, high = np.quantile(sorted_scores, SHOWN)
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts, _ = np.histogram(np.clip(sorted_scores, edges[0], edges[-1]), edges)
    try:
        mark = threshold(sorted_scores, false_alarm_rate)
    except CalibrationError:
        mark = None
    return {
        "rows": len(sorted_scores),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "threshold": mark,
    }
