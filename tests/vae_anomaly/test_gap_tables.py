"""Rows with gaps are judged by calibration rows that miss as much."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sample_models import table_rows

from vae_anomaly.calibration import p_values, rank_of, threshold
from vae_anomaly.gaps import EDGES, ROWS, Tables, _hidden, calibration_tables, missing_share
from vae_anomaly.runtime import Bundle
from vae_anomaly.schema import Samples

Array = npt.NDArray[Any]


def rows(count: int, elements: int, missing: float = 0.0, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, elements))
    return Samples(values, rng.random(values.shape) >= missing)


def mean_of_observed(samples: Samples) -> dict[str, Array]:
    """A score whose spread grows with what is missing."""
    seen = samples.observed.sum(axis=1)
    total = np.where(samples.observed, samples.values, 0.0).sum(axis=1)
    return {"score": (total / np.maximum(seen, 1)).astype(np.float32)}


@pytest.mark.parametrize("elements", [5, 40])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.25), (0.25, 0.5), (0.75, 1.0)])
def test_rows_are_hidden_to_the_shares_of_a_bin(elements: int, low: float, high: float) -> None:
    given = rows(400, elements, missing=0.1)
    hidden = _hidden(given, low, high, np.random.default_rng(0))
    share = missing_share(hidden)
    possible = {n / elements for n in range(elements) if low < n / elements <= high}
    assert set(np.round(share, 9)) <= set(np.round(sorted(possible), 9))
    assert len(set(share)) >= 0.7 * len(possible)
    assert hidden.observed.any(axis=1).all()
    # Nothing that was missing comes back, and every column goes as often as any other.
    fits = given.observed.sum(axis=1) >= (1 - max(possible)) * elements - 1e-9
    assert not (hidden.observed & ~given.observed[fits]).any()
    gone = 1 - hidden.observed.mean(axis=0)
    assert np.ptp(gone) < 0.15


def test_complete_rows_keep_one_table_and_bins_follow() -> None:
    given = rows(3000, 8)
    tables = calibration_tables(mean_of_observed, given, ("score",), seed=0, rate=0.05)
    assert tables["gap_edges"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert np.array_equal(tables["score_score"], np.sort(mean_of_observed(given)["score"]))
    assert "gap0_score_score" not in tables
    assert [len(tables[f"gap{i}_score_score"]) for i in range(1, 5)] == [ROWS] * 4
    spreads = [tables[f"gap{i}_score_score"].std() for i in range(1, 5)]
    assert spreads == sorted(spreads)


def test_the_first_bin_reaches_as_far_as_half_of_the_rows() -> None:
    sparse = calibration_tables(mean_of_observed, rows(2000, 8, missing=0.3), ("score",), seed=0, rate=0.05)
    assert sparse["gap_edges"].tolist() == [0.25, 0.5, 0.75, 1.0]
    few = calibration_tables(mean_of_observed, rows(48, 4, missing=0.1), ("score",), seed=0, rate=0.05)
    assert few["gap_edges"][0] >= missing_share(rows(48, 4, missing=0.1)).max()
    # Rows of one element are whole, or nothing is known of them.
    assert "gap_edges" not in calibration_tables(mean_of_observed, rows(30, 1), ("score",), seed=0, rate=0.05)


def test_rows_fuller_than_what_calibrates_are_counted() -> None:
    shares = np.array([0.0, 0.1, 0.25, 0.5])
    whole = Tables(calibration_tables(mean_of_observed, rows(400, 6), ("score",), seed=0, rate=0.05))
    some = Tables(
        calibration_tables(mean_of_observed, rows(400, 6, missing=0.1), ("score",), seed=0, rate=0.05)
    )
    # Of 400 rows that miss half of six values 6 are whole, and 38 miss one value.
    sparse = Tables(
        calibration_tables(mean_of_observed, rows(400, 6, missing=0.5), ("score",), seed=0, rate=0.05)
    )
    assert [tables.fuller(shares) for tables in (whole, some, sparse)] == [0, 0, 2]


@pytest.mark.parametrize("place", range(5))
def test_p_values_hold_in_every_bin(place: int) -> None:
    """Rows missing at random, evenly over the bin: alarms as often as promised, within four deviations."""
    tables = Tables(calibration_tables(mean_of_observed, rows(4000, 20), ("score",), seed=0, rate=0.05))
    edges = (0.0, *EDGES)
    fresh = rows(ROWS, 20, seed=1)
    if place:
        fresh = _hidden(fresh, edges[place - 1], edges[place], np.random.default_rng(5))
    missing = missing_share(fresh)
    assert set(tables.places(missing)) == {place}
    scores = mean_of_observed(fresh)["score"]
    alarms = (tables.p_values("score", scores, missing) <= 0.1).mean()
    assert abs(alarms - 0.1) < 4 * np.sqrt(2 * 0.1 * 0.9 / ROWS)
    by_all = (p_values(tables.table("score"), scores) <= 0.1).mean()
    assert place < 4 or by_all > 0.2


def test_few_rows_of_which_some_miss_much_are_binned_too() -> None:
    """One table for all would hold the wide scores of gappy rows, or judge gappy rows by whole ones."""
    whole, gappy = rows(144, 8), _hidden(rows(16, 8), 0.5, 0.75, np.random.default_rng(3))
    parts = zip(whole, gappy, strict=True)
    given = Samples(*(np.concatenate(part) for part in parts))
    tables = Tables(calibration_tables(mean_of_observed, given, ("score",), seed=0, rate=0.1))
    assert tables.ends[0] == 0.0
    assert len(tables.table("score")) == 144
    fresh = _hidden(rows(1000, 8, seed=1), 0.25, 0.75, np.random.default_rng(5))
    scores = mean_of_observed(fresh)["score"]
    alarms = (tables.p_values("score", scores, missing_share(fresh)) <= 0.1).mean()
    assert abs(alarms - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 160)
    assert (p_values(tables.table("score"), scores) <= 0.1).mean() > 0.2


def test_bins_hold_the_rows_that_the_rate_takes() -> None:
    found = calibration_tables(mean_of_observed, rows(3000, 8), ("score",), seed=0, rate=1 / 2001)
    assert [len(found[f"gap{i}_score_score"]) for i in range(1, 5)] == [2000] * 4


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.0001], ids=["usual", "other", "out of reach"])
def test_one_threshold_does_for_scores_of_all_bins(rate: float) -> None:
    tables = Tables(calibration_tables(mean_of_observed, rows(3000, 8), ("score",), seed=0, rate=0.05))
    given = rows(4000, 8, missing=0.4, seed=1)
    raw, missing = mean_of_observed(given)["score"].astype(np.float64), missing_share(given)
    found = tables.comparable(raw, missing, rate)
    places, whole = tables.places(missing), tables.table("score")
    assert np.array_equal(found[places == 0], raw[places == 0])
    for place in range(1, 4):
        here = places == place
        assert np.array_equal(raw[here].argsort(), found[here].argsort())
        assert np.median(tables.comparable_table(place, rate)) == pytest.approx(
            np.median(tables.table("score"))
        )
        assert abs(np.std(found[here]) / np.std(tables.table("score")) - 1) < 0.12
        assert np.std(raw[here]) > 1.05 * np.std(tables.table("score"))
    if rate > 0.001:
        outliers = tables.p_values("score", raw, missing) <= rate
        assert np.array_equal(outliers, found > threshold(whole, rate))


def test_a_table_of_one_value_moves_scores_and_does_not_stretch_them() -> None:
    tables = Tables(
        {
            "score_score": np.arange(20.0),
            "gap1_score_score": np.full(20, 7.0),
            "gap_edges": np.array([0.0, 1.0]),
        }
    )
    found = tables.comparable(np.array([7.0, 8.0, np.nan]), np.full(3, 0.5), 0.05)
    np.testing.assert_array_equal(found, [19.0, 20.0, np.nan])


def test_a_bundle_without_bins_judges_all_rows_by_one_table() -> None:
    tables = Tables({"score_score": np.arange(9.0)})
    missing = np.array([0.0, 0.5, 1.0])
    scores = np.array([3.5, 3.5, np.nan])
    assert tables.p_values("score", scores, missing)[:2].tolist() == [0.6, 0.6]
    assert np.isnan(tables.p_values("score", scores, missing)[2])
    assert np.array_equal(
        tables.ranks("score", scores, missing), rank_of(np.arange(9.0), scores), equal_nan=True
    )


def test_a_bundle_judges_a_row_by_its_bin(table_bundle: Bundle) -> None:
    x = table_rows(60, 9).fillna(0.0).to_numpy()
    observed = np.ones(x.shape, dtype=bool)
    observed[30:, 1:] = False
    frame = table_bundle.verdicts(x, observed)
    place = int(table_bundle.tables.places(np.array([0.75]))[0])
    for rows_of, table in ((slice(0, 30), "score_score"), (slice(30, 60), f"gap{place}_score_score")):
        raw = frame[f"score_{table_bundle.default_score}"][rows_of]
        expected = p_values(table_bundle.calibration[table], raw)
        assert np.array_equal(frame["p_value"][rows_of], expected)
    assert np.array_equal(table_bundle.p_values(x, observed), frame["p_value"])
    limit = threshold(table_bundle.tables.table("score"), table_bundle.false_alarm_rate)
    assert np.array_equal(frame["is_outlier"], frame["score"] > limit)
