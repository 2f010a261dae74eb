"""Arrays as rows, tables or images: .npy through a memory map, .npz as a stream."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from serving.chunks import Chunk, ReadOptions, Reject, Source, guarded, map_array, reading, require_file
from serving.gaps import Gaps, open_gaps
from serving.identity import find_repeat, keys_of
from serving.pictures import FRACTIONS_BELOW
from vae_anomaly.exceptions import ConfigError, DataError, SchemaError
from vae_anomaly.schema import Array, ImageSchema, Mask, Schema

# Rows whose range decides, for the whole file, whether pixels are in the trained units.
UNITS_ROWS = 1024
DEFAULT_MEMBER = "X"


class NpyFile:
    """One array of a .npy file, mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = map_array(path)
        self.shape, self.dtype = self._array.shape, self._array.dtype

    def blocks(self, size: int) -> Iterator[Array]:
        """``size`` rows at a time."""
        return _slices(self._array, size)


def _slices(array: Array, size: int) -> Iterator[Array]:
    """Copies of ``size`` rows at a time."""
    for start in range(0, len(array), size):
        yield np.array(array[start : start + size], order="C")


class NpzFile:
    """One array of a .npz file: ``X``, or the only one; read as a stream, never whole.

    Stored column by column, as pandas hands out its values, it is unpacked to an unnamed temporary
    file first.
    """

    def __init__(self, path: Path, member: str | None = None) -> None:
        self.path = path
        with reading(path), zipfile.ZipFile(path) as archive:
            self._member = member or _only_member(archive, path)
            if f"{self._member}.npy" not in archive.namelist():
                held = ", ".join(_members(archive))
                raise SchemaError(f"no array {self._member!r} in {path}; it holds {held}")
            with archive.open(f"{self._member}.npy") as file:
                self.shape, self._by_column, self.dtype = read_header(file)
        self._unpacked: Array | None = None
        if self.dtype.hasobject:
            raise DataError(f"array {self._member!r} of {path} holds Python objects; save it as numbers")

    def blocks(self, size: int) -> Iterator[Array]:
        """``size`` rows at a time."""
        if self._by_column and len(self.shape) > 1 and 0 not in self.shape:
            if self._unpacked is None:
                self._unpacked = self._unpack()
            yield from _slices(self._unpacked, size)
        else:
            yield from self._stream(size)

    def _unpack(self) -> Array:
        with (
            tempfile.TemporaryFile() as plain,
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self._member}.npy") as packed,
        ):
            shutil.copyfileobj(packed, plain)
            plain.seek(0)
            read_header(plain)
            return np.memmap(plain, self.dtype, "r", plain.tell(), self.shape, order="F")

    def _stream(self, size: int) -> Iterator[Array]:
        item = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self._member}.npy") as file:
            read_header(file)
            for start in range(0, self.shape[0], size):
                rows = min(size, self.shape[0] - start)
                data = file.read(rows * item)
                if len(data) != rows * item:
                    raise DataError(f"{self.path} ends in row {start + len(data) // item}; write it again")
                yield np.frombuffer(data, dtype=self.dtype).reshape((rows, *self.shape[1:])).copy()


