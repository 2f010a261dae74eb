"""How well scores rank, and whether the promised rate of false alarms holds: plain numbers, no torch.

Where a number has no meaning (labels of one class, or no labels at all) it is None, shown as
"n/a" and never as 0.5.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from vae_anomaly.calibration import false_alarm_interval
from vae_anomaly.exceptions import DataError

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

# Share of calibration sets whose detector must fall inside the interval that the report prints.
INTERVAL_LEVEL = 0.99


def as_labels(labels: Any, rows: int) -> Bools | None:
    """Read anomaly labels as booleans, True = anomaly; None stays None.

    Raises
    ------
    DataError
        If there is not one label of 0 or 1 per row.
    """
    if labels is None:
        return None
    values = np.asarray(labels)
    if values.shape != (rows,):
        raise DataError(f"labels have shape {values.shape}; expected one per row, ({rows},)")
    if not np.isin(values, (0, 1)).all():
        odd = values[~np.isin(values, (0, 1))][0]
        raise DataError(f"labels hold {odd!r}; expected 1 for an anomaly and 0 for a normal row")
    return values.astype(np.bool_)


def ranking(labels: Bools | None, scores: Floats) -> dict[str, float | None]:
    """AUROC, average precision and precision at n of one score, each None where it has no meaning.

    Parameters
    ----------
    labels : bool ndarray, shape (B,), or None
        True = anomaly.
    scores : ndarray, shape (B,)
        Larger = more anomalous. Rows without a score (NaN) are left out.
    """
    names = ("auroc", "average_precision", "precision_at_n")
    if labels is None:
        return dict.fromkeys(names)
    scored = ~np.isnan(scores)
    known, ranks = labels[scored], scores[scored]
    if known.all() or not known.any():
        return dict.fromkeys(names)
    values = (
        roc_auc_score(known, ranks),
        average_precision_score(known, ranks),
        precision_at_n(known, ranks),
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def precision_at_n(labels: Bools, scores: Floats) -> float:
    """Share of anomalies among the n highest scores, n the number of anomalies.

    Rows that tie for the last places share them in proportion, so that the order of the
    rows has no say.
    """
    n = int(labels.sum())
    last = np.sort(scores)[::-1][n - 1]
    above, tied = scores > last, scores == last
    places = n - int(above.sum())
    return float(labels[above].sum() + places * labels[tied].mean()) / n


@dataclass(frozen=True)
class FalseAlarms:
    """Alarms among normal test rows, against what the calibration promises.

    Attributes
    ----------
    asked : float
        The false alarm rate alpha.
    rows, alarms : int
        Normal test rows, and how many of them raised an alarm.
    low, high : int
        Alarms that a correct detector raises in 99 % of calibration sets, both ends included:
        Beta-Binomial(rows; k, n + 1 - k), k = floor(alpha (n + 1)), n calibration rows.
    calibration_rows : int
        n.
    """

    asked: float
    rows: int
    alarms: int
    low: int
    high: int
    calibration_rows: int

    @property
    def rate(self) -> float:
        """Share of normal test rows that raised an alarm."""
        return self.alarms / self.rows

    @property
    def inside(self) -> bool:
        """Whether a correct detector plausibly raises this many."""
        return self.low <= self.alarms <= self.high

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, with the rate and the verdict."""
        return {**asdict(self), "rate": self.rate, "inside": self.inside}


def false_alarms(alarms: Bools, calibration_rows: int, asked: float) -> FalseAlarms | None:
    """Count alarms among normal rows, shape (B,); None without a row."""
    if not alarms.size:
        return None
    low, high = false_alarm_interval(calibration_rows, alarms.size, asked, level=INTERVAL_LEVEL)
    return FalseAlarms(asked, int(alarms.size), int(alarms.sum()), int(low), int(high), calibration_rows)


def finite(value: float | None) -> float | None:
    """The value, or None for NaN and infinities, which JSON does not know."""
    return None if value is None or not np.isfinite(value) else float(value)
