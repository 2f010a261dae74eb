"""What every part of an evaluation reads: the bundle, the test rows and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pipelines.report.metrics import Array, Bools, Floats
from pipelines.report.protocols import EvaluatedBundle
from vae_anomaly.exceptions import DataError
from vae_anomaly.schema import ImageSchema, Samples


@dataclass(frozen=True)
class EvaluationOptions:
    """How much is measured and shown.

    Attributes
    ----------
    false_alarm_rate : float, optional
        The bundle's own when None.
    seed : int
        Chooses hidden cells, subsamples and prior draws.
    shown : int
        Most anomalous samples on the page, and as many of the least anomalous.
    scattered : int
        Points of the latent scatter.
    imputed_rows, neighbours, neighbour_rows : int
        Test rows of the imputation comparison; k and training rows of KNNImputer.
    """

    false_alarm_rate: float | None = None
    seed: int = 0
    shown: int = 8
    scattered: int = 3000
    imputed_rows: int = 256
    neighbours: int = 5
    neighbour_rows: int = 2000


@dataclass(frozen=True)
class Context:
    """What every part of an evaluation reads."""

    bundle: EvaluatedBundle
    test: Samples
    labels: Bools | None
    classes: list[str] | None
    ids: list[str]
    options: EvaluationOptions
    generator: np.random.Generator = field(repr=False)

    @property
    def table(self) -> bool:
        """Whether samples are rows of a table, not images."""
        return not isinstance(self.bundle.schema, ImageSchema)

    @property
    def asked(self) -> float:
        """The false alarm rate of this evaluation."""
        rate = self.options.false_alarm_rate
        return self.bundle.false_alarm_rate if rate is None else rate

    @property
    def normal_rows(self) -> Array:
        """Rows not known to be anomalies."""
        return np.arange(len(self.ids)) if self.labels is None else np.flatnonzero(~self.labels)

    def some(self, rows: Array, at_most: int) -> Array:
        """At most that many of the rows, in order."""
        return np.sort(self.generator.permutation(rows)[:at_most])


def texts(values: Any, rows: int, what: str) -> list[str]:
    """One text per row: names, classes."""
    found = [_text(value) for value in np.asarray(values).tolist()]
    if len(found) != rows:
        raise DataError(f"{what} hold {len(found)} values; expected one per row, {rows}")
    return found


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def column(verdicts: pd.DataFrame, name: str) -> Floats:
    """One column of the verdicts as numbers, NaN where null."""
    return verdicts[name].to_numpy(dtype=np.float64, na_value=np.nan)
