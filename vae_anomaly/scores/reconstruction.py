"""How far a sample is from its reconstruction."""

from __future__ import annotations

from torch import Tensor

from vae_anomaly.likelihoods import sum_elements
from vae_anomaly.scores.base import Evidence, Score


class Recon(Score):
    """Bias-corrected reconstruction error at z = mu: how far each element is from the best
    density it could have had, in nats, so that bright and dark pixels compare.
    """

    def forward(self, evidence: Evidence) -> Tensor:
        """Sum of the contributions."""
        return sum_elements(evidence.contributions)
