"""Dividing a data set so that nothing leaks: train, validation, calibration, test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.data import DataConfig, Dataset, novel_rows
from vae_anomaly.exceptions import DataError

Rows = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Splits:
    """Row numbers, ascending; every row of the data set is in exactly one of the four.

    Attributes
    ----------
    train : int64 ndarray
        Fits the weights.
    validation : int64 ndarray
        Chooses: early stopping, rank tables of combined scores.
    calibration : int64 ndarray
        Used for p-values and nothing before them.
    test : int64 ndarray
        Judges; holds all novel rows.
    """

    train: Rows
    validation: Rows
    calibration: Rows
    test: Rows


def split(dataset: Dataset, config: DataConfig, seed: int) -> Splits:
    """Divide the rows by chance, time or group, as ``config`` asks.

    Raises
    ------
    DataError
        If a split that was asked for stays empty, the split column cannot be read, or a
        column has no value in any training row.
    """
    novel = novel_rows(dataset, config)
    if config.split_by == "group":
        # A group with a novel row goes to test whole, or it would straddle.
        novel = np.isin(_key(dataset), np.unique(_key(dataset)[novel]))
    parts = _divide_normal(dataset, config, np.flatnonzero(~novel), np.random.default_rng(seed))
    parts[3] = np.concatenate([parts[3], np.flatnonzero(novel)])
    splits = Splits(*(np.sort(part).astype(np.int64) for part in parts))
    _check(dataset, config, splits, int((~novel).sum()))
    return splits


def _divide_normal(
    dataset: Dataset, config: DataConfig, rows: Array, rng: np.random.Generator
) -> list[Array]:
    """The four parts of the normal rows."""
    shares = astuple(config.fractions)
    if dataset.official_test is not None and config.official_test != "merge":
        official = dataset.official_test[rows]
        training, testing = rng.permutation(rows[~official]), rng.permutation(rows[official])
        if config.official_test == "divide":
            return [training, *_cut(testing, shares[1:])]
        return [*_cut(training, shares[:3]), testing]
    if config.split_by == "time":
        return _cut_by_time(rows, _times(_key(dataset)[rows]), shares)
    if config.split_by == "group":
        return _cut_by_group(rows, _key(dataset)[rows], shares, rng)
    return _cut(rng.permutation(rows), shares)


def _cut(rows: Array, shares: Sequence[float]) -> list[Array]:
    return np.split(rows, _borders(len(rows), shares))


def _cut_by_time(rows: Array, times: Array, shares: Sequence[float]) -> list[Array]:
    order = np.argsort(times, kind="stable")
    borders = _borders(len(rows), shares)
    # Rows of one instant stay together, on the later side of the border.
    inside = borders < len(rows)
    borders[inside] = np.searchsorted(times[order], times[order][borders[inside]], side="left")
    return np.split(rows[order], borders)


def _cut_by_group(
    rows: Array, groups: Array, shares: Sequence[float], rng: np.random.Generator
) -> list[Array]:
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = rng.permutation(len(sizes))
    middle = np.empty(len(sizes))
    middle[order] = np.cumsum(sizes[order]) - sizes[order] / 2
    part = np.searchsorted(_borders(len(rows), shares), middle, side="right")
    return [rows[part[member] == number] for number in range(len(shares))]


def _borders(count: int, shares: Sequence[float]) -> Array:
    return np.rint(np.cumsum(shares)[:-1] / sum(shares) * count).astype(np.int64)


def _key(dataset: Dataset) -> Array:
    if dataset.split_key is None:
        raise DataError(f"{dataset.name} has no split column; name one by split_column")
    missing = pd.isna(dataset.split_key)
    if missing.any():
        raise DataError(
            f"the split column is empty in row {int(missing.argmax())}; fill it or leave the row out"
        )
    key = dataset.split_key
    return key.astype(str) if key.dtype == object else key


def _times(key: Array) -> Array:
    if key.dtype.kind in "iufM":
        return key
    try:
        return pd.to_datetime(pd.Series(key), format="ISO8601", utc=True).to_numpy()
    except (ValueError, TypeError) as error:
        raise DataError(
            f"the split column holds no times: {error}; write them as 2026-01-31 12:00"
        ) from error


def _check(dataset: Dataset, config: DataConfig, splits: Splits, normal: int) -> None:
    for item in fields(splits):
        share = getattr(config.fractions, item.name)
        if share > 0 and len(getattr(splits, item.name)) == 0:
            raise DataError(
                f"the {item.name} split is empty: {normal} normal rows, a share of {share:g}, split by "
                f"{config.split_by}; give more rows or groups, or another share"
            )
    if isinstance(dataset.values, pd.DataFrame):
        empty = dataset.values.iloc[splits.train].isna().all()
        if empty.any():
            names = [str(name) for name in dataset.values.columns[empty]]
            raise DataError(
                f"columns {names} have no value in any training row; leave them out with --exclude"
            )
