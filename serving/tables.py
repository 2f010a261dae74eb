"""Tables as rows: Parquet, Arrow IPC and CSV, their columns sorted into inputs, id and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from serving.chunks import Chunk, ReadOptions, Reject, Source, guarded
from serving.columnar import index_range, open_reader
from serving.gaps import Gaps, open_gaps
from serving.identity import find_repeat, keys_of
from vae_anomaly.columns import Column
from vae_anomaly.exceptions import DataError, SchemaError
from vae_anomaly.schema import Array, Mask, TableSchema

# What a CSV writes for a boolean, in lower case.
TRUTHS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
UNNAMED_INDEX = "__index_level_"


@dataclass(frozen=True)
class Roles:
    """What each column of a file is for.

    Attributes
    ----------
    features : tuple of str
        Inputs of the model, as the file names them, in model order.
    order : int ndarray, shape (D,)
        Place of each feature among the inputs in the file's order.
    """

    features: tuple[str, ...]
    order: npt.NDArray[np.int64]


def assign_roles(
    names: Sequence[str], index: Sequence[str], schema: TableSchema, options: ReadOptions
) -> Roles:
    """Sort columns into inputs and others.

    Raises
    ------
    SchemaError
        If a column is missing, unknown or there twice.
    """
    if repeated := [name for name in names if list(names).count(name) > 1]:
        raise SchemaError(f"column {repeated[0]!r} appears more than once; drop the repeats")
    for name in options.named_columns:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the input has: {', '.join(names[:5])}"
            raise SchemaError(f"no column {name!r} in the input; {hint}")
    aside = {*options.named_columns, *index} - set(schema.names)
    inputs = [name for name in names if name not in aside]
    if options.ignore_unknown and set(inputs) & set(schema.names):
        inputs = [name for name in inputs if name in schema.names]
    schema.read(pd.DataFrame(np.empty((0, len(inputs))), columns=inputs))
    by_name = set(inputs) == set(schema.names)
    features = schema.names if by_name else tuple(inputs)
    order = np.array([inputs.index(name) for name in features], dtype=np.int64)
    return Roles(features, order)


class TableSource(Source):
    """Rows of a table.

    Parameters
    ----------
    path : Path
    schema : TableSchema
    options : ReadOptions
    everything : bool
        Read all columns, not only the inputs and those that the options name.
    """

    def __init__(self, path: Path, schema: TableSchema, options: ReadOptions, everything: bool) -> None:
        self.path, self.schema, self.options = path, schema, options
        self.known = schema.columns
        self._reader = open_reader(path, options)
        names = self._reader.schema.names
        self.roles = assign_roles(names, self._reader.index, schema, options)
        self._reader.settle(self.roles.features, self._texts())
        self.rows = self._reader.rows
        self.id_column = self._find_id()
        used = {*self.roles.features, *options.keep_columns, self.id_column}
        used_names = [name for name in names if everything or name in used]
        self.columns = pa.schema([self._reader.schema.field(name) for name in used_names])
        self.columns = self.columns.with_metadata(self._reader.schema.metadata)
        self.id_name = (
            self.id_column if self.id_column and not self.id_column.startswith(UNNAMED_INDEX) else "id"
        )
        self.id_type = self.columns.field(self.id_column).type if self.id_column is not None else pa.int64()
        self._gaps()
        self._range = index_range(self._reader.schema, self.rows)

    def _texts(self) -> frozenset[str]:
        """Features that are no numbers: names of categories, and booleans."""
        columns = zip(self.roles.features, self.known, strict=True)
        return frozenset(name for name, column in columns if column.named or _is_truth(column))

    def _gaps(self) -> Gaps:
        inputs = [self.roles.features[i] for i in np.argsort(self.roles.order)]
        return open_gaps(self.options, self.schema, self.rows, inputs)

    def _find_id(self) -> str | None:
        """The id column, checked: as named, else the pandas index if it is unique."""
        if self.options.id_column is not None:
            if self.options.on_duplicate == "error":
                self._check_ids(self.options.id_column)
            return self.options.id_column
        index = self._reader.index
        if len(index) != 1 or any(column.null_count for column in self._column(index[0])):
            return None
        unique = find_repeat(lambda: (keys_of(ids, index[0]) for ids in self._column(index[0]))) is None
        return index[0] if unique else None

    def _column(self, name: str) -> Iterator[pa.ChunkedArray]:
        return (table[name] for table in guarded(self.path, self._reader.tables([name])))

    def _check_ids(self, name: str) -> None:
        start = 0
        for column in self._column(name):
            _require_ids(column, name, start)
            start += len(column)
        repeat = find_repeat(lambda: (keys_of(ids, name) for ids in self._column(name)))
        if repeat is not None:
            raise DataError(
                f"id {repeat.id!r} of rows {repeat.first} and {repeat.second} is not unique; "
                "make ids unique, or pass --on-duplicate keep"
            )

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order."""
        gaps = self._gaps()
        size, start = self.options.rows_at_once(len(self.columns.names)), 0
        for table in guarded(self.path, self._reader.tables(self.columns.names)):
            for offset in range(0, table.num_rows, size):
                part = table.slice(offset, size)
                yield self._chunk(start, part, gaps)
                start += part.num_rows
        gaps.require(start)

    def _chunk(self, start: int, table: pa.Table, gaps: Gaps) -> Chunk:
        size = table.num_rows
        values, observed, unseen = self._numbers(table, gaps.take(start, size))
        if self.options.strict and unseen.any():
            raise DataError(self._strange(unseen, start))
        numbers = np.arange(start, start + size)
        ids = self._ids(numbers, table)
        keys = numbers if self.options.on_duplicate == "keep" else keys_of(ids, self.id_name)
        good = ~np.isinf(values).any(axis=1)
        return Chunk(
            start=start,
            size=size,
            rows=numbers[good],
            ids=ids.filter(pa.array(good)),
            keys=keys[good],
            values=values[good],
            observed=observed[good],
            unseen=unseen[good],
            table=table.filter(pa.array(good)),
            rejects=tuple(
                self._reject(values[i], ids[int(i)].as_py(), start + int(i)) for i in np.flatnonzero(~good)
            ),
        )

    def _numbers(self, table: pa.Table, present: Mask | None) -> tuple[npt.NDArray[np.float64], Mask, Mask]:
        """Inputs in model order with NaN where missing, where they are present, and where a category
        is one that training did not have: all of shape (B, D).
        """
        columns = zip(self.roles.features, self.known, strict=True)
        read = [to_model(table[name], column, self.options.missing_value) for name, column in columns]
        values, unseen = (np.column_stack(part) for part in zip(*read, strict=True))
        if present is not None:
            hidden = ~present[:, self.roles.order]
            values[hidden], unseen[hidden] = np.nan, False
        return values, ~np.isnan(values), unseen

    def _strange(self, unseen: Mask, start: int) -> str:
        row, place = (int(part[0]) for part in np.nonzero(unseen))
        return (
            f"row {start + row}: column {self.roles.features[place]!r} holds a category that was not in "
            "training; strict stops at the first"
        )

    def _ids(self, numbers: npt.NDArray[np.int64], table: pa.Table) -> pa.Array:
        if self.id_column is None:
            first, step = self._range
            return pa.array(first + step * numbers)
        _require_ids(table[self.id_column], self.id_column, int(numbers[0]))
        return table[self.id_column].combine_chunks()

    def _reject(self, values: Array, id: Any, row: int) -> Reject:
        name = self.roles.features[int(np.flatnonzero(np.isinf(values))[0])]
        return Reject(id, "infinite", f"column {name!r}", row, f"infinite value in column {name!r}")


