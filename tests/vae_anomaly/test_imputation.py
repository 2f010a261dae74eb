"""The masked decode finds the exact answer where there is one, however it is cut into chunks."""

import math
from itertools import pairwise

import pytest
import torch
from linear_gaussian import ALL_MASKS, D, L, conditional, linear_gaussian, rows_under_every_mask
from looked_up import Choice, Prior
from torch import Tensor

from vae_anomaly.encoding import Encoded, TableEncoding
from vae_anomaly.imputation import Noise, State, effective_sample_size, update
from vae_anomaly.imputing import fresh_state
from vae_anomaly.likelihoods import Bernoulli, Gaussian, Likelihood
from vae_anomaly.scores import noise_bank
from vae_anomaly.vae import VAE

ROWS = rows_under_every_mask()
DOUBLE = torch.float64


def start(rows: int, elements: int, draws: int = 0, dtype: torch.dtype = DOUBLE) -> State:
    arrays = fresh_state(rows, elements, draws)
    return State(*(torch.from_numpy(arrays[name]).to(dtype) for name in State._fields))


def noise_of(latent: Tensor, rows: int, elements: int, draws: int = 0, seed: int = 0) -> Noise:
    """Noise for these latents, shape (K, B or 1, L), with fresh Gumbel and element noise."""
    generator = torch.Generator().manual_seed(seed)
    exponential = torch.empty(draws, len(latent), rows, dtype=latent.dtype).exponential_(generator=generator)
    element = torch.randn(draws, rows, elements, generator=generator, dtype=latent.dtype)
    return Noise(latent, -exponential.log(), element)


def run(model: VAE, encoded: Encoded, noise: Noise, cuts: list[int]) -> State:
    """Feed the noise in chunks that end at ``cuts``."""
    rows, elements = encoded.x.shape
    state = start(rows, elements, len(noise.gumbel), encoded.x.dtype)
    for low, high in pairwise([0, *cuts]):
        chunk = Noise(noise.latent[low:high], noise.gumbel[:, low:high], noise.element)
        state = update(model, encoded, chunk, state)
    return state


def chosen(table: Tensor, likelihood: Likelihood) -> VAE:
    """A VAE whose k-th draw, latent noise k, decodes to table[k]; proposal and prior cancel."""
    return VAE(Prior(), Choice(table), likelihood, 1)


