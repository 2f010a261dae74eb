"""How far a sample's posterior mean is from those of the training data."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_anomaly.likelihoods import sum_elements
from vae_anomaly.scores.axes import principal
from vae_anomaly.scores.base import Evidence, Score, TrainingEvidence


class LatentMaha(Score):
    """Latent distance (mu - c)' S^-1 (mu - c), without unit.

    c is the mean of mu over training data, S = Cov(mu) + mean diag sigma^2. Stored as its
    eigenvectors; codes longer than `FULL_COVARIANCE` keep the leading ones and share one variance
    in all other directions, as in probabilistic PCA [1]_.

    References
    ----------
    .. [1] Tipping & Bishop, "Probabilistic Principal Component Analysis", JRSS B 1999.
       https://doi.org/10.1111/1467-9868.00196
    """

    def __init__(self) -> None:
        super().__init__()
        self.centre: Tensor
        self.directions: Tensor
        self.precisions: Tensor
        self.register_buffer("centre", torch.zeros(1))
        self.register_buffer("directions", torch.ones(1, 1))
        self.register_buffer("precisions", torch.ones(1))
        self.rest: float | None = None

    def fit(self, training: TrainingEvidence) -> None:
        """Centre and principal directions of the training latents."""
        posteriors = [evidence.posterior for evidence in training()]
        means = torch.cat([p.mean for p in posteriors]).double()
        self.centre = means.mean(dim=0)
        noise = [p.log_variance.double().exp() for p in posteriors if p.log_variance is not None]
        diagonal = torch.cat(noise).mean(dim=0) if noise else torch.zeros_like(self.centre)
        directions, variances, self.rest = principal(means - self.centre, diagonal)
        self.directions, self.precisions = directions.float(), (1 / variances).float()
        self.centre = self.centre.float()

    def forward(self, evidence: Evidence) -> Tensor:
        """Squared norm of the whitened mean."""
        centred = evidence.posterior.mean - self.centre
        leading = centred @ self.directions
        distance = sum_elements(leading**2 * self.precisions)
        if self.rest is None:
            return distance
        return distance + sum_elements((centred - leading @ self.directions.T) ** 2) / self.rest