def to_model(
    cells: pa.ChunkedArray, column: Column, missing_value: float | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Cells as the model takes them, and which hold a category that training did not have."""
    kind = cells.type.value_type if pa.types.is_dictionary(cells.type) else cells.type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if column.named:
        # Whole numbers keep their digits beside a gap.
        return column.read(cells.cast(kind).to_pandas(integer_object_nulls=True).astype(object))
    if texts and _is_truth(column):
        words = pd.Series(cells.cast(pa.string()).to_pandas(), dtype=object).str.lower()
        # No other number than low and high, or it would pass for one of them.
        numbers = words.map(TRUTHS).where(words.isin(TRUTHS) | words.isna(), np.inf).astype(np.float64)
        return np.where(np.isinf(numbers), np.nan, numbers), np.isinf(numbers)
    if texts:
        cells = cells.cast(pa.float64())
    return column.read(pd.Series(to_numbers(cells, missing_value)))


def _is_truth(column: Column) -> bool:
    return column.kind == "binary" and (column.low, column.high) == (0.0, 1.0)


def to_numbers(column: pa.ChunkedArray, missing_value: float | None = None) -> npt.NDArray[np.float64]:
    """A numeric column of any type as float64, NaN where it is empty or holds ``missing_value``."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        column = column.cast(pa.float64())
    own = column.to_numpy()
    # In the column's own precision: 0.1 as float32 is not 0.1 as float64.
    same = own == missing_value if missing_value is not None else np.zeros(len(own), dtype=np.bool_)
    values: npt.NDArray[np.float64] = own.astype(np.float64)
    values[same] = np.nan
    return values


def _require_ids(column: pa.ChunkedArray, name: str, start: int) -> None:
    if column.null_count:
        row = start + int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"id column {name!r} is empty in row {row}; give every row an id")
