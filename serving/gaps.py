"""What `--mask` says is missing, read beside the rows: black, False or 0 is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from serving.chunks import ReadOptions, map_array, require_file
from serving.delimited import CsvReader
from serving.pictures import SUFFIXES, BadImageError, dark, open_image
from vae_anomaly.exceptions import DataError
from vae_anomaly.schema import Array, ImageSchema, Mask, Schema, TableSchema


class Gaps:
    """No mask was given: nothing is hidden. The other kinds refine this one.

    `take` is called for consecutive rows, `of` for single images by name.
    """

    def take(self, start: int, size: int) -> Mask | None:
        """Where the rows ``start`` to ``start + size - 1`` are present, or None for everywhere."""
        return None

    def of(self, row: int, name: str) -> Mask | None:
        """Where one image is present, shape (1, H, W) or (C, H, W), or None for everywhere."""
        taken = self.take(row, 1)
        return None if taken is None else taken[0]

    def require(self, rows: int) -> None:
        """Raise `DataError` unless the mask has exactly ``rows`` rows."""


class ArrayGaps(Gaps):
    """A .npy of True and False, or 0 and 1, one row for each row of the input."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self._array = map_array(path)
        shape = self._array.shape
        if isinstance(schema, ImageSchema) and shape == schema.shape[1:]:
            self._shared: Mask | None = self._check(self._array)[None, None]
            return
        self._shared = None
        self._shape = _row_shape(schema, shape, path)

    def take(self, start: int, size: int) -> Mask:
        """One row of the mask for each row, of shape (size, D) or (size, C or 1, H, W)."""
        if self._shared is not None:
            return np.broadcast_to(self._shared, (size, *self._shared.shape[1:]))
        if start + size > len(self._array):
            raise _wrong_length(self.path, len(self._array))
        return self._check(self._array[start : start + size]).reshape((size, *self._shape))

    def require(self, rows: int) -> None:
        """Raise `DataError` unless the mask has exactly ``rows`` rows."""
        if self._shared is None and rows != len(self._array):
            raise _wrong_length(self.path, len(self._array), rows)

    def _check(self, values: Array) -> Mask:
        if values.dtype.kind != "b" and not np.isin(values, (0, 1, 255)).all():
            raise DataError(f"mask {self.path} holds other values than 0 and 1; expected 1 where present")
        present: Mask = np.asarray(values) != 0
        return present


class CsvGaps(Gaps):
    """A CSV of 0 and 1 with the columns of the input, one row for each of its rows."""

    def __init__(self, path: Path, columns: Sequence[str], options: ReadOptions) -> None:
        require_file(path)
        self.path, self._columns = path, columns
        reader = CsvReader(path, ReadOptions(delimiter=options.delimiter))
        if missing := [name for name in columns if name not in reader.schema.names]:
            raise DataError(f"mask {path} has no column {missing[0]!r}; give it the columns of the input")
        reader.settle(columns)
        self._length = reader.rows or 0
        self._rows = self._read(reader)
        self._held: list[Mask] = []

    def _read(self, reader: CsvReader) -> Iterator[Mask]:
        for table in reader.tables(self._columns):
            values = np.column_stack([table[name].to_numpy() for name in self._columns])
            if not np.isin(values, (0, 1)).all():
                raise DataError(f"mask {self.path} holds other cells than 0 and 1; expected 1 where present")
            yield values != 0

    def take(self, start: int, size: int) -> Mask:
        """The next ``size`` rows."""
        if start + size > self._length:
            raise _wrong_length(self.path, self._length)
        while sum(map(len, self._held)) < size:
            self._held.append(next(self._rows))
        held = np.concatenate([*self._held, np.empty((0, len(self._columns)), dtype=np.bool_)])
        self._held = [held[size:]]
        return held[:size]

    def require(self, rows: int) -> None:
        """Raise `DataError` unless the mask has exactly ``rows`` rows."""
        if rows != self._length:
            raise _wrong_length(self.path, self._length, rows)


