"""One analysis out of many imputed tables: Rubin's rules.

Run the analysis on each of M draws, then `pool_estimates`: the spread between the answers is the
uncertainty that the gaps brought.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vae_anomaly.choices import is_number
from vae_anomaly.exceptions import ConfigError, MissingPackageError

Floats = npt.NDArray[np.float64]


class Pooled(NamedTuple):
    """M analyses in one; every field has the shape of one estimate.

    Attributes
    ----------
    estimate : ndarray
        Mean of the estimates.
    variance : ndarray
        ``within + (1 + 1/M) between``.
    within, between : ndarray
        Mean of the variances; variance of the estimates, divisor M - 1.
    degrees_of_freedom : ndarray
        Of the t distribution of (truth - estimate) / sqrt(variance).
    missing_information : ndarray
        Share of the information about the estimate that the gaps took, between 0 and 1.
    """

    estimate: Floats
    variance: Floats
    within: Floats
    between: Floats
    degrees_of_freedom: Floats
    missing_information: Floats

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """Lower and upper end of the confidence interval.

        Raises
        ------
        ConfigError
            If the level lies outside (0, 1).
        MissingPackageError
            Without scipy, which comes with ``vae-anomaly[train]``.
        """
        if not 0 < level < 1:
            raise ConfigError(f"the level of an interval must be between 0 and 1, got {level}")
        try:
            from scipy.stats import t  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                "intervals need scipy, which is not installed; pip install 'vae-anomaly[train]'"
            ) from error
        half = t.ppf((1 + level) / 2, self.degrees_of_freedom) * np.sqrt(self.variance)
        return self.estimate - half, self.estimate + half


def pool_estimates(
    estimates: npt.ArrayLike, variances: npt.ArrayLike, *, complete_degrees_of_freedom: float = np.inf
) -> Pooled:
    """Pool the estimates of M analyses, one per draw of an imputation.

    Parameters
    ----------
    estimates : array-like, shape (M, ...)
        One estimate, or array of estimates, per imputed data set.
    variances : array-like, shape (M, ...)
        Their squared standard errors.
    complete_degrees_of_freedom : float
        Of the analysis had nothing been missing: rows less parameters. Finite, it keeps the
        degrees of freedom below itself [2]_.

    Raises
    ------
    ConfigError
        If there are fewer than two analyses, shapes differ, an estimate is not finite, a variance is
        negative, or the complete degrees of freedom are not above 0.

    References
    ----------
    .. [1] Rubin, "Multiple Imputation for Nonresponse in Surveys", Wiley 1987.
       https://doi.org/10.1002/9780470316696
    .. [2] Barnard & Rubin, "Small-sample degrees of freedom with multiple imputation",
       Biometrika 1999. https://doi.org/10.1093/biomet/86.4.948

    Examples
    --------
    >>> pooled = pool_estimates([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
    >>> round(float(pooled.estimate), 3), round(float(pooled.variance), 3)
    (2.0, 1.833)
    """
    try:
        values, squares = np.asarray(estimates, np.float64), np.asarray(variances, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError("estimates and variances must be numbers of one shape per draw") from error
    if values.shape != squares.shape or values.ndim < 1 or len(values) < 2:
        raise ConfigError(
            f"estimates have shape {values.shape} and variances {squares.shape}; "
            "give one of each per draw, at least 2"
        )
    if not (squares >= 0).all():
        raise ConfigError("a variance is negative or NaN; give squared standard errors")
    if not np.isfinite(values).all():
        raise ConfigError("an estimate is NaN or infinite; leave out the draws whose analysis failed")
    if not (is_number(complete_degrees_of_freedom) and complete_degrees_of_freedom > 0):
        raise ConfigError(
            f"complete_degrees_of_freedom is {complete_degrees_of_freedom!r}; give rows less parameters, "
            "above 0"
        )
    within, between = squares.mean(axis=0), values.var(axis=0, ddof=1)
    extra = (1 + 1 / len(values)) * between
    total = within + extra
    # 0/0 where neither spreads: nothing is missing there.
    share = np.divide(extra, total, out=np.zeros_like(total), where=total > 0)
    freedom = _degrees_of_freedom(share, len(values), complete_degrees_of_freedom)
    # Rubin's (r + 2 / (df + 3)) / (r + 1) with r = extra / within, free of the division by within.
    information = share + (1 - share) * 2 / (freedom + 3)
    return Pooled(values.mean(axis=0), total, within, between, freedom, information)


def _degrees_of_freedom(share: Floats, draws: int, complete: float) -> Floats:
    with np.errstate(divide="ignore"):
        unlimited = (draws - 1) / np.square(share)
        if not np.isfinite(complete):
            return np.asarray(unlimited)
        seen = (complete + 1) / (complete + 3) * complete * (1 - share)
        # Where no analysis has a variance of its own, rows have no say.
        return np.asarray(np.where(share < 1, 1 / (1 / unlimited + 1 / seen), unlimited))
