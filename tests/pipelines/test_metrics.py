"""The numbers of an evaluation, against hand computations."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from pipelines.report import imputation, imputed_draws
from pipelines.report.metrics import Array, Bools, as_labels, false_alarms, precision_at_n, ranking
from pipelines.report.words import jsonable
from vae_anomaly.exceptions import DataError
from vae_anomaly.pooling import pool_estimates
from vae_anomaly.schema import Column, ImageSchema, Samples, TableSchema

NOT_KNOWN = {"auroc": None, "average_precision": None, "precision_at_n": None}
TABLE = TableSchema((Column("a"), Column("b")))


def table(values: list[list[float]]) -> Samples:
    return TABLE.read(np.array(values))


def test_ranking_of_four_rows() -> None:
    labels = np.array([False, False, True, True])
    ranks = ranking(labels, np.array([0.1, 0.4, 0.35, 0.8]))
    # Three of the four pairs are in order; precision 1 at the first anomaly, 2/3 at the second.
    assert ranks == pytest.approx({"auroc": 0.75, "average_precision": 5 / 6, "precision_at_n": 0.5})


def test_rows_without_score_are_left_out_of_the_ranking() -> None:
    labels = np.array([False, True, True])
    assert ranking(labels, np.array([0.0, 1.0, np.nan]))["auroc"] == 1.0
    assert ranking(labels, np.array([np.nan, 1.0, 2.0])) == NOT_KNOWN


@pytest.mark.parametrize("labels", [None, np.zeros(3, np.bool_), np.ones(3, np.bool_)], ids=str)
def test_ranking_needs_both_classes(labels: Bools | None) -> None:
    assert ranking(labels, np.arange(3.0)) == NOT_KNOWN


def test_tied_rows_share_the_last_places() -> None:
    labels, scores = np.array([True, False, True, False]), np.array([2.0, 1.0, 1.0, 1.0])
    # One place is the first row's; the other is one of three rows, one of which is an anomaly.
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        assert precision_at_n(labels[order], scores[order]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("labels", [[0, 1, 1], [False, True, True], [0.0, 1.0, 1.0]], ids=str)
def test_labels_are_zeros_and_ones(labels: list[float]) -> None:
    read = as_labels(labels, 3)
    assert read is not None
    assert read.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "labels hold np.int64(2); expected 1 for an anomaly and 0 for a normal row"),
        ([0, 1], "labels have shape (2,); expected one per row, (3,)"),
    ],
    ids=str,
)
def test_other_labels_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        as_labels(labels, 3)


def test_false_alarms_of_one_row() -> None:
    # n = 19, alpha = 0.05: k = 1, and the chance of an alarm is 1/20, within what 99 % must allow.
    found = false_alarms(np.array([True]), 19, 0.05)
    assert found is not None
    assert (found.rate, found.low, found.high, found.inside) == (1.0, 0, 1, True)


def test_too_many_false_alarms_fall_outside() -> None:
    # Beta-Binomial(1000; 50, 950): mean 50, standard deviation 9.8, so that 120 is seven of them away.
    alarms = np.arange(1000) < 120
    found = false_alarms(alarms, 999, 0.05)
    assert found is not None
    assert found.to_dict() == {
        "asked": 0.05,
        "rows": 1000,
        "alarms": 120,
        "low": found.low,
        "high": found.high,
        "calibration_rows": 999,
        "rate": 0.12,
        "inside": False,
    }
    assert 50 - 4 * 9.8 < found.low < 50 - 2 * 9.8
    assert 50 + 2 * 9.8 < found.high < 50 + 4 * 9.8


def test_no_normal_row_has_no_false_alarm_rate() -> None:
    assert false_alarms(np.zeros(0, np.bool_), 99, 0.05) is None


def test_patterns_hide_only_what_was_observed() -> None:
    schema = ImageSchema(2, 10, 8)
    observed = np.random.default_rng(0).random((200, 2, 10, 8)) < 0.8
    patterns = imputation.hidden_patterns(schema, Samples(np.zeros(observed.shape), observed), seed=3)
    assert list(patterns) == ["random", "block", "lower half"]
    assert not any((hidden & ~observed).any() for hidden in patterns.values())
    assert patterns["random"].sum() / observed.sum() == pytest.approx(0.3, abs=0.01)
    np.testing.assert_array_equal(patterns["lower half"][:, :, 5:], observed[:, :, 5:])
    assert not patterns["lower half"][:, :, :5].any()
    full = imputation.hidden_patterns(
        schema, Samples(np.zeros(observed.shape), np.ones_like(observed)), seed=3
    )
    assert (full["block"].sum(axis=(1, 2, 3)) == 2 * 5 * 4).all()
    two = Samples(np.zeros((5, 2)), np.ones((5, 2), np.bool_))
    assert list(imputation.hidden_patterns(TABLE, two, 0)) == ["random"]


def test_tables_lose_cells_by_other_cells_and_by_themselves() -> None:
    schema = TableSchema((Column("a"), Column("b"), Column("c")))
    values = np.random.default_rng(0).normal(size=(4000, 3))
    values[::10, 1] = np.nan
    samples = schema.read(values)
    patterns = imputation.hidden_patterns(schema, samples, seed=1)
    assert list(patterns) == ["random", "by others", "by themselves"]
    for hidden in patterns.values():
        assert not (hidden & ~samples.observed).any()
        assert hidden.sum() / samples.observed.sum() == pytest.approx(0.3, abs=0.03)
    own = patterns["by themselves"]
    assert samples.values[own].mean() > np.nanmean(values) + 0.5


def test_categories_count_as_wrong_and_never_as_distances() -> None:
    schema = TableSchema(
        (Column("size"), Column("colour", "categorical", categories=("red", "green", "blue"))), named=True
    )
    assert imputation.discrete(schema).tolist() == [False, True]
    truth = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    filled = np.array([[1.0, 0.2], [1.0, 1.0], [1.0, 0.0]])
    one, two = imputation.columns_in_detail(schema, truth, filled, np.ones((3, 2), np.bool_), np.ones(2))
    assert (one["mae"], one["wrong"]) == (1.0, None)
    assert two["wrong"] == pytest.approx(1 / 3)
    found = imputation.compare(
        schema,
        Samples(truth, truth == truth),
        {"model": lambda x, seen: np.where(seen, x, 1.0)},
        np.ones(2),
        0,
    )
    assert found["random"]["methods"]["model"]["mae"] in (None, 1.0)


@pytest.mark.parametrize(
    ("column", "near", "other"),
    [
        (Column("dose", "categorical", categories=(0.1, 0.25, 0.5)), [0.14, 0.2, 0.4], 0.1),
        (Column("size", "ordinal", categories=(10, 20, 30)), [14.0, 19.0, 27.0], 20.0),
        (Column("twice", "binary", 0.5, 1.5), [0.9, 1.1, 2.0], 0.5),
    ],
    ids=lambda value: value.name if isinstance(value, Column) else "",
)
def test_imputed_categories_are_the_nearest_ones(column: Column, near: list[float], other: float) -> None:
    schema, hidden = TableSchema((column,)), np.ones((3, 1), np.bool_)
    truth = np.array(column.levels[[0, 1, -1]])[:, None]
    for filled, share in ((truth, 0.0), (np.array(near)[:, None], 0.0), (np.full((3, 1), other), 2 / 3)):
        found = imputation.columns_in_detail(schema, truth, filled, hidden, np.ones(1))
        assert found[0]["wrong"] == pytest.approx(share)


def test_pooled_means_are_rubins_of_the_completed_columns() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 2))
    hidden = np.zeros((50, 2), np.bool_)
    hidden[:20, 0] = True
    drawn = np.where(hidden, rng.normal(size=(39, 50, 2)), values)
    test = Samples(values, np.ones((50, 2), np.bool_))
    one, two = imputed_draws.pooled_means(test, drawn, hidden)
    assert set(two.values()) == {None}
    expected = pool_estimates(
        drawn[:, :, 0].mean(axis=1), drawn[:, :, 0].var(axis=1, ddof=1) / 50, complete_degrees_of_freedom=49
    )
    assert one["estimate"] == pytest.approx(float(expected.estimate))
    assert one["complete"] == pytest.approx(values[:, 0].mean())
    low, high = expected.interval(0.95)
    assert (one["low"], one["high"]) == pytest.approx((float(low), float(high)))


def test_scale_is_the_range_of_pixels_or_the_spread_of_a_column() -> None:
    schema = ImageSchema(1, 8, 8, "float32", -1.0, 1.0)
    assert imputation.scales(schema, schema.read(np.zeros((1, 8, 8)))).item() == 2.0
    # The second column is constant: it counts in its own units.
    assert imputation.scales(TABLE, table([[0, 7], [4, 7], [np.nan, 7]])).tolist() == [2.0, 1.0]


def test_constant_fill_reads_observed_training_cells() -> None:
    train = table([[0, np.nan], [1, np.nan], [5, np.nan]])
    values, seen = np.array([[9.0, 9.0]]), np.array([[False, False]])
    assert imputation.constant_fill(train, np.mean)(values, seen).tolist() == [[2.0, 0.0]]
    assert imputation.constant_fill(train, np.median)(values, ~seen).tolist() == [[9.0, 9.0]]


def test_neighbours_are_near_in_units_of_the_scale() -> None:
    schema = TableSchema((Column("a"), Column("b"), Column("c")))
    train = schema.read(np.array([[0.0, 0.0, 1.0], [30.0, 1.0, 2.0]]))
    row, seen = np.array([[10.0, 1.0, 0.0]]), np.array([[True, True, False]])
    # In raw units the first row is nearer; once a counts in hundreds, the second is.
    assert imputation.neighbour_fill(train, np.ones(3), 1)(row, seen)[0, 2] == 1.0
    assert imputation.neighbour_fill(train, np.array([100.0, 1.0, 1.0]), 1)(row, seen)[0, 2] == 2.0


def test_all_imputers_see_the_same_gaps() -> None:
    asked: list[Array] = []

    def record(values: Array, observed: Bools) -> Array:
        asked.append(observed)
        return np.where(observed, values, 0.0)

    test = table([[1, 2], [3, np.nan], [5, 6], [7, 8]] * 20)
    found = imputation.compare(TABLE, test, {"one": record, "two": record}, np.ones(2), seed=0)
    np.testing.assert_array_equal(asked[0], asked[1])
    hidden = test.observed & ~asked[0]
    assert found["random"]["cells"] == hidden.sum()
    expected = math.sqrt(np.mean(test.values[hidden] ** 2))
    assert found["random"]["methods"]["one"] == found["random"]["methods"]["two"]
    assert found["random"]["methods"]["one"]["rmse"] == pytest.approx(expected)


def test_json_holds_no_numpy_and_no_nan() -> None:
    mixed = {"a": np.float32(0.5), 1: [math.nan, np.int64(3)], "c": np.array([1.0, math.inf]), "d": {1}}
    assert jsonable(mixed) == {"a": 0.5, "1": [None, 3], "c": [1.0, None], "d": "{1}"}
