"""A job that was stopped goes on where it stopped, and its output is that of one that was not."""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from file_samples import (
    GREY,
    ROWS,
    TABLE,
    Counting,
    files_of_at_most,
    grey_images,
    impute,
    left_in,
    score,
    write_csv,
    write_images,
    write_parquet,
)

from serving import journal
from serving.batch import JobSummary
from serving.claim import Claim
from vae_anomaly.exceptions import DataError, DeviceError

KINDS = ["score", "ranked", "table", "array", "images"]
DRAWN = {"draws": 2, "with_std": True, "seed": 3}
# Of the 20 rows, in chunks of 3, rows 4 and 16 of a table are set aside; 8 are answered after 9 are read.
CHUNK, TABLE_ANSWERED, IMAGES_ANSWERED = 3, 8, 9


def table_of_20(path: Path) -> Path:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(20, 3))
    rows[rng.random(rows.shape) < 0.3] = np.nan
    rows[[4, 16], 1] = np.inf
    write_parquet(pd.DataFrame(rows, columns=list("abc")), path)
    return path


def holed_images(folder: Path) -> dict[str, Path]:
    images = grey_images(20)
    np.save(folder / "x.npy", images)
    write_images(folder / "x", images)
    np.save(folder / "mask.npy", np.random.default_rng(4).random((20, 8, 10)) > 0.2)
    return {"mask": folder / "mask.npy"}


def run(kind: str, folder: Path, out: str, bundle: Counting, **changes: Any) -> JobSummary:
    """One job of each kind on the same 20 rows; its files go to the folder ``out``."""
    options: dict[str, Any] = {"chunk_rows": CHUNK}
    if kind in ("score", "ranked"):
        source = table_of_20(folder / "x.parquet")
        options |= {"rank": kind == "ranked", **changes}
        return score(source, folder / out / "o.parquet", bundle, **options)[0]
    if kind == "table":
        source = table_of_20(folder / "x.parquet")
        return impute(source, folder / out / "o.parquet", bundle, **{**options, **DRAWN, **changes})
    options |= holed_images(folder)
    source, name = {"array": ("x.npy", "o.npy"), "images": ("x", "o")}[kind]
    return impute(folder / source, folder / out / name, bundle, **{**options, **DRAWN, **changes})


def bundle_for(kind: str, most: int | None = None, error: BaseException | None = None) -> Counting:
    return Counting(GREY if kind in ("array", "images") else TABLE, most, error)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keepsake(folder: Path) -> Path:
    return Claim(folder / "o.parquet").keepsake()


def stop(kind: str, folder: Path, error: BaseException | None = None) -> int:
    """Stop a job after some chunks; the number of rows answered."""
    answered = IMAGES_ANSWERED if kind in ("array", "images") else TABLE_ANSWERED
    bundle = bundle_for(kind, answered, error)
    with pytest.raises(type(bundle.error)):
        run(kind, folder, "out", bundle)
    assert bundle.asked == answered
    return answered


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(143), OSError(errno.EIO, "bad"), MemoryError(), DeviceError("lost")],
    ids=repr,
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rerun_asks_only_what_is_left_and_writes_the_same_bytes(
    tmp_path: Path, kind: str, error: BaseException
) -> None:
    whole = run(kind, tmp_path, "whole", bundle_for(kind))
    assert whole.resumed == 0
    answered = stop(kind, tmp_path, error)
    assert [name for name in left_in(tmp_path / "out") if not name.startswith(".")] == []
    rest = bundle_for(kind)
    again = run(kind, tmp_path, "out", rest)
    assert (again.resumed, rest.asked) == (answered, whole.rows - answered)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    same = ("rows", "rejected", "unobserved", "outliers", "clipped")
    assert [getattr(again, name) for name in same] == [getattr(whole, name) for name in same]


