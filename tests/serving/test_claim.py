"""An output appears whole or not at all, and is written by one job at a time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from file_samples import (
    BUNDLE,
    GREY,
    ROWS,
    TABLE,
    Counting,
    FakeBundle,
    files_of_at_most,
    grey_images,
    impute,
    infinite_rows,
    left_in,
    score,
    write_csv,
    write_images,
    write_parquet,
)

from serving.claim import Claim
from vae_anomaly.exceptions import (
    ConfigError,
    DataError,
    SchemaError,
    VaeAnomalyError,
)
from vae_anomaly.schema import ImageSchema


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SchemaError("no"), MemoryError()], ids=repr)
@pytest.mark.parametrize("kind", ["score", "table", "array", "images"])
def test_a_job_that_ends_early_leaves_what_was_there_and_only_what_a_rerun_takes_up(
    tmp_path: Path, error: BaseException, kind: str
) -> None:
    infinite_rows(tmp_path / "x.csv")
    np.save(tmp_path / "x.npy", grey_images())
    write_images(tmp_path / "x", grey_images())
    source = tmp_path / {"score": "x.csv", "table": "x.csv", "array": "x.npy", "images": "x"}[kind]
    out = tmp_path / {"score": "o.parquet", "table": "o.parquet", "array": "o.npy", "images": "o"}[kind]
    if kind == "images":
        out.mkdir()
    else:
        out.write_text("from the last time")
    job = score if kind == "score" else impute
    bundle = Counting(TABLE if source.suffix == ".csv" else GREY, 4, error)
    options = {"id_column": "key", "ignore_unknown": True} if source.suffix == ".csv" else {}
    with pytest.raises(type(error)):
        job(source, out, bundle, chunk_rows=2, **options)
    kept = [] if isinstance(error, SchemaError) else [Claim(out).keepsake().name]
    assert left_in(tmp_path) == sorted([*kept, "x", "x.csv", "x.npy", out.name])
    assert left_in(out) == [] if kind == "images" else out.read_text() == "from the last time"
    # The place is free again.
    job(source, out, FakeBundle(bundle.schema), **options)
    assert [name for name in left_in(tmp_path) if name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["score", "ranked", "table", "array", "images"])
def test_a_disk_error_names_the_output(tmp_path: Path, kind: str) -> None:
    rows = np.random.default_rng(0).normal(size=(3000, 3))
    write_parquet(pd.DataFrame(rows, columns=list("abc")), tmp_path / "x.parquet")
    np.save(tmp_path / "x.npy", rows)
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
    wide = ImageSchema(3, 64, 64)
    write_images(tmp_path / "x", noise)
    source = tmp_path / {"array": "x.npy", "images": "x"}.get(kind, "x.parquet")
    out = tmp_path / {"array": "o.npy", "images": "o"}.get(kind, "o.parquet")
    before = left_in(tmp_path)
    bundle = FakeBundle(wide) if kind == "images" else BUNDLE
    scored, ranked = kind in ("score", "ranked"), kind == "ranked"
    with (
        files_of_at_most(5000),
        pytest.raises(DataError, match=f"^cannot write {re.escape(str(out))}.*: .*; free"),
    ):
        score(source, out, rank=ranked) if scored else impute(source, out, bundle)
    assert left_in(tmp_path) == sorted([*before, Claim(out).keepsake().name])


def test_an_output_that_has_no_place_is_refused(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    out = tmp_path / "x.csv" / "s.parquet"
    with pytest.raises(
        DataError, match=f"^cannot write {re.escape(str(out))}: .*; free the place or choose another$"
    ):
        score(tmp_path / "x.csv", out)


@pytest.mark.parametrize(
    ("job", "source", "out", "error", "message"),
    [
        (
            score,
            "x.csv",
            "s.csv",
            ConfigError,
            "scores are written as Parquet, got 's.csv'; name the output scores.parquet",
        ),
        (score, "x.csv", "d.parquet", DataError, "{out} is a folder; name a file"),
        (score, "x.parquet", "x.parquet", ConfigError, "{out} is the input; name another output"),
        (
            impute,
            "x.csv",
            "i.csv",
            ConfigError,
            "a table is imputed into .parquet, got 'i.csv'; name it with that ending",
        ),
        (
            impute,
            "x.npy",
            "i.parquet",
            ConfigError,
            "an array is imputed into .npy, got 'i.parquet'; name it with that ending",
        ),
        (impute, "x.npy", "x.npy", ConfigError, "{out} is the input or lies inside it; name another output"),
        (impute, "x", "x/out", ConfigError, "{out} is the input or lies inside it; name another output"),
        (
            impute,
            "x",
            "i.png",
            ConfigError,
            "imputed images are written to a folder, got 'i.png'; name a folder",
        ),
        (impute, "x", "full", DataError, "{out} exists already; name a new or empty folder"),
        (impute, "x", "x.csv", DataError, "{out} exists already; name a new or empty folder"),
    ],
)
def test_an_output_that_does_not_suit_is_refused(
    tmp_path: Path, job: Callable[..., Any], source: str, out: str, error: type[VaeAnomalyError], message: str
) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    write_parquet(ROWS, tmp_path / "x.parquet")
    np.save(tmp_path / "x.npy", grey_images())
    write_images(tmp_path / "x", grey_images())
    (tmp_path / "d.parquet").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "dear.txt").write_text("keep me")
    with pytest.raises(error, match=f"^{re.escape(message.format(out=tmp_path / out))}$"):
        job(tmp_path / source, tmp_path / out)
    assert (tmp_path / "full" / "dear.txt").read_text() == "keep me"


def test_a_second_job_on_the_same_output_fails_at_once_and_names_the_first(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    out = tmp_path / "s.parquet"
    errors: list[str] = []

    def second(rows: int, total: int | None) -> None:
        with pytest.raises(DataError) as caught:
            score(tmp_path / "x.csv", out)
        errors.append(str(caught.value))
        score(tmp_path / "x.csv", tmp_path / "other.parquet")

    score(tmp_path / "x.csv", out, progress=second)
    when = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
    pattern = f"job {os.getpid()}, started {when}, is writing {re.escape(str(out))}; wait for it or stop it"
    assert len(errors) == 1
    assert re.fullmatch(pattern, errors[0])
    assert left_in(tmp_path) == ["other.parquet", "s.parquet", "x.csv"]


KILLED = """
import sys, time
from pathlib import Path
from serving.claim import Claim
with Claim(Path(sys.argv[1])) as claim:
    claim.temporary(Path(sys.argv[1])).write_text("half a result")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_job_left_behind_is_cleared(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    out = tmp_path / "s.parquet"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "writing\n"
        with pytest.raises(DataError, match=f"^job {job.pid}, started "):
            score(tmp_path / "x.csv", out)
        job.send_signal(signal.SIGKILL)
        job.wait()
    assert len(left_in(tmp_path)) == 3
    assert not out.exists()
    _, frame = score(tmp_path / "x.csv", out)
    assert len(frame) == 7
    assert left_in(tmp_path) == ["s.parquet", "x.csv"]


def test_outputs_may_have_the_longest_of_names(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    out = tmp_path / ("s" * (255 - len(".parquet")) + ".parquet")
    assert len(score(tmp_path / "x.csv", out)[1]) == 7


def test_an_output_is_replaced_by_renaming(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    out = tmp_path / "s.parquet"
    out.write_text("from the last time")
    with out.open() as reader:
        score(tmp_path / "x.csv", out)
        # Whoever had it open goes on reading the old one, whole.
        assert reader.read() == "from the last time"


def test_a_claim_renames_everything_or_nothing(tmp_path: Path) -> None:
    with Claim(tmp_path / "out") as claim:
        claim.temporary(tmp_path / "out").write_text("one")
        claim.temporary(tmp_path / "beside").write_text("two")
        claim.scratch().write_text("three")
        assert not (tmp_path / "out").exists()
    assert left_in(tmp_path) == ["beside", "out"]
    claim = Claim(tmp_path / "out")
    claim.__enter__()
    claim.temporary(tmp_path / "out").write_text("four")
    claim.__exit__(RuntimeError, RuntimeError(), None)
    assert (tmp_path / "out").read_text() == "one"
    assert left_in(tmp_path) == ["beside", "out"]
