"""What a row does to encoder and decoder, in three numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_anomaly.likelihoods import sum_elements
from vae_anomaly.scores.base import Evidence, Score, TrainingEvidence
from vae_anomaly.scores.quantiles import NormalScore
from vae_anomaly.scores.whitening import Whitening


class LPath(Score):
    """Squared Mahalanobis distance of three norms, without unit; 3 on average over training rows.

    The norms of the reconstruction error ``x - E[x | mu]``, of mu and of sigma hold what a VAE
    says of its input [1]_. Each goes through the quantiles of the training rows to a standard
    normal number. The error is taken over observed elements and scaled to all D.

    References
    ----------
    .. [1] Huang, He & Lui, "Rethinking Test-time Likelihood: The Likelihood Path Principle and Its
       Application to OOD Detection", 2024. https://arxiv.org/abs/2401.04933
    """

    variational = True
    whitening: Whitening

    def __init__(self) -> None:
        super().__init__()
        self.normal_scores = nn.ModuleList()

    def fit(self, training: TrainingEvidence) -> None:
        """Quantiles of each norm, and the covariance of their normal numbers."""
        norms = torch.cat([_norms(evidence) for evidence in training()])
        self.normal_scores = nn.ModuleList(NormalScore(values) for values in norms.T)
        self.to(norms.device)
        normal = self.normalised(norms)
        # A norm that all but repeats itself has less than unit variance; more would be rounding.
        self.whitening = Whitening.fit(normal, 1 - normal.var(dim=0, correction=0).clamp_max(1.0))

    def normalised(self, norms: Tensor) -> Tensor:
        """Standard normal numbers of the norms, both of shape (B, 3); float32."""
        columns = zip(self.normal_scores, norms.unbind(dim=1), strict=True)
        return torch.stack([score(values) for score, values in columns], dim=1)

    def forward(self, evidence: Evidence) -> Tensor:
        """Squared norm of the whitened normal numbers."""
        return self.whitening.squared_norm(self.normalised(_norms(evidence)))


def _norms(evidence: Evidence) -> Tensor:
    """Of reconstruction error, mu and sigma, shape (B, 3); float64."""
    x, observed, _ = evidence.encoded
    mean, log_variance = evidence.posterior
    if log_variance is None:
        raise TypeError("an autoencoder's code has no sigma")
    error = torch.where(evidence.model.likelihood.widened(observed), x - evidence.expected, 0.0).double()
    present = sum_elements(observed.double()).clamp_min(1.0)
    squares = (
        sum_elements(error**2) * (observed.shape[-1] / present),
        sum_elements(mean.double() ** 2),
        sum_elements(log_variance.double().exp()),
    )
    return torch.stack(squares, dim=1).sqrt()
