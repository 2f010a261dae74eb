"""The rows of one table judged among themselves: each by a model that has not seen it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly.exceptions import ConfigError

if TYPE_CHECKING:
    from vae_anomaly.estimators import VAEDetector

Rows = npt.NDArray[np.int64]


def cross_fitted(detector: VAEDetector, X: Any, folds: int) -> pd.DataFrame:
    r"""Score and p-value of every row, from a model fitted without its fold.

    A row, the others of its fold F and the calibration rows C of that fit are all unseen by the model, so
    that among normal rows every place is equally likely:

    .. math:: p_i = \#\{j \in F \cup C : s_j \ge s_i\} / (|F| + |C|)

    References
    ----------
    .. [1] Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 2015.
       https://doi.org/10.1007/s10472-013-9368-4
    """
    from sklearn.base import clone
    from sklearn.utils import check_random_state

    rows = len(X)
    if not 2 <= folds <= rows:
        raise ConfigError(f"folds must be at least 2 and at most the {rows} rows, got {folds}")
    random = check_random_state(detector.random_state)
    order, seeds = random.permutation(rows), random.randint(2**31, size=folds)
    table = np.full((rows, 2), np.nan)
    fold_of = np.zeros(rows, dtype=np.int64)
    for fold, held in enumerate(np.sort(part) for part in np.array_split(order, folds)):
        rest = np.setdiff1d(order, held)
        made = clone(detector).set_params(random_state=int(seeds[fold])).fit(_take(X, rest))
        scores = made.scores(_take(X, held))["score"].to_numpy()
        table[held] = np.column_stack([scores, _places(scores, made.answers_.calibration["score_score"])])
        fold_of[held] = fold
    index = X.index if isinstance(X, pd.DataFrame) else None
    columns = {"score": table[:, 0], "p_value": table[:, 1], "fold": fold_of}
    return pd.DataFrame(columns, index=index)


def _places(scores: npt.NDArray[np.float64], calibrated: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """P-values of rows that are part of their own table; NaN where the score is."""
    pooled = np.sort(np.concatenate([calibrated, scores[~np.isnan(scores)]]))
    at_least = len(pooled) - np.searchsorted(pooled, scores, side="left")
    return np.where(np.isnan(scores), np.nan, at_least / len(pooled))


def _take(X: Any, rows: Rows) -> Any:
    return X.iloc[rows] if isinstance(X, pd.DataFrame) else np.asarray(X)[rows]
