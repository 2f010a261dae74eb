"""One job per output: a lock, temporary names beside the output, all or nothing at the end."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from vae_anomaly.exceptions import DataError, DeviceError, VaeAnomalyError

log = logging.getLogger(__name__)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a disk error into a `DataError` that names the output."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error).splitlines()[0]
        raise DataError(f"cannot write {path}: {said}; free the place or choose another") from error


class Claim:
    """The right to write one output, held by one job at a time.

    Entering locks the output: the operating system drops the lock when the process ends, however
    it ends, so that what a killed job left behind does not stop the next one. Leaving renames
    every temporary file to its final name, or removes them all after an error or an interrupt. Only
    the `keepsake` outlives a job that a rerun may bring to its end.

    Parameters
    ----------
    out : Path
        The output file or folder; hidden files beside it hold the lock and the work.

    Raises
    ------
    DataError
        If another job writes this output, naming it; or the place cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        # A digest keeps names of any length within the limit of the file system.
        self._stem = f".vae-anomaly-{hashlib.sha256(os.fsencode(self.out.name)).hexdigest()[:16]}"
        self._finals: dict[Path, Path] = {}
        self._scratch: list[Path] = []
        self._keepsake: Path | None = None
        self._lock: IO[str] | None = None

    def temporary(self, final: Path) -> Path:
        """Where to write what becomes ``final`` when the job succeeds."""
        path = self.scratch()
        self._finals[path] = final.absolute()
        return path

    def scratch(self) -> Path:
        """A name for work that is removed at the end in any case."""
        path = self.out.parent / f"{self._stem}.{len(self._scratch)}.tmp"
        self._scratch.append(path)
        return path

    def keepsake(self) -> Path:
        """A name for work that a rerun takes up.

        It goes when the job succeeds, or fails in a way that a rerun would repeat; it stays after an
        interrupt, a kill or a disk error.
        """
        self._keepsake = self.out.parent / f"{self._stem}.answers"
        return self._keepsake

    def __enter__(self) -> Self:
        with writing(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.out.parent / f"{self._stem}.lock", self.out)
            for left in self.out.parent.glob(f"{self._stem}.*.tmp"):  # by a job that was killed
                _remove(left)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        over = error is not None and _recurs(error)
        try:
            if kind is None:
                with writing(self.out):
                    self._commit()
                over = True
        finally:
            self._part_with_keepsake(over, error)
            self._clean()

    def _commit(self) -> None:
        for path in self._finals:
            if path.is_file():
                _flush(path)
        # The output itself was claimed first and appears last: what it refers to is there.
        for path, final in reversed(self._finals.items()):
            if path.exists():
                if path.is_dir() and final.is_dir():
                    final.rmdir()
                path.replace(final)
        flush_folder(self.out.parent)

    def _part_with_keepsake(self, over: bool, error: BaseException | None) -> None:
        if self._keepsake is None:
            return
        if over:
            self._scratch.append(self._keepsake)
        elif error is not None and not isinstance(error, Exception):
            log.warning("stopped; the same job goes on where it stopped, from %s", self._keepsake)

    def _clean(self) -> None:
        for path in self._scratch:
            try:
                _remove(path)
            except OSError as error:
                log.warning("cannot remove %s: %s", path, error.strerror)
        if self._lock is not None:
            _unlock(self._lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """To the disk, so that the name never outlives the content in a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Names made or changed in a folder to the disk, where the system can do that."""
    with suppress(OSError):  # not on Windows, nor on every network drive
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _recurs(error: BaseException) -> bool:
    """Whether a rerun would end the same way: neither place nor moment is at fault."""
    if not isinstance(error, VaeAnomalyError) or isinstance(error, DeviceError):
        return False
    # Arrow calls damaged files an OSError as well, without a number.
    return getattr(error.__cause__, "errno", None) is None


def _lock(path: Path, out: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _take(file)
        except BlockingIOError as error:
            with file:
                raise DataError(f"{_holder(file)} is writing {out}; wait for it or stop it") from error
        # The job before may have removed the file between our opening and locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "started": datetime.now(UTC).isoformat(timespec="seconds")}))
    file.flush()
    return file


def _take(file: IO[str]) -> None:
    """Lock without waiting; `BlockingIOError` if another holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(2**30)  # a byte past the text, which others may then still read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        held = json.loads(file.read())
        return f"job {held['pid']}, started {held['started']},"
    except (ValueError, KeyError):
        return "another job"


def _unlock(file: IO[str]) -> None:
    path = Path(file.name)
    if os.name != "nt":
        path.unlink(missing_ok=True)
    file.close()
    if os.name == "nt":
        path.unlink(missing_ok=True)
