"""A model whose every answer is known: linear decoder, Gaussian noise, exact posterior.

Each element loads on one latent only, so that the posterior given any part of x is a normal with
diagonal covariance, as the encoder's family has it.
"""

from itertools import product

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vae_anomaly.encoding import Encoded
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.networks import Posterior
from vae_anomaly.vae import VAE

LOADINGS = torch.tensor([[1.5, 0], [-0.5, 0], [2, 0], [0, 1], [0, -3]], dtype=torch.float64)
OFFSET = torch.tensor([0.5, -1, 0, 2, 0.25], dtype=torch.float64)
NOISE = 0.6
D, L = LOADINGS.shape
# All 32 ways to observe five elements, nothing included.
ALL_MASKS = torch.tensor(list(product([False, True], repeat=D)))


class LinearDecoder(nn.Module):
    """z -> W z + b."""

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, z: Tensor) -> Tensor:
        return z @ LOADINGS.to(z).T + self.offset.to(z)


class ExactEncoder(nn.Module):
    """p(z | x observed), or a proposal beside it: mean shifted, sigma stretched."""

    def __init__(self, offset: Tensor, shift: float, stretch: float) -> None:
        super().__init__()
        self.offset, self.shift, self.stretch = offset, shift, stretch

    def forward(self, x: Tensor, observed: Tensor) -> Posterior:
        loadings = torch.where(observed[:, :, None], LOADINGS.to(x), 0.0)
        residual = torch.where(observed, x - self.offset.to(x), 0.0)
        precision = 1 + (loadings**2).sum(dim=1) / NOISE**2
        mean = (loadings * residual[:, :, None]).sum(dim=1) / NOISE**2 / precision
        return Posterior(mean + self.shift, -precision.log() + 2 * torch.tensor(self.stretch).log().to(x))

    def activations(self, x: Tensor, observed: Tensor) -> Tensor:
        """No layer but the code itself."""
        return self(x, observed).mean


def linear_gaussian(shift: float = 0.0, stretch: float = 1.0, offset: Tensor = OFFSET) -> VAE:
    """The model, with its exact posterior unless told otherwise."""
    likelihood = Gaussian(scale=NOISE)
    return VAE(ExactEncoder(offset, shift, stretch), LinearDecoder(offset), likelihood, L)


def rows_under_every_mask(seed: int = 0, spread: float = 2.0) -> Encoded:
    """One row per mask, float64, zero where hidden."""
    generator = torch.Generator().manual_seed(seed)
    x = spread * torch.randn(len(ALL_MASKS), D, generator=generator, dtype=torch.float64)
    clipped = torch.zeros(len(x), dtype=torch.int64)
    return Encoded(torch.where(ALL_MASKS, x, 0.0), ALL_MASKS, clipped)


def covariance() -> Tensor:
    """Of x: W W' + noise."""
    return LOADINGS @ LOADINGS.T + NOISE**2 * torch.eye(D, dtype=torch.float64)


def log_marginal(x: Tensor, observed: Tensor) -> Tensor:
    """log p(x observed), row by row."""
    values = []
    for row, seen in zip(x, observed, strict=True):
        part = covariance()[seen][:, seen]
        normal = MultivariateNormal(OFFSET[seen], part) if seen.any() else None
        values.append(normal.log_prob(row[seen]) if normal else torch.zeros((), dtype=x.dtype))
    return torch.stack(values)


def conditional(x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every element given the observed ones' latents: E and Var of x' | x_obs.

    x' is a fresh observation, so that observed elements too have a predictive distribution; for
    the hidden ones it is p(x_mis | x_obs).
    """
    posterior = ExactEncoder(OFFSET, 0.0, 1.0)(x, observed)
    assert posterior.log_variance is not None
    mean = posterior.mean @ LOADINGS.T + OFFSET
    return mean, posterior.log_variance.exp() @ (LOADINGS**2).T + NOISE**2
