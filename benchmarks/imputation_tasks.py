"""What the imputation benchmark hides: data sets, masks and seeds, the same for every method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torchvision import datasets

Rows = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SEEDS = (0, 1, 2)
COVERAGE_SHARES = (0.1, 0.5, 0.7)
# MNIST: rows that fit the imputers, and rows that are filled.
IMAGE_ROWS, IMAGE_QUERIES = 60_000, 500
PATTERNS = ("pixels", "lower half", "block")
# Draws per row for intervals.
DRAWS = 50


class Task(NamedTuple):
    """One cell's problem.

    Attributes
    ----------
    name : str
        Of the set and mechanism.
    seed : int
        Of the mask and of the method; a mask that its protocol fixes leaves the method's.
    fit, query : ndarray, shape (n, d)
        NaN where hidden; the same array where the protocol fills what it trained on.
    truth : ndarray, shape (n, d)
        The query without gaps.
    shape : tuple of int
        (d,), or (height, width).
    draws : int
        Multiple imputations asked for.
    missing : {"mar", "mnar"}
        What the protocol lets a method know.
    """

    name: str
    seed: int
    fit: Rows
    query: Rows
    truth: Rows
    shape: tuple[int, ...]
    draws: int = 0
    missing: str = "mar"


def breast(data_root: Path, quick: bool) -> Iterator[Task]:
    """MIWAE's notebook: half of the standardised cells, by the mask that its seed gives."""
    truth = standardised(load_breast_cancer().data)
    # The protocol is numpy's old global generator; RandomState(1234) is the same stream.
    hidden = np.random.RandomState(1234).choice(truth.size, truth.size // 2, replace=False)
    gaps = truth.copy()
    gaps.flat[hidden] = np.nan
    for seed in SEEDS[: 1 if quick else None]:
        yield Task("breast", seed, gaps, gaps, truth, truth.shape[1:])


def mcar(data_root: Path, quick: bool) -> Iterator[Task]:
    """Half of the cells of the wines and digits."""
    sets = {"wine red": wine(data_root, "red"), "wine white": wine(data_root, "white")}
    digits = load_digits().data / 16
    for name, truth in (*sets.items(), ("digits", digits)):
        yield from hidden_at_random(name, truth[: 300 if quick else None], 0.5, quick)


def hidden_at_random(name: str, truth: Rows, share: float, quick: bool, draws: int = 0) -> Iterator[Task]:
    """The same set with one mask per seed."""
    for seed in SEEDS[: 1 if quick else None]:
        gaps = truth.copy()
        gaps[np.random.default_rng(seed).random(truth.shape) < share] = np.nan
        yield Task(name, seed, gaps, gaps, truth, truth.shape[1:], draws)


def mnar(data_root: Path, quick: bool) -> Iterator[Task]:
    """not-MIWAE's masks: in the first half of the columns every value above the mean is hidden."""
    breast_cancer = standardised(load_breast_cancer().data)
    sets = {"wine red": wine(data_root, "red"), "wine white": wine(data_root, "white")}
    for name, truth in (*sets.items(), ("breast", breast_cancer)):
        rows = truth[: 300 if quick else None]
        half = rows.shape[1] // 2
        gaps = rows.copy()
        gaps[:, :half][rows[:, :half] > 0] = np.nan
        for seed in SEEDS[: 1 if quick else None]:
            yield Task(name, seed, gaps, gaps, rows, rows.shape[1:], missing="mnar")


def coverage(data_root: Path, quick: bool) -> Iterator[Task]:
    """Intervals at three shares of gaps."""
    sets = {"breast": standardised(load_breast_cancer().data)}
    sets |= {f"wine {colour}": wine(data_root, colour) for colour in ("red", "white")}
    for name, truth in sets.items():
        for share in COVERAGE_SHARES:
            yield from hidden_at_random(
                f"{name}, {share:.0%}", truth[: 300 if quick else None], share, quick, DRAWS
            )


def gaussian(data_root: Path, quick: bool) -> Iterator[Task]:
    """Rank 3 plus noise, 20,000 x 10, 30 % hidden: the exact conditional mean is known."""
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((3, 10))
    rows = 2_000 if quick else 20_000
    truth = rng.standard_normal((rows, 3)) @ loadings + 0.5 * rng.standard_normal((rows, 10))
    yield from hidden_at_random("gaussian", truth, 0.3, quick)


def development(data_root: Path, quick: bool) -> Iterator[Task]:
    """Half of the cells of tables that no figure is reported on: what the defaults are chosen by."""
    rng = np.random.default_rng(0)
    component = rng.integers(0, 5, 2_000)
    centres, loadings = 2 * rng.standard_normal((5, 9)), rng.standard_normal((5, 9, 3))
    factors = np.einsum("ndk,nk->nd", loadings[component], rng.standard_normal((2_000, 3)))
    mixture = centres[component] + factors + 0.4 * rng.standard_normal((2_000, 9))
    hidden = np.tanh(rng.standard_normal((4_000, 3)) @ rng.standard_normal((3, 24)))
    curved = hidden @ rng.standard_normal((24, 12)) / 3 + 0.2 * rng.standard_normal((4_000, 12))
    curved[:, :4], curved[:, 4] = np.exp(curved[:, :4]), np.round(3 * curved[:, 4])
    sets = {"mixture": mixture, "mixture, 300 rows": mixture[:300], "curved": curved}
    sets |= {"wine": load_wine().data, "diabetes": load_diabetes().data}
    for name, truth in sets.items():
        yield from hidden_at_random(name, standardised(truth[: 300 if quick else None]), 0.5, quick)


def exact_gaussian(task: Task) -> Rows:
    """The conditional mean under the covariance that `gaussian` draws from."""
    loadings = np.random.default_rng(0).standard_normal((3, 10))
    covariance = loadings.T @ loadings + 0.25 * np.eye(10)
    filled = task.query.copy()
    patterns, which = np.unique(np.isnan(task.query), axis=0, return_inverse=True)
    for i, gaps in enumerate(patterns):
        rows = np.flatnonzero(which.ravel() == i)
        if gaps.any() and not gaps.all():
            slopes = np.linalg.solve(covariance[np.ix_(~gaps, ~gaps)], covariance[np.ix_(~gaps, gaps)])
            filled[np.ix_(rows, gaps)] = task.query[np.ix_(rows, ~gaps)] @ slopes
        elif gaps.all():
            filled[rows] = 0.0
    return filled


def images(data_root: Path, quick: bool) -> Iterator[Task]:
    """Complete training images; test images with pixels, the lower half or a block hidden."""
    for name, kind in (("MNIST", datasets.MNIST), ("Fashion-MNIST", datasets.FashionMNIST)):
        train, test = (
            kind(str(data_root), train=part, download=False).data.numpy() for part in (True, False)
        )
        fit = _pixels(train[: 600 if quick else IMAGE_ROWS])
        # One fit answers all patterns of a seed.
        for seed in SEEDS[: 1 if quick else None]:
            for pattern in PATTERNS:
                rng = np.random.default_rng(seed)
                rows = rng.choice(len(test), 100 if quick else IMAGE_QUERIES, replace=False)
                truth = _pixels(test[rows])
                gaps = np.where(_hidden(pattern, len(rows), rng).reshape(truth.shape), np.nan, truth)
                yield Task(f"{name}, {pattern}", seed, fit, gaps, truth, (28, 28))


def _pixels(raw: npt.NDArray[np.uint8]) -> Rows:
    return raw.reshape(len(raw), -1).astype(np.float64) / 255


def _hidden(pattern: str, rows: int, rng: np.random.Generator) -> Bools:
    hidden = np.zeros((rows, 28, 28), dtype=np.bool_)
    if pattern == "pixels":
        return rng.random(hidden.shape) < 0.5
    if pattern == "lower half":
        hidden[:, 14:] = True
        return hidden
    for i, (top, left) in enumerate(rng.integers(0, 15, (rows, 2))):
        hidden[i, top : top + 14, left : left + 14] = True
    return hidden


def wine(data_root: Path, colour: str) -> Rows:
    """The eleven measurements of one colour of wine, standardised."""
    table = np.loadtxt(data_root / "uci" / f"winequality-{colour}.csv", delimiter=";", skiprows=1)
    return standardised(table[:, :-1])


def standardised(rows: Rows) -> Rows:
    """Columns by their complete mean and deviation, as the papers have it."""
    scaled: Rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    return scaled
