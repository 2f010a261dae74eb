"""The parts of a bundle that jobs and services need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly.explanation import Explanation
from vae_anomaly.schema import Schema


class Sealed(Protocol):
    """What every job asks of a bundle."""

    @property
    def schema(self) -> Schema:
        """What a sample is."""

    @property
    def digest(self) -> str:
        """The identity of the bundle."""

    @property
    def provider(self) -> str:
        """What it runs on."""


class Scorer(Sealed, Protocol):
    """The part of a bundle that scoring needs."""

    @property
    def score_names(self) -> Sequence[str]:
        """The exported scores."""

    def verdicts(
        self, x: Any, /, observed: Any = None, false_alarm_rate: float | None = None
    ) -> pd.DataFrame:
        """``score``, ``p_value``, ``is_outlier``, one ``score_<name>`` each, ``clipped``."""
        ...

    def discoveries(self, p_values: Any, /, fdr: float) -> npt.NDArray[np.bool_]:
        """Rows to report so that at most a share ``fdr`` of them is normal, on average."""
        ...


class Explainer(Sealed, Protocol):
    """The part of a bundle that explanations need."""

    @property
    def false_alarm_rate(self) -> float:
        """Rows with a p-value up to it are outliers."""

    def explain(self, x: Any, /, observed: Any = None) -> Explanation:
        """Contributions, expected values, and which score decided."""
        ...


class Imputed(Protocol):
    """What a bundle answers when it imputes."""

    @property
    def mean(self) -> Any:
        """Shape (B, *sample shape)."""

    @property
    def std(self) -> Any:
        """Shape (B, *sample shape)."""

    @property
    def draws(self) -> Any:
        """Shape (M, B, *sample shape), or None."""

    @property
    def ess(self) -> Any:
        """Effective sample sizes, shape (B,)."""

    @property
    def flags(self) -> Any:
        """Text, shape (B,)."""


class Imputer(Sealed, Protocol):
    """The part of a bundle that imputation needs."""

    def impute(
        self,
        x: Any,
        /,
        observed: Any = None,
        draws: int | None = None,
        seed: int = 0,
        ids: Any = None,
        k: int | None = None,
    ) -> Imputed:
        """Fill what is missing; a row's draws depend on (seed, id) alone."""
        ...
