"""The loops of the masked decode: chunks of noise through `impute.onnx`, with a running state.

One chunk of K is held at a time, so that memory does not grow with K. Rows without a gap are never
decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vae_anomaly.batches import (
    PAD_TO,
    Backend,
    Feeds,
    Float,
    all_observed,
    collect,
    nothing_observed,
    sample_feeds,
)
from vae_anomaly.manifest import Manifest
from vae_anomaly.noise import Draws, bank_chunks
from vae_anomaly.schema import Array, Mask, Samples
from vae_anomaly.stepping import Started, Stepping

# Numbers of one layer of the decoder held at once. Of a multilayer perceptron about what a core's
# own cache holds: larger batches take half as long again. Convolutions stream either way.
CACHED = 500_000
STREAMED = 4_000_000
LOG_ZERO = -1e30
# Below this effective sample size a weighted mean is off by a third of the spread and more.
STEP_BELOW = 10.0
CPU = "CPUExecutionProvider"
STATE = ("log_total", "log_squares", "mean", "variance", "best", "drawn")


class Imputation(NamedTuple):
    """Filled samples and how far to trust them.

    All but ``mean`` have the columns of a table in the model's order, `schema.names`.

    Attributes
    ----------
    mean : like the input
        Observed cells are the caller's own, missing ones the weighted mean: rounded where a column
        is of whole numbers, the most probable one of two values or of several categories.
    std : ndarray, shape (n, *sample shape)
        Standard deviation in raw units, 0 where observed; of a category the probability that it is
        another one.
    draws : ndarray, shape (M, n, *sample shape), or None
        Multiple imputations in the model's numbers; `schema.frame` names categories. NaN for a name that
        training did not have: the cell is the caller's own, and the model has no number for it.
    ess : float64 ndarray, shape (n,)
        Effective sample size of the weights, between 1 and K; K where nothing is missing. Of
        Metropolis steps: how many independent draws would give a mean this exact.
    flags : str ndarray, shape (n,)
        "" where all is well, "low_ess" below 2, "nothing_observed" where the prior answered,
        "metropolis" where a model that never saw masks answered by Metropolis steps.
    """

    mean: Any
    std: Array
    draws: Array | None
    ess: Float
    flags: npt.NDArray[np.str_]


@dataclass(frozen=True)
class MaskedDecode:
    """Imputes samples that the schema has read.

    Parameters
    ----------
    manifest : Manifest
    bank : ndarray, shape (K, L)
        The stored noise of means, spreads and effective sample sizes.
    backend : Backend
    batch_size : int
        Rows per run at most.
    """

    manifest: Manifest
    bank: Array
    backend: Backend
    batch_size: int

    @property
    def chunk(self) -> int:
        """Draws of z per run."""
        return int(self.manifest.imputation["chunk"])

    def answer(self, samples: Samples, keys: list[int], draws: int | None, seed: int, k: int) -> Feeds:
        """Mean, spread, effective sample size and draws of every row, by weights or by steps.

        Returns
        -------
        dict of ndarray
            ``mean_raw``, ``std_raw``, ``ess``; bool ``stepped`` (n,); ``draws`` (n, M, *sample
            shape) if asked for. What stands in observed cells has no meaning.
        """
        out = self.mean(samples, k)
        stepped = self._poorly_weighed(samples, out["ess"])
        out["stepped"] = stepped
        if draws:
            keep = all_observed(samples) | stepped
            out["draws"] = self.draws(samples, keys, draws, seed, k, skip=keep)
        if not stepped.any():
            return out
        stepping = Stepping(self.manifest, self.backend, self.batch_size)
        poor = Samples(samples.values[stepped], samples.observed[stepped])
        started = Started(poor, out["filling"][stepped])
        for name, values in stepping.mean(started).items():
            out[name][stepped] = values
        if draws:
            names = [keys[row] for row in np.flatnonzero(stepped)]
            out["draws"][stepped] = stepping.draws(started, names, draws, seed)
        return out

    def _poorly_weighed(self, samples: Samples, ess: Float) -> Mask:
        """Rows that Metropolis steps answer better, where the model has them."""
        if not self._has_steps:
            return np.zeros(len(ess), np.bool_)
        return (ess < STEP_BELOW) & ~all_observed(samples) & ~nothing_observed(samples)

    @property
    def _has_steps(self) -> bool:
        return "steps" in self.manifest.imputation

    def mean(self, samples: Samples, k: int) -> Feeds:
        """``mean_raw``, ``std_raw`` and ``ess`` of every row; zeros where nothing is missing, ess K.

        With ``filling``, the mean in model space, where the model has Metropolis steps.

        Parameters
        ----------
        samples : Samples
        k : int
            Rounded up to whole chunks.
        """
        rows = _Some.of(samples, all_observed(samples))

        def run(part: slice) -> Feeds:
            feeds = sample_feeds(rows.samples, part)
            still = _no_noise(len(feeds["x"]), self.chunk, self.manifest.schema.elements)
            return self._fold(feeds, ((one, *still) for one in bank_chunks(self.bank, k, self.chunk)), 1)

        keep = ("mean_raw", "std_raw", "ess", *(("next_mean",) if self._has_steps else ()))
        found = collect(self.backend, len(rows), run, self._rows_at_once(self.chunk), keep)
        out = {
            "mean_raw": rows.among_all(found["mean_raw"], 0),
            "std_raw": rows.among_all(found["std_raw"], 0),
            "ess": rows.among_all(found["ess"].astype(np.float64), -(-k // self.chunk) * self.chunk),
        }
        if self._has_steps:
            out["filling"] = rows.among_all(found["next_mean"], 0)
        return out

    def draws(
        self, samples: Samples, keys: list[int], draws: int, seed: int, k: int, skip: Mask | None = None
    ) -> Array:
        """Multiple imputations, shape (n, M, *sample shape); zeros in rows that are skipped.

        Parameters
        ----------
        samples : Samples
        keys : list of int, length n
            From `noise.row_ids`.
        draws : int
            M.
        seed, k : int
        skip : bool ndarray, shape (n,), optional
            Rows to leave out; those without a gap by default.
        """
        skip = all_observed(samples) if skip is None else skip
        rows, latent, elements = _Some.of(samples, skip), self.bank.shape[1], self.manifest.schema.elements
        names = [keys[row] for row in rows.places]

        def run(part: slice) -> Feeds:
            feeds = sample_feeds(rows.samples, part)
            noise = Draws(seed, names[part], len(feeds["x"]), draws, latent, elements)
            out = self._fold(feeds, noise.chunks(k, self.chunk), draws)
            return {"draws_raw": np.moveaxis(out["draws_raw"], 0, 1)}

        out = collect(self.backend, len(rows), run, self._rows_at_once(self.chunk + draws))
        return rows.among_all(out["draws_raw"], 0)

    def _fold(self, feeds: Feeds, chunks: Iterator[tuple[Array, Array, Array]], draws: int) -> Feeds:
        """Run the impute graph over chunks of latent, Gumbel and element noise, carrying its state."""
        rows = len(feeds["x"])
        state = fresh_state(rows, self.manifest.schema.features, draws)
        out: Feeds = {}
        for latent, gumbel, element in chunks:
            shape = (len(latent), rows, self.bank.shape[1])
            noise = {
                "latent": np.ascontiguousarray(np.broadcast_to(latent, shape)),
                "gumbel": gumbel,
                "element": element,
            }
            out = self.backend.run("impute", {**feeds, **noise, **state})
            state = {name: out[f"next_{name}"] for name in STATE}
        return out

    def _rows_at_once(self, draws_at_once: int) -> int:
        architecture, features = self.manifest.architecture, self.manifest.schema.features
        cached = architecture.get("network") == "mlp" and self.backend.provider == CPU
        width = max(features, *architecture.get("hidden", ())) if cached else features
        rows = (CACHED if cached else STREAMED) // (draws_at_once * width)
        return min(max(PAD_TO, rows - rows % PAD_TO), self.batch_size)


class _Some(NamedTuple):
    """Some rows, and where they stand among all."""

    samples: Samples
    places: npt.NDArray[np.intp]
    total: int

    @classmethod
    def of(cls, samples: Samples, skip: Mask) -> _Some:
        """All rows but those to skip."""
        places = np.flatnonzero(~skip)
        some = samples if not skip.any() else Samples(samples.values[places], samples.observed[places])
        return cls(some, places, len(skip))

    def __len__(self) -> int:
        return len(self.places)

    def among_all(self, values: Array, otherwise: float) -> Array:
        """Values of these rows at their places, ``otherwise`` in all other rows."""
        if len(self.places) == self.total:
            return values
        every = np.full((self.total, *values.shape[1:]), otherwise, values.dtype)
        every[self.places] = values
        return every


def _no_noise(rows: int, chunk: int, elements: int) -> tuple[Array, Array]:
    """Gumbel and element noise of a draw that nobody asked for: the graph makes at least one."""
    return np.zeros((1, chunk, rows), np.float32), np.zeros((1, rows, elements), np.float32)


def fresh_state(rows: int, features: int, draws: int) -> Feeds:
    """The imputation's state before the first chunk, as `imputation.State` names it."""
    nothing = np.full(rows, LOG_ZERO)
    zeros = np.zeros((rows, features), np.float32)
    return {
        "log_total": nothing,
        "log_squares": nothing,
        "mean": zeros,
        "variance": zeros,
        "best": np.full((draws, rows), LOG_ZERO),
        "drawn": np.zeros((draws, rows, features), np.float32),
    }
