"""Promises are kept: by hand, by brute force, and on the average of many calibration sets."""

import re
from fractions import Fraction
from math import comb, nextafter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import betabinom, binom  # type: ignore[import-untyped]

from vae_anomaly.calibration import (
    benjamini_hochberg,
    check_rate,
    false_alarm_interval,
    fewest_discoveries,
    p_values,
    rank_of,
    smallest_rate,
    threshold,
)
from vae_anomaly.exceptions import CalibrationError, ConfigError

TABLE = np.array([1.0, 2.0, 2.0, 5.0])


def beta_binomial(n: int, m: int, k: int) -> list[Fraction]:
    """Exact probabilities of the counts 0 ... m for Beta-Binomial(m; k, n + 1 - k)."""
    b = n + 1 - k
    return [Fraction(comb(k + j - 1, j) * comb(b + m - j - 1, m - j), comb(n + m, m)) for j in range(m + 1)]


def test_p_values_by_hand() -> None:
    scores = [0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 6.0, np.inf, -np.inf, np.nan]
    expected = [1.0, 1.0, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 1.0, np.nan]
    np.testing.assert_array_equal(p_values(TABLE, scores), expected)


def test_ranks_by_hand() -> None:
    scores = [0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 6.0, np.nan]
    expected = [0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1.0, np.nan]
    np.testing.assert_array_equal(rank_of(TABLE, scores), expected)


def test_a_row_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(0)
    table, scores = np.sort(rng.normal(size=50)), rng.normal(size=20)
    order = rng.permutation(20)
    np.testing.assert_array_equal(p_values(table, scores)[order], p_values(table, scores[order]))
    np.testing.assert_array_equal(rank_of(table, scores)[order], rank_of(table, scores[order]))


def test_float32_scores_tie_with_the_float64_table_made_from_them() -> None:
    scores = np.array([0.1, 0.2, 0.3], dtype=np.float32)
    np.testing.assert_array_equal(p_values(scores.astype(np.float64), scores), [1.0, 0.75, 0.5])


def test_nothing_scored_and_nothing_held_out() -> None:
    assert p_values(TABLE, []).shape == (0,)
    assert rank_of(TABLE, []).shape == (0,)
    assert p_values([], [7.0]).tolist() == [1.0]
    with pytest.raises(
        CalibrationError, match=r"^no rank without calibration scores, got 0; hold out some normal rows$"
    ):
        rank_of([], [7.0])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([2.0, 1.0], "calibration scores are not ascending, or hold NaN; drop NaN and sort them"),
        ([1.0, np.nan], "calibration scores are not ascending, or hold NaN; drop NaN and sort them"),
        ([np.nan], "calibration scores are not ascending, or hold NaN; drop NaN and sort them"),
        ([[1.0, 2.0]], "calibration scores have shape (1, 2); expected (n,)"),
    ],
    ids=["unsorted", "nan-last", "only-nan", "matrix"],
)
def test_a_broken_table_is_refused(table: list[float], message: str) -> None:
    for function in (p_values, rank_of):
        with pytest.raises(CalibrationError, match=f"^{re.escape(message)}$"):
            function(table, [1.0])
    with pytest.raises(CalibrationError, match=f"^{re.escape(message)}$"):
        threshold(table, 0.5)


@pytest.mark.parametrize(
    ("n", "alpha", "k"),
    [
        (99, 0.05, 5),
        (99, 0.29, 29),
        (99, 0.07, 7),
        (99, 0.01, 1),
        (19, 0.05, 1),
        (48, 1 / 49, 1),
        (20, 0.1, 2),
    ],
)
def test_threshold_is_the_kth_largest_score(n: int, alpha: float, k: int) -> None:
    assert threshold(np.arange(1.0, n + 1), alpha) == n + 1 - k


def rates(n: int) -> list[float]:
    """Two-digit rates, every attainable one, and their neighbours in floating point."""
    around = [j / 100 for j in range(1, 100)] + [j / (n + 1) for j in range(1, n + 1)]
    return [near for rate in around for near in (nextafter(rate, 0), rate, nextafter(rate, 1))]


@pytest.mark.parametrize("n", [1, 2, 19, 48, 99, 100, 999])
def test_above_the_threshold_means_p_at_most_alpha(n: int) -> None:
    rng = np.random.default_rng(n)
    table = np.sort(rng.integers(0, 2 * n, n).astype(np.float64))
    scores = np.concatenate([table, table + 0.5, [-1.0, np.inf, -np.inf, np.nan]])
    p = p_values(table, scores)
    for alpha in rates(n):
        if alpha < smallest_rate(n):
            assert not (p <= alpha).any()
            with pytest.raises(CalibrationError, match="needs at least"):
                threshold(table, alpha)
        else:
            np.testing.assert_array_equal(scores > threshold(table, alpha), p <= alpha)