def test_mean_and_variance_are_the_exact_conditional_under_every_mask() -> None:
    draws = 4096
    latent = noise_bank(draws, L).double()[:, None]
    state = run(linear_gaussian(), ROWS, noise_of(latent, len(ROWS.x), D), [draws])
    mean, variance = conditional(ROWS.x, ROWS.observed)
    # Even points: errors far below sigma / sqrt(4096) = .05.
    torch.testing.assert_close(state.mean, mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(state.variance, variance, rtol=5e-3, atol=0)
    torch.testing.assert_close(effective_sample_size(state), torch.full((32,), float(draws), dtype=DOUBLE))


def test_a_proposal_beside_the_posterior_is_weighed_right() -> None:
    draws = 20_000
    latent = torch.randn(draws, 1, L, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    state = run(linear_gaussian(0.1, 1.3), ROWS, noise_of(latent, len(ROWS.x), D), [draws])
    mean, variance = conditional(ROWS.x, ROWS.observed)
    size = effective_sample_size(state)
    assert size.min() > 4000
    assert size.max() < draws
    error = (variance / size[:, None]).sqrt()
    assert ((state.mean - mean).abs() < 4.5 * error).all()
    torch.testing.assert_close(state.variance, variance, rtol=0.1, atol=0)


def test_the_decoders_spread_and_the_latents_spread_add() -> None:
    # Two latents of weights 3/4 and 1/4: element 0 is seen and decides, element 1 is to be filled.
    odds = math.log(3)
    x = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    gap = 2 * odds  # -gap / 2 = -log 3 at sigma 1 and distance sqrt(gap)
    table = torch.tensor([[1.0, 10.0], [1.0 + math.sqrt(gap), 20.0]], dtype=DOUBLE)
    model = chosen(table, Gaussian(scale=1.0))
    latent = torch.tensor([0.0, 1.0], dtype=DOUBLE).reshape(2, 1, 1)
    encoded = Encoded(x, torch.tensor([[True, False]]), torch.zeros(1, dtype=torch.int64))
    state = run(model, encoded, noise_of(latent, 1, 2), [2])
    assert state.mean[0, 1].item() == pytest.approx(12.5)
    assert state.variance[0, 1].item() == pytest.approx(1 + 0.75 * 2.5**2 + 0.25 * 7.5**2)
    # (3/4 + 1/4)^2 / (9/16 + 1/16)
    assert effective_sample_size(state).item() == pytest.approx(1.6)
    weights = model.log_weights(encoded.x, encoded.observed, latent)
    assert state.log_total.item() == pytest.approx(weights.logsumexp(dim=0).item())
    assert state.log_squares.item() == pytest.approx((2 * weights).logsumexp(dim=0).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cuts", [[24, 48, 72, 96], [1, 2, 96], [95, 96], list(range(1, 97))], ids=len)
def test_many_chunks_equal_one(cuts: list[int], dtype: torch.dtype) -> None:
    model = linear_gaussian(0.3, 1.4)
    latent = torch.randn(96, 32, L, generator=torch.Generator().manual_seed(0), dtype=dtype)
    encoded = Encoded(ROWS.x.to(dtype), ROWS.observed, ROWS.clipped)
    noise = noise_of(latent, 32, D, draws=6)
    whole, parts = run(model, encoded, noise, [96]), run(model, encoded, noise, cuts)
    tolerance = 1e-10 if dtype == DOUBLE else 2e-5
    for name in ("log_total", "log_squares", "mean", "variance"):
        one, many = getattr(whole, name), getattr(parts, name)
        torch.testing.assert_close(many, one, rtol=tolerance, atol=tolerance, msg=name)
    torch.testing.assert_close(parts.best, whole.best, rtol=0, atol=tolerance * 10)
    torch.testing.assert_close(parts.drawn, whole.drawn, rtol=0, atol=tolerance * 10)
    torch.testing.assert_close(effective_sample_size(parts), effective_sample_size(whole), rtol=1e-3, atol=0)


def test_a_small_spread_far_from_zero_keeps_its_digits_in_float32() -> None:
    # E[x^2] - mean^2 would lose it all: 1e4^2 has a last bit of 8 in float32.
    offset = torch.full((D,), 1e4, dtype=DOUBLE)
    model = linear_gaussian(offset=offset)
    nothing = Encoded(
        torch.zeros(1, D), torch.zeros(1, D, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    )
    latent = noise_bank(1000, L)[:, None]
    state = run(model, nothing, noise_of(latent, 1, D), [50 * i for i in range(1, 21)])
    _, variance = conditional(torch.zeros(1, D, dtype=DOUBLE), nothing.observed)
    torch.testing.assert_close(state.variance.double(), variance, rtol=0.02, atol=0)
    torch.testing.assert_close(state.mean.double(), offset[None], rtol=0, atol=0.02)


def test_weights_as_far_apart_as_floats_go() -> None:
    table = torch.tensor([[0.0, 1.0], [1e4, 2.0], [-1e4, 3.0]])
    encoded = Encoded(
        torch.tensor([[1e4, 0.0]]), torch.tensor([[True, False]]), torch.zeros(1, dtype=torch.int64)
    )
    latent = torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1)
    noise = noise_of(latent, 1, 2, draws=4)
    for cuts in ([3], [1, 2, 3]):
        state = run(chosen(table, Gaussian(scale=0.01)), encoded, noise, cuts)
        assert state.mean[0, 1].item() == 2.0
        assert state.variance[0, 1].item() == pytest.approx(1e-4)
        assert effective_sample_size(state).item() == 1.0
        assert (state.drawn[:, 0, 1] - 2.0).abs().max() < 0.05
        assert all(part.isfinite().all() for part in state)


def test_binary_elements_get_the_probability_and_its_variance() -> None:
    table = torch.logit(torch.tensor([[0.9, 0.2], [0.3, 0.6]], dtype=DOUBLE))
    encoded = Encoded(
        torch.tensor([[1.0, 0.0]], dtype=DOUBLE),
        torch.tensor([[True, False]]),
        torch.zeros(1, dtype=torch.int64),
    )
    latent = torch.tensor([0.0, 1.0], dtype=DOUBLE).reshape(2, 1, 1)
    state = run(chosen(table, Bernoulli()), encoded, noise_of(latent, 1, 2, draws=5), [1, 2])
    # Weights .9 and .3: mean .75 * .2 + .25 * .6, variance p (1 - p) of that mixture.
    assert state.mean[0, 1].item() == pytest.approx(0.3)
    assert state.variance[0, 1].item() == pytest.approx(0.21)
    assert set(state.drawn.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("cuts", [[5], [2, 5], [1, 2, 3, 4, 5]], ids=len)
def test_draws_take_each_latent_as_often_as_its_weight(cuts: list[int]) -> None:
    weights = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=DOUBLE)
    # Element 0 is seen at 0: a location of sqrt(-2 log w) gives weight w. Element 1 tells the latent.
    table = torch.stack([(-2 * weights.log()).sqrt(), 100.0 * torch.arange(5)], dim=1)
    encoded = Encoded(
        torch.zeros(1, 2, dtype=DOUBLE), torch.tensor([[True, False]]), torch.zeros(1, dtype=torch.int64)
    )
    latent = torch.arange(5, dtype=DOUBLE).reshape(5, 1, 1)
    draws = 20_000
    state = run(chosen(table, Gaussian(scale=1.0)), encoded, noise_of(latent, 1, 2, draws), cuts)
    taken = (state.drawn[:, 0, 1] / 100).round().long()
    counts = torch.bincount(taken, minlength=5)
    expected = draws * weights
    # Quantile .999 of chi-square with four degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 18.47
    left = state.drawn[:, 0, 1] - 100.0 * taken
    assert abs(left.mean()) < 4.5 / math.sqrt(draws)
    assert left.std().item() == pytest.approx(1.0, rel=0.03)


def test_draws_have_the_exact_conditional_moments() -> None:
    draws, count = 3000, 2000
    rows = Encoded(ROWS.x[12:14], ROWS.observed[12:14], ROWS.clipped[12:14])
    latent = torch.randn(count, 2, L, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    state = run(linear_gaussian(0.1, 1.2), rows, noise_of(latent, 2, D, draws), [500, 1000, 1500, 2000])
    mean, variance = conditional(rows.x, rows.observed)
    # Both the finite bank of latents and the finite number of draws have their say.
    error = (variance * (1 / draws + 2 / count)).sqrt()
    assert ((state.drawn.mean(dim=0) - mean).abs() < 4.5 * error).all()
    torch.testing.assert_close(state.drawn.var(dim=0), variance, rtol=0.2, atol=0)


def test_no_draws_asked_none_made() -> None:
    state = run(linear_gaussian(), ROWS, noise_of(torch.zeros(3, 1, L, dtype=DOUBLE), 32, D), [2, 3])
    assert state.drawn.shape == (0, 32, D)
    assert state.best.shape == (0, 32)


def test_nothing_observed_is_the_prior() -> None:
    nothing = int((~ALL_MASKS.any(dim=1)).nonzero())
    row = Encoded(ROWS.x[[nothing]], ROWS.observed[[nothing]], ROWS.clipped[[nothing]])
    latent = noise_bank(2048, L).double()[:, None]
    state = run(linear_gaussian(), row, noise_of(latent, 1, D), [2048])
    prior = conditional(torch.zeros(1, D, dtype=DOUBLE), torch.zeros(1, D, dtype=torch.bool))
    torch.testing.assert_close((state.mean, state.variance), prior, rtol=1e-2, atol=5e-3)
    assert state.log_total.item() == pytest.approx(math.log(2048))


def test_hidden_values_have_no_say() -> None:
    encoding = TableEncoding(torch.zeros(D), torch.ones(D))
    latent = torch.randn(20, 1, L, generator=torch.Generator().manual_seed(0))
    outcomes = []
    for fill in (0.0, 1e300, math.nan):
        encoded = encoding(torch.where(ROWS.observed, ROWS.x, fill), ROWS.observed)
        outcomes.append(run(linear_gaussian(0.2), encoded, noise_of(latent, 32, D, draws=2), [10, 20]))
    for state in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], state, strict=True))


def test_a_timestamps_column_comes_back_with_its_digits() -> None:
    """Imputed in float32 standardised units, answered in float64 raw units."""
    encoding = TableEncoding(torch.full((D,), 1.7e9, dtype=DOUBLE), torch.full((D,), 3600.0, dtype=DOUBLE))
    raw = encoding.decode(ROWS.x.float())
    encoded = encoding(raw, ROWS.observed)
    latent = noise_bank(4096, L)[:, None]
    state = run(linear_gaussian(), encoded, noise_of(latent, 32, D), [4096])
    mean, variance = conditional(ROWS.x, ROWS.observed)
    seconds = encoding.decode(state.mean) - 1.7e9
    torch.testing.assert_close(seconds, 3600 * mean, rtol=0, atol=20.0)
    spread = encoding.decode_scale(state.variance.sqrt(), state.mean)
    torch.testing.assert_close(spread, 3600 * variance.sqrt(), rtol=5e-3, atol=0)
