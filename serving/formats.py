"""Files and folders as chunks of rows, never whole: the one door to all formats.

============================  ==================  =============================================
input                         model               id without ``id_column``
============================  ==================  =============================================
.parquet .pq                  table               unique pandas index, else row number
.arrow .feather .ipc          table               unique pandas index, else row number
.csv .tsv                     table               unnamed first column if unique, else row number
.npy .npz                     table or images     row number
folder of .png .jpg .jpeg     images              relative path
one .png .jpg .jpeg           images              file name
============================  ==================  =============================================

Row numbers count from 0, the rows set aside included.
"""

from __future__ import annotations

from pathlib import Path

from serving.arrays import ArraySource
from serving.chunks import Chunk, ReadOptions, Reject, Source, describe, require_file
from serving.folders import FolderSource
from serving.pictures import SUFFIXES
from serving.tables import TableSource
from vae_anomaly.exceptions import ConfigError, DataError
from vae_anomaly.schema import ImageSchema, Schema

ARRAYS = (".npy", ".npz")
TABLES = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".csv", ".tsv")

__all__ = ["Chunk", "ReadOptions", "Reject", "Source", "describe", "open_source"]


def open_source(
    source: str | Path, schema: Schema, options: ReadOptions | None = None, *, everything: bool = False
) -> Source:
    """Open a file or folder and check all that can be checked before the first row.

    Parameters
    ----------
    source : str or Path
    schema : ImageSchema or TableSchema
        What the model knows.
    options : ReadOptions, optional
    everything : bool
        Read all columns of a table, not only the inputs and those that the options name.

    Raises
    ------
    SchemaError
        If columns, shapes or types do not fit the model.
    DataError
        If the file is absent, damaged or of an unknown kind, or its ids repeat.
    ConfigError
        If an option does not apply to this kind of input.

    Examples
    --------
    >>> import tempfile
    >>> from vae_anomaly.schema import Column, TableSchema
    >>> path = Path(tempfile.mkdtemp()) / "rows.csv"
    >>> _ = path.write_text("b;a\\n1;2\\n;4\\n")
    >>> chunk = next(open_source(path, TableSchema((Column("a"), Column("b")))).chunks())
    >>> chunk.values.tolist(), chunk.observed.tolist()
    ([[2.0, 1.0], [4.0, nan]], [[True, True], [True, False]])
    """
    path, options = Path(source), options or ReadOptions()
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in SUFFIXES:
        return _open_images(path, schema, options)
    require_file(path)
    if suffix in ARRAYS:
        _require_for_images(options, schema)
        return ArraySource(path, schema, options)
    if suffix not in TABLES:
        known = ", ".join((*TABLES, *ARRAYS))
        raise DataError(f"{path} ends in {path.suffix!r}; expected a folder of images, or one of {known}")
    if isinstance(schema, ImageSchema):
        raise DataError(f"{path} is a table, the model knows images; pass a folder of images, .npy or .npz")
    _require_for_images(options, schema)
    return TableSource(path, schema, options, everything)


def _open_images(path: Path, schema: Schema, options: ReadOptions) -> Source:
    if not isinstance(schema, ImageSchema):
        what = "a folder" if path.is_dir() else "an image"
        raise DataError(
            f"{path} is {what}, the model knows tables; pass one of {', '.join(TABLES)}, .npy, .npz"
        )
    if not path.is_dir():
        require_file(path)
    return FolderSource(path, schema, options)


def _require_for_images(options: ReadOptions, schema: Schema) -> None:
    if options.alpha_is_mask:
        raise ConfigError("alpha_is_mask applies to image files only; use mask or missing_value")
    if options.convert and not isinstance(schema, ImageSchema):
        raise ConfigError("convert applies to images only; convert the table before")