def test_too_few_rows_names_the_number_needed() -> None:
    message = (
        "a false alarm rate of 0.01 needs at least 99 normal rows, got 20; "
        "fit or recalibrate with more rows, or accept a rate of 1/21 or more"
    )
    with pytest.raises(CalibrationError, match=f"^{re.escape(message)}$"):
        check_rate(20, 0.01)
    check_rate(99, 0.01)


@pytest.mark.parametrize("rows", [1, 2, 9, 19, 48, 97, 99, 999, 1_048_575])
def test_the_number_needed_is_the_smallest_that_is_enough(rows: int) -> None:
    for alpha in (1 / (rows + 1), nextafter(1 / (rows + 1), 1)):
        check_rate(rows, alpha)
        with pytest.raises(CalibrationError, match=f"needs at least {rows} normal rows, got {rows - 1};"):
            check_rate(rows - 1, alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5.0, np.nan, np.inf, "0.1", "a", None])
def test_a_rate_outside_0_to_1_is_refused(alpha: Any) -> None:
    rate = re.escape(f"the false alarm rate is {alpha!r}; choose one above 0 and below 1, such as 0.05")
    with pytest.raises(ConfigError, match=f"^{rate}$"):
        check_rate(100, alpha)
    with pytest.raises(
        ConfigError, match=re.escape(f"the false discovery rate is {alpha!r}; choose one above")
    ):
        benjamini_hochberg([0.5], alpha)


def test_a_rate_of_next_to_nothing_still_gets_a_sentence() -> None:
    with pytest.raises(CalibrationError, match="needs at least 2024022533073106183"):
        check_rate(100, 5e-324)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("n", "m", "alpha"), [(19, 0, 0.05), (19, 1, 0.05), (19, 30, 0.05), (99, 50, 0.29), (200, 400, 0.1)]
)
def test_interval_equals_the_brute_force_sum(n: int, m: int, alpha: float, level: float) -> None:
    k = max(j for j in range(n + 1) if j / (n + 1) <= alpha)
    mass = beta_binomial(n, m, k)
    assert sum(mass) == 1
    tail = (1 - Fraction(level)) / 2
    low = max(c for c in range(m + 1) if sum(mass[:c]) <= tail)
    high = min(c for c in range(m + 1) if sum(mass[c + 1 :]) <= tail)
    assert false_alarm_interval(n, m, alpha, level) == (low, high)


@pytest.mark.parametrize(("alpha", "k", "share"), [(0.01, 10, 0.58), (0.05, 50, 0.57)])
def test_a_binomial_interval_would_be_too_narrow(alpha: float, k: int, share: float) -> None:
    n, m = 1000, 10_000
    low, high = false_alarm_interval(n, m, alpha)
    assert (low, high) == tuple(betabinom.ppf([0.005, 0.995], m, k, n + 1 - k))
    narrow_low, narrow_high = binom.ppf([0.005, 0.995], m, alpha)
    covered = betabinom(m, k, n + 1 - k).cdf([narrow_high, narrow_low - 1])
    assert covered[0] - covered[1] == pytest.approx(share, abs=0.005)


def test_interval_covers_and_rate_holds_over_many_calibration_sets() -> None:
    rng = np.random.default_rng(7)
    n, m, alpha, repeats = 100, 200, 0.1, 2000
    alarms = np.array(
        [
            (rng.normal(size=m) > threshold(np.sort(rng.normal(size=n)), alpha)).sum()
            for _ in range(repeats)
        ]
    )  # fmt: skip
    low, high = false_alarm_interval(n, m, alpha)
    inside = np.mean((alarms >= low) & (alarms <= high))
    exact = beta_binomial(n, m, 10)
    mean = sum(j * mass for j, mass in enumerate(exact))
    assert mean == Fraction(10 * m, n + 1)
    spread = np.sqrt(float(sum((j - mean) ** 2 * mass for j, mass in enumerate(exact))))
    assert np.mean(alarms) == pytest.approx(float(mean), abs=4 * spread / np.sqrt(repeats))
    covered = float(sum(exact[low : high + 1]))
    assert covered >= 0.99
    assert inside == pytest.approx(covered, abs=4 * np.sqrt(covered * (1 - covered) / repeats))


def test_p_values_of_normal_rows_are_uniform_on_their_grid() -> None:
    rng = np.random.default_rng(3)
    n, repeats = 19, 20_000
    scores = rng.normal(size=(repeats, n + 1))
    p = np.array([p_values(np.sort(row[:-1]), row[-1:])[0] for row in scores])
    share = np.bincount(np.rint(p * (n + 1)).astype(int), minlength=n + 2)[1:] / repeats
    np.testing.assert_allclose(share, 1 / (n + 1), atol=4 * np.sqrt(0.05 * 0.95 / repeats))


