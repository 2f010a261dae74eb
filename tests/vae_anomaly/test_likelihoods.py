"""Densities are densities, of the right scale, and missing elements have no say."""

import math
import re

import pytest
import torch
from torch import Tensor

from vae_anomaly.exceptions import ConfigError
from vae_anomaly.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Laplace,
    Likelihood,
    log_normaliser,
    observed_log_prob,
    sum_elements,
)

# log C(p) of the continuous Bernoulli, from SCIENCE's table.
LOG_C = {
    0.001: 1.9345018888,
    0.01: 1.5451975455,
    0.1: 1.0103385595,
    0.25: 0.7871950082,
    0.4: 0.7067174567,
    0.499: 0.6931485139,
    0.5: 0.6931471806,
}

EVERY = {
    "bernoulli": Bernoulli(),
    "continuous-bernoulli": ContinuousBernoulli(),
    "gaussian-learned": Gaussian(),
    "gaussian-fixed": Gaussian(scale=0.7),
    "gaussian-element": Gaussian(scale="element"),
    "gaussian-sigmoid": Gaussian(output="sigmoid"),
    "laplace-learned": Laplace(),
    "laplace-fixed-tanh": Laplace(scale=0.4, output="tanh"),
    "laplace-element": Laplace(scale="element"),
}
every_likelihood = pytest.mark.parametrize("likelihood", EVERY.values(), ids=EVERY.keys())
RAW = torch.tensor([-30.0, -3.0, -0.1, 0.0, 1e-4, 0.4, 5.0, 30.0], dtype=torch.float64)


def raw_of(likelihood: Likelihood, location: Tensor = RAW) -> Tensor:
    """Raw parameters with these locations, and a raw scale of .3 where there is one per element."""
    parts = [location, torch.full_like(location, 0.3)][: likelihood.outputs_per_element]
    return torch.cat(parts, dim=-1)


def unit_gaussian() -> Gaussian:
    """A learned sigma of 1, above its floor."""
    likelihood = Gaussian()
    likelihood.load_state_dict({"log_scale": torch.tensor(0.0)})
    return likelihood


