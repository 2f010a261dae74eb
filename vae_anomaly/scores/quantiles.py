"""Frozen tables of training quantiles, searched inside the graph."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Knots of a table, evenly spaced in normal units: more would follow the noise of the sample.
KNOTS = 129
# Smallest distance of two knots per normal unit, as a share of the median or of 1, the scale of
# model space: a statistic that all but repeats itself must not blow up float32's rounding.
RESOLUTION = 0.01


class NormalScore(nn.Module):
    """Training quantile of a value as a standard normal number, strictly increasing.

    Between knots the table is linear; beyond both ends it goes on with the mean slope from the
    median to that end, so that extremes keep their order instead of tying.

    Parameters
    ----------
    values : Tensor, shape (N,)
        Of the training rows.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.knots: Tensor
        self.normal: Tensor
        self.slopes: Tensor
        knots, normal = _table(values.detach().double().cpu())
        middle = KNOTS // 2
        slopes = normal.diff() / knots.diff()
        # Float64 throughout: near knots enlarge the last bits of a value.
        self.register_buffer("knots", knots)
        self.register_buffer("normal", normal)
        self.register_buffer("slopes", slopes)
        self.below = float(normal[0] / (knots[0] - knots[middle]))
        self.above = float(normal[-1] / (knots[-1] - knots[middle]))

    def forward(self, values: Tensor) -> Tensor:
        """Normal numbers of float64 values, shape (B,); float32."""
        left = count_below(self.knots, values).clamp(1, KNOTS - 1) - 1
        low, slope = self.knots.index_select(0, left), self.slopes.index_select(0, left)
        inside = torch.minimum(torch.maximum(values, self.knots[0]), self.knots[-1])
        between = self.normal.index_select(0, left) + (inside - low) * slope
        under, over = (values - self.knots[0]).clamp(max=0.0), (values - self.knots[-1]).clamp(min=0.0)
        return (between + under * self.below + over * self.above).float()


def count_below(table: Tensor, values: Tensor) -> Tensor:
    """How many entries of a sorted table lie below each value, by binary search, shape (B,).

    A search by Gather costs a hundredth of comparing with every entry; searchsorted does not export.
    """
    n = len(table)
    below = torch.zeros_like(values, dtype=torch.int64)
    for power in range(math.ceil(math.log2(n + 1)) - 1, -1, -1):
        reach = below + 2**power
        smaller = table.index_select(0, (reach - 1).clamp(max=n - 1)) < values
        below = torch.where((reach <= n) & smaller, reach, below)
    return below


def _table(values: Tensor) -> tuple[Tensor, Tensor]:
    """Knots and their normal numbers, both strictly increasing, shape (KNOTS,)."""
    n, ordered = len(values), values.sort().values
    reach = torch.special.ndtri(torch.tensor(1 - 0.5 / max(n, 2), dtype=values.dtype))
    normal = torch.linspace(-1, 1, KNOTS, dtype=values.dtype) * reach
    place = (torch.special.ndtr(normal) * n - 0.5).clamp(0, n - 1)
    left = place.floor().long()
    quantiles = torch.lerp(ordered[left], ordered[(left + 1).clamp(max=n - 1)], place - left)
    median = quantiles[KNOTS // 2]
    least = RESOLUTION * median.abs().clamp_min(1.0) * normal
    knots = (quantiles - least).cummax(dim=0).values + least
    # Ties spread to both sides of where they were.
    return knots + (median - knots[KNOTS // 2]), normal
