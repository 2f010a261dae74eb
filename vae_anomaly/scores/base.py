"""What scores read of a batch, and what a score is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from vae_anomaly.encoding import Encoded
from vae_anomaly.likelihoods import sum_elements
from vae_anomaly.networks import Posterior
from vae_anomaly.vae import Autoencoder, kl_per_latent, log_mean_exp, log_prior_ratio, reparameterise


class Evidence:
    """What scores read of a batch, each quantity computed once and only if somebody asks.

    Parameters
    ----------
    model : Autoencoder or VAE
    encoded : Encoded
    noise : Tensor, shape (K, L)
        The same draws for every row.
    shape : tuple of int
        Of one image, (C, H, W); empty for a table's row, and where scores are fitted already.
    """

    def __init__(
        self, model: Autoencoder, encoded: Encoded, noise: Tensor, shape: tuple[int, ...] = ()
    ) -> None:
        self.model = model
        self.encoded = encoded
        self.noise = noise[:, None, :]
        self.shape = shape
        self._answers: dict[nn.Module, Tensor] = {}

    def answer(self, score: nn.Module) -> Tensor:
        """What a score says, shape (B,); computed once however many read it."""
        if score not in self._answers:
            self._answers[score] = score(self)
        return self._answers[score]

    @cached_property
    def posterior(self) -> Posterior:
        """q(z | x observed)."""
        return self.model.encode(self.encoded.x, self.encoded.observed)

    @cached_property
    def reconstruction(self) -> Tensor:
        """Raw likelihood parameters at z = mu, shape (B, P * D)."""
        return self.model.decode(self.posterior.mean)

    @cached_property
    def expected(self) -> Tensor:
        """E[x | z = mu] in model space, shape (B, D)."""
        return self.model.likelihood.mean(self.reconstruction)

    @cached_property
    def contributions(self) -> Tensor:
        """Terms of `recon`, shape (B, D), nats: best_d - log p(x_d | mu), 0 where missing.

        Scaled by D / number observed, so that rows with gaps compare with whole ones.
        """
        x, observed, _ = self.encoded
        likelihood = self.model.likelihood
        best = likelihood.best_log_prob(self.reconstruction, x)
        gap = (best - likelihood.log_prob(self.reconstruction, x)).clamp_min(0.0)
        return torch.where(observed, gap, 0.0) * self.fullness[:, None]

    @cached_property
    def fullness(self) -> Tensor:
        """D / number observed, shape (B,): what a sum over observed elements is short of."""
        x, observed, _ = self.encoded
        return observed.shape[-1] / sum_elements(observed.to(x.dtype)).clamp_min(1.0)

    @cached_property
    def latents(self) -> Tensor:
        """z_k, shape (K, B, L)."""
        return reparameterise(self.posterior, self.noise)

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(x observed | z_k), shape (K, B)."""
        return self.model.log_likelihood(self.latents, self.encoded.x, self.encoded.observed)

    @cached_property
    def kl(self) -> Tensor:
        """KL(q || p), shape (B,)."""
        return sum_elements(kl_per_latent(self.posterior))

    @cached_property
    def log_weights(self) -> Tensor:
        """log w_k, shape (K, B)."""
        return self.log_likelihood + log_prior_ratio(self.posterior, self.latents, self.noise)

    @cached_property
    def iw_nll(self) -> Tensor:
        """-(logsumexp_k log w_k - log K), shape (B,), nats."""
        return -log_mean_exp(self.log_weights)


TrainingEvidence = Callable[[], Iterator[Evidence]]


class Score(nn.Module):
    """One float per row; larger means more anomalous.

    Attributes
    ----------
    variational : bool
        Whether the score needs a distribution over z: an autoencoder has none.
    mask_aware : bool
        Whether the score needs an encoder that sees which elements are observed.
    held_out : bool
        Whether it is fitted on validation rows instead of training rows.
    reads : tuple of str
        Other scores that it is made of.
    derived_from_rows : tuple of str
        What it stores of single training rows, for the manifest.
    fit_rows, fit_images : int
        Rows of a table, and images, that it is fitted on at most.
    """

    variational = False
    mask_aware = False
    held_out = False
    reads: tuple[str, ...] = ()
    derived_from_rows: tuple[str, ...] = ()
    fit_rows = 20_000
    fit_images = 20_000

    def take(self, scores: Mapping[str, Score]) -> None:
        """Keep the fitted scores that this one reads; none by default."""

    def fit(self, training: TrainingEvidence) -> None:
        """Store what the score needs of the training data; nothing by default."""

    def forward(self, evidence: Evidence) -> Tensor:
        """Score of each row, shape (B,)."""
        raise NotImplementedError

    def comparable(self, evidence: Evidence) -> Tensor:
        """The score scaled to a row without gaps, for combining; the score itself where it is so anyway."""
        return evidence.answer(self)
