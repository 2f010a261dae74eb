"""The loops of the Metropolis chains: steps of `step.onnx`, for rows where importance weights fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vae_anomaly.batches import PAD_TO, Backend, Feeds, collect, pad, sample_feeds
from vae_anomaly.manifest import Manifest
from vae_anomaly.schema import Array, Samples

# Keys the noise that all rows share; any fixed number would do.
SHARED = 20_261_121
# Accepts whatever is proposed: below any log ratio.
ALWAYS = -1e30
# Cells of completed samples held at once.
CELLS_AT_ONCE = 1_000_000
CHAINS = ("completed", "z", "averaged", "mean", "variance", "chain_mean")


class Started(NamedTuple):
    """Rows to step, and what their gaps hold at first.

    Attributes
    ----------
    samples : Samples
    filling : float32 ndarray, shape (B, F)
        Model space; its values where observed have no say.
    """

    samples: Samples
    filling: Array


@dataclass(frozen=True)
class Stepping:
    """Several chains per row, all rows at once; the chains are a second axis of the batch.

    After ``warm_up`` steps that accept every proposal (pseudo-Gibbs) come ``steps`` of Metropolis,
    of which the first half is left out of the averages.

    Parameters
    ----------
    manifest : Manifest
    backend : Backend
    batch_size : int
        Rows per run at most.
    """

    manifest: Manifest
    backend: Backend
    batch_size: int

    def mean(self, started: Started) -> Feeds:
        """``mean_raw``, ``std_raw`` and ``ess``; the noise is the same for every row."""
        chains = int(self.manifest.imputation["chains"])

        def run(part: slice) -> Feeds:
            generators = [np.random.Generator(np.random.Philox(SHARED))]
            return self._walk(_part(started, part), generators, chains)

        keep = ("mean_raw", "std_raw", "ess")
        return collect(self.backend, len(started.filling), run, self._rows_at_once(chains), keep)

    def draws(self, started: Started, keys: list[int], draws: int, seed: int) -> Array:
        """Where M chains of each row end, shape (n, M, *sample shape): independent draws.

        Parameters
        ----------
        started : Started
        keys : list of int, length n
            From `noise.row_ids`.
        draws, seed : int
        """
        state = np.uint64(seed % 2**64)

        def run(part: slice) -> Feeds:
            generators = [
                np.random.Generator(np.random.Philox(key=[state, np.uint64(key)])) for key in keys[part]
            ]
            out = self._walk(_part(started, part), generators, draws)
            return {"draws_raw": np.moveaxis(out["draws_raw"], 0, 1)}

        found = collect(self.backend, len(started.filling), run, self._rows_at_once(draws))
        return found["draws_raw"]

    def _walk(self, started: Started, generators: list[np.random.Generator], chains: int) -> Feeds:
        """Every step of the chains of one padded batch; the last step's outputs."""
        sizes = self.manifest.imputation
        warm_up, steps = int(sizes["warm_up"]), int(sizes["steps"])
        feeds = sample_feeds(started.samples, slice(None))
        state = fresh_chains(pad(started.filling), chains, self.manifest.latent_size)
        rows, noises = len(feeds["x"]), self._noise(generators, chains, self.manifest.schema.elements)
        out: Feeds = {}
        for index in range(warm_up + steps):
            noise = {name: _for_rows(part, rows) for name, part in next(noises).items()}
            if index < warm_up:
                noise["log_uniform"] = np.full((chains, rows), ALWAYS)
            # Averages begin anew as long as the count is 0.
            state["averaged"] = np.full(rows, float(max(0, index - warm_up - steps // 2)))
            out = self.backend.run("step", {**feeds, **noise, **state})
            state = {name: out[f"next_{name}"] for name in CHAINS}
        return out

    def _noise(self, generators: list[np.random.Generator], chains: int, elements: int) -> Iterator[Feeds]:
        """Noise per step, as many rows as generators: (C, R, L), (C, R, D) and (C, R)."""
        latent = self.manifest.latent_size
        while True:
            normal = [g.standard_normal((chains, latent + elements), dtype=np.float32) for g in generators]
            uniform = [-g.standard_exponential(chains) for g in generators]
            both = np.stack(normal, axis=1)
            yield {
                "proposal": both[..., :latent],
                "element": both[..., latent:],
                "log_uniform": np.stack(uniform, axis=1),
            }

    def _rows_at_once(self, chains: int) -> int:
        rows = CELLS_AT_ONCE // (chains * self.manifest.schema.features)
        return min(max(PAD_TO, rows - rows % PAD_TO), self.batch_size)


def fresh_chains(filling: Array, chains: int, latent_size: int) -> Feeds:
    """The chains before their first step, as `metropolis.Chains` names them.

    Parameters
    ----------
    filling : float32 ndarray, shape (B, F)
        Where every chain of a row begins.
    chains, latent_size : int
    """
    rows, features = filling.shape
    return {
        "completed": np.repeat(filling[None], chains, axis=0),
        "z": np.zeros((chains, rows, latent_size), np.float32),
        "averaged": np.zeros(rows),
        "mean": np.zeros((rows, features), np.float32),
        "variance": np.zeros((rows, features), np.float32),
        "chain_mean": np.zeros((chains, rows, features), np.float32),
    }


def _part(started: Started, rows: slice) -> Started:
    samples = started.samples
    return Started(Samples(samples.values[rows], samples.observed[rows]), started.filling[rows])


def _for_rows(noise: Array, rows: int) -> Array:
    """Noise (C, R, ...) for a padded batch: one row's for all, or zeros behind the last."""
    shape = (noise.shape[0], rows, *noise.shape[2:])
    if noise.shape[1] == 1 and rows > 1:
        return np.ascontiguousarray(np.broadcast_to(noise, shape))
    padded = np.zeros(shape, noise.dtype)
    padded[:, : noise.shape[1]] = noise
    return padded
