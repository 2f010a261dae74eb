"""Every figure by hand or in closed form."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from vae_anomaly.exceptions import ConfigError, SchemaError
from vae_anomaly.imputation_metrics import (
    Errors,
    column_errors,
    crps,
    errors,
    intervals,
    wrong_share,
)
from vae_anomaly.pooling import pool_estimates

TRUTH, FILLED = np.array([[0.0, 10.0], [4.0, 2.0]]), np.array([[1.0, 7.0], [9.0, 0.0]])
HIDDEN = np.array([[True, True], [False, True]])
SCALE = np.array([1.0, 3.0])
ALL, NONE = np.ones(1, np.bool_), np.zeros(1, np.bool_)


def test_errors_by_hand() -> None:
    found = errors(TRUTH, FILLED, HIDDEN, SCALE)
    assert found.cells == 3
    assert found.psnr is None
    assert (found.rmse, found.mae) == pytest.approx((math.sqrt(14 / 3), 2.0))
    assert (found.nrmse, found.nmae) == pytest.approx((math.sqrt(22 / 27), 8 / 9))
    assert found.nmse == pytest.approx(22 / 27)


def test_errors_of_each_column_stand_alone() -> None:
    one, two = column_errors(TRUTH, FILLED, HIDDEN, SCALE)
    assert (one.cells, one.nrmse, one.nmae) == (1, 1.0, 1.0)
    assert (two.cells, two.nrmse) == (2, pytest.approx(math.sqrt((1 + 4 / 9) / 2)))
    assert column_errors(TRUTH, FILLED, np.array([[True, False]] * 2), SCALE)[1] == Errors(0)


def test_peak_signal_to_noise_of_a_tenth_of_the_range_is_20_decibels() -> None:
    truth = np.zeros((1, 1, 2, 2), np.uint8)
    found = errors(truth, truth + 25.5, truth == 0, np.full((1, 1, 1), 255.0), image=True)
    assert found.psnr == pytest.approx(20.0)


def test_nothing_hidden_has_no_figure() -> None:
    nothing = np.zeros((2, 2), np.bool_)
    assert errors(TRUTH, FILLED, nothing, 1.0, image=True) == Errors(0, None, None, None, None, None, None)
    assert wrong_share(TRUTH, FILLED, nothing) is None
    assert crps(TRUTH, np.stack([FILLED] * 2), nothing, 1.0) is None
    assert intervals(TRUTH, np.stack([FILLED] * 40), nothing, 1.0) == []


def test_a_share_of_wrong_categories_counts_hidden_cells_only() -> None:
    truth = np.array(["a", "b", "a", "b"], object)
    filled = np.array(["b", "b", "b", "a"], object)
    assert wrong_share(truth, filled, np.array([True, True, True, False])) == pytest.approx(2 / 3)


def test_crps_by_hand() -> None:
    draws = np.array([[0.0], [1.0]])
    # E|x - 2| = 1.5; half the mean distance of two different draws = .5.
    assert crps(np.array([2.0]), draws, ALL, 1.0) == pytest.approx(1.0)
    assert crps(np.array([2.0]), draws, ALL, 4.0) == pytest.approx(0.25)
    assert crps(np.array([2.0]), np.full((5, 1), 3.5), ALL, 1.0) == pytest.approx(1.5)


def test_crps_of_a_normal_at_its_mean() -> None:
    draws = np.random.default_rng(0).normal(size=(500, 400))
    found = crps(np.zeros(400), draws, np.ones(400, np.bool_), 1.0)
    # 2 phi(0) - 1 / sqrt(pi), equation 21 of Gneiting & Raftery; unbiased, so few draws do as well.
    exact = 2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)
    assert found == pytest.approx(exact, abs=2e-3)
    pairs = draws.reshape(2, -1)
    assert crps(np.zeros(100_000), pairs, np.ones(100_000, np.bool_), 1.0) == pytest.approx(exact, abs=6e-3)


@pytest.mark.parametrize("count", [39, 40, 100])
def test_draws_like_the_truth_cover_at_the_level(count: int) -> None:
    rng = np.random.default_rng(count)
    cells = 40_000
    truth, draws = rng.exponential(size=cells), rng.exponential(size=(count, cells))
    found = intervals(truth, draws, np.ones(cells, np.bool_), 2.0)
    assert [part.level for part in found] == [0.5, 0.8, 0.95]
    for part in found:
        error = math.sqrt(part.level * (1 - part.level) / cells)
        assert part.coverage == pytest.approx(part.level, abs=4.5 * error + 1e-3)
    # Quartiles of the exponential are log 4 and log 4/3; the scale halves their distance.
    assert found[0].width == pytest.approx(math.log(3) / 2, rel=0.03)


def test_too_few_draws_for_a_level_are_refused() -> None:
    sentence = "an interval of 95% needs at least 39 draws, got 38; ask for more"
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        intervals(np.zeros(1), np.zeros((38, 1)), ALL, 1.0)
    with pytest.raises(ConfigError, match=r"^the level of an interval must be between 0 and 1, got 95$"):
        intervals(np.zeros(1), np.zeros((99, 1)), ALL, 1.0, levels=[95])
    with pytest.raises(ConfigError, match=r"^crps needs at least 2 draws, got 1; ask for more$"):
        crps(np.zeros(1), np.zeros((1, 1)), NONE, 1.0)
    with pytest.raises(SchemaError, match=r"^draws have shape \(5, 3\); expected \(M, 1\)$"):
        crps(np.zeros(1), np.zeros((5, 3)), ALL, 1.0)


# -- Rubin's rules ----------------------------------------------------------------------------------


def test_rubins_rules_by_hand() -> None:
    found = pool_estimates([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
    assert (found.estimate, found.within, found.between) == (2.0, 0.5, 1.0)
    assert found.variance == pytest.approx(11 / 6)
    share = (4 / 3) / (11 / 6)
    assert found.degrees_of_freedom == pytest.approx(2 / share**2)
    r = (4 / 3) / 0.5
    assert found.missing_information == pytest.approx((r + 2 / (2 / share**2 + 3)) / (r + 1))
    small = pool_estimates([1.0, 2.0, 3.0], [0.5, 0.5, 0.5], complete_degrees_of_freedom=10)
    # 1 / (1 / 3.78125 + 1 / 2.30769), Barnard & Rubin.
    assert small.degrees_of_freedom == pytest.approx(1.43308, abs=1e-5)


def test_analyses_without_variance_of_their_own_have_an_interval() -> None:
    plain = pool_estimates([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    small = pool_estimates([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], complete_degrees_of_freedom=10)
    assert small.degrees_of_freedom == plain.degrees_of_freedom == 2.0
    assert small.interval() == plain.interval()


def test_many_estimates_are_pooled_at_once_and_agreement_is_certainty() -> None:
    found = pool_estimates([[1.0, 5.0], [3.0, 5.0]], [[1.0, 4.0], [1.0, 4.0]])
    assert found.estimate.tolist() == [2.0, 5.0]
    assert found.variance.tolist() == [4.0, 4.0]
    assert found.degrees_of_freedom[1] == np.inf
    assert found.missing_information[1] == 0.0
    low, high = found.interval(0.95)
    assert (low[1], high[1]) == pytest.approx((5 - 1.959964 * 2, 5 + 1.959964 * 2), abs=1e-5)
    assert high[0] - low[0] > high[1] - low[1]


def test_pooled_intervals_cover_the_truth() -> None:
    """Half of a normal sample is missing and drawn from its posterior predictive: 95 % must hold."""
    rng, covered, repeats = np.random.default_rng(0), 0, 2000
    seen = rng.normal(size=(repeats, 20))
    mean, variance = seen.mean(axis=1), seen.var(axis=1, ddof=1)
    draws = 30
    sigma = np.sqrt(variance * 19 / rng.chisquare(19, size=(draws, repeats)))
    centre = mean + sigma / math.sqrt(20) * rng.normal(size=(draws, repeats))
    filled = centre[..., None] + sigma[..., None] * rng.normal(size=(draws, repeats, 20))
    complete = np.concatenate([np.broadcast_to(seen, filled.shape), filled], axis=-1)
    pooled = pool_estimates(
        complete.mean(axis=-1), complete.var(axis=-1, ddof=1) / 40, complete_degrees_of_freedom=39
    )
    low, high = pooled.interval(0.95)
    covered = float(((low < 0) & (high > 0)).mean())
    assert covered == pytest.approx(0.95, abs=0.015)
    assert np.median(pooled.missing_information) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("estimates", "variances", "sentence"),
    [
        (
            [1.0],
            [1.0],
            "estimates have shape (1,) and variances (1,); give one of each per draw, at least 2",
        ),
        (
            [1.0, 2.0],
            [1.0],
            "estimates have shape (2,) and variances (1,); give one of each per draw, at least 2",
        ),
        ([1.0, 2.0], [1.0, -1.0], "a variance is negative or NaN; give squared standard errors"),
        ([1.0, 2.0], [1.0, math.nan], "a variance is negative or NaN; give squared standard errors"),
        (
            [1.0, math.nan],
            [1.0, 1.0],
            "an estimate is NaN or infinite; leave out the draws whose analysis failed",
        ),
        (["a", "b"], [1.0, 1.0], "estimates and variances must be numbers of one shape per draw"),
        ([1.0, [2.0]], [1.0, 1.0], "estimates and variances must be numbers of one shape per draw"),
    ],
    ids=["one", "unequal", "negative", "nan", "nan-estimate", "text", "ragged"],
)
def test_what_cannot_be_pooled(estimates: Any, variances: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        pool_estimates(estimates, variances)


@pytest.mark.parametrize("freedom", [0, -3, math.nan, "9", None], ids=str)
def test_complete_degrees_of_freedom_are_above_0(freedom: Any) -> None:
    sentence = f"complete_degrees_of_freedom is {freedom!r}; give rows less parameters, above 0"
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        pool_estimates([1.0, 2.0], [1.0, 1.0], complete_degrees_of_freedom=freedom)
