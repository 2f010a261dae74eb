"""What a sample is: an image or a row of a table, and how raw input is read as one.

A schema is the contract between data, model and service. `read` turns whatever a caller
holds (numpy, pandas, nested lists) into the model's own dtype and shape together with the
mask `observed`, or refuses with a sentence that says what to do.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly.columns import Bounds, Column, Kinds, bounded, infer_column, object_numbers
from vae_anomaly.exceptions import ConfigError, SchemaError

log = logging.getLogger(__name__)

T = TypeVar("T")

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

# Share of float pixels outside the trained range above which an image batch is in other units.
OUT_OF_RANGE_SHARE = 0.5
NAMED_AT_MOST = 5


class Samples(NamedTuple):
    """Raw values in the model's dtype, and where they are present.

    Attributes
    ----------
    values : ndarray, shape (B, C, H, W) or (B, D)
        uint8 or float32 for images, float64 for tables. NaN only where not observed.
    observed : bool ndarray, of the same shape
        True where a value is present.
    """

    values: Array
    observed: Mask


@dataclass(frozen=True)
class ImageSchema:
    """Images of one size.

    Attributes
    ----------
    channels, height, width : int
    dtype : {"uint8", "float32"}
        What the graphs take; other dtypes are cast where that loses nothing.
    low, high : float
        The range of pixel values, in raw units.
    """

    channels: int
    height: int
    width: int
    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0
    kind: ClassVar[str] = "image"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)

    @property
    def elements(self) -> int:
        """D = C * H * W."""
        return self.channels * self.height * self.width

    @property
    def features(self) -> int:
        """F = D, the numbers of one image in model space."""
        return self.elements

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, read back by `schema_from_dict`."""
        return {"kind": self.kind, **asdict(self)}

    def read(self, x: Any, observed: Any = None, *, strict: bool = False) -> Samples:
        """Cast images to the model's dtype and shape (B, C, H, W).

        Parameters
        ----------
        x : array-like, shape (B, C, H, W), (B, H, W) for one channel, or (B, C*H*W)
            NaN means missing.
        observed : bool array-like, optional
            Same shape as ``x``, or (B, H, W) to hide all channels at once.
        strict : bool
            Images have no categories to be strict about.

        Raises
        ------
        SchemaError
            If shape, dtype or range do not fit, naming expected and received.
        """
        values = _numeric(_array(x, "pixels"), "pixels")
        values = values.reshape(self._batch_shape(values.shape))
        present = self._read_observed(observed, values.shape)
        if values.dtype.kind == "f":
            present &= ~np.isnan(values)
            _refuse_infinite(values, "image")
        if values.dtype != np.uint8 or self.dtype != "uint8":
            self._check_units(values[present])
        return Samples(self._cast(values, present), present)

    def clipped_by_cast(self, x: Any, observed: Mask) -> npt.NDArray[np.int64]:
        """Observed pixels per image that `read` clipped in its cast to uint8, shape (B,).

        Parameters
        ----------
        x : array-like
            As given to `read`.
        observed : bool ndarray, shape (B, C, H, W)
            As `read` returned it.
        """
        values = np.asarray(x)
        if self.dtype != "uint8" or values.dtype == np.uint8:
            return np.zeros(len(observed), dtype=np.int64)
        pixels = _numeric(values, "pixels").reshape(observed.shape)
        outside = observed & ((pixels < 0) | (pixels > 255))
        return np.asarray(outside.sum(axis=(1, 2, 3)), dtype=np.int64)

    def _batch_shape(self, got: tuple[int, ...]) -> tuple[int, ...]:
        flat = got[1:] == (self.elements,)
        grey = self.channels == 1 and got[1:] == (self.height, self.width)
        if got[1:] == self.shape or flat or grey:
            return (got[0], *self.shape)
        expected = f"(B, {self.channels}, {self.height}, {self.width})"
        if got[1:] == (self.height, self.width, self.channels):
            raise SchemaError(
                f"images have shape {got}, channels last; expected {expected}; "
                "move the channels with x.transpose(0, 3, 1, 2)"
            )
        if got == self.shape or (self.channels == 1 and got == self.shape[1:]):
            raise SchemaError(f"got one image of shape {got}; expected a batch {expected}; pass x[None]")
        raise SchemaError(f"images have shape {got}; expected {expected}")

    def _read_observed(self, observed: Any, shape: tuple[int, ...]) -> Mask:
        if observed is None:
            return np.ones(shape, dtype=np.bool_)
        mask = _boolean(observed)
        if mask.shape == (shape[0], self.height, self.width):
            mask = mask[:, None]
        elif mask.shape == (shape[0], self.elements):
            mask = mask.reshape(shape)
        if mask.ndim != 4 or mask.shape not in (shape, (shape[0], 1, self.height, self.width)):
            raise SchemaError(f"observed has shape {np.shape(observed)}; expected {shape}, as the images")
        return np.broadcast_to(mask, shape).copy()

    def _check_units(self, values: Array) -> None:
        span = self.high - self.low
        outside = (values < self.low - 0.5 * span) | (values > self.high + 0.5 * span)
        wrong = values.size > 0 and outside.mean() > OUT_OF_RANGE_SHARE
        # The reverse: a whole batch of 0..1 floats where 0..255 was trained.
        shrunk = values.size > 0 and self.high > 2 and 0 < np.max(values) <= 1 and np.min(values) >= 0
        if wrong or (shrunk and np.any(values % 1)):
            raise SchemaError(
                f"pixels run from {np.min(values):g} to {np.max(values):g}, the model was trained on "
                f"{self.low:g} to {self.high:g}; rescale them to the trained range"
            )

    def _cast(self, values: Array, present: Mask) -> Array:
        if self.dtype == "float32":
            low, high = np.finfo(np.float32).min, np.finfo(np.float32).max
            return np.clip(values, low, high).astype(np.float32) if values.dtype != np.float32 else values
        if values.dtype == np.uint8:
            return values
        filled = np.where(present, values, 0)
        if values.dtype.kind == "f" and np.any(filled % 1):
            raise SchemaError(
                "pixels are not whole numbers, the model was trained on uint8; round them first"
            )
        log.info("pixels cast from %s to uint8", values.dtype)
        return np.clip(filled, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class TableSchema:
    """Named columns in model order.

    Attributes
    ----------
    columns : tuple of Column
    named : bool
        False when the training data was a bare array: names were made up as x0, x1, ...
    """

    columns: tuple[Column, ...]
    named: bool = True
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        object.__setattr__(self, "_names", tuple(column.name for column in self.columns))

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in model order."""
        return self._names

    @property
    def shape(self) -> tuple[int]:
        """(D,)."""
        return (len(self.columns),)

    @property
    def elements(self) -> int:
        """D, the number of columns."""
        return len(self.columns)

    @property
    def features(self) -> int:
        """F, the numbers of one row in model space: a categorical column has one per class."""
        return sum(column.features for column in self.columns)

    @property
    def mixed(self) -> bool:
        """Whether some column is not real."""
        return any(column.kind != "real" for column in self.columns)

    @property
    def has_categories(self) -> bool:
        """Whether a cell can hold a value that training did not have."""
        return any(column.categories or column.kind == "binary" for column in self.columns)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, read back by `schema_from_dict`."""
        return {"kind": self.kind, "named": self.named, "columns": [c.to_dict() for c in self.columns]}

    def check_names(self, names: Sequence[str]) -> None:
        """Raise `SchemaError` unless ``names`` holds exactly the known columns, in any order."""
        known, counts = set(self._names), Counter(names)
        if unknown := [name for name in names if name not in known]:
            raise SchemaError(f"unknown column {unknown[0]!r}; {self._hint(unknown[0])}{_others(unknown)}")
        if repeated := [name for name in self._names if counts[name] > 1]:
            raise SchemaError(f"column {repeated[0]!r} appears more than once; drop the repeats")
        if missing := [name for name in self._names if name not in counts]:
            shown = ", ".join(repr(name) for name in missing[:NAMED_AT_MOST])
            more = f" and {len(missing) - NAMED_AT_MOST} more" if len(missing) > NAMED_AT_MOST else ""
            raise SchemaError(
                f"missing columns [{shown}]{more}; to leave a value out, keep the column and set it to NaN"
            )

    def _hint(self, name: str) -> str:
        close = get_close_matches(str(name), self._names, n=1)
        known = ", ".join(self._names[:NAMED_AT_MOST]) + (", ..." if len(self._names) > NAMED_AT_MOST else "")
        return f"did you mean {close[0]!r}?" if close else f"known: {known}"

    def read(self, x: Any, observed: Any = None, *, strict: bool = False) -> Samples:
        """Read rows as float64, columns in model order, categories as their codes.

        Parameters
        ----------
        x : DataFrame, or array-like of shape (B, D)
            A data frame is read by column name. NaN and None mean missing.
        observed : bool array-like, shape (B, D), optional
            In the order of the columns of ``x``.
        strict : bool
            Refuse a category that training did not have, in place of calling it missing.

        Raises
        ------
        SchemaError
            If columns, dtype or shape do not fit, or a cell is infinite.
        """
        values, present, unseen = self._read(x, observed)
        if strict and unseen.any():
            raise SchemaError(self._strange(unseen))
        return Samples(values, present)

    def unseen(self, x: Any, observed: Any = None) -> Mask:
        """Observed cells with a category that training did not have, shape (B, D); they count as missing."""
        return self._read(x, observed)[2]

    def _read(self, x: Any, observed: Any) -> tuple[Array, Mask, Mask]:
        order = list(range(self.elements))
        if isinstance(x, pd.DataFrame):
            order = self.order([str(name) for name in x.columns])
            values, unseen = self._read_columns(x.iloc[:, order])
        elif self.has_categories:
            cells = _array(x, "cells")
            self._check_shape(cells.shape)
            values, unseen = self._read_columns(pd.DataFrame(cells))
        else:
            values = _numeric(_array(x, "cells"), "cells").astype(np.float64)
            unseen = np.zeros(values.shape, dtype=np.bool_)
        self._check_shape(values.shape)
        _refuse_infinite(values, "row")
        present = ~np.isnan(values)
        if observed is not None:
            mask = _boolean(observed)
            if mask.shape != values.shape:
                raise SchemaError(f"observed has shape {mask.shape}; expected {values.shape}, as the rows")
            present &= mask[:, order]
            unseen = unseen & mask[:, order]
        return values, present, unseen

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != self.elements:
            raise SchemaError(f"rows have shape {shape}; expected (B, {self.elements})")

    def _read_columns(self, frame: pd.DataFrame) -> tuple[Array, Mask]:
        """Columns in model order to numbers, and the cells with a strange category, both (B, D)."""
        parts = [column.read(frame.iloc[:, i]) for i, column in enumerate(self.columns)]
        if not parts:
            return np.empty((len(frame), 0)), np.empty((len(frame), 0), dtype=np.bool_)
        values, unseen = (np.column_stack(part) for part in zip(*parts, strict=True))
        return values, unseen

    def _strange(self, unseen: Mask) -> str:
        row, place = (int(part[0]) for part in np.nonzero(unseen))
        column = self.columns[place]
        known = column.categories or (column.low, column.high)
        shown = ", ".join(map(str, known[:NAMED_AT_MOST])) + (", ..." if len(known) > NAMED_AT_MOST else "")
        return (
            f"column {column.name!r} has a category in row {row} that was not in training; it had {shown}: "
            "mend the cell, or leave strict out to call it missing"
        )

    def frame(self, values: Array, index: pd.Index[Any] | None = None) -> pd.DataFrame:
        """Rows in the model's numbers as a caller would write them: categories by name."""
        labelled = [column.label(values[:, i]) for i, column in enumerate(self.columns)]
        frame = pd.concat(labelled, axis=1) if labelled else pd.DataFrame(index=range(len(values)))
        return frame.set_axis(list(self._names), axis=1).set_axis(index if index is not None else frame.index)

    def order(self, names: list[str]) -> list[int]:
        """Where each of the model's columns stands among names; by place where none were trained.

        Raises
        ------
        SchemaError
            If the names are not exactly the known ones.
        """
        if not self.named and len(names) == self.elements and set(names) != set(self._names):
            return list(range(self.elements))
        self.check_names(names)
        place = {name: i for i, name in enumerate(names)}
        return [place[name] for name in self._names]


Schema = ImageSchema | TableSchema


def schema_from_dict(data: dict[str, Any]) -> Schema:
    """Read what `to_dict` wrote."""
    fields = {key: value for key, value in data.items() if key != "kind"}
    if data["kind"] == "image":
        return ImageSchema(**fields)
    columns = tuple(
        Column(**{**column, "categories": tuple(column.get("categories", ()))})
        for column in fields.pop("columns")
    )
    return TableSchema(columns, **fields)


def infer_schema(x: Any, kinds: Kinds | None = None, bounds: Bounds | None = None) -> Schema:
    """The schema of training data: (B, D) is a table, (B, H, W) or (B, C, H, W) are images.

    uint8 images keep 0..255; float images take 0..1 when they lie inside it, else the range
    of the data; whole-number images of other integer types must fit 0..255. For the columns of a
    data frame see `columns.infer_column`; those of a bare array are real unless ``kinds`` says more.

    Parameters
    ----------
    x : DataFrame or array-like
    kinds : mapping of column to kind, optional
        By name, or by place in a bare array; a list of categories makes an ordinal column.
    bounds : mapping of column to (lower, upper), optional
        What expected, imputed and drawn values keep to; None for no bound.

    Raises
    ------
    SchemaError
        If the array has another number of dimensions, text, complex or infinite values; or a column
        is text, holds too many categories, or does not go with its kind.
    ConfigError
        If kinds or bounds name no column, no kind, or come with images.
    """
    kinds, bounds = kinds or {}, bounds or {}
    if isinstance(x, pd.DataFrame):
        return _table_schema(x, True, kinds, bounds)
    cells = _array(x, "cells")
    if cells.ndim == 2:
        cells = cells if kinds and cells.dtype == object else _numeric(cells, "cells")
        frame = pd.DataFrame(cells, columns=[f"x{i}" for i in range(cells.shape[1])])
        return _table_schema(frame, False, kinds, bounds)
    if kinds or bounds:
        raise ConfigError("kinds and bounds are of the columns of a table, and got images; leave them out")
    values = _numeric(cells, "cells")
    if values.ndim not in (3, 4):
        raise SchemaError(
            f"data has shape {values.shape}; expected a table (B, D) or images (B, H, W) or (B, C, H, W)"
        )
    return _image_schema(values if values.ndim == 4 else values[:, None])


def _image_schema(values: Array) -> ImageSchema:
    _, channels, height, width = values.shape
    if channels > 4 >= width:
        raise SchemaError(
            f"images have shape {values.shape}, channels last; move them with x.transpose(0, 3, 1, 2)"
        )
    if min(height, width) < 8:
        raise SchemaError(f"images are {height}x{width}; both sides must be at least 8 pixels")
    if values.dtype.kind in "iub":
        if values.size and (values.min() < 0 or values.max() > 255):
            raise SchemaError(
                f"integer pixels run from {values.min()} to {values.max()}; expected 0 to 255, "
                "or convert them to float32"
            )
        return ImageSchema(channels, height, width)
    _refuse_infinite(values, "image")
    present = values[~np.isnan(values)]
    low, high = (float(present.min()), float(present.max())) if present.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return ImageSchema(channels, height, width, "float32", low, high if high > low else low + 1.0)


def _table_schema(frame: pd.DataFrame, named: bool, kinds: Kinds, bounds: Bounds) -> TableSchema:
    names = [str(name) for name in frame.columns]
    if not names:
        raise SchemaError("the table has no columns; give at least one")
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise SchemaError(f"column {repeated[0]!r} appears more than once; drop the repeats")
    own_kinds, own_bounds = _by_name(kinds, names, named), _by_name(bounds, names, named)
    columns = []
    for i, name in enumerate(names):
        column = infer_column(frame.iloc[:, i], name, own_kinds.get(name), typed=named)
        columns.append(bounded(column, own_bounds[name]) if name in own_bounds else column)
    return TableSchema(tuple(columns), named)


def _by_name(given: Mapping[Any, T], names: list[str], named: bool) -> dict[str, T]:
    """Settings of single columns by their names; a bare array's may be given by place."""
    found = {}
    for key, value in given.items():
        name = names[key] if not named and isinstance(key, int) and 0 <= key < len(names) else str(key)
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names[:NAMED_AT_MOST])}"
            raise ConfigError(f"kinds or bounds name an unknown column {key!r}; {hint}")
        found[name] = value
    return found


