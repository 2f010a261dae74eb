"""Bounds on the likelihood, and their parts."""

from __future__ import annotations

from torch import Tensor

from vae_anomaly.scores.base import Evidence, Score
from vae_anomaly.vae import log_mean_exp


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
        return -log_mean_exp(evidence.log_weights)


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
