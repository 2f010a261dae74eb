"""The chains settle where the answer is known: a linear decoder with Gaussian noise."""

from __future__ import annotations

import math

import pytest
import torch
from linear_gaussian import (
    OFFSET,
    D,
    ExactEncoder,
    L,
    conditional,
    linear_gaussian,
    rows_under_every_mask,
)
from torch import Tensor

from vae_anomaly.encoding import Encoded
from vae_anomaly.metropolis import Chains, Ratio, StepNoise, effective_sample_size, step
from vae_anomaly.vae import VAE

DOUBLE = torch.float64
EVERY = rows_under_every_mask()
# Gibbs steps creep where a latent hangs on hidden elements alone: rows that show one of each latent.
SEEN = (EVERY.observed[:, :3].any(dim=1) & EVERY.observed[:, 3:].any(dim=1)).nonzero()[:, 0]
ROWS = Encoded(EVERY.x[SEEN], EVERY.observed[SEEN], EVERY.clipped[SEEN])
B = len(SEEN)
ALWAYS = -1e30


def start(rows: int, chains: int) -> Chains:
    zeros = torch.zeros(chains, rows, D, dtype=DOUBLE)
    latent = torch.zeros(chains, rows, L, dtype=DOUBLE)
    return Chains(zeros, latent, torch.zeros(rows, dtype=DOUBLE), zeros[0], zeros[0], zeros)


def noise_of(generator: torch.Generator, chains: int, rows: int, metropolis: bool) -> StepNoise:
    proposal = torch.randn(chains, rows, L, generator=generator, dtype=DOUBLE)
    element = torch.randn(chains, rows, D, generator=generator, dtype=DOUBLE)
    uniform = torch.rand(chains, rows, generator=generator, dtype=DOUBLE)
    return StepNoise(proposal, element, uniform.log() if metropolis else torch.full_like(uniform, ALWAYS))


def at_rest(chains: int) -> Chains:
    """Exact draws of p(z, x_mis | x_obs): where the chains must stay."""
    generator = torch.Generator().manual_seed(6)
    posterior = ExactEncoder(OFFSET, 0.0, 1.0)(ROWS.x, ROWS.observed)
    assert posterior.log_variance is not None
    noise = torch.randn(chains, B, L, generator=generator, dtype=DOUBLE)
    z = posterior.mean + (0.5 * posterior.log_variance).exp() * noise
    model = linear_gaussian()
    element = torch.randn(chains, B, D, generator=generator, dtype=DOUBLE)
    x = torch.where(ROWS.observed, ROWS.x, model.likelihood.sample(model.decode(z), element))
    return start(B, chains)._replace(completed=x, z=z)


def run(model: VAE, state: Chains, steps: int, metropolis: bool = True) -> Chains:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        state, _ = step(model, ROWS, noise_of(generator, len(state.completed), B, metropolis), state)
    return state


def offness(state: Chains) -> tuple[Tensor, Tensor]:
    """Distance of the hidden elements' means in standard errors, ratio of their variances."""
    mean, variance = conditional(ROWS.x, ROWS.observed)
    hidden, count = ~ROWS.observed, len(state.completed)
    distance = (state.completed.mean(dim=0) - mean).abs() / (variance / count).sqrt()
    return distance[hidden], (state.completed.var(dim=0) / variance)[hidden]


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.4, 1.5), (-0.3, 1.2), (0.0, 3.0)])
def test_the_conditional_is_left_as_it_is_whatever_the_proposal(shift: float, stretch: float) -> None:
    state = run(linear_gaussian(shift, stretch), at_rest(3000), 20)
    distance, ratio = offness(state)
    assert distance.max() < 4.5
    assert (ratio - 1).abs().max() < 4.5 * math.sqrt(2 / 3000)
    # Means over all steps are those of the conditional too, and so is the spread.
    mean, variance = conditional(ROWS.x, ROWS.observed)
    hidden = ~ROWS.observed
    error = state.chain_mean.std(dim=0) / math.sqrt(3000)
    assert ((state.mean - mean).abs() / error)[hidden].max() < 4.5
    torch.testing.assert_close(state.variance[hidden], variance[hidden], rtol=0.08, atol=0)


def test_without_the_acceptance_the_same_proposal_drifts_away() -> None:
    distance, _ = offness(run(linear_gaussian(0.4, 1.5), at_rest(3000), 20, metropolis=False))
    assert distance.max() > 20