def _others(names: list[str]) -> str:
    rest = ", ".join(repr(name) for name in names[1:NAMED_AT_MOST])
    return f" (also unknown: {rest})" if rest else ""


def _array(x: Any, what: str) -> Array:
    try:
        return np.asarray(x)
    except ValueError as error:
        raise SchemaError(f"{what} are ragged; give every row the same length") from error


def _numeric(values: Array, what: str) -> Array:
    """Native byte order, bool and object columns of numbers as numbers; text and complex refused."""
    if values.dtype.kind == "O":
        values = object_numbers(values, what)
    if values.dtype.kind not in "biuf":
        raise SchemaError(f"{what} have dtype {values.dtype}; expected numbers")
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _boolean(observed: Any) -> Mask:
    mask = _array(observed, "cells of observed")
    if mask.dtype.kind != "b" and not np.isin(mask, (0, 1)).all():
        raise SchemaError(f"observed has dtype {mask.dtype}; expected True where a value is present")
    return mask.astype(np.bool_)


def _refuse_infinite(values: Array, what: str) -> None:
    infinite = np.isinf(values)
    if infinite.any():
        rows = np.unique(np.nonzero(infinite)[0])[:NAMED_AT_MOST].tolist()
        raise SchemaError(f"infinite values in {what} {rows}; use NaN for a missing value")