# The 15 p-values of the worked example in Benjamini & Hochberg (1995), section 4.1: at q = 0.05
# the four smallest are rejected, p_(4) = 0.0095 <= 0.05 * 4 / 15 = 0.0133.
WORKED = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
    0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0
]  # fmt: skip


@pytest.mark.parametrize(
    ("p", "q", "reported"),
    [
        (WORKED, 0.05, [True] * 4 + [False] * 11),
        (WORKED[::-1], 0.05, [False] * 11 + [True] * 4),
        ([0.04, 0.04, 0.03], 0.05, [True, True, True]),  # 0.03 misses 1/3 of q: the last one carries it
        ([0.01, np.nan, 0.9], 0.02, [True, False, False]),  # NaN does not count: the limit is 0.02 / 2
        ([np.nan, np.nan], 0.05, [False, False]),
        ([0.5, 0.6], 0.05, [False, False]),
        ([], 0.05, []),
    ],
    ids=["worked-example", "any-order", "step-up", "nan", "only-nan", "none", "empty"],
)
def test_benjamini_hochberg_by_hand(p: list[float], q: float, reported: list[bool]) -> None:
    result = benjamini_hochberg(p, q)
    assert result.dtype == np.bool_
    assert result.tolist() == reported


@pytest.mark.parametrize("q", [0.01, 0.05, 0.1, 0.3])
def test_benjamini_hochberg_reports_k_rows_at_the_fewest_calibration_rows(q: float) -> None:
    """Rejecting k of m needs n = m / (q k) - 1 rows; with exactly these p = q k / m counts."""
    for m in (9, 10, 60, 420):
        for k in range(1, m):
            rows = Fraction(m, k) / Fraction(str(q))
            if rows.denominator == 1:
                p = np.where(np.arange(m) < k, 1 / int(rows), 1.0)
                assert benjamini_hochberg(p, q).sum() == k, (m, k)


def test_benjamini_hochberg_equals_its_definition() -> None:
    rng = np.random.default_rng(11)
    for _ in range(200):
        p = rng.beta(0.3, 1.0, size=rng.integers(1, 40))
        k = max((j for j in range(len(p) + 1) if j == 0 or np.sort(p)[j - 1] <= 0.1 * j / len(p)), default=0)
        expected: npt.NDArray[np.bool_] = np.isin(p, np.sort(p)[:k])
        np.testing.assert_array_equal(benjamini_hochberg(p, 0.1), expected)


def test_false_discovery_rate_holds_over_many_calibration_sets() -> None:
    rng = np.random.default_rng(5)
    q, normal, shares, found = 0.2, 90, [], []
    for _ in range(400):
        table = np.sort(rng.normal(size=200))
        scores = np.concatenate([rng.normal(size=normal), rng.normal(4.0, size=10)])
        reported = benjamini_hochberg(p_values(table, scores), q)
        shares.append(reported[:normal].sum() / max(reported.sum(), 1))
        found.append(reported[normal:].sum())
    # The guarantee is q times the share of normal rows.
    assert np.mean(shares) < q * 0.9 + 3 * np.std(shares) / np.sqrt(400)
    assert np.mean(found) > 8


@pytest.mark.parametrize(("n", "m", "q"), [(99, 1000, 0.1), (499, 37, 0.05), (9, 10, 0.1), (19, 7, 0.05)])
def test_no_fewer_can_be_reported_than_is_said(n: int, m: int, q: float) -> None:
    """The k strangest rows have the smallest p-value there is: reported from that k on, and not before."""
    fewest = fewest_discoveries(n, m, q)
    for k in range(1, m + 1):
        p = np.where(np.arange(m) < k, 1 / (n + 1), 1.0)
        assert benjamini_hochberg(p, q).sum() == (k if k >= fewest else 0)


def test_no_rate_is_offered_without_calibration_rows() -> None:
    sentence = (
        "a false alarm rate of 0.05 needs at least 19 normal rows, got 0; fit or recalibrate with more rows"
    )
    with pytest.raises(CalibrationError, match=f"^{re.escape(sentence)}$"):
        check_rate(0, 0.05)


def test_a_discovery_rate_that_nothing_can_reach_is_refused() -> None:
    sentence = (
        "a false discovery rate of 0.1 needs at least 9 normal rows, got 8; "
        "fit or recalibrate with more rows, or accept a rate of 1/9 or more"
    )
    with pytest.raises(CalibrationError, match=f"^{re.escape(sentence)}$"):
        fewest_discoveries(8, 100, 0.1)
    with pytest.raises(ConfigError, match=r"^the false discovery rate is 0; choose one above 0 and below 1"):
        fewest_discoveries(8, 100, 0)
