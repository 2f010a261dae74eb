"""How good an imputation is: errors on cells that were hidden, and how honest its draws are.

Everything is measured on hidden cells alone, in units of a scale given by the caller: the range of
the pixels, or the standard deviation of the column. numpy only.

References
----------
.. [1] Gneiting & Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", JASA 2007.
   https://doi.org/10.1198/016214506000001437
.. [2] Hyndman & Fan, "Sample Quantiles in Statistical Packages", American Statistician 1996.
   https://doi.org/10.1080/00031305.1996.10473566
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vae_anomaly.exceptions import ConfigError, SchemaError

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

LEVELS = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Errors:
    """Errors on the hidden cells; None when no cell was hidden.

    Attributes
    ----------
    cells : int
        How many were hidden.
    rmse, mae : float or None
        In raw units; for tables they mix the units of the columns.
    nrmse, nmae, nmse : float or None
        Root mean square, mean absolute and mean square error after dividing each cell by its scale.
        Mean fill of a column has nrmse and nmse near 1.
    psnr : float or None
        -20 log10(nrmse) in decibels, for images only.
    """

    cells: int
    rmse: float | None = None
    mae: float | None = None
    nrmse: float | None = None
    nmae: float | None = None
    nmse: float | None = None
    psnr: float | None = None


@dataclass(frozen=True)
class Interval:
    """How central intervals of one level did on the hidden cells.

    Attributes
    ----------
    level : float
        Share of true values that should lie inside.
    coverage : float
        Share that did.
    width : float
        Mean width, in units of the scale.
    """

    level: float
    coverage: float
    width: float


def errors(truth: Array, filled: Array, hidden: Bools, scale: Array | float, image: bool = False) -> Errors:
    """Compare ``filled`` with ``truth`` on the cells where ``hidden`` is True.

    Parameters
    ----------
    truth, filled : ndarray, shape (B, ...)
    hidden : bool ndarray, of the same shape
    scale : float or ndarray
        Broadcasts against ``truth``; positive.
    image : bool
        Whether a peak signal-to-noise ratio makes sense.
    """
    cells = int(hidden.sum())
    if not cells:
        return Errors(0)
    raw = (np.asarray(filled, np.float64) - np.asarray(truth, np.float64))[hidden]
    scaled = raw / _scale_of(hidden, scale)
    rmse, nrmse = (float(np.sqrt(np.mean(part**2))) for part in (raw, scaled))
    mae, nmae = (float(np.mean(np.abs(part))) for part in (raw, scaled))
    psnr = -20 * float(np.log10(nrmse)) if image and nrmse > 0 else None
    return Errors(cells, rmse, mae, nrmse, nmae, float(np.mean(scaled**2)), psnr)


def column_errors(truth: Array, filled: Array, hidden: Bools, scale: Array) -> list[Errors]:
    """`errors` of each column of a table, shapes (B, D) and (D,)."""
    return [
        errors(truth[:, i], filled[:, i], hidden[:, i], float(scale[i])) for i in range(np.shape(truth)[1])
    ]


def wrong_share(truth: Array, filled: Array, hidden: Bools) -> float | None:
    """Share of hidden categories that were filled with another one; None when none was hidden."""
    return float(np.mean(np.asarray(filled)[hidden] != np.asarray(truth)[hidden])) if hidden.any() else None


def intervals(
    truth: Array,
    draws: Array,
    hidden: Bools,
    scale: Array | float,
    levels: Sequence[float] = LEVELS,
) -> list[Interval]:
    """Coverage and width of central intervals between quantiles of the draws.

    Quantiles of the form p (M + 1) (type 6 of [2]_): were truth and draws exchangeable, exactly
    that share of truths would lie inside, for any M.

    Parameters
    ----------
    truth : ndarray, shape (B, ...)
    draws : ndarray, shape (M, B, ...)
        Multiple imputations. A level needs M >= 2 / (1 - level) - 1: 39 for 95 %.
    hidden : bool ndarray, shape (B, ...)
    scale : float or ndarray
    levels : sequence of float

    Returns
    -------
    list of Interval
        Empty when no cell was hidden.

    Raises
    ------
    ConfigError
        If a level lies outside (0, 1), or there are too few draws for it.
    """
    sample, known, unit = _sorted_draws(truth, draws, hidden, scale)
    for level in levels:
        _check_level(level, len(sample))
    if not known.size:
        return []
    found = []
    for level in levels:
        tail = (1 - level) / 2
        low, high = np.quantile(sample, (tail, 1 - tail), axis=0, method="weibull")
        inside = (low <= known) & (known <= high)
        found.append(Interval(level, float(inside.mean()), float(np.mean((high - low) / unit))))
    return found


def crps(truth: Array, draws: Array, hidden: Bools, scale: Array | float) -> float | None:
    r"""Mean continuous ranked probability score of the draws, in units of the scale; smaller is better.

    .. math:: \frac{1}{M}\sum_i |x_i - y| - \frac{1}{2 M (M-1)} \sum_{i,j} |x_i - x_j|

    unbiased for any M [1]_. For one sharp answer it is the mean absolute error.

    Parameters
    ----------
    truth, hidden, scale
        As for `errors`.
    draws : ndarray, shape (M, B, ...)

    Raises
    ------
    ConfigError
        If there is only one draw.
    """
    sample, known, unit = _sorted_draws(truth, draws, hidden, scale)
    count = len(sample)
    if count < 2:
        raise ConfigError(f"crps needs at least 2 draws, got {count}; ask for more")
    if not known.size:
        return None
    distance = np.abs(sample - known).mean(axis=0)
    # sum_{i<j} (x_(j) - x_(i)), from sorted draws in one pass.
    rank = 2.0 * np.arange(1, count + 1) - count - 1
    spread = (rank[:, None] * sample).sum(axis=0) / (count * (count - 1))
    return float(np.mean((distance - spread) / unit))


def _sorted_draws(
    truth: Array, draws: Array, hidden: Bools, scale: Array | float
) -> tuple[Floats, Floats, Floats]:
    """Draws (M, cells) in ascending order, truth and scale (cells,) of the hidden cells."""
    if np.shape(draws)[1:] != np.shape(truth):
        raise SchemaError(
            f"draws have shape {np.shape(draws)}; expected (M, {', '.join(map(str, np.shape(truth)))})"
        )
    sample = np.sort(np.asarray(draws)[:, hidden].astype(np.float64), axis=0)
    return sample, np.asarray(truth, np.float64)[hidden], _scale_of(hidden, scale)


def _scale_of(hidden: Bools, scale: Array | float) -> Floats:
    return np.broadcast_to(np.asarray(scale, np.float64), hidden.shape)[hidden]


def _check_level(level: float, draws: int) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval must be between 0 and 1, got {level}")
    # A little slack: 2 / (1 - .95) - 1 is 39 and a rounding error.
    needed = int(np.ceil(2 / (1 - level) - 1 - 1e-9))
    if draws < needed:
        raise ConfigError(
            f"an interval of {level:.0%} needs at least {needed} draws, got {draws}; ask for more"
        )
