"""Bounds on the likelihood, and their parts."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_anomaly.scores.base import Evidence, Score, TrainingEvidence


class NegElbo(Score):
    """Negative evidence lower bound, KL(q || p) - mean_k log p(x_obs | z_k), in nats.

    References
    ----------
    .. [1] Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014.
       https://arxiv.org/abs/1312.6114
    """

    variational = True

    def forward(self, evidence: Evidence) -> Tensor:
        """KL minus the mean log-likelihood over draws."""
        return evidence.kl - evidence.log_likelihood.mean(dim=0)

    def comparable(self, evidence: Evidence) -> Tensor:
        """The likelihood times D / number observed: else a row would pass for normal by its gaps."""
        return evidence.kl - evidence.log_likelihood.mean(dim=0) * evidence.fullness


class IwNll(Score):
    """Importance-weighted negative log-likelihood, -(logsumexp_k log w_k - log K), in nats.

    References
    ----------
    .. [1] Burda et al., "Importance Weighted Autoencoders", ICLR 2016.
       https://arxiv.org/abs/1509.00519
    """

    variational = True

    def forward(self, evidence: Evidence) -> Tensor:
        """Minus the log-mean-exp of the weights."""
        return evidence.iw_nll


class Rate(Score):
    """KL(q || p), the information the encoder spends on the row, in nats.

    References
    ----------
    .. [1] Alemi et al., "Fixing a Broken ELBO", ICML 2018. https://arxiv.org/abs/1711.00464
    """

    variational = True

    def forward(self, evidence: Evidence) -> Tensor:
        """The analytic KL."""
        return evidence.kl


class Typicality(Score):
    """Distance of `iw_nll` to its mean over training rows, ``|iw_nll - mean|``, in nats.

    Rows that are too likely are as strange as rows that are not likely enough: in high
    dimensions the densest point is far from where samples lie [1]_. The test of one sample's
    bound against the training data's estimate of the entropy.

    References
    ----------
    .. [1] Nalisnick et al., "Detecting Out-of-Distribution Inputs to Deep Generative Models Using
       Typicality", 2019. https://arxiv.org/abs/1906.02994
    """

    variational = True

    def __init__(self) -> None:
        super().__init__()
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(()))

    def fit(self, training: TrainingEvidence) -> None:
        """Mean of the training rows' bounds."""
        bounds = torch.cat([evidence.iw_nll for evidence in training()])
        self.centre = bounds.double().mean().to(bounds.dtype)

    def forward(self, evidence: Evidence) -> Tensor:
        """Absolute difference to the stored mean."""
        return (evidence.iw_nll - self.centre).abs()
