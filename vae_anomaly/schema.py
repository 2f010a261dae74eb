"""What a sample is: an image or a row of a table, and how raw input is read as one.

A schema is the contract between data, model and service. `read` turns whatever a caller
holds (numpy, pandas, nested lists) into the model's own dtype and shape together with the
mask `observed`, or refuses with a sentence that says what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar

import numpy as np
import pandas as pd

from vae_anomaly.columns import Bounds, Column, Kinds, bounded, infer_column
from vae_anomaly.exceptions import ConfigError, SchemaError
from vae_anomaly.image_schema import ImageSchema, infer_image
from vae_anomaly.samples import (
    NAMED_AT_MOST,
    Array,
    Mask,
    Samples,
    array_of,
    mask_of,
    numbers_of,
    refuse_infinite,
)

__all__ = [
    "Array",
    "Column",
    "ImageSchema",
    "Mask",
    "Samples",
    "Schema",
    "TableSchema",
    "infer_schema",
    "schema_from_dict",
]

T = TypeVar("T")


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
            A data frame is read by column name, and its categories by theirs; in a bare array of floats
            a name is its code. NaN and None mean missing.
        observed : DataFrame, or bool array-like of shape (B, D), optional
            A data frame goes by column name, an array has the order of the columns of ``x``.
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

    def own_numbers(self, x: Any) -> Array:
        """Rows as `read` gives them, shape (B, D), but numbers that training did not have as they are."""
        named = isinstance(x, pd.DataFrame)
        frame = (
            x.iloc[:, self.order([str(n) for n in x.columns])]
            if named
            else pd.DataFrame(array_of(x, "cells"))
        )
        return np.column_stack(
            [column.read_own(frame.iloc[:, i], coded=not named)[0] for i, column in enumerate(self.columns)]
        )

    def _read(self, x: Any, observed: Any) -> tuple[Array, Mask, Mask]:
        order, names = list(range(self.elements)), list(self._names)
        if isinstance(x, pd.DataFrame):
            names = [str(name) for name in x.columns]
            order = self.order(names)
            values, unseen = self._read_columns(x.iloc[:, order], coded=False)
        elif self.has_categories:
            cells = array_of(x, "cells")
            self._check_shape(cells.shape)
            values, unseen = self._read_columns(pd.DataFrame(cells), coded=True)
        else:
            values = numbers_of(array_of(x, "cells"), "cells").astype(np.float64)
            unseen = np.zeros(values.shape, dtype=np.bool_)
        self._check_shape(values.shape)
        refuse_infinite(values, "row", self._names)
        present = ~np.isnan(values)
        if observed is not None:
            mask = mask_of(_like(names, observed) if isinstance(observed, pd.DataFrame) else observed)
            if mask.shape != values.shape:
                raise SchemaError(f"observed has shape {mask.shape}; expected {values.shape}, as the rows")
            present &= mask[:, order]
            unseen = unseen & mask[:, order]
        return values, present, unseen

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != self.elements:
            raise SchemaError(f"rows have shape {shape}; expected (B, {self.elements})")

    def _read_columns(self, frame: pd.DataFrame, coded: bool) -> tuple[Array, Mask]:
        """Columns in model order to numbers, and the cells with a strange category, both (B, D)."""
        parts = [column.read(frame.iloc[:, i], coded=coded) for i, column in enumerate(self.columns)]
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

    uint8 images keep 0..255; those of any other dtype, booleans too, take 0..1 when they lie inside
    it, else the range of the data. For the columns of a data frame see `columns.infer_column`; those
    of a bare array are real unless ``kinds`` says more.

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
    cells = array_of(x, "cells")
    if cells.ndim == 2:
        cells = cells if kinds and cells.dtype == object else numbers_of(cells, "cells")
        frame = pd.DataFrame(cells, columns=[f"x{i}" for i in range(cells.shape[1])])
        return _table_schema(frame, False, kinds, bounds)
    if kinds or bounds:
        raise ConfigError("kinds and bounds are of the columns of a table, and got images; leave them out")
    values = numbers_of(cells.astype(np.float32) if cells.dtype == np.bool_ else cells, "cells")
    if values.ndim not in (3, 4):
        raise SchemaError(
            f"data has shape {values.shape}; expected a table (B, D) or images (B, H, W) or (B, C, H, W)"
        )
    return infer_image(values if values.ndim == 4 else values[:, None])


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


def _like(names: list[str], observed: pd.DataFrame) -> pd.DataFrame:
    """A mask with its columns in the order of those of the rows."""
    own = [str(name) for name in observed.columns]
    if own == names:
        return observed
    if strange := [name for name in own if name not in names]:
        raise SchemaError(
            f"observed has a column {strange[0]!r} that the rows do not have; give it their names, or pass "
            "observed.to_numpy() in their order"
        )
    if sorted(own) != sorted(names):
        raise SchemaError(
            f"observed has {len(own)} columns and the rows {len(names)}; give each of their names once, or "
            "pass observed.to_numpy() in their order"
        )
    return observed.iloc[:, [own.index(name) for name in names]]


def _others(names: list[str]) -> str:
    rest = ", ".join(repr(name) for name in names[1:NAMED_AT_MOST])
    return f" (also unknown: {rest})" if rest else ""