def test_chains_find_the_conditional_from_anywhere() -> None:
    far = start(B, 200)
    far = far._replace(completed=far.completed + 20.0, z=far.z - 3.0)
    state = run(linear_gaussian(0.1, 1.3), far, 20, metropolis=False)
    settled = run(linear_gaussian(0.1, 1.3), state, 150)
    state = run(linear_gaussian(0.1, 1.3), settled._replace(averaged=torch.zeros(B, dtype=DOUBLE)), 150)
    mean, variance = conditional(ROWS.x, ROWS.observed)
    hidden = ~ROWS.observed
    error = state.chain_mean.std(dim=0) / math.sqrt(200)
    assert error[hidden].max() < 0.12
    assert ((state.mean - mean).abs() / error)[hidden].max() < 4.5
    torch.testing.assert_close(state.variance[hidden], variance[hidden], rtol=0.15, atol=0)
    seen = ROWS.observed.expand(200, -1, -1)
    assert torch.equal(state.completed[seen], ROWS.x.expand(200, -1, -1)[seen])


def test_an_exact_posterior_is_always_accepted() -> None:
    """log p(x, z) - log q(z | x) is then log p(x) wherever z lies."""
    generator = torch.Generator().manual_seed(1)
    state = start(len(ROWS.x), 3)
    state = state._replace(z=torch.randn(3, B, L, generator=generator, dtype=DOUBLE))
    state, ratio = step(linear_gaussian(), ROWS, noise_of(generator, 3, B, True), state)
    torch.testing.assert_close(ratio.proposed, ratio.current)


def test_a_refused_proposal_leaves_z_and_redraws_x() -> None:
    generator = torch.Generator().manual_seed(2)
    before = start(B, 2)._replace(z=torch.randn(2, B, L, generator=generator, dtype=DOUBLE))
    noise = noise_of(generator, 2, B, True)
    after, _ = step(linear_gaussian(), ROWS, noise._replace(log_uniform=-noise.log_uniform * 1e9), before)
    assert torch.equal(after.z, before.z)
    model = linear_gaussian()
    expected = model.likelihood.sample(model.decode(before.z), noise.element)
    torch.testing.assert_close(after.completed, torch.where(ROWS.observed, ROWS.x, expected))


def test_the_ratio_is_judged_on_every_element() -> None:
    """By hand: a completed sample has no gap, so that its hidden elements have their say."""
    generator = torch.Generator().manual_seed(3)
    filling = torch.randn(2, B, D, generator=generator, dtype=DOUBLE)
    model = linear_gaussian(0.2, 1.2)
    chains = start(B, 2)._replace(completed=filling)
    noise = noise_of(generator, 2, B, True)
    _, found = step(model, ROWS, noise, chains)
    for chain in range(2):
        x = torch.where(ROWS.observed, ROWS.x, filling[chain])
        everything = torch.ones_like(ROWS.observed)
        weights = model.log_weights(x, everything, noise.proposal[chain][None])[0]
        torch.testing.assert_close(found.proposed[chain], weights)
    assert isinstance(found, Ratio)


def test_effective_sample_size_counts_independent_draws() -> None:
    generator = torch.Generator().manual_seed(4)
    chains, draws, rows = 40, 25, 8
    # Chain means of 25 independent draws each: 1,000 draws in all.
    means = torch.randn(chains, rows, D, generator=generator, dtype=DOUBLE) / math.sqrt(draws)
    ones = torch.ones(rows, D, dtype=DOUBLE)
    state = Chains(means, means, torch.full((rows,), 200.0, dtype=DOUBLE), means.mean(dim=0), ones, means)
    nothing = torch.zeros(rows, D, dtype=torch.bool)
    found = effective_sample_size(state, nothing)
    assert found.mean().item() == pytest.approx(1000, rel=0.1)
    # Never more than steps were made, and no gap or one chain is no evidence against any.
    few = state._replace(averaged=torch.ones(rows, dtype=DOUBLE))
    assert effective_sample_size(few, nothing).tolist() == [40.0] * rows
    assert effective_sample_size(state, ~nothing).tolist() == [8000.0] * rows
    single = state._replace(chain_mean=means[:1], completed=means[:1], mean=means[0])
    assert effective_sample_size(single, nothing).tolist() == [200.0] * rows
    # All elements count alike, whatever their unit.
    scaled = state._replace(chain_mean=means * 1e3, mean=state.mean * 1e3, variance=ones * 1e6)
    torch.testing.assert_close(effective_sample_size(scaled, nothing), found)


def test_a_warm_up_leaves_no_trace_in_the_averages() -> None:
    generator = torch.Generator().manual_seed(5)
    noise = noise_of(generator, 3, B, False)
    model = linear_gaussian()
    fresh = start(B, 3)
    spoilt = fresh._replace(
        mean=fresh.mean + 1e6, variance=fresh.variance + 1e6, chain_mean=fresh.chain_mean + 1e6
    )
    one, other = (step(model, ROWS, noise, state)[0] for state in (fresh, spoilt))
    for name in ("mean", "variance", "chain_mean"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-9)
    assert one.averaged.tolist() == [1.0] * B
