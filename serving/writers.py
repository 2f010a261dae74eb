"""Results on disk: Parquet, .npy, PNG, and the list of rows set aside."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from serving.chunks import Reject
from serving.claim import Claim, writing
from serving.pictures import to_picture
from vae_anomaly.exceptions import DataError, SchemaError
from vae_anomaly.schema import Array

Floats = npt.NDArray[np.float64]

REJECTED = ".rejected.parquet"
OWNER = b"vae-anomaly output"


def output_schema(fields: Sequence[pa.Field]) -> pa.Schema:
    """The columns of an output; `SchemaError` if one of the input has the name of one that the job writes."""
    schema = pa.schema(fields)
    if repeated := [name for name in schema.names if schema.names.count(name) > 1]:
        raise SchemaError(f"column {repeated[0]!r} is one that the job writes; rename it in the input")
    return schema


class TableWriter:
    """Rows to Parquet, with page checksums."""

    def __init__(self, path: Path, schema: pa.Schema, out: Path) -> None:
        self._out, self._schema = out, schema
        with writing(out):
            self._writer = pq.ParquetWriter(path, schema, write_page_checksum=True)

    def write(self, table: pa.Table) -> None:
        """Append rows, columns in the order of the schema."""
        with writing(self._out):
            self._writer.write_table(table.select(self._schema.names).cast(self._schema))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            with writing(self._out):
                self._writer.close()
        except DataError:
            if kind is None:
                raise


def read_column(path: Path, name: str) -> Floats:
    """One column of an output, whole; NaN where null."""
    return np.asarray(pq.read_table(path, columns=[name])[name].to_numpy(), dtype=np.float64)


def replace_columns(before: Path, final: Path, out: Path, columns: Mapping[str, pa.Array]) -> None:
    """Copy an output with other values in some columns, the rest in batches."""
    start = 0
    with pq.ParquetFile(before) as file, TableWriter(final, file.schema_arrow, out) as writer:
        for batch in file.iter_batches():
            table = pa.Table.from_batches([batch])
            for name, values in columns.items():
                place = file.schema_arrow.get_field_index(name)
                table = table.set_column(place, name, values.slice(start, batch.num_rows))
            writer.write(table)
            start += batch.num_rows


def ranks(scores: Floats) -> pa.Array:
    """1 for the highest score, ties share the best rank, null for NaN."""
    ordered = np.sort(-scores)  # NaN last
    found = np.searchsorted(ordered, -scores, side="left") + 1.0
    return pa.array(np.where(np.isnan(scores), np.nan, found), pa.int64(), from_pandas=True)


class RejectWriter:
    """Rows set aside, to a file beside the output and named after it: ``scores.rejected.parquet``.

    The file appears only if there are any; one that an earlier job of the same output left is
    removed.
    """

    def __init__(self, claim: Claim, id_type: pa.DataType) -> None:
        self.final = claim.out.with_name(claim.out.name.removesuffix(".parquet") + REJECTED)
        self.count = 0
        self._claim, self._id_type = claim, id_type
        self._writer: TableWriter | None = None

    def write(self, rejects: Sequence[Reject]) -> None:
        """Append rows."""
        if not rejects:
            return
        if self._writer is None:
            self._writer = TableWriter(self._claim.temporary(self.final), self._schema(), self.final)
        rows = [reject._asdict() for reject in rejects]
        self._writer.write(pa.Table.from_pylist(rows, schema=self._schema()))
        self.count += len(rejects)

    def _schema(self) -> pa.Schema:
        fields = [("id", self._id_type), ("reason", pa.string()), ("place", pa.string())]
        fields += [("row", pa.int64()), ("detail", pa.string())]
        return pa.schema(fields, metadata={OWNER: os.fsencode(self._claim.out.name)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind)
        elif kind is None and _owner(self.final) == os.fsencode(self._claim.out.name):
            with writing(self.final):
                self.final.unlink()


def _owner(path: Path) -> bytes | None:
    """The output whose job wrote these rejects, if it is such a file."""
    try:
        return dict(pq.read_schema(path).metadata or {}).get(OWNER)
    except (OSError, pa.ArrowException):
        return None


class NpyWriter:
    """A .npy file of known shape, its blocks in any order.

    Written rather than mapped: a full disk is then an error and no crash.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], out: Path) -> None:
        self._out, self._dtype, self.shape = out, dtype, shape
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with writing(out):
            self._file = path.open("wb")
            np.lib.format.write_array_header_1_0(self._file, header)
            self._start = self._file.tell()

    def write(self, index: tuple[int, ...], block: Array) -> None:
        """Put ``block`` where its first item is the one at ``index``."""
        item = int(np.prod(self.shape[len(index) :])) * self._dtype.itemsize
        place = int(np.ravel_multi_index(index, self.shape[: len(index)])) if block.size else 0
        with writing(self._out):
            self._file.seek(self._start + place * item)
            self._file.write(np.ascontiguousarray(block, dtype=self._dtype).tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            with writing(self._out):
                self._file.close()
        except DataError:
            if kind is None:
                raise


def write_picture(pixels: Array, folder: Path, name: str, mark: str, out: Path) -> None:
    """Write one PNG into a folder that is to become ``out``, where no other may stand yet.

    Parameters
    ----------
    pixels : uint8 ndarray, shape (C, H, W)
    folder : Path
    name : str
        Relative to the folder; another ending than that of a PNG is replaced.
    mark : str
        What follows the name's stem.
    out : Path

    Raises
    ------
    DataError
        If there is one of that name already, or it cannot be written.
    """
    path = folder / name
    suffix = path.suffix if path.suffix.lower() == ".png" else ".png"
    path = path.with_name(f"{path.stem}{mark}{suffix}")
    final = out / path.relative_to(folder)
    try:
        with writing(final):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                to_picture(pixels).save(file, format="PNG")
    except DataError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise DataError(f"two images would both be written as {final}; rename one of them") from error
        raise
