"""A folder of images as rows: sorted relative names, one bounded chunk after another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.chunks import Chunk, ReadOptions, Reject, Source, guarded, reading
from serving.gaps import Gaps, open_gaps
from serving.pictures import SUFFIXES, BadImageError, check_schema, read_image
from vae_anomaly.exceptions import ConfigError, DataError
from vae_anomaly.schema import Array, ImageSchema, Mask

Place = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class Found:
    """An image file, or a folder that leads back into itself.

    Attributes
    ----------
    name : str
        Relative path with forward slashes, as the file system spells it.
    loop : bool
    """

    name: str
    loop: bool = False

    @property
    def id(self) -> str:
        """The name as valid text: bytes that are no UTF-8 are written as backslash and number."""
        return os.fsencode(self.name).decode("utf-8", "backslashreplace")


def walk(folder: Path) -> Iterator[Found]:
    """Images below a folder, sorted by relative path; hidden files are passed over.

    The names of one folder at a time are held in memory. Links to folders are followed.
    """
    yield from _walk(folder, "", (_place(folder),))


def _walk(folder: Path, prefix: str, above: tuple[Place, ...]) -> Iterator[Found]:
    for name, is_folder in _listing(folder):
        path = folder / name
        if not is_folder and path.suffix.lower() in SUFFIXES:
            yield Found(prefix + name)
        elif is_folder and (place := _place(path)) in above:
            yield Found(prefix + name, loop=True)
        elif is_folder:
            yield from _walk(path, f"{prefix}{name}/", (*above, place))


def _listing(folder: Path) -> list[tuple[str, bool]]:
    """Names in a folder and whether they are folders, in the order of full relative paths."""
    with os.scandir(folder) as entries:
        found = [(e.name, Path(e.path).is_dir()) for e in entries if not e.name.startswith(".")]
    # A slash sorts after a dot: "a.png" comes before "a/b.png".
    return sorted(found, key=lambda item: item[0] + "/" * item[1])


def _place(folder: Path) -> Place:
    status = folder.stat()
    return status.st_dev, status.st_ino


class FolderSource(Source):
    """Images of a folder, or one image file."""

    def __init__(self, path: Path, schema: ImageSchema, options: ReadOptions) -> None:
        if options.named_columns:
            raise ConfigError(f"images have no columns; leave out {options.named_columns[0]!r}")
        check_schema(schema, options.convert)
        self.path, self.schema, self.options = path, schema, options
        self.id_name, self.id_type, self.columns = "id", pa.string(), pa.schema([])
        self.images = schema
        self._folder = path if path.is_dir() else path.parent
        with reading(path):
            self.rows = sum(1 for _ in self._found())
        if not self.rows:
            raise DataError(f"no images in {path}; expected files that end in {', '.join(SUFFIXES)}")

        self._gaps()

    def _gaps(self) -> Gaps:
        return open_gaps(self.options, self.images, self.rows)

    def _found(self) -> Iterator[Found]:
        return walk(self.path) if self.path.is_dir() else iter([Found(self.path.name)])

    def chunks(self) -> Iterator[Chunk]:
        """The images in the order of their names."""
        gaps = self._gaps()
        size = self.options.rows_at_once(self.images.elements)
        found, start = guarded(self.path, self._found()), 0
        while some := list(islice(found, size)):
            yield self._chunk(start, some, gaps)
            start += len(some)
        gaps.require(start)

    def _chunk(self, start: int, found: list[Found], gaps: Gaps) -> Chunk:
        rows: list[int] = []
        pictures: list[tuple[Array, Mask]] = []
        rejects: list[Reject] = []
        for row, item in enumerate(found, start):
            try:
                pictures.append(self._read(row, item, gaps))
                rows.append(row)
            except BadImageError as bad:
                rejects.append(
                    Reject(item.id, bad.reason, item.id, row, bad.detail.replace(item.name, item.id))
                )
        kept = [found[row - start] for row in rows]
        empty = np.empty((0, *self.images.shape), dtype=self.images.dtype)
        return Chunk(
            start=start,
            size=len(found),
            rows=np.array(rows, dtype=np.int64),
            ids=pa.array([item.id for item in kept], pa.string()),
            keys=np.array([item.id for item in kept], dtype=object),
            values=np.stack([values for values, _ in pictures]) if pictures else empty,
            observed=np.stack([present for _, present in pictures]) if pictures else empty.astype(np.bool_),
            paths=tuple(item.name for item in kept),
            rejects=tuple(rejects),
        )

    def _read(self, row: int, item: Found, gaps: Gaps) -> tuple[Array, Mask]:
        if item.loop:
            raise BadImageError("symlink_loop", "a link leads back into a folder above it")
        values, observed = read_image(self._folder / item.name, self.images, self.options)
        present = gaps.of(row, item.name)
        return values, observed if present is None else observed & present
