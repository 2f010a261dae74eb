"""Why a row scored as it did: which score decided, how strange each is, which elements the model missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly.choices import whole_number
from vae_anomaly.columns import Category
from vae_anomaly.exceptions import ConfigError, UnsupportedError
from vae_anomaly.schema import Array, Samples, Schema, TableSchema

Float = npt.NDArray[np.float64]

DECOMPOSED = "recon"


class Explanation(NamedTuple):
    """Why a row scored as it did; columns of a table in the model's order, `schema.names`.

    Contributions take `recon` apart and no other score: where another decided (`decided_by`), ``ranks``
    say how strange each score is, and `recon` may be none of the strange ones.

    Attributes
    ----------
    contributions : float32 ndarray, shape (n, *sample shape)
        Nats per element; they sum to ``recon``. 0 where missing.
    reconstruction : ndarray, shape (n, *sample shape)
        What the model expected, in raw units.
    recon : float64 ndarray, shape (n,)
    p_value : float64 ndarray, shape (n,)
        Of the score that decides; NaN for a row with nothing observed, as are its ranks.
    ranks : float64 ndarray, shape (n, S)
        Share of the calibration rows, of those that miss as much, that score below the row: one column per
        exported score, in the order of `score_names`.
    score_names : tuple of str
    decided_by : str
        The default score, which p-value and verdict come from.
    low, high : ndarray, shape (n, *sample shape), or None
        1.96 standard deviations to both sides of the expected value, in raw units; None for a bundle
        that was exported without.
    """

    contributions: Array
    reconstruction: Array
    recon: Float
    p_value: Float
    ranks: Float
    score_names: tuple[str, ...]
    decided_by: str
    low: Array | None = None
    high: Array | None = None

    @property
    def heatmaps(self) -> Array:
        """Contributions per pixel, channels together, shape (n, H, W); of a table as they are."""
        parts = self.contributions
        return parts.sum(axis=1) if parts.ndim == 4 else parts

    def reasons(self) -> list[str]:
        """One sentence per row on what decided.

        Examples
        --------
        >>> one = np.ones((1, 2))
        >>> ranks = np.array([[0.5, 0.875, 0.995]])
        >>> names = ("recon", "rapp", "combined")
        >>> Explanation(one, one, one[:, 0], np.array([0.01]), ranks, names, "combined").reasons()[0]
        'combined decided, p = 0.01, above 99.5 % of calibration rows; rapp 87.5 %, recon 50.0 %; \
contributions take recon apart, not combined'
        """
        return [self._reason(row) for row in range(len(self.recon))]

    def _reason(self, row: int) -> str:
        if np.isnan(self.p_value[row]):
            return "nothing was observed"
        ranks = dict(zip(self.score_names, self.ranks[row].tolist(), strict=True))
        own = ranks.pop(self.decided_by)
        text = f"{self.decided_by} decided, p = {self.p_value[row]:.3g}, above {own:.1%} of calibration rows"
        others = sorted(ranks.items(), key=lambda item: -item[1])
        if others:
            text += "; " + ", ".join(f"{name} {rank:.1%}" for name, rank in others)
        if self.decided_by != DECOMPOSED:
            text += f"; contributions take {DECOMPOSED} apart, not {self.decided_by}"
        return text.replace("%", " %")


def ranked_columns(
    explanation: Explanation,
    samples: Samples,
    schema: Schema,
    top: int = 5,
    index: Sequence[Any] | None = None,
) -> pd.DataFrame:
    """The columns of each row that contribute most to `recon`, one line each, the largest first.

    Returns
    -------
    DataFrame
        ``row`` (or the index given), ``place`` (from 1), ``column``, ``value``, ``expected``, ``low``,
        ``high``, ``contribution`` in nats and its ``share`` of `recon`. Missing cells are left out.
        Categories and booleans are themselves, and have no range.
    """
    if not isinstance(schema, TableSchema):
        raise UnsupportedError("only the columns of a table can be ranked; an image has `heatmaps`")
    if whole_number("top", top) < 1:
        raise ConfigError(f"top is {top}; expected 1 or more")
    labels = range(len(explanation.recon)) if index is None else index
    lines: list[dict[str, Any]] = []
    named: dict[int, dict[float, Category]] = {
        i: {0.0: False, 1.0: True}
        if column.truths
        else dict(zip(column.numbers.tolist(), column.categories, strict=True))
        for i, column in enumerate(schema.columns)
        if column.truths or column.categories
    }
    for row, label in enumerate(labels):
        parts = explanation.contributions[row].astype(np.float64)
        total = float(explanation.recon[row])
        seen = np.flatnonzero(samples.observed[row])
        order = seen[np.argsort(-parts[seen], kind="stable")][:top]
        lines += [
            {
                "row": label,
                "place": place,
                "column": schema.names[i],
                "value": _cell(samples.values[row, i], named.get(i)),
                "expected": _cell(explanation.reconstruction[row, i], named.get(i)),
                "low": np.nan if explanation.low is None or i in named else explanation.low[row, i],
                "high": np.nan if explanation.high is None or i in named else explanation.high[row, i],
                "contribution": parts[i],
                "share": parts[i] / total if total > 0 else 0.0,
            }
            for place, i in enumerate(order.tolist(), start=1)
        ]
    names = ("row", "place", "column", "value", "expected", "low", "high", "contribution", "share")
    return pd.DataFrame(lines, columns=list(names))


def _cell(value: float, names: dict[float, Category] | None) -> Category:
    return value if names is None else names.get(float(value), value)
