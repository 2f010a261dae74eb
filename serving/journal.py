"""Answers of a job that is not done, kept beside its output: a rerun does not ask the model again."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from serving.chunks import Chunk
from serving.claim import flush_folder, writing
from vae_anomaly import __version__
from vae_anomaly.exceptions import DataError

FORMAT = 1
# A killed process loses the chunk it works on; a power cut what was answered in this time, too.
SYNC_SECONDS = 5.0
DIGEST_BYTES = 16
HEAD = struct.Struct(f"<{DIGEST_BYTES}s{DIGEST_BYTES}sQ")


class Journal:
    """Answers in the order of their chunks, one file, appended to.

    A record holds the digest of its question (the job and what the model sees of a chunk), a
    checksum, and the answer. A rerun takes records over as long as each answers the chunk at hand;
    from the first that is torn, damaged or answers something else, the file is cut off and written
    anew.

    Parameters
    ----------
    path : Path
    job : mapping
        All that an answer depends on, but for the rows; goes through JSON.
    out : Path
        What error messages name.

    Attributes
    ----------
    resumed : int
        Rows whose answers were taken over.
    """

    def __init__(self, path: Path, job: Mapping[str, object], out: Path) -> None:
        self.resumed = 0
        whole = {"format": FORMAT, "version": __version__, **job}
        self._job, self._out = json.dumps(whole, sort_keys=True).encode(), out
        self._replaying, self._synced = True, time.monotonic()
        with writing(out):
            path.touch()
            flush_folder(path.parent)
            self._file = path.open("r+b")

    def answer(self, chunk: Chunk, ask: Callable[[], pa.Table]) -> pa.Table:
        """What ``ask`` returns, or what it returned for the same chunk of the same job before."""
        question = self._question(chunk)
        if self._replaying and (known := self._recall(question)) is not None:
            self.resumed += len(chunk.rows)
            return known
        answer = ask()
        self._keep(question, answer)
        return answer

    def _question(self, chunk: Chunk) -> bytes:
        values = np.ascontiguousarray(chunk.values)
        shape = f"{values.dtype.str} {values.shape}".encode()
        keys = pd.util.hash_array(chunk.keys, categorize=False)
        return _digest(self._job, shape, values, np.ascontiguousarray(chunk.observed), keys)

    def _recall(self, question: bytes) -> pa.Table | None:
        with writing(self._out):
            start = self._file.tell()
            payload = self._next(question)
            if payload is None:
                self._replaying = False
                self._file.seek(start)
                self._file.truncate()
                return None
        return pa.ipc.open_stream(payload).read_all()

    def _next(self, question: bytes) -> bytes | None:
        """The next record if it is whole and answers ``question``."""
        head = self._file.read(HEAD.size)
        if len(head) < HEAD.size:
            return None
        asked, checksum, length = HEAD.unpack(head)
        # A damaged length could ask for more memory than there is.
        if asked != question or length > os.fstat(self._file.fileno()).st_size:
            return None
        payload = self._file.read(length)
        return payload if _digest(question, payload) == checksum else None

    def _keep(self, question: bytes, answer: pa.Table) -> None:
        payload = _packed(answer)
        with writing(self._out):
            self._file.write(HEAD.pack(question, _digest(question, payload), len(payload)))
            self._file.write(payload)
            self._file.flush()
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            with writing(self._out), self._file:
                if kind is not None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
        except DataError:
            if kind is None:
                raise


def _digest(*parts: Any) -> bytes:
    found = blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        found.update(part)
    return found.digest()


def _packed(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())