def clean(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


def test_every_likelihood_is_tried() -> None:
    assert {type(likelihood) for likelihood in EVERY.values()} == set(LIKELIHOODS.values())


@pytest.mark.parametrize(("p", "value"), LOG_C.items())
def test_continuous_bernoulli_constant(p: float, value: float) -> None:
    logit = math.log(p / (1 - p))
    exact = log_normaliser(torch.tensor([logit, -logit], dtype=torch.float64))
    torch.testing.assert_close(exact, torch.full_like(exact, value), rtol=0, atol=6e-11)
    single = log_normaliser(torch.tensor(logit)).item()
    assert single == pytest.approx(value, abs=4e-7)


def test_continuous_bernoulli_constant_is_smooth_at_zero() -> None:
    logit = torch.tensor([0.0, 1e-8, -1e-3, 0.00999, 0.01001, -0.5], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_normaliser(logit).sum(), logit)
    # d/dl (log l - log tanh(l/2)) = 1/l - 1/sinh(l) = l/6 - 7 l^3/360 + ...
    here = logit.detach()
    torch.testing.assert_close(slope, here / 6 - 7 * here**3 / 360, rtol=0, atol=1e-4)
    small = here.abs() < 0.02
    torch.testing.assert_close(slope[small], (here / 6 - 7 * here**3 / 360)[small], rtol=0, atol=1e-11)
    assert slope[0].item() == 0.0


@every_likelihood
def test_density_sums_to_one(likelihood: Likelihood) -> None:
    raw = raw_of(likelihood)
    if isinstance(likelihood, Bernoulli):
        grid, weights = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    else:
        low, high = (0, 1) if isinstance(likelihood, ContinuousBernoulli) else (-60, 60)
        grid = torch.linspace(low, high, 48_001, dtype=torch.float64)
        weights = torch.full_like(grid, (high - low) / 48_000)
        weights[[0, -1]] /= 2
    density = likelihood.log_prob(raw, grid[:, None].expand(-1, len(RAW))).exp()
    mass = weights @ density
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "raw", "x", "value"),
    [
        (Bernoulli(), 0.0, 0.25, -math.log(2)),
        (Bernoulli(), math.log(3), 1.0, math.log(0.75)),
        (ContinuousBernoulli(), 0.0, 0.25, 0.0),
        (ContinuousBernoulli(), math.log(1 / 9), 0.0, math.log(0.9) + LOG_C[0.1]),
        # -1/2 (1/.5)^2 - log .5 - log sqrt(2 pi)
        (Gaussian(scale=0.5), 0.0, 1.0, -2 + math.log(2) - 0.9189385332046727),
        (unit_gaussian(), 0.0, 0.0, -math.log(1.1) - 0.9189385332046727),
        (Laplace(scale=0.5), 0.0, 1.0, -2.0),
        (Laplace(scale=2.0, output="tanh"), 0.0, 1.0, -0.5 - math.log(4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Likelihood) else f"{value:.3g}",
)
def test_known_values(likelihood: Likelihood, raw: float, x: float, value: float) -> None:
    assert likelihood.log_prob(clean(raw), clean(x)).item() == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_fixed_sigma_of_root_half_is_squared_error() -> None:
    x, mean = torch.rand(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    likelihood = Gaussian(scale=math.sqrt(0.5))
    gap = likelihood.best_log_prob(mean, x) - likelihood.log_prob(mean, x)
    torch.testing.assert_close(gap, (x - mean) ** 2)


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
@pytest.mark.parametrize(
    ("raw_scale", "scale"), [(0.0, math.log(2) + 0.1), (-50.0, 0.1), (50.0, 50.1)], ids=str
)
def test_scale_per_element_is_softplus_above_the_floor(
    kind: type[Gaussian] | type[Laplace], raw_scale: float, scale: float
) -> None:
    likelihood = kind(scale="element")
    location, got = likelihood.parameters_of(torch.tensor([2.5, raw_scale]))
    assert location.item() == 2.5
    assert got.item() == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [
        (Bernoulli(), lambda x: torch.special.xlogy(x, x) + torch.special.xlogy(1 - x, 1 - x)),
        (Gaussian(scale=0.5), lambda x: torch.full_like(x, math.log(2) - 0.9189385332046727)),
        (Laplace(scale=0.5), torch.zeros_like),
    ],
    ids=["bernoulli", "gaussian", "laplace"],
)
def test_best_attainable_value(likelihood: Likelihood, expected: object) -> None:
    assert callable(expected)
    x = torch.linspace(0, 1, 11, dtype=torch.float64)[None]
    torch.testing.assert_close(likelihood.best_log_prob(torch.zeros_like(x), x), expected(x))


def test_bernoulli_gap_is_the_divergence_between_coins() -> None:
    x = torch.tensor([[0.0, 0.2, 0.5, 0.9, 1.0]], dtype=torch.float64)
    p = torch.tensor([[0.1, 0.3, 0.5, 0.2, 0.7]], dtype=torch.float64)
    likelihood = Bernoulli()
    gap = likelihood.best_log_prob(p, x) - likelihood.log_prob(torch.logit(p), x)
    coins = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(x), torch.distributions.Bernoulli(p)
    )
    torch.testing.assert_close(gap, coins)


def test_continuous_bernoulli_best_is_the_maximum_over_clipped_logits() -> None:
    likelihood = ContinuousBernoulli()
    logits = torch.linspace(-20, 20, 8_001, dtype=torch.float64)[:, None]
    levels = torch.arange(256, dtype=torch.float64)[None] / 255
    brute = likelihood.log_prob(logits, levels).amax(dim=0)
    best = likelihood.best_log_prob(levels, levels)[0]
    # The grid of logits is .005 wide: it misses the maximum by less than .0025^2 / 2 / 12.
    torch.testing.assert_close(best, brute, rtol=0, atol=1e-6)
    between = torch.linspace(0, 1, 499, dtype=torch.float64)[None]
    excess = likelihood.best_log_prob(between, between)[0] - likelihood.log_prob(logits, between).amax(dim=0)
    assert excess.min() > -1e-6
    assert excess.max() < 1e-3


