"""Cutting samples into padded batches for whatever runs the graphs, and putting answers together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vae_anomaly.schema import Array, Mask, Samples

Float = npt.NDArray[np.float64]
Feeds = dict[str, Array]

# onnxruntime's kernels treat the last few rows of a batch apart; whole multiples keep a row's bits
# the same wherever it stands.
PAD_TO = 16


class Backend(Protocol):
    """What runs the graphs."""

    @property
    def provider(self) -> str:
        """Where they run, such as ``CPUExecutionProvider``."""

    @property
    def threads(self) -> int:
        """How many batches may run at once."""

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """Run one graph on one padded batch: names to arrays, in and out."""


def collect(
    backend: Backend,
    count: int,
    run: Callable[[slice], Feeds],
    size: int,
    keep: tuple[str, ...] | None = None,
) -> Feeds:
    """Run batches, several at once, and put their rows together in order.

    Parameters
    ----------
    backend : Backend
    count : int
        Rows in all.
    run : callable
        Answers the rows of a slice; what it returns may be padded behind them.
    size : int
        Rows per batch, rounded up to a multiple of 16.
    keep : tuple of str, optional
        The outputs to keep; all without it.
    """
    size += -size % PAD_TO
    # onnxruntime answers an empty batch with wrong shapes: run one row and keep none of it.
    parts = [slice(i, min(i + size, count)) for i in range(0, count, size)] or [slice(0, 0)]

    def trimmed(rows: slice) -> Feeds:
        out = run(rows)
        return {
            name: values[: rows.stop - rows.start] for name, values in out.items() if not keep or name in keep
        }

    if len(parts) == 1 or backend.threads == 1:
        results = [trimmed(part) for part in parts]
    else:
        with ThreadPoolExecutor(backend.threads) as pool:
            results = list(pool.map(trimmed, parts))
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def sample_feeds(samples: Samples, rows: slice) -> Feeds:
    """Some samples as padded inputs of a graph."""
    return {"x": pad(samples.values[rows]), "observed": pad(samples.observed[rows])}


def pad(values: Array) -> Array:
    """Rows of zeros up to a multiple of 16; one block of them for an empty batch."""
    extra = -len(values) % PAD_TO if len(values) else PAD_TO
    if not extra:
        return np.ascontiguousarray(values)
    return np.concatenate([values, np.zeros((extra, *values.shape[1:]), values.dtype)])


def nothing_observed(samples: Samples) -> Mask:
    """Rows without any value, shape (B,)."""
    return np.logical_not(samples.observed.any(axis=_elements(samples)))


def take(samples: Samples, rows: npt.NDArray[np.int64]) -> Samples:
    """Some rows of samples, in ascending order."""
    index = np.sort(rows)
    return Samples(samples.values[index], samples.observed[index])


def with_something(samples: Samples) -> Samples:
    """The rows of which something is observed: of others nothing strange can be known."""
    kept = ~nothing_observed(samples)
    return samples if kept.all() else Samples(samples.values[kept], samples.observed[kept])


def all_observed(samples: Samples) -> Mask:
    """Rows without any gap, shape (B,)."""
    return np.asarray(samples.observed.all(axis=_elements(samples)))


def _elements(samples: Samples) -> tuple[int, ...]:
    return tuple(range(1, samples.observed.ndim))
