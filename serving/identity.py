"""Which row is which: ids as text or integers, and the search for repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from vae_anomaly.exceptions import DataError
from vae_anomaly.schema import Array

# Repeats are found exactly among this many consecutive rows: 8 bytes are held for each, 80 MB in all.
EXACT_ID_ROWS = 10_000_000

Hashes = npt.NDArray[np.uint64]
Batches = Callable[[], Iterable[Array]]


class Repeat(NamedTuple):
    """An id that two rows share."""

    id: Any
    first: int
    second: int


def keys_of(ids: pa.Array | pa.ChunkedArray, name: str) -> Array:
    """Integers as they are, everything else as text: the identity of rows, shape (B,).

    Raises
    ------
    DataError
        If the column's type has no text form.
    """
    if pa.types.is_integer(ids.type) and not ids.null_count:
        return np.asarray(ids.to_numpy(zero_copy_only=False) if isinstance(ids, pa.Array) else ids.to_numpy())
    try:
        return np.asarray(ids.cast(pa.string()).to_pylist(), dtype=object)
    except pa.ArrowException as error:
        raise DataError(
            f"id column {name!r} has type {ids.type}; expected integers or text: choose another id column"
        ) from error


def find_repeat(batches: Batches, window: int = EXACT_ID_ROWS) -> Repeat | None:
    """The first id that occurs twice within ``window`` consecutive rows of a block, or None.

    Hashes find the suspects in 8 bytes a row; a second pass over the suspects alone decides.

    Parameters
    ----------
    batches : callable
        Starts a pass over the ids, returns arrays in row order; called at most twice.
    window : int
        Rows compared with each other: those of one block of this length.
    """
    suspects = [_repeated(block) for block in _blocks(batches(), window)]
    if not any(found.size for found in suspects):
        return None
    return _first_true_repeat(batches(), suspects, window)


def _hash(ids: Array) -> Hashes:
    return np.asarray(pd.util.hash_array(ids, categorize=False), dtype=np.uint64)


def _blocks(batches: Iterable[Array], window: int) -> Iterator[Hashes]:
    """Hashes of ``window`` rows at a time."""
    held, count = [np.empty(0, dtype=np.uint64)], 0
    for ids in batches:
        hashes = _hash(ids)
        while count + len(hashes) >= window:
            cut = window - count
            yield np.concatenate([*held, hashes[:cut]])
            hashes, held, count = hashes[cut:], [], 0
        held.append(hashes)
        count += len(hashes)
    if count:
        yield np.concatenate(held)


def _repeated(hashes: Hashes) -> Hashes:
    ordered = np.sort(hashes)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _first_true_repeat(batches: Iterable[Array], suspects: list[Hashes], window: int) -> Repeat | None:
    seen: dict[tuple[int, Any], int] = {}
    start = 0
    for ids in batches:
        hashes = _hash(ids)
        for i in range(len(ids)):
            block, row = (start + i) // window, start + i
            if not _holds(suspects[block], hashes[i]):
                continue
            if (first := seen.setdefault((block, ids[i]), row)) != row:
                return Repeat(ids[i : i + 1].tolist()[0], first, row)
        start += len(ids)
    return None


def _holds(ordered: Hashes, value: np.uint64) -> bool:
    place = int(np.searchsorted(ordered, value))
    return place < len(ordered) and bool(ordered[place] == value)
