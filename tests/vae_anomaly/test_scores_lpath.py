"""Three norms, each a standard normal number on training rows, and their distance."""

import pytest
import torch
from linear_gaussian import D, linear_gaussian
from score_evidence import encoded, evidence, latents_only, normal
from torch import Tensor

from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.scores import Evidence, LPath
from vae_anomaly.scores.lpath import _norms
from vae_anomaly.scores.quantiles import KNOTS, NormalScore, count_below


def rows(count: int, seed: int = 0, spread: float = 1.0) -> Evidence:
    x = spread * normal(count, D, seed=seed).float()
    observed = torch.rand(count, D, generator=torch.Generator().manual_seed(seed)) < 0.8
    return evidence(linear_gaussian(), rows=encoded(x, observed))


def test_training_rows_are_standard_normal_in_each_norm_and_three_away_on_average() -> None:
    training = rows(2000)
    score = LPath()
    score.fit(lambda: iter([training]))
    errors, means, _ = score.normalised(_norms(training)).unbind(dim=1)
    for coordinate in (errors, means):
        ordered = torch.special.ndtr(coordinate.double().sort().values)
        even = (torch.arange(2000) + 0.5) / 2000
        assert (ordered - even).abs().max() < 0.01
        assert coordinate.mean().item() == pytest.approx(0, abs=0.01)
        assert coordinate.std().item() == pytest.approx(1, abs=0.02)
    assert score(training).mean().item() == pytest.approx(3, rel=1e-3)
    assert score(rows(2000, seed=1)).mean().item() == pytest.approx(3, rel=0.1)


def test_the_norms_are_of_what_is_observed_scaled_to_the_whole() -> None:
    found = latents_only(torch.tensor([[3.0, 4.0]] * 3), torch.tensor([[16.0, 9.0]] * 3).log())
    found.model.likelihood = Gaussian(scale=1.0)
    x = torch.tensor([[2.0, 4.0, 4.0, 8.0]] * 3)
    observed = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    found.encoded = encoded(x, observed)
    # sqrt(4 + 16 + 16 + 64) = 10; sqrt((4 + 16) * 4 / 2); nothing to be wrong about.
    expected = torch.tensor([[10.0, 5.0, 5.0], [40**0.5, 5.0, 5.0], [0.0, 5.0, 5.0]])
    torch.testing.assert_close(_norms(found), expected.double())


def test_quantiles_become_normal_numbers() -> None:
    values = normal(5000)
    score = NormalScore(values)
    places = torch.tensor([0.01, 0.05, 0.5, 0.7, 0.95, 0.99], dtype=torch.float64)
    got = score(values.quantile(places))
    torch.testing.assert_close(got.double(), torch.special.ndtri(places), rtol=0, atol=0.02)
    # Of an odd number of values the median is 0, the largest Phi^-1(1 - 1/2n).
    nine = NormalScore(torch.arange(9.0).double() ** 2)
    assert nine(torch.tensor([16.0])).item() == pytest.approx(0, abs=1e-6)
    assert nine(torch.tensor([64.0])).item() == pytest.approx(1.5932188, rel=1e-6)
    # One standard step outside: the slope from the median to the end, 1.5932 / (64 - 16).
    assert nine(torch.tensor([112.0])).item() == pytest.approx(2 * 1.5932188, rel=1e-6)


@pytest.mark.parametrize(
    "values",
    [torch.linspace(1, 2, 7), torch.full((50,), 3.0), torch.zeros(5), torch.tensor([4.0] * 30 + [9.0])],
    ids=["few", "constant", "zero", "ties"],
)
def test_normal_numbers_rise_strictly_beyond_and_between_the_ends(values: Tensor) -> None:
    score = NormalScore(values)
    low, high = score.knots[0], score.knots[-1]
    span = high - low
    far = span * torch.tensor([1.0, 10.0, 1e6])
    places = torch.cat([low - far.flip(0), score.knots, high + far])
    got = score(places)
    assert (got.diff() > 0).all()
    assert got.isfinite().all()
    middle = values.median()
    assert score(middle[None]).item() == pytest.approx(0, abs=0.05)


def test_a_norm_that_repeats_itself_does_not_blow_up_rounding() -> None:
    values = 5 + 1e-6 * normal(400).float()
    got = NormalScore(values)(values)
    assert got.abs().max() < 1e-3


@pytest.mark.parametrize("n", [1, 2, 5, 64, KNOTS])
def test_the_search_counts_what_is_below(n: int) -> None:
    table = normal(n).float().sort().values
    values = torch.cat([table, table + 1e-3, torch.tensor([-1e30, 1e30])])
    assert torch.equal(count_below(table, values), torch.searchsorted(table, values))


def test_an_inflated_error_or_code_stands_out() -> None:
    training = rows(1000)
    score = LPath()
    score.fit(lambda: iter([training]))
    assert score(rows(50, seed=2, spread=8.0)).min() > score(training).median()
