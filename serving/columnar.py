"""Files of named columns: Parquet, Arrow IPC, and the door to CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from serving.chunks import ReadOptions, reading, require_file
from serving.delimited import CsvReader
from vae_anomaly.exceptions import SchemaError

IPC_MAGIC = b"ARROW1"
BATCH_ROWS = 2**16
# With it, and without reading ahead, memory stays at a few pages whatever the size of a row group.
BUFFER_BYTES = 2**16


class Reader(Protocol):
    """A file of named columns.

    Attributes
    ----------
    schema : Schema of pyarrow
    rows : int, optional
    index : list of str
        Columns that hold the index of a pandas frame.
    """

    schema: pa.Schema
    rows: int | None
    index: list[str]

    def settle(self, features: Sequence[str], texts: frozenset[str] = frozenset()) -> None:
        """Check, before the first row, that ``features`` hold numbers, or those in ``texts`` text."""

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows in order, ``columns`` only."""
        ...


class ParquetReader:
    """A Parquet file; page checksums are verified where it has them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path), self._open() as file:
            self.schema = file.schema_arrow
            self.rows: int | None = file.metadata.num_rows
        self.index = _index_columns(self.schema)

    def _open(self) -> Any:
        return pq.ParquetFile(
            self.path, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )

    def settle(self, features: Sequence[str], texts: frozenset[str] = frozenset()) -> None:
        """Refuse features that are neither numeric nor, where they may, text."""
        _require_numbers(self.schema, features, texts)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows in order, ``columns`` only."""
        with self._open() as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch]).select(list(columns))


class ArrowReader:
    """An Arrow IPC file or stream, also known as Feather; one of its record batches is held at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path), path.open("rb") as file:
            self._is_file = file.read(len(IPC_MAGIC)) == IPC_MAGIC
        with reading(path), closing(self._map()) as data:
            self.schema = self._open(data).schema
        self.rows: int | None = None
        self.index = _index_columns(self.schema)

    def _map(self) -> Any:
        return pa.memory_map(str(self.path))

    def _open(self, data: Any) -> Any:
        return pa.ipc.open_file(data) if self._is_file else pa.ipc.open_stream(data)

    def settle(self, features: Sequence[str], texts: frozenset[str] = frozenset()) -> None:
        """Refuse features that are neither numeric nor, where they may, text."""
        _require_numbers(self.schema, features, texts)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows in order, ``columns`` only."""
        with closing(self._map()) as data:
            source = self._open(data)
            count = range(source.num_record_batches) if self._is_file else None
            for batch in map(source.get_batch, count) if count is not None else source:
                yield pa.Table.from_batches([batch]).select(list(columns))


def open_reader(path: Path, options: ReadOptions) -> Reader:
    """The reader for a file by its suffix: .csv, .parquet or .pq, else Arrow IPC."""
    require_file(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return CsvReader(path, options)
    return ParquetReader(path) if path.suffix.lower() in (".parquet", ".pq") else ArrowReader(path)


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column of this type holds numbers, or nothing at all."""
    if pa.types.is_dictionary(kind):
        return is_numeric(kind.value_type)
    tests = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        pa.types.is_decimal,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null))


def _require_numbers(schema: pa.Schema, features: Sequence[str], texts: frozenset[str]) -> None:
    for name in features:
        kind = schema.field(name).type
        if not is_numeric(kind) and not (name in texts and is_text(kind)):
            raise SchemaError(
                f"column {name!r} has type {kind}; expected numbers: convert it or leave it out"
            )


def _index_levels(schema: pa.Schema) -> list[Any]:
    """What pandas noted about its index: names of columns, or the description of a range."""
    try:
        return list(json.loads((schema.metadata or {})[b"pandas"])["index_columns"])
    except (KeyError, ValueError, TypeError):
        return []


def _index_columns(schema: pa.Schema) -> list[str]:
    return [level for level in _index_levels(schema) if isinstance(level, str) and level in schema.names]


def index_range(schema: pa.Schema, rows: int | None) -> tuple[int, int]:
    """First value and step of a pandas range index of this length; 0 and 1 without one."""
    levels = _index_levels(schema)
    if len(levels) == 1 and isinstance(levels[0], dict) and levels[0].get("kind") == "range":
        first, stop, step = (int(levels[0][key]) for key in ("start", "stop", "step"))
        if rows == len(range(first, stop, step)):
            return first, step
    return 0, 1
