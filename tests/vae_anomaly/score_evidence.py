"""Evidence made by hand: models whose posterior and reconstruction are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from linear_gaussian import rows_under_every_mask
from torch import Tensor, nn

from vae_anomaly.encoding import Encoded
from vae_anomaly.likelihoods import Bernoulli
from vae_anomaly.networks import Posterior
from vae_anomaly.scores import Evidence, Score
from vae_anomaly.vae import VAE, Autoencoder

AnyScore = TypeVar("AnyScore", bound=Score)
ROWS = rows_under_every_mask()


def encoded(x: Tensor, observed: Tensor | None = None) -> Encoded:
    seen = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
    return Encoded(torch.where(seen, x, 0.0), seen, torch.zeros(len(x), dtype=torch.int64))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evidence(model: Autoencoder, draws: int = 4, rows: Encoded = ROWS, seed: int = 0) -> Evidence:
    return Evidence(model, rows, normal(draws, model.latent_size, seed=seed).to(rows.x))


class Fixed(nn.Module):
    """An encoder that returns rows of stored posteriors, a decoder that returns stored raw output."""

    def __init__(self, mean: Tensor, log_variance: Tensor | None = None) -> None:
        super().__init__()
        self.posterior = Posterior(mean, log_variance)

    def forward(self, *_: Tensor) -> Posterior:
        return self.posterior


class Raw(nn.Module):
    """A decoder that ignores z."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, z: Tensor) -> Tensor:
        return self.raw.expand(*z.shape[:-1], -1)


def latents_only(mean: Tensor, log_variance: Tensor | None = None, shape: tuple[int, ...] = ()) -> Evidence:
    """Evidence of training rows with these posteriors, in float32 as models have them."""
    mean, log_variance = mean.float(), None if log_variance is None else log_variance.float()
    kind = Autoencoder if log_variance is None else VAE
    model = kind(Fixed(mean, log_variance), Raw(torch.zeros(1)), Bernoulli(), mean.shape[1])
    return Evidence(model, encoded(torch.zeros(len(mean), 1)), torch.zeros(1, mean.shape[1]), shape)


def fitted(score: AnyScore, mean: Tensor, log_variance: Tensor | None = None) -> AnyScore:
    """A score fitted to training rows with these posteriors, in two batches or more."""

    def batches() -> Iterator[Evidence]:
        for part in torch.arange(len(mean)).split(100):
            yield latents_only(mean[part], None if log_variance is None else log_variance[part])

    score.fit(batches)
    return score
