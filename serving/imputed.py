"""Where imputations go: a table to Parquet, an array to .npy, images to a folder of PNG."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from serving.arrays import ArraySource
from serving.chunks import Chunk, Source
from serving.claim import Claim, writing
from serving.filling import fill_array, fill_table, filled_schema, std_name
from serving.folders import FolderSource
from serving.pictures import SUFFIXES, pixels_out
from serving.tables import TableSource
from serving.writers import NpyWriter, TableWriter, output_schema, write_picture
from vae_anomaly.exceptions import ConfigError, DataError
from vae_anomaly.schema import Array, Mask

PARQUET = (".parquet", ".pq")


class Filled(NamedTuple):
    """The answer for the readable rows of a chunk.

    Attributes
    ----------
    values : ndarray, shape (M, B, *sample shape)
        M draws, or the mean with M = 1.
    std : ndarray, shape (B, *sample shape)
        0 where observed.
    ess : float64 ndarray, shape (B,)
        Effective sample sizes.
    notes : Array of pyarrow, length B
    """

    values: Array
    std: Array
    ess: Array
    notes: pa.Array

    def packed(self, observed: Mask) -> pa.Table:
        """The missing cells, sizes and notes, in one row of lists."""
        missing = ~observed
        return pa.table(
            {
                "values": _listed(pa.array(self.values[:, missing].ravel())),
                "std": _listed(pa.array(self.std[missing])),
                "ess": _listed(pa.array(self.ess)),
                "notes": _listed(self.notes),
            }
        )

    @classmethod
    def unpacked(cls, table: pa.Table, observed: Mask, draws: int) -> Filled:
        """From what `packed` returned; 0 where observed."""
        some, some_std, ess, notes = (table[name].chunk(0).values for name in table.column_names)
        values = np.zeros((draws, *observed.shape), some.type.to_pandas_dtype())
        values[:, ~observed] = some.to_numpy(zero_copy_only=False).reshape(draws, -1)
        std = np.zeros(observed.shape, some_std.type.to_pandas_dtype())
        std[~observed] = some_std.to_numpy(zero_copy_only=False)
        return cls(values, std, ess.to_numpy(), notes)


def _listed(array: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array)


class ImputedWriter(ABC):
    """Takes chunks in order; entered before the first, left after the last.

    Parameters
    ----------
    claim : Claim
    draws : int, optional
        M, or None for the mean.
    with_std : bool
    """

    def __init__(self, claim: Claim, draws: int | None, with_std: bool) -> None:
        self.claim, self.draws, self.with_std = claim, draws, with_std
        self.stack = ExitStack()

    @abstractmethod
    def write(self, chunk: Chunk, filled: Filled | None) -> None:
        """Write one chunk; ``filled`` is None if none of its rows can be read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.__exit__(*error)  # type: ignore[arg-type]


def check_imputed_out(source: Path, out: Path) -> None:
    """Raise before any work if ``out`` does not suit the input or would destroy something.

    Raises
    ------
    ConfigError
        If the ending is not the one for this kind of input, or input and output meet.
    DataError
        If a folder stands there that holds something.
    """
    target, origin = Path(os.path.realpath(out)), Path(os.path.realpath(source))
    if target == origin or (source.is_dir() and origin in target.parents):
        raise ConfigError(f"{out} is the input or lies inside it; name another output")
    if source.is_dir() or source.suffix.lower() in SUFFIXES:
        if out.suffix.lower() in (*PARQUET, *SUFFIXES, ".npy"):
            raise ConfigError(f"imputed images are written to a folder, got {out.name!r}; name a folder")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise DataError(f"{out} exists already; name a new or empty folder")
        return
    suffixes, kind = (
        ((".npy",), "an array") if source.suffix.lower() in (".npy", ".npz") else (PARQUET, "a table")
    )
    if out.suffix.lower() not in suffixes:
        raise ConfigError(f"{kind} is imputed into {suffixes[0]}, got {out.name!r}; name it with that ending")
    if out.is_dir():
        raise DataError(f"{out} is a folder; name a file")


def open_imputed(claim: Claim, source: Source, draws: int | None, with_std: bool) -> ImputedWriter:
    """The writer for this kind of input."""
    if isinstance(source, TableSource):
        return TableImputations(claim, source, draws, with_std)
    if isinstance(source, ArraySource):
        return ArrayImputations(claim, source, draws, with_std)
    if isinstance(source, FolderSource):
        return ImageImputations(claim, source, draws, with_std)
    raise TypeError(f"no writer for {type(source).__name__}")


