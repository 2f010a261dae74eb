"""The artifact: a folder of graphs and tables, sealed by its manifest.

`seal` hashes every file of a folder and writes `manifest.json`; the sha256 of that file is the
bundle's digest. `open_bundle` reads each file once, compares the hash of those very bytes and
only then lets anything be parsed. Nothing in a bundle is pickled or executed as Python.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from reprlib import repr as shortened
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import NpzFile

from vae_anomaly.exceptions import BundleError, TamperedBundleError
from vae_anomaly.manifest import FORMAT_VERSION, MANIFEST, Manifest
from vae_anomaly.onnx_safety import check_graph

__all__ = ["FORMAT_VERSION", "GRAPHS", "MANIFEST", "Manifest", "SealedBundle", "open_bundle", "seal"]

GRAPHS = ("score", "explain", "impute", "step", "encode", "decode")

# Room for a table of some 50,000 columns; a manifest is read before any hash vouches for it.
MAX_MANIFEST_BYTES = 8 * 2**20
# A protobuf message, and so an .onnx file, cannot be longer.
MAX_FILE_BYTES = 2**31
SHOWN_OF_HASH = 12


@dataclass(frozen=True)
class SealedBundle:
    """A verified bundle, held in memory; changing its folder afterwards changes nothing.

    Attributes
    ----------
    path : Path
    digest : str
        sha256 of `manifest.json`, in hexadecimal.
    manifest : Manifest
    """

    path: Path
    digest: str
    manifest: Manifest
    contents: Mapping[str, bytes] = field(repr=False)

    def read(self, name: str) -> bytes:
        """The verified bytes of one file.

        Raises
        ------
        BundleError
            If the bundle has no such file.
        """
        if name not in self.contents:
            known = ", ".join(sorted(self.contents)) or "nothing else"
            raise BundleError(f"bundle {self.path} has no {shortened(name)}; it holds {known}")
        return self.contents[name]

    def graph(self, name: str) -> bytes:
        """The ONNX model of one entry point, such as "score"."""
        return self.read(f"{name}.onnx")

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """The arrays of one .npz file, such as "calibration".

        Raises
        ------
        BundleError
            If the file is absent, not an .npz, or holds Python objects.
        """
        data = self.read(f"{name}.npz")
        try:
            return _load_arrays(data)
        # A parser of foreign bytes may raise anything.
        except Exception as error:
            raise BundleError(
                f"bundle file {name}.npz holds no plain arrays: {error}; export the bundle again"
            ) from error


def seal(folder: Path, manifest: Manifest) -> str:
    """Hash every file of a folder and write its manifest.

    Parameters
    ----------
    folder : Path
        Holds the files of the bundle, and no manifest yet.
    manifest : Manifest
        Its ``files`` are replaced.

    Returns
    -------
    str
        The digest, sha256 of `manifest.json`, in hexadecimal.

    Raises
    ------
    BundleError
        If the folder is sealed already, or what it holds could not be opened again.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"nothing to seal at {folder}: no such folder; export the graphs there first")
    names = _names(folder)
    if MANIFEST in names:
        raise BundleError(f"bundle {folder} is sealed already; export to a new folder")
    contents = {name: _read(folder, name, MAX_FILE_BYTES) for name in names}
    _check_graphs(contents)
    hashes = {name: sha256(data).hexdigest() for name, data in contents.items()}
    raw = replace(manifest, files=hashes).to_json().encode()
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(_too_long(MANIFEST, len(raw), MAX_MANIFEST_BYTES))
    Manifest.from_json(raw)
    (folder / MANIFEST).write_bytes(raw)
    return sha256(raw).hexdigest()


def open_bundle(folder: Path, expected_digest: str | None = None) -> SealedBundle:
    """Read and verify a bundle.

    Parameters
    ----------
    folder : Path
    expected_digest : str, optional
        The digest that `seal` returned. Without it a rewritten manifest goes unnoticed.

    Raises
    ------
    BundleError
        If there is no bundle, its format is unknown, or a graph is not allowed to run.
    TamperedBundleError
        If any file was changed, added or taken away since `seal`.
    """
    folder = Path(folder)
    names = _names(folder)
    if MANIFEST not in names:
        raise BundleError(_no_bundle(folder))
    raw = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
    digest = sha256(raw).hexdigest()
    if expected_digest not in (None, digest):
        raise TamperedBundleError(
            f"bundle {folder} has the digest {digest}, expected {expected_digest}; fetch the bundle again"
        )
    manifest = Manifest.from_json(raw)
    _check_listing(folder, set(names) - {MANIFEST}, set(manifest.files))
    contents = {name: _read_verified(folder, name, manifest.files[name]) for name in sorted(manifest.files)}
    _check_graphs(contents)
    return SealedBundle(folder, digest, manifest, MappingProxyType(contents))


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(_no_bundle(folder)) from error
    except OSError as error:
        raise BundleError(
            f"bundle {folder} cannot be read: {error.strerror}; check its permissions"
        ) from error
    for entry in entries:
        if not entry.is_file(follow_symlinks=False):
            raise TamperedBundleError(
                f"bundle {folder} holds {shortened(entry.name)}, a link, a folder or a device; "
                "remove it or fetch the bundle again"
            )
    return [entry.name for entry in entries]


def _no_bundle(folder: Path) -> str:
    return f"no bundle at {folder}: {MANIFEST} is missing; make one with: vae-anomaly train"


def _read(folder: Path, name: str, at_most: int) -> bytes:
    # The flags keep a file that was swapped for a link or a pipe since the listing from being followed.
    flags = os.O_RDONLY
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, flag, 0)
    try:
        with os.fdopen(os.open(folder / name, flags), "rb") as file:
            # Ask for the size first: reading sets aside room for all that is asked for.
            if (size := os.fstat(file.fileno()).st_size) <= at_most:
                return file.read(size)
    except OSError as error:
        raise BundleError(
            f"bundle file {shortened(name)} cannot be read: {error.strerror}; check its permissions"
        ) from error
    raise BundleError(_too_long(name, size, at_most))


def _too_long(name: str, size: int, at_most: int) -> str:
    had = f"bundle file {shortened(name)} has {size} bytes, at most {at_most} are read"
    return f"{had}; export less in one bundle"


def _read_verified(folder: Path, name: str, expected: str) -> bytes:
    data = _read(folder, name, MAX_FILE_BYTES)
    received = sha256(data).hexdigest()
    if received != expected:
        raise TamperedBundleError(
            f"bundle file {name} was changed after export: its sha256 is {received[:SHOWN_OF_HASH]}..., "
            f"the manifest says {expected[:SHOWN_OF_HASH]}...; fetch the bundle again"
        )
    return data


def _check_listing(folder: Path, found: set[str], listed: set[str]) -> None:
    if missing := sorted(listed - found):
        raise TamperedBundleError(f"bundle {folder} lacks {missing[0]}; fetch the bundle again")
    if unlisted := sorted(found - listed):
        raise TamperedBundleError(
            f"bundle {folder} holds {shortened(unlisted[0])}, which its manifest does not list; "
            "remove it or fetch the bundle again"
        )


def _check_graphs(contents: Mapping[str, bytes]) -> None:
    for name, data in contents.items():
        if name.endswith(".onnx"):
            check_graph(name, data)


def _load_arrays(data: bytes) -> dict[str, npt.NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_FILE_BYTES:
        raise ValueError(f"it unpacks to {size} bytes")
    with NpzFile(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    if other := [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise ValueError(f"{shortened(other[0])} is not an array")
    return arrays
