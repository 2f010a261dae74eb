"""Why cells of a table go missing: at random given other columns, or by their own value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly.choices import is_number, whole_number
from vae_anomaly.columns import to_numbers
from vae_anomaly.exceptions import ConfigError, SchemaError

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Tail = Literal["high", "low", "both"]
Process = Literal["logistic", "quantile"]
# Steepness of the logistic processes, per standard deviation of what they look at.
SLOPE = 2.0
# `mar` keeps this share of the columns visible and lets them decide about the others.
DECIDING_SHARE = 0.3


def mar(x: npt.ArrayLike, share: float, seed: int) -> Mask:
    """Hide cells at random given what stays visible: some columns decide about the others.

    A random third of the columns keep all their values. A cell of any other column is hidden with
    probability sigmoid(a + b u), where u is a random direction over the deciding columns,
    standardised, and a makes the expected share of the whole table ``share``.

    Parameters
    ----------
    x : array-like, shape (B, D), D >= 2
        NaN where nothing is known: it stays missing, and decides as the column's mean would.
    share : float
        Expected share of hidden cells among all known ones.
    seed : int

    Returns
    -------
    bool ndarray, shape (B, D), True = observed

    Raises
    ------
    ConfigError
        If x is no table of two columns of finite numbers or more, or ``share`` is out of reach: the
        deciding columns hide nothing.
    """
    values, present = _table(x, 2)
    rng = generator(seed)
    columns = values.shape[1]
    order = rng.permutation(columns)
    deciding, others = np.split(order, [max(1, round(DECIDING_SHARE * columns))])
    known = present[:, others].sum() / max(1, present.sum())
    if not 0 <= share <= known:
        raise ConfigError(
            f"mar hides at most {known:.2f} of this table, got a share of {share}; ask for less"
        )
    directions = rng.standard_normal((len(deciding), len(others)))
    scores = _standardised(values, present)[:, deciding] @ directions
    logits = SLOPE * _standardised(scores, np.ones(scores.shape, dtype=np.bool_))
    observed = present.copy()
    observed[:, others] &= ~_hidden_by(logits, present[:, others], share / max(known, 1e-12), rng)
    return observed


def mnar(
    x: npt.ArrayLike,
    share: float,
    seed: int,
    *,
    tail: Tail = "high",
    process: Process = "logistic",
    columns: Sequence[int] | None = None,
) -> Mask:
    """Hide cells by their own value: self-masking.

    Parameters
    ----------
    x : array-like, shape (B, D)
        NaN stays missing.
    share : float
        Expected share of hidden cells among the known ones of each column.
    seed : int
    tail : {"high", "low", "both"}
        Which values tend to go missing.
    process : {"logistic", "quantile"}
        With a probability that grows with the value, or every value beyond a quantile.
    columns : sequence of int, optional
        Places of those that lose cells; all do by default.

    Returns
    -------
    bool ndarray, shape (B, D), True = observed

    Raises
    ------
    ConfigError
        If x is no table of finite numbers, or ``share``, ``tail``, ``process`` or a column is unknown
        or out of range.
    """
    values, present = _table(x, 1)
    check_share(share)
    check_word("tail", tail, get_args(Tail))
    check_word("process", process, get_args(Process))
    count = values.shape[1]
    chosen = np.arange(count) if columns is None else _places(columns, count)
    units = _standardised(values, present)[:, chosen]
    units = {"high": units, "low": -units, "both": np.abs(units)}[tail]
    rng = generator(seed)
    observed = present.copy()
    for place, column in enumerate(chosen):
        known = present[:, column]
        if process == "quantile":
            hidden = _largest(units[:, place], known, share)
        else:
            hidden = _hidden_by(SLOPE * units[:, [place]], known[:, None], share, rng)[:, 0]
        observed[:, column] &= ~hidden
    return observed


def check_share(share: float) -> None:
    """Refuse a share outside [0, 1]."""
    if not (is_number(share) and 0 <= share <= 1):
        raise ConfigError(f"share of hidden elements is {share!r}; give a number from 0 to 1")


def generator(seed: int) -> np.random.Generator:
    """What a mask is drawn by; `ConfigError` for a seed that is no whole number of 0 or more."""
    if whole_number("seed", seed) < 0:
        raise ConfigError(f"seed is {seed}; give 0 or more")
    return np.random.default_rng(seed)


def check_word(name: str, word: str, known: Sequence[str]) -> None:
    """Refuse a word that is none of the known ones."""
    if word not in known:
        raise ConfigError(f"unknown {name} {word!r}; choose from {', '.join(known)}")


def _table(x: npt.ArrayLike, columns: int) -> tuple[Floats, Mask]:
    cells = x if isinstance(x, pd.DataFrame) else np.asarray(x)
    if cells.ndim != 2 or cells.shape[1] < columns:
        raise ConfigError(
            f"values have shape {cells.shape}; this mask is for tables (B, D) of {columns} columns or more"
        )
    frame = pd.DataFrame(cells)
    try:
        values = np.column_stack([to_numbers(frame.iloc[:, i], str(n)) for i, n in enumerate(frame.columns)])
    except SchemaError as error:
        raise ConfigError(str(error)) from error
    if (infinite := np.isinf(values).any(axis=0)).any():
        name = str(frame.columns[int(infinite.argmax())])
        raise ConfigError(f"column {name!r} holds infinite values; use NaN for a missing value")
    return values, ~np.isnan(values)


def _places(columns: Sequence[object], count: int) -> npt.NDArray[np.int64]:
    """Places of columns, refused where they are names, flags or beyond the table."""
    for place in columns:
        if isinstance(place, bool) or not isinstance(place, int | np.integer) or not 0 <= int(place) < count:
            raise ConfigError(f"columns hold {place!r}; give places from 0 to {count - 1}")
    return np.asarray(columns, dtype=np.int64)


def _standardised(values: Floats, present: Mask) -> Floats:
    """Columns in units of their deviation, 0 where nothing is present and in constant columns."""
    count = np.maximum(1, present.sum(axis=0))
    known = np.where(present, values, 0.0)
    # Squares of numbers of either extreme leave the range of floats; powers of two cost no digit.
    known = np.ldexp(known, -np.frexp(np.abs(known).max(axis=0, initial=0.0))[1])
    centred = np.where(present, known - known.sum(axis=0) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    scaled: Floats = centred / np.where(deviation > 0, deviation, 1.0)
    return scaled


def _hidden_by(logits: Floats, present: Mask, share: float, rng: np.random.Generator) -> Mask:
    """Hide by sigmoid(a + logits), a found by bisection so that the expected share comes out."""
    uniform = rng.random(logits.shape)
    if share in (0.0, 1.0):
        return np.full(logits.shape, share == 1.0)
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        expected = (1 / (1 + np.exp(-(middle + logits))))[present].mean() if present.any() else share
        low, high = (low, middle) if expected > share else (middle, high)
    hidden: Mask = present & (uniform < 1 / (1 + np.exp(-(low + logits))))
    return hidden


def _largest(values: Floats, present: Mask, share: float) -> Mask:
    """The largest present values, ``share`` of them rounded; of equal ones the later rows."""
    count = round(share * int(present.sum()))
    order = np.argsort(np.where(present, values, -np.inf), kind="stable")
    hidden = np.zeros(len(values), dtype=np.bool_)
    hidden[order[len(order) - count :]] = True
    return hidden