class TableImputations(ImputedWriter):
    """All columns of the input, filled; with draws M rows for each of its rows."""

    def __init__(self, claim: Claim, source: TableSource, draws: int | None, with_std: bool) -> None:
        super().__init__(claim, draws, with_std)
        self._features = source.roles.features
        self._known = source.known
        filled = filled_schema(source.columns, self._features, self._known, with_std)
        more = [("ess", pa.float64())] if with_std else []
        more += [("row", pa.int64()), ("draw", pa.int64())] if draws else []
        fields = [*filled, *(pa.field(*field) for field in more), pa.field("note", pa.string())]
        self._schema = output_schema(fields)
        if not draws:
            # What pandas noted about index and dtypes still holds.
            self._schema = self._schema.with_metadata(source.columns.metadata)
        self._writer = self.stack.enter_context(
            TableWriter(claim.temporary(claim.out), self._schema, claim.out)
        )

    def write(self, chunk: Chunk, filled: Filled | None) -> None:
        """Append the readable rows."""
        if filled is None:
            return
        tables = [self._table(chunk, filled, draw) for draw in range(len(filled.values))]
        # The draws of a row stand together, or the order would depend on the chunk.
        order = np.arange(len(tables) * len(chunk.rows)).reshape(len(tables), -1).T.ravel()
        self._writer.write(pa.concat_tables(tables).take(pa.array(order)))

    def _table(self, chunk: Chunk, filled: Filled, draw: int) -> pa.Table:
        # A category that training did not have says nothing, and yet the cell is the caller's own.
        own = chunk.observed if chunk.unseen is None else chunk.observed | chunk.unseen
        spread = np.where(own, 0, filled.std) if self.with_std else None
        table = fill_table(chunk.table, self._features, self._known, filled.values[draw], own, spread)
        if self.with_std:
            table = table.append_column("ess", pa.array(filled.ess))
        if self.draws:
            table = table.append_column("row", pa.array(chunk.rows))
            table = table.append_column("draw", pa.array(np.full(len(chunk.rows), draw)))
        return table.append_column("note", filled.notes).cast(self._schema)


class ArrayImputations(ImputedWriter):
    """The input's shape and dtype; rows set aside are NaN, so that row numbers stay the same."""

    def __init__(self, claim: Claim, source: ArraySource, draws: int | None, with_std: bool) -> None:
        super().__init__(claim, draws, with_std)
        self._dtype, self._item = source.dtype, source.item_shape
        rows = (source.rows, *self._item)
        self._values = self._open(claim.out, source.dtype, rows if draws is None else (draws, *rows))
        if with_std:
            beside = claim.out.with_name(f"{std_name(claim.out.stem)}{claim.out.suffix}")
            self._std = self._open(beside, np.dtype(np.float64), rows)

    def _open(self, path: Path, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> NpyWriter:
        return self.stack.enter_context(NpyWriter(self.claim.temporary(path), dtype, shape, self.claim.out))

    def write(self, chunk: Chunk, filled: Filled | None) -> None:
        """Write the chunk's rows in their places."""
        own = chunk.values
        for draw in range(self.draws or 1):
            block = None if filled is None else fill_array(own, filled.values[draw], chunk.observed)
            index = (draw, chunk.start) if self.draws else (chunk.start,)
            self._values.write(index, self._spread_out(chunk, block, self._dtype))
        if self.with_std:
            std = None if filled is None else filled.std
            self._std.write((chunk.start,), self._spread_out(chunk, std, np.dtype(np.float64)))

    def _spread_out(self, chunk: Chunk, block: Array | None, dtype: np.dtype[np.generic]) -> Array:
        """Readable rows at their places among all rows of the chunk."""
        if block is not None and len(block) == chunk.size:
            return block.reshape((chunk.size, *self._item))
        # Only floats can be unreadable.
        every = np.full((chunk.size, *self._item), np.nan, dtype=dtype)
        if block is not None:
            every[chunk.rows - chunk.start] = block.reshape((-1, *self._item))
        return every


class ImageImputations(ImputedWriter):
    """One PNG for each image, under the same relative name."""

    def __init__(self, claim: Claim, source: FolderSource, draws: int | None, with_std: bool) -> None:
        super().__init__(claim, draws, with_std)
        self._schema = source.images
        self._folder = claim.temporary(claim.out)
        with writing(claim.out):
            self._folder.mkdir()

    def write(self, chunk: Chunk, filled: Filled | None) -> None:
        """Write the chunk's images."""
        if filled is None:
            return
        own, white = chunk.values, 0.5 * (self._schema.high - self._schema.low)
        spread = np.clip(np.rint(filled.std / white * 255), 0, 255).astype(np.uint8)
        for draw, values in enumerate(filled.values):
            pixels = pixels_out(fill_array(own, values, chunk.observed), self._schema)
            for i, name in enumerate(chunk.paths):
                self._save(name, f"__draw{draw}" if self.draws else "", pixels[i])
        for i, name in enumerate(chunk.paths if self.with_std else ()):
            self._save(name, "__std", spread[i])

    def _save(self, name: str, mark: str, pixels: Array) -> None:
        write_picture(pixels, self._folder, name, mark, self.claim.out)