def _members(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _only_member(archive: zipfile.ZipFile, path: Path) -> str:
    names = _members(archive)
    if DEFAULT_MEMBER in names or len(names) == 1:
        return DEFAULT_MEMBER if DEFAULT_MEMBER in names else names[0]
    raise DataError(f"{path} holds the arrays {names}; call the one to read {DEFAULT_MEMBER!r}")


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether stored column by column, and dtype of a .npy file."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


class ArraySource(Source):
    """Rows of an array, tables or images, named by an array beside them in the .npz or by row number."""

    def __init__(self, path: Path, schema: Schema, options: ReadOptions) -> None:
        require_file(path)
        self.path, self.schema, self.options = path, schema, options
        self._file = NpyFile(path) if path.suffix.lower() == ".npy" else NpzFile(path)
        if not self._file.shape:
            raise SchemaError(f"{path} holds a single number; expected rows")
        self.rows: int = self._file.shape[0]
        self.dtype = self._file.dtype
        self._channels_last = options.convert and _is_channels_last(self._file.shape[1:], schema)
        self.item_shape = schema.shape if self._channels_last else self._file.shape[1:]
        self._check()
        self._gaps()
        self._ids = self._read_ids()
        self.id_name = options.id_column or "id"
        self.id_type = self._ids.type if self._ids is not None else pa.int64()
        self.columns = pa.schema([])

    def _gaps(self) -> Gaps:
        return open_gaps(self.options, self.schema, self.rows)

    def _check(self) -> None:
        """Shape and dtype, then the units of the first rows."""
        try:
            self.schema.read(np.zeros((min(self.rows, 1), *self.item_shape), dtype=self.dtype))
            if isinstance(self.schema, ImageSchema) and self.dtype.kind == "f":
                head = next(guarded(self.path, self._blocks(UNITS_ROWS)), None)
                if head is not None:
                    self.schema.read(np.where(np.isinf(head), np.nan, head), self._present(head))
        except SchemaError as error:
            raise SchemaError(f"{self.path.name}, of shape {self._file.shape}: {error}") from error

    def _read_ids(self) -> pa.Array | None:
        """The array beside the rows that names them, held whole."""
        named = self.options.named_columns
        if not named:
            return None
        if named != (self.options.id_column,) or isinstance(self._file, NpyFile):
            raise ConfigError(f"{self.path.name} has no columns; leave out {named[-1]!r}")
        beside = NpzFile(self.path, named[0])
        if beside.shape != (self.rows,):
            raise DataError(
                f"array {named[0]!r} has shape {beside.shape}; expected ({self.rows},), one id a row"
            )
        blocks = [np.empty(0, beside.dtype), *guarded(self.path, beside.blocks(max(self.rows, 1)))]
        ids = pa.array(np.concatenate(blocks))
        keys = keys_of(ids, named[0])
        if self.options.on_duplicate == "error" and (repeat := find_repeat(lambda: [keys])):
            raise DataError(
                f"id {repeat.id!r} of rows {repeat.first} and {repeat.second} is not unique; "
                "make ids unique, or pass --on-duplicate keep"
            )
        return ids

    def _blocks(self, size: int) -> Iterator[Array]:
        for block in self._file.blocks(size):
            moved = block.transpose(0, 3, 1, 2) if self._channels_last else block
            yield moved.reshape((len(block), *self.schema.shape))

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order."""
        gaps = self._gaps()
        start = 0
        for values in guarded(self.path, self._blocks(self.options.rows_at_once(self.schema.elements))):
            observed = self._present(values)
            if (present := gaps.take(start, len(values))) is not None:
                observed &= present
            yield self._chunk(start, values, observed)
            start += len(values)
        gaps.require(start)

    def _present(self, values: Array) -> Mask:
        present: Mask = np.ones(values.shape, dtype=np.bool_)
        if values.dtype.kind == "f":
            present &= ~np.isnan(values)
        if (missing := self.options.missing_value) is None:
            return present
        same: Mask = values == missing
        # A colour pixel is missing where all its channels say so.
        return present & ~(same.all(axis=1, keepdims=True) if isinstance(self.schema, ImageSchema) else same)

    def _chunk(self, start: int, values: Array, observed: Mask) -> Chunk:
        numbers = np.arange(start, start + len(values))
        ids = self._ids[start : start + len(values)] if self._ids is not None else pa.array(numbers)
        keys = numbers if self.options.on_duplicate == "keep" else keys_of(ids, self.id_name)
        rejects = self._misfits(start, values, observed, ids)
        good = np.ones(len(values), dtype=np.bool_)
        good[[reject.row - start for reject in rejects]] = False
        return Chunk(
            start=start,
            size=len(values),
            rows=numbers[good],
            ids=ids.filter(pa.array(good)),
            keys=keys[good],
            values=values[good],
            observed=observed[good],
            rejects=rejects,
        )

    def _misfits(self, start: int, values: Array, observed: Mask, ids: pa.Array) -> tuple[Reject, ...]:
        """Rows that the model cannot read; where nothing is observed the value is made NaN."""
        if values.dtype.kind != "f":
            return ()
        values[~observed] = np.nan
        found = []
        for i in np.flatnonzero(_suspects(values, self.schema)):
            try:
                self.schema.read(values[i : i + 1])
            except SchemaError as error:
                infinite = np.isinf(values[i])
                reason = "infinite" if infinite.any() else "wrong_units"
                place = _place(infinite) if infinite.any() else "all pixels"
                detail = f"infinite value at {place}" if infinite.any() else str(error)
                found.append(Reject(ids[int(i)].as_py(), reason, place, start + int(i), detail))
        return tuple(found)


def _is_channels_last(item: tuple[int, ...], schema: Schema) -> bool:
    if not isinstance(schema, ImageSchema) or item == schema.shape:
        return False
    return item == (schema.height, schema.width, schema.channels)


def _suspects(values: Array, schema: Schema) -> Mask:
    """Rows that `schema.read` may refuse, shape (B,): a cheap test before the exact one."""
    flat = values.reshape(len(values), schema.elements)
    odd = np.isinf(flat)
    if isinstance(schema, ImageSchema):
        margin = 0.5 * (schema.high - schema.low)
        # NaN compares as False throughout.
        odd |= (flat < schema.low - margin) | (flat > schema.high + margin)
        if schema.dtype == "uint8":
            odd |= np.where(np.isinf(flat), 0, flat) % 1 > 0
        if schema.high > FRACTIONS_BELOW:
            odd[:, 0] |= ~np.any(flat > 1, axis=1)
    return np.asarray(odd.any(axis=1))


def _place(infinite: Mask) -> str:
    index = tuple(int(i) for i in np.argwhere(infinite)[0])
    return f"column {index[0]}" if len(index) == 1 else f"pixel {list(index)}"
