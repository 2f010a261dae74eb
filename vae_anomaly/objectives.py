"""What training minimises: the negative ELBO or importance-weighted bound, with its usual aids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vae_anomaly.choices import check_fields
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.likelihoods import observed_log_prob, sum_elements
from vae_anomaly.networks import Posterior
from vae_anomaly.trimming import check_trim
from vae_anomaly.vae import VAE, Autoencoder, kl_per_latent, log_mean_exp, log_prior_ratio, reparameterise


@dataclass(frozen=True)
class ObjectiveConfig:
    """The ``[objective]`` section of a recipe.

    Attributes
    ----------
    bound : {"elbo", "iw"}
        ELBO with the analytic KL, or the importance-weighted bound.
    draws : int
        K, draws of z per row.
    beta : float
        Weight of the KL after warm-up [1]_.
    warmup_epochs : float
        Epochs over which that weight rises linearly from 0.
    free_bits : float
        Nats per latent dimension, batch mean, below which the KL is not pressed further [2]_.
    trim : float or "auto"
        Share of the training rows, those with the highest losses, that the model is not shown after the
        first tenth of the epochs, because they may be anomalies; "auto" estimates it, see `trimming`.

    References
    ----------
    .. [1] Higgins et al., "beta-VAE", ICLR 2017. https://openreview.net/forum?id=Sy2fzU9gl
    .. [2] Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow",
       NeurIPS 2016. https://arxiv.org/abs/1606.04934
    """

    bound: Literal["elbo", "iw"] = "elbo"
    draws: int = 1
    beta: float = 1.0
    warmup_epochs: float = 0.0
    free_bits: float = 0.0
    trim: float | str = 0.0

    def __post_init__(self) -> None:
        check_trim(self.trim)
        check_fields(self)
        if self.draws < 1:
            raise ConfigError(f"draws must be at least 1, got {self.draws}")
        if min(self.beta, self.warmup_epochs, self.free_bits) < 0:
            raise ConfigError(
                "beta, warmup_epochs and free_bits must not be negative, "
                f"got {self.beta}, {self.warmup_epochs} and {self.free_bits}"
            )
        if self.bound == "iw" and self.free_bits:
            raise ConfigError("free_bits needs the analytic KL of bound = 'elbo', got bound = 'iw'; drop one")

    def kl_weight(self, epoch: float) -> float:
        """beta after warm-up; ``epoch`` counts from 0 and may be a fraction."""
        return self.beta * min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else self.beta


class Losses(NamedTuple):
    """Means over the batch, in nats per row.

    Attributes
    ----------
    loss : Tensor, shape ()
        What is minimised.
    reconstruction : Tensor, shape ()
        -log p(x observed | z), mean over draws.
    kl : Tensor, shape ()
        KL(q || p), unweighted; 0 for an autoencoder.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


def losses(
    model: Autoencoder,
    x: Tensor,
    observed: Tensor,
    noise: Tensor,
    config: ObjectiveConfig,
    kl_weight: float = 1.0,
    shown: Tensor | None = None,
) -> Losses:
    """The objective on a batch.

    Parameters
    ----------
    model : Autoencoder or VAE
    x, observed : Tensor, shape (B, D)
    noise : Tensor, shape (K, B, L)
    config : ObjectiveConfig
    kl_weight : float
        From `ObjectiveConfig.kl_weight`.
    shown : bool Tensor, shape (B, D), optional
        What the encoder sees of the elements observed; all of them if left out.
    """
    posterior = model.encode(x, observed) if shown is None else encode_shown(model, x, shown)
    if not isinstance(model, VAE):
        reconstruction = -model.log_likelihood(posterior.mean, x, observed).mean()
        return Losses(reconstruction, reconstruction, torch.zeros_like(reconstruction))
    z = reparameterise(posterior, noise)
    log_likelihood = model.log_likelihood(z, x, observed)
    kl = kl_per_latent(posterior)
    mean_kl = sum_elements(kl).mean()
    if config.bound == "iw":
        weighted = log_likelihood + kl_weight * log_prior_ratio(posterior, z, noise)
        loss = -log_mean_exp(weighted).mean()
    else:
        pressed = kl.mean(dim=0).clamp_min(config.free_bits).sum() if config.free_bits else mean_kl
        loss = kl_weight * pressed - log_likelihood.mean()
    return Losses(loss, -log_likelihood.mean(), mean_kl)


def encode_shown(model: Autoencoder, x: Tensor, shown: Tensor) -> Posterior:
    """q(z | x shown) of rows that may be known elsewhere too."""
    return model.encode(torch.where(model.likelihood.widened(shown), x, 0.0), shown)


def predictive_loss(model: VAE, x: Tensor, observed: Tensor, hidden: Tensor, noise: Tensor) -> Tensor:
    """-log p(x hidden | x observed) in nats, shape (B,): sum_k r_k p(x hidden | z_k), r = softmax(log w).

    Parameters
    ----------
    model : VAE
    x : Tensor, shape (B, D)
        Known wherever observed or hidden.
    observed, hidden : bool Tensor, shape (B, D)
        Disjoint; the encoder sees the first alone.
    noise : Tensor, shape (K, B, L)
    """
    posterior = encode_shown(model, x, observed)
    z = reparameterise(posterior, noise)
    raw = model.decode(z)
    seen = observed_log_prob(model.likelihood, raw, x, observed) + log_prior_ratio(posterior, z, noise)
    both = seen + observed_log_prob(model.likelihood, raw, x, hidden)
    return torch.logsumexp(seen, dim=0) - torch.logsumexp(both, dim=0)