@every_likelihood
def test_no_location_beats_the_best(likelihood: Likelihood) -> None:
    raw = raw_of(likelihood, 5 * torch.randn(2000, generator=torch.Generator().manual_seed(0)))
    for x in torch.linspace(0, 1, 33):
        at = x.expand(2000)
        gap = likelihood.best_log_prob(raw, at) - likelihood.log_prob(raw, at)
        assert gap.min() > -2e-6


@pytest.mark.parametrize(
    "name", ["gaussian-learned", "gaussian-fixed", "gaussian-element", "laplace-learned"]
)
def test_best_is_reached_at_the_location_alone(name: str) -> None:
    likelihood = EVERY[name]
    raw = raw_of(likelihood)
    torch.testing.assert_close(likelihood.best_log_prob(raw, RAW), likelihood.log_prob(raw, RAW))
    beside = likelihood.best_log_prob(raw, RAW + 1e-3) - likelihood.log_prob(raw, RAW + 1e-3)
    assert (beside > 1e-8).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log_prob_is_right_at_logits_of_200(dtype: torch.dtype) -> None:
    logits = torch.tensor([[-200.0, -200.0, 200.0, 200.0, -200.0]], dtype=dtype)
    x = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.5]], dtype=dtype)
    plain = torch.tensor([[0.0, -200.0, -200.0, 0.0, -100.0]], dtype=dtype)
    torch.testing.assert_close(Bernoulli().log_prob(logits, x), plain)
    # Clipped at 20; there log C = log 20 - log tanh 10 = 2.9957322777.
    clipped = torch.tensor([[0.0, -20.0, -20.0, 0.0, -10.0]], dtype=dtype) + 2.9957322777
    torch.testing.assert_close(ContinuousBernoulli().log_prob(logits, x), clipped, rtol=0, atol=2e-6)


