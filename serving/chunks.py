"""What a job reads: how it was asked to, bounded chunks of rows, and the rows set aside."""

from __future__ import annotations

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vae_anomaly.exceptions import ConfigError, DataError, VaeAnomalyError
from vae_anomaly.schema import Array, Mask, Schema

# 4 million cells: 32 MB of float64, so that a chunk and its copies stay small beside the model.
CELLS_PER_CHUNK = 2**22
ROWS_PER_CHUNK = 2**16
ON_DUPLICATE = ("error", "keep")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How a file or folder is to be read.

    Attributes
    ----------
    id_column : str, optional
        The column that names a row. Without one: a unique pandas index, the relative path of an
        image, else the row number.
    label : str, optional
        A column that is no input of the model.
    keep_columns : tuple of str
        Further columns that are no input, copied to the scores.
    ignore_unknown : bool
        Pass over columns that the model does not know.
    missing_value : float, optional
        A number that means missing. A colour pixel is missing where all its channels hold it.
    mask : Path, optional
        What is missing: black pixels, False or 0. One PNG for all images, a folder of PNG with the
        names of the images, or an array (.npy) or CSV with one row for each row of the input.
    alpha_is_mask : bool
        Pixels more transparent than opaque are missing.
    convert : bool
        Adapt images that do not fit: size, grey or colour, transparency, rotation, 16 bit, range,
        channels last.
    on_duplicate : {"error", "keep"}
        What repeated ids do. With "keep" random draws follow the row number in place of the id.
    strict : bool
        Stop at the first row that would be set aside.
    chunk_rows : int, optional
        Rows held at once; by default about 4 million cells.
    delimiter : str, optional
        Of a CSV; by default the likeliest of comma, semicolon and tab.
    decimal : str
        The decimal mark of a CSV, "." or ",".
    """

    id_column: str | None = None
    label: str | None = None
    keep_columns: tuple[str, ...] = ()
    ignore_unknown: bool = False
    missing_value: float | None = None
    mask: Path | None = None
    alpha_is_mask: bool = False
    convert: bool = False
    on_duplicate: str = "error"
    strict: bool = False
    chunk_rows: int | None = None
    delimiter: str | None = None
    decimal: str = "."

    def __post_init__(self) -> None:
        if self.on_duplicate not in ON_DUPLICATE:
            raise ConfigError(f"on_duplicate is {self.on_duplicate!r}; expected 'error' or 'keep'")
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise ConfigError(f"chunk_rows is {self.chunk_rows}; expected 1 or more")
        if self.decimal not in (".", ","):
            raise ConfigError(f"decimal is {self.decimal!r}; expected '.' or ','")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(f"delimiter is {self.delimiter!r}; expected one character")

    @property
    def named_columns(self) -> tuple[str, ...]:
        """Columns that these options name, each once."""
        named = (self.id_column, self.label, *self.keep_columns)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def rows_at_once(self, elements: int) -> int:
        """Rows of ``elements`` cells that one chunk holds."""
        return self.chunk_rows or max(1, min(ROWS_PER_CHUNK, CELLS_PER_CHUNK // max(elements, 1)))


class Reject(NamedTuple):
    """A row or file set aside.

    Attributes
    ----------
    id : object
        As the id column holds it.
    reason : str
        A stable code, such as "infinite".
    place : str
        The column, pixel range or file at fault.
    row : int
        Its number in the whole input, from 0.
    detail : str
        What was wrong, in words.
    """

    id: Any
    reason: str
    place: str
    row: int
    detail: str


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some consecutive rows of the input, those that cannot be read set aside.

    Attributes
    ----------
    start, size : int
        The chunk covers rows ``start`` to ``start + size - 1`` of the input.
    rows : int64 ndarray, shape (B,)
        Numbers of the B readable rows.
    ids : Array of pyarrow, length B
        Their ids, as the output shows them.
    keys : ndarray, shape (B,)
        Their identity for random draws: integers or text.
    values : ndarray, shape (B, *schema.shape)
        Table columns in model order as float64, names as codes; arrays and images in the input's own dtype.
    observed : bool ndarray, of the same shape
        True where a value is present.
    unseen : bool ndarray, of the same shape, optional
        Cells of a table with a category that training did not have; they count as missing.
    table : Table of pyarrow, optional
        The columns read, in the input's order; for tables only.
    paths : tuple of str
        Relative paths of the B images, for folders only.
    rejects : tuple of Reject
    """

    start: int
    size: int
    rows: npt.NDArray[np.int64]
    ids: pa.Array
    keys: Array
    values: Array
    observed: Mask
    unseen: Mask | None = None
    table: pa.Table | None = None
    paths: tuple[str, ...] = ()
    rejects: tuple[Reject, ...] = ()


class Source(ABC):
    """Rows to be scored or imputed, chunk after chunk.

    Attributes
    ----------
    path : Path
    schema : ImageSchema or TableSchema
    rows : int, optional
        Length of the input, where it is known beforehand.
    id_column : str, optional
        The column that names the rows, if one does.
    id_name : str
        What the id is called in the output.
    id_type, columns : DataType and Schema of pyarrow
        Type of the ids; name and type of every column read (none for arrays and images).
    """

    path: Path
    schema: Schema
    rows: int | None
    id_column: str | None = None
    id_name: str = "id"
    id_type: pa.DataType
    columns: pa.Schema

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """The rows in order. May be called again."""


def describe(reject: Reject) -> str:
    """One line about a reject, for messages."""
    named = "" if reject.id == reject.row else f" (id {reject.id!r})"
    return f"row {reject.row}{named}: {reject.detail}"


def require_file(path: Path) -> None:
    """Raise `DataError` unless ``path`` is a file that exists."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; name one file")
    if not path.exists():
        raise DataError(f"no such file: {path}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a library says about a broken file into one `DataError` that names it."""
    try:
        yield
    except VaeAnomalyError:
        raise
    except (OSError, EOFError, ValueError, KeyError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise _unreadable(path, error) from error


def map_array(path: Path) -> Array:
    """The array of a .npy file through a memory map; never a pickle.

    Raises
    ------
    DataError
        If it is absent, damaged or holds Python objects.
    """
    require_file(path)
    with reading(path):
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def guarded(path: Path, items: Iterable[T]) -> Iterator[T]:
    """The same items, with `reading` around the making of each and not around its use."""
    with reading(path):
        yield from items


def _unreadable(path: Path, error: Exception) -> DataError:
    said = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"cannot read {path}: {said}; the file may be damaged or cut short, write it again")
