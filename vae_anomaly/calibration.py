"""Turning scores into promises: conformal p-values, thresholds, false discovery rate.

A score never decides. Scores of held-out normal rows, sorted ascending, are all that is needed
to say how often a normal row would look this strange, at any false alarm rate and without
refitting. Every function takes that sorted table and treats larger as more anomalous.

References
----------
.. [1] Bates, Candes, Lei, Romano & Sesia, "Testing for outliers with conformal p-values",
   Annals of Statistics 2023. https://arxiv.org/abs/2104.08279
.. [2] Benjamini & Hochberg, "Controlling the false discovery rate", JRSS B 1995.
   https://doi.org/10.1111/j.2517-6161.1995.tb02031.x
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from vae_anomaly.choices import is_number
from vae_anomaly.exceptions import CalibrationError, ConfigError

Floats = npt.NDArray[np.float64]

# p, q, their product and quotient are each rounded by at most 2**-53: p = q k / m counts as reached.
ROUNDING = 4 * 2.0**-53


def p_values(sorted_calibration: npt.ArrayLike, scores: npt.ArrayLike) -> Floats:
    r"""How often a normal row scores at least this much.

    .. math:: p = (1 + \#\{c \ge s\}) / (n + 1)

    Parameters
    ----------
    sorted_calibration : float array-like, shape (n,)
        Scores of held-out normal rows, ascending.
    scores : float array-like, shape (B,)

    Returns
    -------
    float64 ndarray, shape (B,)
        In [1 / (n + 1), 1]; NaN where the score is NaN.

    Raises
    ------
    CalibrationError
        If the table is not sorted or holds NaN: sort it before it is stored.

    Examples
    --------
    >>> p_values([1.0, 2.0, 3.0, 4.0], [0.0, 3.0, 9.0]).tolist()
    [1.0, 0.6, 0.2]
    """
    table, values = _table(sorted_calibration), np.asarray(scores, dtype=np.float64)
    at_least = len(table) - np.searchsorted(table, values, side="left")
    return np.where(np.isnan(values), np.nan, (1 + at_least) / (len(table) + 1))


def rank_of(sorted_calibration: npt.ArrayLike, scores: npt.ArrayLike) -> Floats:
    """Share of the calibration rows that score below, ties counted half.

    Parameters
    ----------
    sorted_calibration : float array-like, shape (n,)
        Ascending, n at least 1.
    scores : float array-like, shape (B,)

    Returns
    -------
    float64 ndarray, shape (B,)
        0 below every calibration score, 1 above all of them; NaN where the score is NaN.

    Raises
    ------
    CalibrationError
        If the table is empty, unsorted or holds NaN.

    Examples
    --------
    >>> rank_of([1.0, 2.0, 3.0, 4.0], [0.0, 3.0, 9.0]).tolist()
    [0.0, 0.625, 1.0]
    """
    table, values = _table(sorted_calibration), np.asarray(scores, dtype=np.float64)
    if not len(table):
        raise CalibrationError("no rank without calibration scores, got 0; hold out some normal rows")
    below = np.searchsorted(table, values, side="left")
    not_above = np.searchsorted(table, values, side="right")
    return np.where(np.isnan(values), np.nan, (below + not_above) / (2 * len(table)))


def smallest_rate(n: int) -> float:
    """The smallest p-value, and false alarm rate, that n calibration rows can promise: 1 / (n + 1)."""
    return 1 / (n + 1)


def check_rate(n: int, alpha: float) -> None:
    """Refuse a false alarm rate that n calibration rows cannot promise.

    Raises
    ------
    CalibrationError
        If alpha is below 1 / (n + 1): calibrate with more rows, or accept a higher rate.
    ConfigError
        If alpha is not strictly between 0 and 1.
    """
    if not (is_number(alpha) and 0 < alpha < 1):
        raise ConfigError(f"the false alarm rate is {alpha!r}; choose one above 0 and below 1, such as 0.05")
    if float(alpha) < smallest_rate(n):
        raise _too_few("false alarm rate", alpha, n)


def _too_few(what: str, rate: float, n: int) -> CalibrationError:
    lower = f", or accept a rate of 1/{n + 1} or more" if n else ""
    return CalibrationError(
        f"a {what} of {rate} needs at least {rows_needed(rate)} normal rows, got {n}; "
        f"fit or recalibrate with more rows{lower}"
    )


def attainable(alpha: float, n: int) -> tuple[float, tuple[str, ...]]:
    """The rate asked, or the smallest that n calibration rows can promise, and words about the difference."""
    smallest = smallest_rate(n)
    if alpha >= smallest:
        return alpha, ()
    return smallest, (
        f"a false alarm rate of {alpha:g} needs more than the {n} calibration rows there are; "
        f"the smallest attainable rate {smallest:.4g} is used",
    )


def threshold(sorted_calibration: npt.ArrayLike, alpha: float) -> float:
    """The calibration score that normal rows exceed at most a share alpha of the time.

    With k = floor(alpha (n + 1)) it is the k-th largest score: a score is strictly above it
    exactly when its p-value is at most alpha.

    Raises
    ------
    CalibrationError, ConfigError
        As `check_rate` and `p_values`.

    Examples
    --------
    >>> threshold([1.0, 2.0, 3.0, 4.0], 0.4)
    3.0
    """
    table = _table(sorted_calibration)
    check_rate(len(table), alpha)
    return float(table[len(table) - _alarms(len(table), alpha)])


def false_alarm_interval(n: int, m: int, alpha: float, level: float = 0.99) -> tuple[int, int]:
    """How many alarms to expect among m normal rows, given one calibration set.

    The count is Beta-Binomial(m; k, n + 1 - k) with k = floor(alpha (n + 1)): wider than a
    binomial, since one finite calibration set fixes the threshold for all m rows. Exact for
    scores without ties; with ties alarms are rarer.

    Parameters
    ----------
    n, m : int
        Calibration rows, and normal rows judged against them.
    alpha : float
        False alarm rate.
    level : float
        Least probability of the interval; what is left is shared by both tails.

    Returns
    -------
    (low, high) : int
        Counts of alarms, both included.

    Raises
    ------
    CalibrationError, ConfigError
        As `check_rate`.
    """
    check_rate(n, alpha)
    mass = _beta_binomial(m, _alarms(n, alpha), n + 1 - _alarms(n, alpha))
    tail = (1 - level) / 2
    low = np.searchsorted(np.cumsum(mass), tail, side="right")
    from_top = np.searchsorted(np.cumsum(mass[::-1]), tail, side="right")
    return int(low), int(m - from_top)


def benjamini_hochberg(p: npt.ArrayLike, q: float) -> npt.NDArray[np.bool_]:
    """Which rows to report so that at most a share q of the reported ones is normal, on average.

    Rejects the k smallest p-values for the largest k with p_(k) <= q k / m.

    Parameters
    ----------
    p : float array-like, shape (B,)
        NaN is never rejected and does not count among the m.
    q : float
        False discovery rate.

    Returns
    -------
    bool ndarray, shape (B,)

    Raises
    ------
    ConfigError
        If q is not strictly between 0 and 1.

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.9, 0.03, 0.04], 0.05).tolist()
    [True, False, False, False]
    """
    _check_discovery_rate(q)
    values = np.asarray(p, dtype=np.float64)
    ordered = np.sort(values[~np.isnan(values)])
    limits = q * np.arange(1, ordered.size + 1) / max(ordered.size, 1) * (1 + ROUNDING)
    passed = np.nonzero(ordered <= limits)[0]
    # NaN <= anything is False; -inf, when nothing passed, rejects no row.
    largest = ordered[passed[-1]] if passed.size else -np.inf
    return np.asarray(values <= largest, dtype=np.bool_)


def fewest_discoveries(n: int, m: int, q: float) -> int:
    """How many of m rows must stand out at least, before `benjamini_hochberg` can report any of them.

    No p-value is below 1 / (n + 1), so k rows can be reported only if n >= m / (q k) - 1.

    Parameters
    ----------
    n, m : int
        Calibration rows, and rows judged.
    q : float
        False discovery rate.

    Raises
    ------
    CalibrationError
        If even all of them could not be: n is below 1 / q - 1.
    ConfigError
        If q is not strictly between 0 and 1.

    Examples
    --------
    >>> fewest_discoveries(999, 10_000, 0.1)
    100
    """
    _check_discovery_rate(q)
    if float(q) * (1 + ROUNDING) < smallest_rate(n):
        raise _too_few("false discovery rate", q, n)
    return max(1, math.ceil(m * smallest_rate(n) / q * (1 - ROUNDING)))


def _check_discovery_rate(q: float) -> None:
    if not (is_number(q) and 0 < q < 1):
        raise ConfigError(f"the false discovery rate is {q!r}; choose one above 0 and below 1, such as 0.05")


def _table(sorted_calibration: npt.ArrayLike) -> Floats:
    table = np.asarray(sorted_calibration, dtype=np.float64)
    if table.ndim != 1:
        raise CalibrationError(f"calibration scores have shape {table.shape}; expected (n,)")
    # The comparison is False for NaN too, which would otherwise count as the largest score.
    if not np.all(table[1:] >= table[:-1]) or np.isnan(table[:1]).any():
        raise CalibrationError("calibration scores are not ascending, or hold NaN; drop NaN and sort them")
    return table


def _alarms(n: int, alpha: float) -> int:
    """k, the largest count with k / (n + 1) <= alpha in the very arithmetic of `p_values`.

    alpha * (n + 1) alone rounds: 0.29 * 100 is below 29, and its floor would disagree.
    """
    alpha = float(alpha)
    k = math.floor(alpha * (n + 1))
    if (k + 1) / (n + 1) <= alpha:
        return k + 1
    return k - 1 if k / (n + 1) > alpha else k


def rows_needed(alpha: float) -> int:
    """The smallest n with 1 / (n + 1) <= alpha, rounded as `smallest_rate` rounds."""
    rows = math.ceil(1 / Fraction(float(alpha))) - 1
    return rows - 1 if smallest_rate(rows - 1) <= float(alpha) else rows


def _beta_binomial(m: int, a: int, b: int) -> Floats:
    """Probabilities of the counts 0 ... m, shape (m + 1,), from the ratios of neighbours."""
    j = np.arange(m, dtype=np.float64)
    steps = np.log((m - j) * (a + j)) - np.log((j + 1) * (m - j - 1 + b))
    log_mass = np.concatenate([[0.0], np.cumsum(steps)])
    mass = np.exp(log_mass - log_mass.max())
    return np.asarray(mass / mass.sum(), dtype=np.float64)
