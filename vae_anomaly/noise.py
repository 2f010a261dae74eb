"""Noise for imputations: a stored bank for means, (seed, row id) for draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vae_anomaly.exceptions import SchemaError
from vae_anomaly.schema import Array

# Keys the draws beyond a stored bank; any fixed number would do.
BEYOND_THE_BANK = 20_261_120


def row_ids(x: Any, count: int, ids: Sequence[object] | None) -> list[int]:
    """64-bit keys of rows: from the ids given, else a unique pandas index, else the row number.

    Raises
    ------
    SchemaError
        If there are not as many ids as rows.
    """
    if ids is None and isinstance(x, pd.DataFrame) and x.index.is_unique:
        ids = list(x.index)
    if ids is None:
        ids = range(count)
    if len(ids) != count:
        raise SchemaError(f"got {len(ids)} ids for {count} rows; give one id per row")
    return [
        int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest(), "little") for key in ids
    ]


def bank_chunks(bank: Array, draws: int, chunk: int) -> Iterator[Array]:
    """Chunks (chunk, 1, L) of the stored bank, then of a fixed random stream, ``draws`` in all."""
    generator = None
    for start in range(0, draws, chunk):
        part = bank[start : start + chunk]
        if len(part) < chunk:
            generator = generator or np.random.Generator(np.random.Philox(BEYOND_THE_BANK))
            shape = (chunk - len(part), bank.shape[1])
            part = np.concatenate([part, generator.standard_normal(shape, dtype=np.float32)])
        yield part[:, None, :]


class Draws:
    """Independent noise per row, from (seed, row id) alone.

    Parameters
    ----------
    seed : int
    keys : list of int
        From `row_ids`.
    rows : int
        Rows of the padded batch; those beyond ``keys`` get zeros.
    draws : int
        M.
    latent_size, elements : int
        L and D.
    """

    def __init__(
        self, seed: int, keys: list[int], rows: int, draws: int, latent_size: int, elements: int
    ) -> None:
        self.rows, self.draws, self.latent_size = rows, draws, latent_size
        state = np.uint64(seed % 2**64)
        self.generators = [np.random.Generator(np.random.Philox(key=[state, np.uint64(key)])) for key in keys]
        self.element = np.zeros((draws, rows, elements), np.float32)
        for i, generator in enumerate(self.generators):
            self.element[:, i] = generator.standard_normal((draws, elements), dtype=np.float32)

    def chunks(self, draws: int, chunk: int) -> Iterator[tuple[Array, Array, Array]]:
        """Latent (K, B, L), Gumbel (M, K, B) and element (M, B, D) noise per chunk of K draws."""
        for _ in range(0, draws, chunk):
            latent = np.zeros((chunk, self.rows, self.latent_size), np.float32)
            gumbel = np.zeros((self.draws, chunk, self.rows), np.float32)
            for i, generator in enumerate(self.generators):
                latent[:, i] = generator.standard_normal((chunk, self.latent_size), dtype=np.float32)
                exponential = generator.standard_exponential((self.draws, chunk), dtype=np.float32)
                gumbel[:, :, i] = -np.log(np.maximum(exponential, 1e-30))
            yield latent, gumbel, self.element
