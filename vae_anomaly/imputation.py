"""Masked decode: what belongs in the gaps, given what is observed.

One chunk of draws per call with a running state, so that memory does not grow with K. The weights
are valid for any proposal that sees the observed elements and the mask only; the decoder's means
are averaged, never samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vae_anomaly.encoding import Encoded
from vae_anomaly.log_columns import LogAverages
from vae_anomaly.vae import VAE, log_prior_ratio, reparameterise


class State(NamedTuple):
    """What is known after some draws; model space.

    Attributes
    ----------
    log_total : float64 Tensor, shape (B,)
        log sum_k w_k.
    log_squares : float64 Tensor, shape (B,)
        log sum_k w_k^2, for the effective sample size.
    mean : Tensor, shape (B, D)
        sum_k r_k E[x | z_k]; of a positive column the averages of `log_columns`.
    variance : Tensor, shape (B, D)
        sum_k r_k (Var[x | z_k] + (E[x | z_k] - mean)^2); likewise.
    best : float64 Tensor, shape (M, B)
        Largest perturbed log-weight so far, per draw.
    drawn : Tensor, shape (M, B, D)
        x ~ p(x | z_k) of the draw that holds it.
    """

    log_total: Tensor
    log_squares: Tensor
    mean: Tensor
    variance: Tensor
    best: Tensor
    drawn: Tensor


class Noise(NamedTuple):
    """Noise of one chunk.

    Attributes
    ----------
    latent : Tensor, shape (K, B, L)
        Standard normal.
    gumbel : Tensor, shape (M, K, B)
        Standard Gumbel: which z each of M draws takes.
    element : Tensor, shape (M, B, D)
        Standard normal: the draws' own noise, the same for every chunk.
    """

    latent: Tensor
    gumbel: Tensor
    element: Tensor


def update(
    model: VAE, encoded: Encoded, noise: Noise, state: State, logs: LogAverages | None = None
) -> State:
    """Add one chunk of K draws to a running state; ``logs`` averages columns that are logarithms.

    References
    ----------
    .. [1] Mattei & Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data
       Sets", ICML 2019. https://arxiv.org/abs/1812.02633
    .. [2] Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983, for
       merging means and variances. https://doi.org/10.1080/00031305.1983.10483115
    """
    posterior, x, observed = model.encode(encoded.x, encoded.observed), encoded.x, encoded.observed
    z = reparameterise(posterior, noise.latent)
    raw = model.decode(z)
    log_likelihood = model.evidence(raw, x, observed, exactly=True)
    log_weights = log_likelihood + log_prior_ratio(posterior, z, noise.latent)
    chunk, weights = _normalise(log_weights)
    squares, _ = _normalise(2 * log_weights)
    means, variances = model.expected(raw)
    mean, variance = _moments(means, variances, weights)
    total = _log_add(state.log_total, chunk)
    share = torch.exp(chunk - total).to(mean.dtype)[:, None]
    step = mean - state.mean
    next_mean = state.mean + share * step
    next_variance = (1 - share) * state.variance + share * variance + share * (1 - share) * step**2
    if logs is not None:
        own = logs.averaged(log_weights - chunk, means, variances)
        shares = torch.stack([state.log_total - total, chunk - total])
        mean, variance = logs.merged(shares, state.mean, state.variance, own)
        next_mean, next_variance = logs.put(next_mean, mean), logs.put(next_variance, variance)
    return State(
        total,
        _log_add(state.log_squares, squares),
        next_mean,
        next_variance,
        *_draw(model, raw, log_weights, noise, state),
    )


def effective_sample_size(state: State) -> Tensor:
    """(sum w)^2 / sum w^2, shape (B,): 1 when one draw carries all weight, K when all carry the same."""
    return torch.exp(2 * state.log_total - state.log_squares)


def _normalise(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log sum_k w_k, shape (B,), and w_k / sum w, shape (K, B).

    The sum is a product with ones: see `likelihoods.sum_elements`.
    """
    largest = log_weights.amax(dim=0)
    weights = torch.exp(log_weights - largest)
    ones = torch.ones(1, weights.shape[0], dtype=weights.dtype, device=weights.device)
    total = (ones @ weights).squeeze(0)
    return largest + torch.log(total), weights / total


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(exp a + exp b); onnxruntime breaks torch's own logaddexp far from 0."""
    return torch.maximum(a, b) + torch.log(1 + torch.exp(-(a - b).abs()))


def _moments(means: Tensor, variances: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance over the chunk's draws, shape (B, D)."""
    share = weights.to(means.dtype)[:, :, None]
    mean = (share * means).sum(dim=0)
    spread = variances + (means - mean) ** 2
    return mean, (share * spread).sum(dim=0)


def _draw(model: VAE, raw: Tensor, log_weights: Tensor, noise: Noise, state: State) -> tuple[Tensor, Tensor]:
    """Resample by the Gumbel-max trick, streaming: index ~ Categorical(r), then x ~ p(x | z_index)."""
    perturbed = log_weights + noise.gumbel
    best, index = perturbed.max(dim=1)
    chosen = torch.gather(raw, 0, index[:, :, None].expand(-1, -1, raw.shape[-1]))
    drawn = model.draw(chosen, noise.element)
    better = best > state.best
    return torch.where(better, best, state.best), torch.where(better[:, :, None], drawn, state.drawn)