def test_a_job_may_be_stopped_again_and_again(tmp_path: Path) -> None:
    whole = run("score", tmp_path, "whole", bundle_for("score"))
    for _ in range(whole.rows // CHUNK):
        with pytest.raises(KeyboardInterrupt):
            run("score", tmp_path, "out", bundle_for("score", CHUNK))
    last = bundle_for("score")
    run("score", tmp_path, "out", last)
    assert last.asked <= CHUNK
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


KILLED = """
import sys
from pathlib import Path
from file_samples import Counting
from test_resume_jobs import bundle_for, run

class Waiting(Counting):
    def _count(self, x):
        if self.asked + len(x) > self.most:
            print(self.asked, flush=True)
            sys.stdin.read()
        super()._count(x)

bundle = bundle_for(sys.argv[1], 8)
bundle.__class__ = Waiting
run(sys.argv[1], Path(sys.argv[2]), "out", bundle)
"""


@pytest.mark.parametrize("kind", ["ranked", "array"])
def test_a_killed_job_goes_on(tmp_path: Path, kind: str) -> None:
    whole = run(kind, tmp_path, "whole", bundle_for(kind))
    command = [sys.executable, "-c", KILLED, kind, str(tmp_path)]
    places = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": places},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None
        answered = int(job.stdout.readline())
        job.kill()
    rest = bundle_for(kind)
    again = run(kind, tmp_path, "out", rest)
    assert (again.resumed, rest.asked) == (answered, whole.rows - answered)
    assert answered in (6, 8)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def other_digest(bundle: Counting) -> None:
    bundle.digest = "1" * 64


def other_provider(bundle: Counting) -> None:
    bundle.provider = "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("kind", "changes", "change"),
    [
        ("score", {"false_alarm_rate": 0.05}, None),
        ("score", {"chunk_rows": 4}, None),
        ("score", {"missing_value": 0.0, "chunk_rows": 2}, None),
        ("table", {"seed": 4}, None),
        ("table", {"draws": 3}, None),
        ("table", {"draws": None}, None),
        ("table", {}, other_digest),
        ("score", {}, other_digest),
        ("score", {}, other_provider),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_another_job_starts_afresh(
    tmp_path: Path, kind: str, changes: dict[str, Any], change: Callable[[Counting], None] | None
) -> None:
    stop(kind, tmp_path)
    fresh, other = bundle_for(kind), bundle_for(kind)
    for bundle in (fresh, other):
        if change is not None:
            change(bundle)
    whole = run(kind, tmp_path, "whole", fresh, **changes)
    assert run(kind, tmp_path, "out", other, **changes).resumed == 0
    assert other.asked == fresh.asked == whole.rows
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_answers_of_another_job_are_cut_off(tmp_path: Path) -> None:
    stop("score", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run("score", tmp_path, "out", bundle_for("score", CHUNK), false_alarm_rate=0.05)
    with pytest.raises(KeyboardInterrupt):
        run("score", tmp_path, "fresh", bundle_for("score", CHUNK), false_alarm_rate=0.05)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_answers_of_another_verb_are_not_taken(tmp_path: Path) -> None:
    stop("score", tmp_path)
    bundle = bundle_for("table")
    assert run("table", tmp_path, "out", bundle).resumed == 0
    assert bundle.asked == 18


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("score", {"rank": True}), ("score", {"keep_columns": ("a",)}), ("table", {"with_std": False})],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_does_not_change_an_answer_may_change(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    answered = stop(kind, tmp_path)
    run(kind, tmp_path, "whole", bundle_for(kind), **changes)
    assert run(kind, tmp_path, "out", bundle_for(kind), **changes).resumed == answered
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("row", "resumed"), [(0, 0), (2, 0), (3, 3), (7, 6)])
@pytest.mark.parametrize("changed", ["cell", "id", "gap"])
def test_changed_rows_and_those_after_are_asked_again(
    tmp_path: Path, changed: str, row: int, resumed: int
) -> None:
    frame = ROWS.iloc[[0, 1, 2, 3] * 3].reset_index(drop=True).assign(key=[f"k{i}" for i in range(12)])
    present = pd.DataFrame(1, index=frame.index, columns=list("abc"))
    out, source, mask = tmp_path / "o.parquet", tmp_path / "x.csv", tmp_path / "mask.csv"
    options = {"id_column": "key", "chunk_rows": 3, "draws": 2, "mask": mask}
    write_csv(frame, source)
    write_csv(present, mask)
    with pytest.raises(KeyboardInterrupt):
        impute(source, out, Counting(TABLE, 9), **options)
    before = source.stat()
    target, column, value = {
        "cell": (frame, "a", 7.5),
        "id": (frame, "key", "kk"),
        "gap": (present, "b", 0),
    }[changed]
    target.loc[row, column] = value
    write_csv(frame, source)
    write_csv(present, mask)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))  # the content tells, not the time
    bundle = Counting(TABLE)
    assert impute(source, out, bundle, **options).resumed == resumed
    assert bundle.asked == 12 - resumed
    impute(source, tmp_path / "whole.parquet", Counting(TABLE), **options)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "resumed"),
    [
        (lambda data, second: data, 8),
        (lambda data, second: flipped(data, second - 9), 0),
        (lambda data, second: flipped(data, second), 3),
        (lambda data, second: flipped(data, second + 16), 3),
        (lambda data, second: flipped(data, second + journal.HEAD.size - 1), 3),
        (lambda data, second: flipped(data, second + journal.HEAD.size + 400), 3),
        (lambda data, second: data[: second + 20], 3),
        (lambda data, second: data[:-1], 5),
        (lambda data, second: data + b"\0" * 4096, 8),
        (lambda data, second: b"", 0),
    ],
    ids=["none", "first", "question", "checksum", "length", "payload", "torn head", "torn", "zeros", "empty"],
)
def test_a_damaged_answer_is_asked_again(
    tmp_path: Path, damage: Callable[[bytes, int], bytes], resumed: int
) -> None:
    whole = run("score", tmp_path, "whole", bundle_for("score"))
    stop("score", tmp_path)
    kept = keepsake(tmp_path / "out")
    data = kept.read_bytes()
    second = journal.HEAD.size + journal.HEAD.unpack(data[: journal.HEAD.size])[2]
    kept.write_bytes(damage(data, second))
    bundle = bundle_for("score")
    assert run("score", tmp_path, "out", bundle).resumed == resumed
    assert bundle.asked == whole.rows - resumed
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["score", "table"])
def test_a_full_disk_ends_the_job_and_a_rerun_goes_on(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out" / "o.parquet"
    message = f"^cannot write {re.escape(str(out))}: .*File too large; free the place or choose another$"
    with files_of_at_most(6000), pytest.raises(DataError, match=message):
        run(kind, tmp_path, "out", bundle_for(kind))
    assert left_in(tmp_path / "out") == [keepsake(tmp_path / "out").name]
    rest = bundle_for(kind)
    again = run(kind, tmp_path, "out", rest)
    assert (0 < again.resumed < 18, rest.asked) == (True, 18 - again.resumed)
    run(kind, tmp_path, "whole", bundle_for(kind))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_disk_that_fills_up_at_the_end_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(DataError, match=r"No space left on device; free the place"):
            run("ranked", tmp_path, "out", bundle_for("ranked"))
    bundle = bundle_for("ranked")
    assert run("ranked", tmp_path, "out", bundle).resumed == 18
    assert bundle.asked == 0


@pytest.mark.parametrize("fault", ["strict", "damaged"])
def test_a_fault_of_the_input_leaves_nothing(tmp_path: Path, fault: str) -> None:
    source = table_of_20(tmp_path / "x.parquet")
    stop("score", tmp_path)
    if fault == "damaged":
        pq.write_table(pq.read_table(source), source, write_page_checksum=True, use_dictionary=False)
        place = pq.read_metadata(source).row_group(0).column(0).data_page_offset + 90
        source.write_bytes(flipped(source.read_bytes(), place))
    with pytest.raises(DataError):
        score(source, tmp_path / "out" / "o.parquet", Counting(TABLE), chunk_rows=3, strict=fault == "strict")
    assert left_in(tmp_path / "out") == []


def test_a_stopped_job_says_where_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "serving"):
        stop("score", tmp_path)
        stop_message = f"stopped; the same job goes on where it stopped, from {keepsake(tmp_path / 'out')}"
        assert caplog.messages == [stop_message]


def test_answers_reach_the_disk_while_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    to_disk = os.fsync

    def noted(number: int) -> None:
        sizes.append(os.fstat(number).st_size)
        to_disk(number)

    monkeypatch.setattr(journal, "SYNC_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", noted)
    stop("score", tmp_path)
    kept = keepsake(tmp_path / "out").stat().st_size
    # The folder, three chunks, and once more on the way out.
    assert len(sizes) == 5
    assert 0 < sizes[1] < sizes[2] < sizes[3] == sizes[4] == kept
