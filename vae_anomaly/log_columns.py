"""Columns above 0, whose logarithm is what the model reads: log-normal given z where it is Gaussian there.

.. math:: x = \\exp(m + s y), \\quad y \\mid z \\sim \\mathcal{N}(\\mu(z), \\sigma(z)^2)

The mean of draws is not the value of a mean logarithm, so what is averaged over z is E[x | z]; it is kept
as the y that decodes to it, and a variance as the squared ratio of spread to mean over s^2. Both then go
back to raw units like any other, and neither can overflow on the way.

References
----------
.. [1] Aitchison & Brown, "The Lognormal Distribution", Cambridge University Press 1957, for its moments.
.. [2] Duan, "Smearing Estimate: A Nonparametric Retransformation Method", JASA 1983, for why the mean is
   taken in raw units. https://doi.org/10.1080/01621459.1983.10478017
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_anomaly.columns import Column

# Natural logarithms of raw values stay within it: a spread times a mean must not overflow float64.
LOG_LIMIT = 600.0
# Standardised units beyond the training range, on both sides, that a logarithm may reach.
MARGIN = 10.0
# The smallest normal float64 stands for what is not above 0, before it is clipped.
TINY = 2.0**-1022
# A variance of the logarithm given z that is never cut: a spread of 1.3 times the mean.
KEPT_VARIANCE = 1.0
# Exponents and variances that stay finite: exp(80) fits float32, its cube float64.
MOST_EXPONENT, MOST_VARIANCE = 80.0, 1e30


def log_range(column: Column, mean: float, scale: float) -> tuple[float, float]:
    """The logarithms that values of a column keep to: those of training and `MARGIN` deviations more.

    A scale of 0, a constant column's, is read as 1.
    """
    low = math.log(column.low) if column.low else mean
    high = math.log(column.high) if column.high else mean
    reach = MARGIN * (scale or 1.0)
    return max(low - reach, -LOG_LIMIT), min(high + reach, LOG_LIMIT)


class LogAverages(nn.Module):
    """Means and variances over draws, in model space, of columns that are logarithms there.

    Parameters
    ----------
    columns : sequence of Column
        Those of kind "positive", P of them.
    places : sequence of int
        Where they stand among the F features.
    features : int
        F.
    mean, scale : float64 Tensor, shape (P,)
        m and s; an s of 0 is a constant column's.
    """

    places: Tensor
    others: Tensor
    order: Tensor
    scale: Tensor
    least: Tensor
    most: Tensor
    highest: Tensor

    def __init__(
        self, columns: Sequence[Column], places: Sequence[int], features: int, mean: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        others = [i for i in range(features) if i not in places]
        ends = [log_range(c, float(m), float(s)) for c, m, s in zip(columns, mean, scale, strict=True)]
        highest = [math.log(c.high) if c.high else end for c, (_, end) in zip(columns, ends, strict=True)]
        every = {
            "places": torch.tensor(places),
            "others": torch.tensor(others, dtype=torch.int64),
            "order": torch.argsort(torch.tensor([*others, *places])),
            "scale": scale.double(),
            # Relative to m: of the order of 1 for an ordinary column.
            "least": torch.tensor([end for end, _ in ends], dtype=torch.float64) - mean,
            "most": torch.tensor([end for _, end in ends], dtype=torch.float64) - mean,
            "highest": torch.tensor(highest, dtype=torch.float64) - mean,
        }
        for name, values in every.items():
            self.register_buffer(name, values, persistent=False)

    def given_z(self, locations: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        """log E[x | z] - m, and Var[x | z] / E[x | z]^2, float64, from model space (..., F) to (..., P).

        With a = s mu and v = (s sigma)^2 these are a + v / 2 and exp(v) - 1. A decoder that is unsure of
        a heavy column would give means far above all that was seen: v is cut where the root mean square
        exp(a + v) would pass the largest training value, but never below 1, a spread of 1.3 times the
        mean. Of a likelihood that is no Gaussian, v is its variance (under a Student-t the mean of exp is
        infinite).
        """
        location = self._logs(locations)
        variance = variances.index_select(-1, self.places).double() * self.scale**2
        most = (self.highest - location).clamp(KEPT_VARIANCE, MOST_EXPONENT)
        variance = torch.minimum(variance, most)
        return location + variance / 2, exp_less_one(variance)

    def averaged(self, shares: Tensor, locations: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        """The same over the first axis, draws of z with log shares (K, B): shapes (B, P)."""
        return _mixture(shares, *self.given_z(locations, variances))

    def merged(self, shares: Tensor, mean: Tensor, variance: Tensor, own: Averages) -> Averages:
        """What was averaged so far, in model space (..., F), and more of it.

        Parameters
        ----------
        shares : float64 Tensor, shape (2, ...)
            Log shares of both.
        mean, variance : Tensor, shape (..., F)
        own : tuple of Tensor, shape (..., P)
            From `averaged`.

        Returns
        -------
        tuple of Tensor, shape (..., P)
            Model space.
        """
        before = variance.index_select(-1, self.places).double() * self.scale**2
        means = torch.stack([self._logs(mean), own[0]])
        found, spread = _mixture(shares, means, torch.stack([before, own[1]]))
        scale = torch.where(self.scale == 0, 1.0, self.scale)
        return found / scale, (spread / scale**2).clamp_max(MOST_VARIANCE)

    def put(self, values: Tensor, own: Tensor) -> Tensor:
        """Values (..., F) with those of the P columns replaced."""
        both = torch.cat([values.index_select(-1, self.others), own.to(values.dtype)], dim=-1)
        return both.index_select(-1, self.order)

    def _logs(self, y: Tensor) -> Tensor:
        """log x - m, within the range of the column."""
        logs = y.index_select(-1, self.places).double() * self.scale
        return torch.minimum(torch.maximum(logs, self.least), self.most)


Averages = tuple[Tensor, Tensor]


def exp_less_one(x: Tensor) -> Tensor:
    """exp(x) - 1 with all its digits near 0, for x up to 80; graphs have no such function."""
    small = x.abs() < 1e-3
    safe = torch.where(small, x, 0.0)
    series = safe * (1 + safe / 2 * (1 + safe / 3 * (1 + safe / 4)))
    return torch.where(small, series, torch.exp(x.clamp_max(MOST_EXPONENT)) - 1)


def _mixture(shares: Tensor, logs: Tensor, relative: Tensor) -> tuple[Tensor, Tensor]:
    """Log mean and squared relative spread of a mixture over the first axis; of shares (K, ...) the logs."""
    weighted = shares[..., None] + logs
    top = weighted.amax(dim=0)
    mean = top + torch.log(torch.exp(weighted - top).sum(dim=0))
    # A part of share w is at most 1 / w means large: what is cut here weighs nothing.
    beyond = (logs - mean).clamp_max(MOST_EXPONENT)
    spread = torch.exp(2 * beyond) * relative + exp_less_one(beyond) ** 2
    return mean, (torch.exp(shares)[..., None] * spread).sum(dim=0)
