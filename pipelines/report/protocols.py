"""The part of a bundle that an evaluation asks, so that any object with these methods can be judged."""

from __future__ import annotations

from typing import Any, Protocol

import pandas as pd

from pipelines.report.metrics import Array
from vae_anomaly.explanation import Explanation
from vae_anomaly.schema import Schema


class Imputed(Protocol):
    """What `Bundle.impute` returns, as far as the report reads it."""

    @property
    def mean(self) -> Any:
        """Filled samples."""

    @property
    def std(self) -> Array:
        """Standard deviation of what was filled, 0 elsewhere."""

    @property
    def draws(self) -> Array | None:
        """Multiple imputations, shape (M, n, *sample shape), if asked for."""


class Encoded(Protocol):
    """What `Bundle.encode` returns, as far as the report reads it."""

    @property
    def mean(self) -> Array:
        """Shape (n, L)."""


class EvaluatedManifest(Protocol):
    """The part of a bundle's manifest that the report prints."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it comes from."""

    @property
    def imputation(self) -> dict[str, Any]:
        """How it fills gaps; with ``steps`` where each draw is a Markov chain."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its users should know."""


class EvaluatedBundle(Protocol):
    """The part of `vae_anomaly.runtime.Bundle` that an evaluation asks; the words are explained there."""

    @property
    def digest(self) -> str:
        """Identity of the bundle."""

    @property
    def manifest(self) -> EvaluatedManifest:
        """What the bundle says of itself."""

    @property
    def calibration(self) -> dict[str, Array]:
        """Sorted calibration scores; those of the default score under ``score_score``."""

    @property
    def schema(self) -> Schema:
        """What a sample is."""

    @property
    def kind(self) -> str:
        """Either "vae" or "autoencoder"."""

    @property
    def default_score(self) -> str:
        """The score that decides."""

    @property
    def latent_size(self) -> int:
        """L."""

    @property
    def false_alarm_rate(self) -> float:
        """Used unless another is asked for."""

    def verdicts(self, x: Any, observed: Any = None, false_alarm_rate: float | None = None) -> pd.DataFrame:
        """Scores, p-values and verdicts."""

    def explain(self, x: Any, observed: Any = None) -> Explanation:
        """Contributions, expectations, and the rank of every score."""

    def impute(self, x: Any, observed: Any = None, draws: int | None = None, seed: int = 0) -> Imputed:
        """Filled samples, their spread and, on request, draws."""

    def encode(self, x: Any, observed: Any = None) -> Encoded:
        """Latent means."""

    def decode(self, z: Any) -> Array:
        """Latents (n, L) to samples."""

    def sample(self, n: int, seed: int = 0) -> Array:
        """Samples from the prior."""