@every_likelihood
def test_moments_are_those_of_the_density(likelihood: Likelihood) -> None:
    raw = raw_of(likelihood)
    if isinstance(likelihood, Bernoulli):
        grid, weights = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    else:
        low, high = (0.0, 1.0) if isinstance(likelihood, ContinuousBernoulli) else (-60.0, 60.0)
        grid = torch.linspace(low, high, 48_001, dtype=torch.float64)
        weights = torch.full_like(grid, (high - low) / 48_000)
        weights[[0, -1]] /= 2
    density = weights[:, None] * likelihood.log_prob(raw, grid[:, None].expand(-1, len(RAW))).exp()
    mean = grid @ density
    variance = ((grid[:, None] - mean) ** 2 * density).sum(dim=0)
    torch.testing.assert_close(likelihood.mean(raw), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(likelihood.variance(raw), variance, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_continuous_bernoulli_moments_are_derivatives_of_its_partition(dtype: torch.dtype) -> None:
    logit = torch.cat([torch.linspace(-19, 19, 76), torch.tensor([0.499, 0.501, -1e-4])])
    exact = logit.double().requires_grad_()
    partition = torch.nn.functional.softplus(exact) - log_normaliser(exact)
    (mean,) = torch.autograd.grad(partition.sum(), exact, create_graph=True)
    (variance,) = torch.autograd.grad(mean.sum(), exact)
    likelihood, given = ContinuousBernoulli(), logit.to(dtype)
    torch.testing.assert_close(likelihood.mean(given).double(), mean.detach(), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(likelihood.variance(given).double(), variance, rtol=1e-5, atol=2e-6)


@every_likelihood
def test_samples_have_the_moments_of_the_distribution(likelihood: Likelihood) -> None:
    raw = raw_of(likelihood).float()
    count = 40_000
    noise = torch.randn(count, len(RAW), generator=torch.Generator().manual_seed(1))
    draws = likelihood.sample(raw.expand(count, -1), noise).double()
    mean, variance = likelihood.mean(raw).double(), likelihood.variance(raw).double()
    error = (variance / count).sqrt()
    # The continuous Bernoulli's logit is kept .001 away from 0, which moves its mean by 8e-5.
    assert ((draws.mean(dim=0) - mean).abs() < 4.5 * error + 1e-4).all()
    squares = (draws - mean) ** 2
    error = squares.std(dim=0) / math.sqrt(count)
    assert ((squares.mean(dim=0) - variance).abs() < 4.5 * error + 1e-4).all()


@every_likelihood
def test_samples_stay_in_the_support_and_finite(likelihood: Likelihood) -> None:
    raw = raw_of(likelihood, 20 * RAW).float()
    noise = torch.tensor([-40.0, -6.0, 0.0, 6.0, 40.0])[:, None].expand(-1, len(RAW))
    draws = likelihood.sample(raw.expand(5, -1), noise)
    assert draws.isfinite().all()
    if isinstance(likelihood, Bernoulli):
        assert set(draws.unique().tolist()) <= {0.0, 1.0}
    if isinstance(likelihood, ContinuousBernoulli):
        assert draws.min() >= 0
        assert draws.max() <= 1


@every_likelihood
def test_missing_elements_change_neither_value_nor_gradient(likelihood: Likelihood) -> None:
    observed = torch.tensor([[True, False, True], [False, False, False]])
    x = torch.tensor([[0.5, 0.1, 1.0], [0.2, 0.7, 0.0]])
    # Its square overflows: multiplying by the mask would not do.
    other = torch.where(observed, x, -1e30)
    raw = raw_of(likelihood, torch.tensor([0.3, -2.0, 200.0])).expand(2, -1).clone().requires_grad_()
    values, slopes = [], []
    for rows in (x, other):
        value = observed_log_prob(likelihood, raw, rows, observed)
        values.append(value.detach())
        slopes.append(torch.autograd.grad(value.sum(), raw)[0])
    assert torch.equal(*values)
    assert torch.equal(*slopes)
    assert slopes[0].isfinite().all()
    assert values[0][1] == 0
    assert (slopes[0][1] == 0).all()
    assert (slopes[0][0, 1::3] == 0).all()


def test_observed_log_prob_adds_the_observed_terms() -> None:
    raw, x = torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    got = observed_log_prob(Bernoulli(), raw.expand(4, 1, 3), x, torch.tensor([[True, False, True]]))
    assert got.shape == (4, 1)
    # log sigmoid(0) + log sigmoid(-1)
    torch.testing.assert_close(got, torch.full((4, 1), -math.log(2) - 1.3132616875))


def test_sum_elements_sums_the_last_axis() -> None:
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(sum_elements(values), torch.tensor([[6.0, 22, 38], [54, 70, 86]]))


@pytest.mark.parametrize("size", [1, 61, 64, 67, 784, 12_288, 12_289])
def test_long_sums_of_one_term_keep_their_digits(size: int) -> None:
    term = torch.tensor(0.1 + math.log(2))
    got = sum_elements(term.expand(2, size))
    assert got.dtype == torch.float32
    # Of terms of one size, a float32 sum errs the same way each time.
    torch.testing.assert_close(got.double(), (size * term.double()).expand(2), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scale": "lerned"}, "unknown scale 'lerned'; choose learned, element or a number"),
        ({"scale": 0.0}, "a fixed scale must be a positive number, got 0.0"),
        ({"scale": -1.0}, "a fixed scale must be a positive number, got -1.0"),
        ({"scale": math.inf}, "a fixed scale must be a positive number, got inf"),
        ({"output": "relu"}, "unknown output 'relu'; choose one of identity, sigmoid, tanh"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Gaussian, Laplace])
def test_settings_that_make_no_density_are_refused(
    kind: type[Gaussian] | type[Laplace], setting: dict[str, float | str], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        kind(**setting)  # type: ignore[arg-type]
