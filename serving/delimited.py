"""CSV files: the delimiter, the cells as numbers, and errors that name the row."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from serving.chunks import ReadOptions, reading
from vae_anomaly.exceptions import DataError
from vae_anomaly.filling import EXACT

# Bytes parsed at once: small, because pyarrow reads up to 32 blocks ahead; a row must fit into one, so
# that files with larger rows are read by large blocks.
BLOCK_BYTES, LARGE_BLOCK_BYTES = 2**20, 2**24
DELIMITERS = ",;\t"
# What other tools write into the gaps of a numeric column: the list of pandas.
GAPS = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NAN", "-NaN", "-nan", "NULL", "null", "None", "<NA>")
SNIFFED_CHARACTERS = 2**16
# Text that an integer column would write back unchanged: no sign plus, no leading zeros, none that
# 64 bits could not hold.
INTEGER = r"^(0|-?[1-9][0-9]{0,17}|-?[1-8][0-9]{18})$"
INDEX = ""


class _LargeRowError(DataError):
    """A row does not fit into a block."""


class CsvReader:
    """A CSV file with a header line, as tables of pyarrow.

    Until `settle` every column is text; after it the model's columns are float64, but int64 where all their
    cells are plain integers and some too large for a float, and the others int64 where all their cells are
    plain integers, else text.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self._decimal = options.decimal
        with reading(path):
            self._delimiter = options.delimiter or sniff_delimiter(path)
            names, self._empty = self._header()
        self.schema = pa.schema([(name, pa.string()) for name in names])
        self.rows: int | None = None
        self._texts_of: frozenset[str] = frozenset()
        self._block = BLOCK_BYTES
        # Written by pandas: an index has no name of its own.
        self.index = [INDEX] if names[0] == INDEX else []

    def settle(self, features: Sequence[str], texts: frozenset[str] = frozenset()) -> None:
        """Read the whole file once: count rows, fix column types, refuse what is no table.

        Raises
        ------
        DataError
            If rows are ragged, or text stands in one of ``features``.
        """
        self._texts_of = texts
        try:
            self._settle(features, texts)
        except _LargeRowError:
            self._block = LARGE_BLOCK_BYTES
            self._settle(features, texts)

    def _settle(self, features: Sequence[str], texts: frozenset[str]) -> None:
        types = {name: pa.float64() if name in features else pa.int64() for name in self.schema.names}
        types |= dict.fromkeys(texts, pa.string())
        whole, large = set(features), set[str]()
        self.rows = 0
        for table in self._texts(self.schema.names):
            for name, kind in types.items():
                if name in texts:
                    continue
                if name in features:
                    self._numbers(table[name], name, self.rows)
                    if name in whole and _all_integers(cells := _without_gaps(table[name])):
                        large |= {name} if _beyond_floats(cells) else set()
                    else:
                        whole.discard(name)
                elif kind == pa.int64() and not _all_integers(table[name]):
                    types[name] = pa.string()
            self.rows += table.num_rows
        types |= dict.fromkeys(whole & large, pa.int64())
        if not self.rows:
            types |= {name: pa.string() for name in types if name not in features}
        self.schema = pa.schema(list(types.items()))

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows in order, ``columns`` only."""
        start = 0
        for table in self._texts(columns):
            arrays = [self._typed(table[name], name, start) for name in columns]
            yield pa.table(arrays, names=list(columns))
            start += table.num_rows

    def _typed(self, column: pa.ChunkedArray, name: str, start: int) -> pa.ChunkedArray:
        kind = self.schema.field(name).type
        if name in self._texts_of:
            return _without_gaps(column)
        if kind == pa.float64():
            return self._numbers(column, name, start)
        return _without_gaps(column).cast(kind) if kind == pa.int64() else column

    def _numbers(self, column: pa.ChunkedArray, name: str, start: int) -> pa.ChunkedArray:
        text = _without_gaps(column)
        if self._decimal == ",":
            text = pc.replace_substring(text, ",", ".")
        try:
            return text.cast(pa.float64())
        except pa.ArrowInvalid:
            row, cell = _first_text(text)
        hint = "; for a decimal comma pass --decimal ," if re.fullmatch(r"-?\d+,\d+", cell) else ""
        place = f"column {name!r} of {self.path}"
        raise DataError(f"{place} holds {cell[:40]!r} in row {start + row}; expected a number{hint}")

    def _texts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        if self._empty:
            yield pa.schema([(name, pa.string()) for name in columns]).empty_table()
            return
        ragged: list[Any] = []
        with reading(self.path):
            try:
                for batch in self._open(columns, ragged):
                    yield pa.Table.from_batches([batch])
            except pa.ArrowInvalid as error:
                raise self._refusal(error, ragged) from error

    def _open(self, columns: Sequence[str], ragged: list[Any]) -> Any:
        def note(row: Any) -> str:
            ragged.append(row)
            return "error"

        return pyarrow.csv.open_csv(
            self.path,
            # One thread: with several the reader cannot tell the number of a bad row.
            read_options=pyarrow.csv.ReadOptions(block_size=self._block, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=note
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in self.schema.names},
                include_columns=list(columns),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )

    def _refusal(self, error: pa.ArrowInvalid, ragged: list[Any]) -> DataError:
        if ragged:
            row = ragged[0]
            return DataError(
                # The parser counts from 1 and counts the header.
                f"row {row.number - 2} of {self.path} has {row.actual_columns} cells, the header "
                f"{row.expected_columns}; mend the row, or name another delimiter than {self._delimiter!r}"
            )
        if "UTF8" in str(error):
            return DataError(f"{self.path} is not UTF-8 text; save it as UTF-8")
        if "straddl" in str(error):
            return _LargeRowError(
                f"{self.path} has a row of more than {self._block >> 20} MB; look for an unclosed quote"
            )
        return DataError(f"cannot read {self.path} as CSV; is it text with a header line?")

    def _header(self) -> tuple[list[str], bool]:
        """Column names, and whether no row follows."""
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                names = next(csv.reader(file, delimiter=self._delimiter), [])
                empty = not any(line.strip() for line in file)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is not UTF-8 text; save it as UTF-8") from error
        except csv.Error as error:
            raise DataError(f"cannot read {self.path} as CSV: {error}; look for an unclosed quote") from error
        if not names:
            raise DataError(f"{self.path} is empty; expected a header line with the column names")
        _refuse_numbers(names, self.path)
        return names, empty


def sniff_delimiter(path: Path) -> str:
    """The likeliest delimiter of the header line: comma, semicolon or tab; comma where none occurs."""
    with path.open("rb") as file:
        head = file.readline(SNIFFED_CHARACTERS).decode("utf-8", "replace")
    bare = re.sub(r'"[^"]*"', "", head)
    return max(DELIMITERS, key=bare.count)


def _without_gaps(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Trimmed text, null where it is what other tools write into a gap."""
    text = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(text, pa.array(GAPS)), pa.scalar(None, pa.string()), text)


def _refuse_numbers(names: list[str], path: Path) -> None:
    """A header of numbers is a row of data, unless it counts 0, 1, 2 as pandas does."""
    named = [name for name in names if name != INDEX]
    if named == [str(i) for i in range(len(named))]:
        return
    if all(re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", name) for name in named):
        raise DataError(
            f"the first line of {path} holds numbers; expected the column names: add a header line"
        )


def _all_integers(column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.match_substring_regex(column, INTEGER), min_count=0).as_py())


def _beyond_floats(integers: pa.ChunkedArray) -> bool:
    """Whether one of these integers, written out, is too large for a float to be sure to hold it."""
    most = pc.max(pc.abs(integers.cast(pa.int64()))).as_py()
    return most is not None and most > EXACT


def _first_text(column: pa.ChunkedArray) -> tuple[int, str]:
    """Row and content of the first cell that is no number, in a column that has one."""
    return next((row, str(cell.as_py())) for row, cell in enumerate(column) if not _is_number(cell))


def _is_number(cell: pa.Scalar) -> bool:
    try:
        cell.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
