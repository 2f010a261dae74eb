"""Metropolis-within-Gibbs: draws from p(z, x_mis | x_obs) by a model that never saw a mask.

Several chains per row. A chain holds a completed sample and a latent; a step proposes
z' ~ q(z | x completed), accepts it with the probability that keeps p(z, x_mis | x_obs) as it is, and
draws the missing elements anew from p(x | z). While every proposal is accepted this is pseudo-Gibbs
sampling, which is only near that distribution but gets there fast: the warm-up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vae_anomaly.encoding import Encoded
from vae_anomaly.likelihoods import observed_log_prob, sum_elements
from vae_anomaly.log_columns import LogAverages
from vae_anomaly.networks import Posterior
from vae_anomaly.vae import VAE, log_prior_ratio, reparameterise


class Chains(NamedTuple):
    """C chains per row and the averages over their steps so far; model space.

    Attributes
    ----------
    completed : Tensor, shape (C, B, F)
        Samples with their gaps filled. What stands in place of observed elements has no say.
    z : Tensor, shape (C, B, L)
    averaged : float64 Tensor, shape (B,)
        Steps averaged so far; 0 starts the averages anew.
    mean : Tensor, shape (B, F)
        Average of E[x | z] over steps and chains; of a positive column the averages of `log_columns`.
    variance : Tensor, shape (B, F)
        Average of Var[x | z] + (E[x | z] - mean)^2.
    chain_mean : Tensor, shape (C, B, F)
        Average of E[x | z] over the steps of each chain.
    """

    completed: Tensor
    z: Tensor
    averaged: Tensor
    mean: Tensor
    variance: Tensor
    chain_mean: Tensor


class StepNoise(NamedTuple):
    """Noise of one step.

    Attributes
    ----------
    proposal : Tensor, shape (C, B, L)
        Standard normal.
    element : Tensor, shape (C, B, D)
        Standard normal.
    log_uniform : Tensor, shape (C, B)
        Logarithm of a uniform number; far below any ratio where every proposal is to be accepted.
    """

    proposal: Tensor
    element: Tensor
    log_uniform: Tensor


class Ratio(NamedTuple):
    """log p(x, z) - log q(z | x) at both ends of a step, float64, shape (C, B): nats."""

    proposed: Tensor
    current: Tensor


def step(
    model: VAE, encoded: Encoded, noise: StepNoise, chains: Chains, logs: LogAverages | None = None
) -> tuple[Chains, Ratio]:
    """One step of every chain; ``logs`` averages columns that are logarithms.

    .. math:: \\log a = [\\log p(x, z') - \\log q(z' \\mid x)] - [\\log p(x, z) - \\log q(z \\mid x)]

    with the current z judged again, since x changed after it was drawn.

    References
    ----------
    .. [1] Mattei & Frellsen, "Leveraging the exact likelihood of deep latent variable models",
       NeurIPS 2018. https://arxiv.org/abs/1802.04826
    .. [2] Rezende, Mohamed & Wierstra, "Stochastic Backpropagation and Approximate Inference in
       Deep Generative Models", ICML 2014, for pseudo-Gibbs. https://arxiv.org/abs/1401.4082
    """
    present = model.likelihood.widened(encoded.observed)
    x = torch.where(present, encoded.x, chains.completed)
    complete = torch.ones_like(encoded.observed).expand(x.shape[0], -1, -1)
    posterior = _posterior(model, x, complete)
    proposal = reparameterise(posterior, noise.proposal)
    raw, raw_before = model.decode(proposal), model.decode(chains.z)
    ratio = Ratio(
        _log_ratio(model, posterior, x, complete, proposal, raw, noise.proposal),
        _log_ratio(model, posterior, x, complete, chains.z, raw_before, _noise_of(posterior, chains.z)),
    )
    accepted = (noise.log_uniform < ratio.proposed - ratio.current)[:, :, None]
    z, raw = torch.where(accepted, proposal, chains.z), torch.where(accepted, raw, raw_before)
    drawn = torch.where(present, encoded.x, model.likelihood.sample(raw, noise.element))
    return Chains(drawn, z, chains.averaged + 1, *_averages(model, raw, chains, logs)), ratio


def effective_sample_size(chains: Chains, observed: Tensor) -> Tensor:
    """How many independent draws of the missing elements would give means this exact, shape (B,).

    Variance of an element over the squared error of its mean, as the chains' means tell it: the
    errors are averaged over missing elements in units of the variance. At most the number of steps
    of all chains; that for a single chain, which tells nothing, and for rows without a gap.

    References
    ----------
    .. [1] Gelman & Rubin, "Inference from Iterative Simulation Using Multiple Sequences",
       Statistical Science 1992. https://doi.org/10.1214/ss/1177011136
    """
    count = chains.chain_mean.shape[0]
    spread = ((chains.chain_mean - chains.mean) ** 2).sum(dim=0) / max(count * (count - 1), 1)
    error = torch.where(observed, 0.0, spread / chains.variance.clamp_min(1e-12)).double()
    missing = sum_elements((~observed).double()).clamp_min(1.0)
    steps = count * chains.averaged
    return steps / torch.clamp_min(steps * sum_elements(error) / missing, 1.0)


def _posterior(model: VAE, x: Tensor, complete: Tensor) -> Posterior:
    """q(z | x completed) of each chain, (C, B, L): to the encoder every element is observed."""
    mean, log_variance = model.encode(x.flatten(0, 1), complete.flatten(0, 1))
    if log_variance is None:
        raise TypeError("an autoencoder's code has no density")
    shape = x.shape[:2]
    return Posterior(mean.unflatten(0, shape), log_variance.unflatten(0, shape))


def _noise_of(posterior: Posterior, z: Tensor) -> Tensor:
    """The noise that `reparameterise` would turn into z."""
    if posterior.log_variance is None:
        raise TypeError("an autoencoder's code has no density")
    return (z - posterior.mean) * torch.exp(-0.5 * posterior.log_variance)


def _log_ratio(
    model: VAE, posterior: Posterior, x: Tensor, complete: Tensor, z: Tensor, raw: Tensor, noise: Tensor
) -> Tensor:
    likelihood = observed_log_prob(model.likelihood, raw, x, complete, exactly=True)
    return likelihood + log_prior_ratio(posterior, z, noise).double()


def _averages(
    model: VAE, raw: Tensor, chains: Chains, logs: LogAverages | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and chain means with one more step of every chain."""
    means, variances = model.likelihood.mean(raw), model.likelihood.variance(raw)
    count = means.shape[0]
    mean = means.sum(dim=0) / count
    variance = (variances + (means - mean) ** 2).sum(dim=0) / count
    share = (1 / (chains.averaged + 1)).to(mean.dtype)[:, None]
    change = mean - chains.mean
    found = (
        chains.mean + share * change,
        (1 - share) * chains.variance + share * variance + share * (1 - share) * change**2,
        chains.chain_mean + share * (means - chains.chain_mean),
    )
    if logs is None:
        return found
    own = _log_averages(logs, means, variances, chains)
    return logs.put(found[0], own[0]), logs.put(found[1], own[1]), logs.put(found[2], own[2])


def _log_averages(
    logs: LogAverages, means: Tensor, variances: Tensor, chains: Chains
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the columns that are logarithms, shapes (B, P), (B, P) and (C, B, P)."""
    count = means.shape[0]
    # By torch's logarithm: of a number of chains left open a graph takes any other in float32.
    equal = torch.log(torch.ones_like(chains.averaged) / count).expand(count, -1)
    # Log shares of the steps before and of this one.
    before = torch.log(chains.averaged.clamp_min(1e-300))
    shares = torch.stack([before, torch.zeros_like(before)]) - torch.log(chains.averaged + 1)
    mean, variance = logs.merged(shares, chains.mean, chains.variance, logs.averaged(equal, means, variances))
    chain_mean, _ = logs.merged(
        shares[:, None], chains.chain_mean, torch.zeros_like(means), logs.given_z(means, variances)
    )
    return mean, variance, chain_mean