class PictureGaps(Gaps):
    """One black and white picture for all images."""

    def __init__(self, path: Path, schema: ImageSchema, convert: bool) -> None:
        require_file(path)
        try:
            self._mask = read_mask(path, schema, convert)
        except BadImageError as error:
            raise DataError(f"cannot use mask {path}: {error.detail}") from error

    def take(self, start: int, size: int) -> Mask:
        """The same mask for every image."""
        return np.broadcast_to(self._mask, (size, *self._mask.shape))


class FolderGaps(Gaps):
    """A folder of black and white pictures with the names of the images."""

    def __init__(self, folder: Path, schema: ImageSchema, convert: bool) -> None:
        self._folder, self._schema, self._convert = folder, schema, convert

    def take(self, start: int, size: int) -> Mask:
        """Refused: rows of an array have no names."""
        raise DataError(f"mask {self._folder} is a folder; rows of an array need one file of masks")

    def of(self, row: int, name: str) -> Mask:
        """The mask of the image called ``name``; a PNG may stand beside a JPEG.

        Raises
        ------
        BadImageError
            If there is none, or it cannot be read.
        """
        for path in (self._folder / name, (self._folder / name).with_suffix(".png")):
            if path.is_file():
                return read_mask(path, self._schema, self._convert)
        raise BadImageError("no_mask", f"the mask folder has no picture of this name; expected {name}")


def open_gaps(
    options: ReadOptions, schema: Schema, rows: int | None = None, columns: Sequence[str] = ()
) -> Gaps:
    """The mask that ``options`` name.

    Parameters
    ----------
    options : ReadOptions
    schema : ImageSchema or TableSchema
    rows : int, optional
        Length of the input, where it is known beforehand.
    columns : sequence of str
        Of a table, in the order of the input.

    Raises
    ------
    DataError
        If it does not exist, cannot be read or does not fit.
    """
    gaps = _open(options, schema, columns)
    if rows is not None:
        gaps.require(rows)
    return gaps


def _open(options: ReadOptions, schema: Schema, columns: Sequence[str]) -> Gaps:
    path = options.mask
    if path is None:
        return Gaps()
    if isinstance(schema, ImageSchema) and path.is_dir():
        return FolderGaps(path, schema, options.convert)
    if isinstance(schema, ImageSchema) and path.suffix.lower() in SUFFIXES:
        return PictureGaps(path, schema, options.convert)
    if path.suffix.lower() == ".npy":
        return ArrayGaps(path, schema)
    if isinstance(schema, TableSchema) and path.suffix.lower() == ".csv":
        return CsvGaps(path, columns or schema.names, options)
    kinds = ".npy or .csv" if isinstance(schema, TableSchema) else ".npy, a PNG or a folder of PNG"
    raise DataError(f"cannot use mask {path}; expected {kinds}")


def read_mask(path: Path, schema: ImageSchema, convert: bool) -> Mask:
    """Where a black and white picture is not black, shape (1, H, W).

    Raises
    ------
    BadImageError
        If it cannot be read or has another size than the images.
    """
    with open_image(path) as image:
        grey = image.convert("L")
        size = (schema.width, schema.height)
        if grey.size != size and not convert:
            expected = f"{schema.height}x{schema.width}"
            raise BadImageError("wrong_mask", f"the mask is {grey.height}x{grey.width}; expected {expected}")
        return ~dark(grey if grey.size == size else grey.resize(size, Image.Resampling.NEAREST))[None]


def _row_shape(schema: Schema, shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """The shape of one row's mask, for masks of one row each."""
    item: tuple[int, ...] = schema.shape
    fits = {item: item, (schema.elements,): item}
    if isinstance(schema, ImageSchema):
        one = (1, *item[1:])
        fits |= {one: one, item[1:]: one}
    if shape[1:] not in fits:
        raise DataError(
            f"mask {path} has shape {shape}; expected (rows, {', '.join(map(str, schema.shape))})"
        )
    return fits[shape[1:]]


def _wrong_length(path: Path, has: int, rows: int | None = None) -> DataError:
    wanted = f"{rows}" if rows is not None else "more"
    return DataError(f"mask {path} has {has} rows, the input {wanted}; give one row of mask for each row")
