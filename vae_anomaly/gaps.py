"""Calibration of rows with gaps: one table of scores per bin of missing share.

A row that misses half of its values scores otherwise than a whole one, whatever is strange about it. So
calibration rows are hidden at random until they miss as much as a bin says, and a row is judged by the table
of its own bin. What that promises holds per bin, for rows whose values are missing completely at random, with
shares spread over the bin as evenly as there.

Torch-free; tables go into ``calibration.npz`` as ``gap_edges`` and ``gap<i>_score_<name>``; ``gap_least``,
where there is one, is the missing share below which rows are fuller than those that calibrate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vae_anomaly import calibration
from vae_anomaly.schema import Array, Mask, Samples

Float = npt.NDArray[np.float64]

# Upper ends of the bins: a missing share s is in the first whose end is at least s.
EDGES = (0.1, 0.25, 0.5, 0.75, 1.0)
# Calibration rows hidden per bin, at most where the false alarm rate does not take more: each bin costs a
# pass over them.
ROWS = 1000
# Rows of the first bin at least, if there are so many: with fewer, p-values are coarse.
LEAST = 50
# Share of the first bin's rows that may miss less than a row which they calibrate.
FULLER = 0.05


@dataclass(frozen=True)
class Tables:
    """Calibration scores by missing share; without bins one table for all rows.

    Parameters
    ----------
    arrays : mapping of ndarray
        Of ``calibration.npz``.
    """

    arrays: Mapping[str, Array]

    def p_values(self, name: str, scores: Array, missing: Float) -> Float:
        """Conformal p-value of each row in the table of its bin, shape (B,)."""
        return self._by_bin(name, scores, missing, calibration.p_values)

    def ranks(self, name: str, scores: Array, missing: Float) -> Float:
        """Share of the calibration rows of its bin that score below each row, shape (B,)."""
        return self._by_bin(name, scores, missing, calibration.rank_of)

    def comparable(self, scores: Array, missing: Float, rate: float) -> Float:
        """Scores that decide, on the scale of the first bin's rows, shape (B,).

        In each other bin a straight line takes the median and the threshold at ``rate`` of the bin's table to
        those of the first bin's: places within the bin stay, and one threshold does for all rows.
        """
        values, places = np.asarray(scores, dtype=np.float64), self.places(missing)
        found = values.copy()
        for place in np.unique(places[places > 0]):
            here = places == place
            found[here] = self._on_first_scale(values[here], int(place), rate)
        return found

    def comparable_table(self, place: int, rate: float) -> Float:
        """The scores that decide of a bin's table on the scale of the first bin's, ascending."""
        table = self.table("score", place)
        return self._on_first_scale(table, place, rate) if place else table

    def _on_first_scale(self, scores: Float, place: int, rate: float) -> Float:
        (first_middle, first_high), (middle, high) = (
            _anchors(self.table("score", i), rate) for i in (0, place)
        )
        spreads = first_high - first_middle, high - middle
        slope = spreads[0] / spreads[1] if min(spreads) > 0 else 1.0
        return np.asarray(first_high + (scores - high) * slope)

    def table(self, name: str, place: int = 0) -> Float:
        """Sorted scores of a bin, ``score`` being the one that decides; of all rows where it has none."""
        found = self.arrays.get(f"gap{place}_score_{name}", self.arrays[f"score_{name}"])
        return np.asarray(found, dtype=np.float64)

    @property
    def ends(self) -> list[float]:
        """Largest missing share of each bin, ascending; 1 alone without bins."""
        return [float(edge) for edge in self.arrays.get("gap_edges", (1.0,))]

    def places(self, missing: Float) -> npt.NDArray[np.int64]:
        """Number of the bin of each missing share."""
        ends = self.ends
        return np.minimum(np.searchsorted(ends, missing, side="left"), len(ends) - 1)

    def beyond(self, rate: float, missing: Float) -> int:
        """How many rows are judged by a table too small for a false alarm rate, so that none can alarm."""
        rows = np.array([len(self.table("score", place)) for place in range(len(self.ends))])
        return int((calibration.rows_needed(rate) > rows)[self.places(missing)].sum())

    def fuller(self, missing: Float) -> int:
        """How many rows miss less than 95 % of the calibration rows that judge them: no promise is made.

        Scores of rows that differ by so much do not compare, and what was never held out cannot calibrate.
        """
        return int((missing < float(self.arrays.get("gap_least", 0.0))).sum())

    def _by_bin(
        self, name: str, scores: Array, missing: Float, judge: Callable[[Float, Float], Float]
    ) -> Float:
        values, places = np.asarray(scores, dtype=np.float64), self.places(missing)
        found = np.full(len(values), np.nan)
        for place in np.unique(places):
            here = places == place
            found[here] = judge(self.table(name, int(place)), values[here])
        return found


def _anchors(table: Float, rate: float) -> tuple[float, float]:
    """Median and threshold of a table, its largest score where it is too small for the rate."""
    within = rate >= calibration.smallest_rate(len(table))
    return float(np.median(table)), calibration.threshold(table, rate) if within else float(table[-1])


def missing_share(samples: Samples) -> Float:
    """Share of the elements of each row that are missing, shape (n,)."""
    observed = samples.observed
    return np.asarray(1.0 - observed.mean(axis=tuple(range(1, observed.ndim))))


def calibration_tables(
    run: Callable[[Samples], Mapping[str, Array]],
    samples: Samples,
    names: Sequence[str],
    seed: int,
    rate: float,
) -> dict[str, Array]:
    """Sorted scores of calibration rows, as they come and hidden to each bin.

    Parameters
    ----------
    run : callable
        Scores samples: one array per name.
    samples : Samples
        Held-out normal rows, something being observed of each.
    names : sequence of str
        Of the scores, and "score" for the one that decides.
    seed : int
        Of what is hidden.
    rate : float
        False alarm rate that every bin should be able to promise.
    """
    whole, missing = run(samples), missing_share(samples)
    tables: dict[str, Array] = {f"score_{name}": _sorted(whole[name], np.float64) for name in names}
    needed = calibration.rows_needed(rate)
    edges = _edges(missing, samples.observed[0].size, needed)
    if len(edges) < 2:
        return tables
    first = missing <= edges[0]
    if least := float(np.quantile(missing[first], FULLER, method="lower")):
        tables["gap_least"] = np.array(least)
    if not first.all():
        tables |= {f"gap0_score_{name}": _sorted(whole[name][first], np.float64) for name in names}
    for place, (low, high) in enumerate(pairwise(edges), start=1):
        most = max(ROWS, needed)
        out = run(_hidden(samples, low, high, np.random.default_rng([seed, place]), most))
        # Scores are float32: half the space, the same bits.
        tables |= {f"gap{place}_score_{name}": _sorted(out[name], np.float32) for name in names}
    return {**tables, "gap_edges": np.array(edges)}


def _edges(missing: Float, elements: int, rows: int) -> list[float]:
    """Ends of the bins that rows of so many elements can be in.

    The first holds rows as they come; it reaches as far as it takes to hold half of them, twice ``rows``
    and `LEAST`.
    """
    needed = max(len(missing) / 2, min(max(2 * rows, LEAST), len(missing)))
    possible = (0.0, *EDGES)
    first = next(i for i, edge in enumerate(possible) if (missing <= edge).sum() >= needed)
    edges = [possible[first]]
    for edge in possible[first + 1 :]:
        if _counts(edges[-1], edge, elements).size:
            edges.append(edge)
    return edges


def _counts(low: float, high: float, elements: int) -> npt.NDArray[np.int64]:
    """Numbers of missing elements whose share is in (low, high], one element being left."""
    counts = np.arange(elements)
    shares = counts / elements
    return counts[(shares > low) & (shares <= high)]


def _hidden(samples: Samples, low: float, high: float, rng: np.random.Generator, most: int = ROWS) -> Samples:
    """Rows that miss no more than ``high``, at most so many, hidden at random to shares in (low, high]."""
    elements = samples.observed[0].size
    gone = elements - samples.observed.reshape(len(samples.observed), -1).sum(axis=1)
    counts = _counts(low, high, elements)
    rows = np.flatnonzero(gone <= counts[-1])
    if len(rows) > most:
        rows = np.sort(rng.choice(rows, most, replace=False))
    wanted = np.maximum(rng.choice(counts, len(rows)), gone[rows])
    observed = samples.observed[rows]
    flat = observed.reshape(len(rows), elements)
    # Missing elements come first, the others in a random order; the first so many are hidden.
    order = np.where(flat, rng.random(flat.shape), -1.0).argsort(axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(elements), order.shape), axis=1)
    hidden: Mask = (place >= wanted[:, None]).reshape(observed.shape)
    return Samples(samples.values[rows], hidden)


def _sorted(values: Array, dtype: type[np.floating]) -> Array:
    return np.sort(values.astype(dtype))
