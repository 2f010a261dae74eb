"""The rows of one table judged among themselves: each by a model that has not seen it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly.batches import take
from vae_anomaly.choices import is_number, whole_number
from vae_anomaly.exceptions import ConfigError, DataError
from vae_anomaly.gaps import missing_share
from vae_anomaly.schema import Array, Samples

if TYPE_CHECKING:
    from vae_anomaly.answers import Answers


def cross_fitted(
    fit: Callable[[Samples, int], Answers],
    samples: Samples,
    folds: int,
    random: np.random.RandomState,
    names: Sequence[str] = (),
) -> pd.DataFrame:
    r"""Score and p-value of every row, from a model fitted without its fold.

    A row, the others of its fold F and the calibration rows C of that fit are all unseen by the model, so
    that among normal rows every place is equally likely:

    .. math:: p_i = \#\{j \in F \cup C : s_j \ge s_i\} / (|F| + |C|)

    Rows with gaps are placed among those of F in their bin of missing share, and that bin's table.

    Parameters
    ----------
    fit : callable
        Rows and a seed to the answers of a model fitted on them.
    samples : Samples
    folds : int
    random : RandomState
    names : sequence of str
        Columns of a table, each of which every fit needs a value of; none for images.

    Raises
    ------
    ConfigError
        If there cannot be so many folds.
    DataError
        If a column has values in one fold alone, before anything is fitted; or a fit has too few rows.

    References
    ----------
    .. [1] Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 2015.
       https://doi.org/10.1007/s10472-013-9368-4
    """
    rows = len(samples.values)
    if not 2 <= whole_number("folds", folds) <= rows:
        raise ConfigError(f"folds must be at least 2 and at most the {rows} rows, got {folds}")
    order, seeds = random.permutation(rows), random.randint(2**31, size=folds)
    table = np.full((rows, 2), np.nan)
    fold_of = np.zeros(rows, dtype=np.int64)
    parts = [np.sort(part) for part in np.array_split(order, folds)]
    if names:
        _check_columns(samples, parts, names)
    for fold, held in enumerate(parts):
        try:
            answers = fit(take(samples, np.setdiff1d(order, held)), int(seeds[fold]))
        except DataError as error:
            raise DataError(f"without fold {fold} of {folds} of {rows} rows: {error}") from error
        rows_held = take(samples, held)
        scores = answers.judged(rows_held)["score"]
        table[held] = np.column_stack([scores, _places(scores, answers, missing_share(rows_held))])
        fold_of[held] = fold
    return pd.DataFrame({"score": table[:, 0], "p_value": table[:, 1], "fold": fold_of})


def strangest(p_values: pd.Series[float], share: float) -> pd.Series[bool]:
    """True for that share of the rows, those of the least p-values, and for what ties with its last.

    Null where there is no p-value, as in `Answers.verdicts`.
    """
    found = p_values <= p_values.quantile(share, interpolation="lower")
    return found.astype("boolean").mask(p_values.isna())


def check_contamination(share: Any) -> None:
    """Raise `ConfigError` unless it is a share of rows that may be outliers, or None."""
    if share is not None and not (is_number(share) and 0 < share <= 0.5):
        raise ConfigError(
            f"contamination must be above 0 and at most 0.5, got {share!r}; leave it out to go by p-values"
        )


def _check_columns(samples: Samples, parts: Sequence[npt.NDArray[np.int64]], names: Sequence[str]) -> None:
    """Refuse a column that a fit would have no value of, though the table has one."""
    holding = np.array([samples.observed[part].any(axis=0) for part in parts]).sum(axis=0)
    if alone := [name for name, count in zip(names, holding.tolist(), strict=True) if count == 1]:
        raise DataError(
            f"column {alone[0]!r} has all its values in one of {len(parts)} folds, and the fit without that "
            "fold would have none; leave it out"
        )


def _places(scores: Array, answers: Answers, missing: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """P-values of rows that are part of their own tables; NaN where the score is."""
    places, found = answers.tables.places(missing), np.full(len(scores), np.nan)
    for place in np.unique(places[~np.isnan(scores)]):
        here = (places == place) & ~np.isnan(scores)
        calibrated = answers.tables.comparable_table(int(place), answers.false_alarm_rate)
        pooled = np.sort(np.concatenate([calibrated, scores[here]]))
        at_least = len(pooled) - np.searchsorted(pooled, scores[here], side="left")
        found[here] = at_least / len(pooled)
    return found
