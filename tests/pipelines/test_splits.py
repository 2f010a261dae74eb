"""Splits leak nothing: by chance, by time, by group, with anomalies held out."""

import itertools
import re
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.data import DataConfig, Dataset, Fractions, novel_rows
from pipelines.splits import Splits, split
from vae_anomaly.exceptions import DataError
from vae_anomaly.schema import Column, TableSchema


def rows(count: int, **columns: Any) -> Dataset:
    values = pd.DataFrame({"a": np.arange(float(count)), "b": 1.0})
    return Dataset("made", values, TableSchema((Column("a"), Column("b"))), np.arange(count), **columns)


def assert_partition(splits: Splits, count: int) -> None:
    parts = astuple(splits)
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))


def test_random_splits_cover_every_row_once_by_seed() -> None:
    data, config = rows(1000), DataConfig()
    first, again, other = (split(data, config, seed) for seed in (1, 1, 2))
    assert [len(part) for part in astuple(first)] == [600, 100, 150, 150]
    assert_partition(first, 1000)
    assert all((a == b).all() for a, b in zip(astuple(first), astuple(again), strict=True))
    assert (first.train != other.train).any()


def test_novel_rows_are_all_in_test() -> None:
    labels = np.arange(1000) % 10
    data, config = rows(1000, labels=labels), DataConfig(novel=(3, "7"))
    splits = split(data, config, seed=0)
    assert_partition(splits, 1000)
    for part in (splits.train, splits.validation, splits.calibration):
        assert not np.isin(labels[part], [3, 7]).any()
    assert [len(part) for part in astuple(splits)] == [480, 80, 120, 120 + 200]
    np.testing.assert_array_equal(novel_rows(data, config), np.isin(labels, [3, 7]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "novel is ['catt'] but made has no labels; name the column by label"),
        (np.array(["cat", "dog"] * 20), "no row of made is labelled 'catt'; did you mean 'cat'?"),
    ],
)
def test_unknown_novelties_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        split(rows(40, labels=labels), DataConfig(novel=("catt",)), seed=0)


@pytest.mark.parametrize("form", ["text", "dates", "numbers"])
def test_time_splits_train_on_the_oldest(form: str) -> None:
    days = np.random.default_rng(0).integers(0, 40, size=500)
    dates = np.datetime64("2026-01-25") + days
    key = {"text": dates.astype(str).astype(object), "dates": dates, "numbers": days}[form]
    splits = split(rows(500, split_key=key), DataConfig(split_by="time", split_column="t"), seed=0)
    assert_partition(splits, 500)
    parts = astuple(splits)
    for earlier, later in itertools.pairwise(parts):
        assert days[earlier].max() < days[later].min()  # a day is never on both sides
    assert abs(len(splits.train) - 300) <= np.bincount(days).max()


def test_groups_never_straddle_even_with_novel_rows() -> None:
    rng = np.random.default_rng(0)
    house = np.array([f"h{i}" for i in rng.integers(0, 60, size=2000)], dtype=object)
    labels = np.where(np.isin(house, ["h7", "h8"]) & (rng.random(2000) < 0.5), "odd", "ok")
    config = DataConfig(split_by="group", split_column="house", novel=("odd",))
    splits = split(rows(2000, split_key=house, labels=labels), config, seed=3)
    assert_partition(splits, 2000)
    seen = [set(house[part]) for part in astuple(splits)]
    assert sum(len(names) for names in seen) == 60
    assert {"h7", "h8"} <= seen[3]
    normal = 2000 - np.isin(house, ["h7", "h8"]).sum()
    for part, share in zip(astuple(splits)[:3], (0.6, 0.1, 0.15), strict=True):
        assert abs(len(part) / normal - share) < 2 * 33 / normal  # a house has 33 rows
    other = split(rows(2000, split_key=house, labels=labels), config, seed=4)
    assert set(house[other.train]) != seen[0]


@pytest.mark.parametrize(
    ("dataset", "config", "message"),
    [
        (rows(40, split_key=np.array(["g"] * 40)), DataConfig(split_by="group", split_column="g"),
         "the validation split is empty: 40 normal rows, a share of 0.1, split by group; "
         "give more rows or groups, or another share"),
        (rows(40, split_key=np.array([1.0, np.nan] * 20)), DataConfig(split_by="time", split_column="t"),
         "the split column is empty in row 1; fill it or leave the row out"),
        (rows(20), DataConfig(fractions=Fractions(0.97, 0.01, 0.01, 0.01)),
         "the calibration split is empty: 20 normal rows, a share of 0.01, split by random; "
         "give more rows or groups, or another share"),
    ],
    ids=["one group", "no time", "few"],
)  # fmt: skip
def test_splits_that_cannot_be_are_refused(dataset: Dataset, config: DataConfig, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        split(dataset, config, seed=0)


def test_times_in_a_local_form_are_refused() -> None:
    key = np.array(["31/01/2026"] * 40, dtype=object)
    with pytest.raises(DataError, match=r"; write them as 2026-01-31 12:00$"):
        split(rows(40, split_key=key), DataConfig(split_by="time", split_column="t"), seed=0)


def test_a_column_without_training_values_is_named() -> None:
    data = rows(100, split_key=np.arange(100))
    assert isinstance(data.values, pd.DataFrame)
    data.values.loc[:69, "b"] = np.nan
    config = DataConfig(split_by="time", split_column="t")
    message = "columns ['b'] have no value in any training row; leave them out with --exclude"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        split(data, config, seed=0)
