"""A job's answers are the bundle's, whatever the format and the size of a chunk; all of them or none."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from file_samples import (
    BARE,
    COLOUR,
    GREY,
    NAMED,
    NAN,
    ROWS,
    TABLE,
    FakeBundle,
    grey_images,
    hashed,
    write_csv,
    write_images,
    write_parquet,
)
from PIL import Image

from serving import chunks
from serving.batch import JobSummary, impute_file, score_file
from serving.claim import Claim
from serving.formats import ReadOptions
from vae_anomaly.exceptions import (
    CalibrationError,
    ConfigError,
    DataError,
    SchemaError,
    UnsupportedError,
    VaeAnomalyError,
)
from vae_anomaly.schema import Column, ImageSchema, TableSchema

CHUNKS = [1, 2, 7, None]
FORMATS = pytest.mark.parametrize(("name", "write"), NAMED + BARE, ids=[name for name, _ in NAMED + BARE])
TABLES = pytest.mark.parametrize(("name", "write"), NAMED, ids=[name for name, _ in NAMED])
Write = Callable[[pd.DataFrame, Path], None]
BUNDLE = FakeBundle(TABLE)


def score(source: Path, out: Path, bundle: Any = BUNDLE, **arguments: Any) -> tuple[JobSummary, pd.DataFrame]:
    names = ("false_alarm_rate", "rank", "progress")
    settings = {name: arguments.pop(name) for name in names if name in arguments}
    summary = score_file(bundle, source, out, ReadOptions(**arguments), **settings)
    return summary, pd.read_parquet(out)


def impute(source: Path, out: Path, bundle: Any = BUNDLE, **arguments: Any) -> JobSummary:
    names = ("draws", "seed", "with_std", "progress")
    settings = {name: arguments.pop(name) for name in names if name in arguments}
    return impute_file(bundle, source, out, ReadOptions(**arguments), **settings)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Sums of absolute values by hand; 1e300 swallows the rest.
SCORES = [4.5, 6.0, 1e300, 2.0, NAN, 0.35, 24.0]
LARGEST = [3.0, 4.0, 1e300, 2.0, NAN, 0.25, 9.0]


@FORMATS
@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_scores_are_the_bundles_in_every_format_and_chunk(
    tmp_path: Path, name: str, write: Write, chunk_rows: int | None
) -> None:
    write(ROWS, tmp_path / name)
    summary, frame = score(tmp_path / name, tmp_path / "out" / "s.parquet", chunk_rows=chunk_rows, rank=True)
    p_values = [1 / (1 + value) for value in SCORES]
    expected = pd.DataFrame(
        {
            "id": range(7),
            "score": SCORES,
            "p_value": p_values,
            "is_outlier": [True, True, True, False, None, False, True],
            "score_sum": SCORES,
            "score_max": LARGEST,
            "rank": [4, 3, 1, 5, NAN, 6, 2],
            "note": [None, None, None, None, "nothing observed", None, None],
        }
    ).astype({"is_outlier": object, "note": frame["note"].dtype})
    pd.testing.assert_frame_equal(frame, expected, rtol=1e-15, check_exact=False)
    assert summary == JobSummary(7, 0, tmp_path / "out" / "s.parquet", None, 1, 4, 1)
    assert left_in(tmp_path / "out") == ["s.parquet"]


@pytest.mark.parametrize("kind", ["table", "array", "images"])
def test_output_does_not_depend_on_the_chunk(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(5)
    bundle, source = BUNDLE, tmp_path / {"table": "x.parquet", "array": "x.npy", "images": "x"}[kind]
    if kind == "table":
        rows = rng.normal(size=(50, 3))
        rows[rng.random(rows.shape) < 0.3] = np.nan
        rows[17, 1] = np.inf
        write_parquet(pd.DataFrame(rows, columns=list("abc")), source)
    else:
        bundle = FakeBundle(GREY)
        images = rng.integers(0, 256, (50, 1, 8, 10), dtype=np.uint8)
        write_images(source, images) if kind == "images" else np.save(source, images)
        np.save(tmp_path / "mask.npy", rng.random((50, 8, 10)) > 0.2)
    mask = None if kind == "table" else tmp_path / "mask.npy"
    tables: list[pd.DataFrame] = []
    filled: list[dict[str, bytes]] = []
    for chunk_rows in (1, 3, 16, 50, None):
        folder = tmp_path / f"out-{chunk_rows}"
        tables.append(score(source, folder / "s.parquet", bundle, chunk_rows=chunk_rows, mask=mask)[1])
        out = folder / {"table": "i.parquet", "array": "i.npy", "images": "i"}[kind]
        impute(source, out, bundle, chunk_rows=chunk_rows, mask=mask, draws=3, with_std=True, seed=4)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".parquet")
        filled.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
        if kind == "table":
            filled[-1]["rows"] = pd.read_parquet(out).to_json(double_precision=15).encode()
            filled[-1]["rejected"] = pd.read_parquet(folder / "rejected.parquet").to_json().encode()
    for table, found in zip(tables[1:], filled[1:], strict=True):
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)
        assert found == filled[0]
    assert len(filled[0]) == {"table": 2, "array": 2, "images": 200}[kind]


@TABLES
def test_ids_and_kept_columns_stand_beside_the_scores(tmp_path: Path, name: str, write: Write) -> None:
    extra = ROWS.assign(
        key=[f"k{i}" for i in range(7)], cls=0, size=[1, 2, 3, 4, 5, 6, 7], text=list("tuvwxyz")
    )
    write(extra[["text", "a", "key", "b", "cls", "c", "size"]], tmp_path / name)
    options = {"id_column": "key", "label": "cls", "keep_columns": ("size", "a", "text")}
    _, frame = score(tmp_path / name, tmp_path / "s.parquet", chunk_rows=3, **options)
    assert list(frame) == [
        *("key", "size", "a", "text", "score", "p_value", "is_outlier", "score_sum", "score_max", "note")
    ]
    assert frame["key"].tolist() == [f"k{i}" for i in range(7)]
    assert frame["size"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert frame["text"].tolist() == list("tuvwxyz")
    np.testing.assert_array_equal(frame["a"], ROWS["a"])
    np.testing.assert_array_equal(frame["score"], SCORES)


def test_ids_keep_their_type(tmp_path: Path) -> None:
    write_parquet(ROWS.assign(key=np.arange(7, dtype=np.int16)), tmp_path / "x.parquet")
    score(tmp_path / "x.parquet", tmp_path / "s.parquet", id_column="key")
    assert pq.read_schema(tmp_path / "s.parquet").field("key").type == pa.int16()
    ROWS.set_axis(pd.Index(list("tuvwxyz"))).to_parquet(tmp_path / "y.parquet")
    _, frame = score(tmp_path / "y.parquet", tmp_path / "s.parquet")
    assert frame["id"].tolist() == list("tuvwxyz")


@pytest.mark.parametrize(
    ("extra", "options", "name"),
    [("score", {"keep_columns": ("score",)}, "score"), ("id", {"keep_columns": ("id",)}, "id")],
)
def test_a_kept_column_may_not_have_the_name_of_a_result(
    tmp_path: Path, extra: str, options: dict[str, Any], name: str
) -> None:
    write_csv(ROWS.assign(**{extra: 1}), tmp_path / "x.csv")
    message = f"column '{name}' is one that the job writes; rename it in the input"
    with pytest.raises(SchemaError, match=f"^{re.escape(message)}$"):
        score(tmp_path / "x.csv", tmp_path / "s.parquet", **options)


def test_ranks_of_ties_are_shared(tmp_path: Path) -> None:
    write_csv(pd.DataFrame({"a": [5, 2, 9, 5, 2, 1], "b": 0, "c": 0}), tmp_path / "x.csv")
    _, frame = score(tmp_path / "x.csv", tmp_path / "s.parquet", rank=True, chunk_rows=4)
    assert frame["rank"].tolist() == [2, 4, 1, 2, 4, 6]
    assert frame["rank"].dtype == np.int64


@FORMATS
def test_no_rows_give_a_valid_output(tmp_path: Path, name: str, write: Write) -> None:
    write(ROWS[:0], tmp_path / name)
    summary, frame = score(tmp_path / name, tmp_path / "s.parquet", rank=True)
    assert summary.rows == 0
    assert list(frame) == ["id", "score", "p_value", "is_outlier", "score_sum", "score_max", "rank", "note"]
    assert len(frame) == 0
    out = tmp_path / ("i.npy" if (name, write) in BARE else "i.parquet")
    assert impute(tmp_path / name, out).rows == 0
    assert (np.load(out) if (name, write) in BARE else pd.read_parquet(out)).shape == (
        (0, 3) if (name, write) in BARE else (0, 4)
    )


def test_the_false_alarm_rate_can_be_chosen_and_is_checked_before_the_first_row(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    summary, frame = score(tmp_path / "x.csv", tmp_path / "s.parquet", false_alarm_rate=0.05)
    assert frame["is_outlier"].tolist() == [False, False, True, False, None, False, True]
    assert summary.outliers == 2
    calls: list[int] = []
    with pytest.raises(CalibrationError):
        score(
            tmp_path / "x.csv",
            tmp_path / "t.parquet",
            false_alarm_rate=0.001,
            progress=lambda n, total: calls.append(n),
        )
    assert calls == []
    assert left_in(tmp_path) == ["s.parquet", "x.csv"]


def test_progress_counts_rows_read(tmp_path: Path) -> None:
    write_csv(ROWS.assign(a=[1, np.inf, 2, 3, 4, 5, 6]), tmp_path / "x.csv")
    calls: list[tuple[int, int | None]] = []
    score(
        tmp_path / "x.csv",
        tmp_path / "s.parquet",
        chunk_rows=3,
        progress=lambda n, total: calls.append((n, total)),
    )
    assert calls == [(3, 7), (6, 7), (7, 7)]


def infinite_rows(path: Path) -> Path:
    frame = ROWS.assign(key=[f"k{i}" for i in range(7)])
    frame.loc[2, "c"], frame.loc[6, "a"] = np.inf, -np.inf
    write_csv(frame, path)
    return path


@pytest.mark.parametrize("job", [score, impute])
def test_rows_set_aside_are_listed(tmp_path: Path, job: Callable[..., Any]) -> None:
    out = tmp_path / "o.parquet"
    result = job(infinite_rows(tmp_path / "x.csv"), out, id_column="key", chunk_rows=4)
    summary = result[0] if isinstance(result, tuple) else result
    assert (summary.rows, summary.rejected, summary.rejected_out) == (5, 2, tmp_path / "rejected.parquet")
    assert pd.read_parquet(tmp_path / "rejected.parquet").to_dict("list") == {
        "id": ["k2", "k6"],
        "reason": ["infinite", "infinite"],
        "place": ["column 'c'", "column 'a'"],
        "row": [2, 6],
        "detail": ["infinite value in column 'c'", "infinite value in column 'a'"],
    }
    assert pd.read_parquet(out)["key"].tolist() == ["k0", "k1", "k3", "k4", "k5"]
    # Without rejects a job removes the list that an earlier job of the same output left, and no other.
    write_csv(ROWS.assign(key=range(7)), tmp_path / "y.csv")
    job(tmp_path / "y.csv", tmp_path / "other.parquet", id_column="key")
    assert "rejected.parquet" in left_in(tmp_path)
    job(tmp_path / "y.csv", out, id_column="key")
    assert left_in(tmp_path) == ["o.parquet", "other.parquet", "x.csv", "y.csv"]


@pytest.mark.parametrize("job", [score, impute])
def test_strict_stops_at_the_first(tmp_path: Path, job: Callable[..., Any]) -> None:
    message = (
        "row 2 (id 'k2'): infinite value in column 'c'; strict stops at the first row that cannot be read"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        job(infinite_rows(tmp_path / "x.csv"), tmp_path / "o.parquet", id_column="key", strict=True)
    assert left_in(tmp_path) == ["x.csv"]


class Failing(FakeBundle):
    """Answers for a while, then raises."""

    def __init__(self, error: BaseException, rows: int, schema: Any = TABLE) -> None:
        super().__init__(schema)
        self.error, self.left = error, rows

    def verdicts(self, x: Any, observed: Any = None, false_alarm_rate: float | None = None) -> pd.DataFrame:
        self._count(x)
        return super().verdicts(x, observed, false_alarm_rate)

    def impute(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self._count(x)
        return super().impute(x, *args, **kwargs)

    def _count(self, x: Any) -> None:
        self.left -= len(x)
        if self.left < 0:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SchemaError("no"), MemoryError()], ids=repr)
@pytest.mark.parametrize("kind", ["score", "table", "array", "images"])
def test_a_job_that_ends_early_leaves_what_was_there_and_nothing_else(
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
    bundle = Failing(error, 4, TABLE if source.suffix == ".csv" else GREY)
    options = {"id_column": "key", "ignore_unknown": True} if source.suffix == ".csv" else {}
    with pytest.raises(type(error)):
        job(source, out, bundle, chunk_rows=2, **options)
    assert left_in(tmp_path) == sorted(["x", "x.csv", "x.npy", out.name])
    assert left_in(out) == [] if kind == "images" else out.read_text() == "from the last time"
    # The place is free again.
    job(source, out, FakeBundle(bundle.schema), **options)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
    assert left_in(tmp_path) == before


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


FILLED = [
    [1.0, 0.5, 3.0],
    [-2.0, 10.75, 4.0],
    [3.5, 1e300, 20.75],
    [0.75, 2.0, 1e-300],
    [0.75, 10.75, 20.75],
    [0.1, -0.0, 0.25],
    [7.0, 8.0, 9.0],
]
STD = np.where(ROWS.isna(), [2.0, 4.0, 6.0], 0.0)


@TABLES
@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_tables_come_back_filled_with_all_their_columns(
    tmp_path: Path, name: str, write: Write, chunk_rows: int | None
) -> None:
    extra = ROWS.assign(key=list("tuvwxyz"), other=pd.Series(["p", None, *"qrstu"], dtype=object))
    write(extra[["other", "c", "a", "key", "b"]], tmp_path / name)
    options = {"id_column": "key", "ignore_unknown": True, "chunk_rows": chunk_rows}
    summary = impute(tmp_path / name, tmp_path / "i.parquet", with_std=True, **options)
    frame = pd.read_parquet(tmp_path / "i.parquet")
    assert list(frame) == ["other", "c", "a", "key", "b", "c__std", "a__std", "b__std", "note"]
    np.testing.assert_array_equal(frame[["a", "b", "c"]], FILLED)
    assert np.signbit(frame["b"][5])
    np.testing.assert_array_equal(frame[["a__std", "b__std", "c__std"]], STD)
    assert frame["key"].tolist() == list("tuvwxyz")
    texts = pq.read_table(tmp_path / "i.parquet", columns=["other", "note"]).to_pydict()
    assert texts["other"] == ["p", None, "q", "r", "s", "t", "u"]
    assert texts["note"] == [None, None, None, None, "nothing observed", None, None]
    assert (summary.rows, summary.unobserved) == (7, 1)


def test_columns_keep_their_types_and_observed_cells_their_bits(tmp_path: Path) -> None:
    columns = {
        "big": pa.array([2**60 + 1, None, -5], pa.int64()),  # 10 j + 0.75, rounded
        "small": pa.array([1, None, 3], pa.uint8()),
        "flag": pa.array([None, False, True]),
        "single": pa.array([0.1, None, -0.0], pa.float32()),
        "none": pa.nulls(3),
        "coded": pa.array([7, None, 7], pa.int32()).dictionary_encode(),
        "money": pa.array([Decimal("1.10"), None, Decimal("-3.00")], pa.decimal128(4, 2)),
        "double": pa.array([5e-324, None, 1.5]),
    }
    pyarrow.feather.write_feather(pa.table(columns), tmp_path / "x.feather")
    schema = TableSchema(tuple(Column(name) for name in columns))
    impute(tmp_path / "x.feather", tmp_path / "i.parquet", FakeBundle(schema))
    table = pq.read_table(tmp_path / "i.parquet")
    assert table.to_pydict() == {
        "big": [2**60 + 1, 1, -5],
        "small": [1, 11, 3],
        "flag": [True, False, True],
        "single": [np.float32(0.1), 30.75, 0.0],
        "none": [40.75, 40.75, 40.75],
        "coded": [7, 51, 7],
        "money": [Decimal("1.10"), Decimal("60.75"), Decimal("-3.00")],
        "double": [5e-324, 70.75, 1.5],
        "note": [None, None, None],
    }
    kept = [name for name in columns if name not in ("none", "coded")]
    assert [table.schema.field(name).type for name in kept] == [columns[name].type for name in kept]
    assert np.signbit(table["single"].to_numpy()[2])


class Huge(FakeBundle):
    """Imputes values that no integer or decimal holds."""

    def impute(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        found = super().impute(x, *args, **kwargs)
        return found._replace(mean=np.where(found.std > 0, [[1e30, -1e30, 300.0, 1e30]], found.mean))


def test_imputed_values_stay_inside_the_type_of_their_column(tmp_path: Path) -> None:
    columns = {
        "i": pa.array([None], pa.int64()),
        "u": pa.array([None], pa.uint32()),
        "b": pa.array([None], pa.int8()),
        "m": pa.array([None], pa.decimal128(4, 2)),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    impute(tmp_path / "x.parquet", tmp_path / "i.parquet", Huge(TableSchema(tuple(map(Column, columns)))))
    row = pq.read_table(tmp_path / "i.parquet").to_pylist()[0]
    # The largest integer below 2^63 that a float holds.
    assert (row["i"], row["u"], row["b"]) == (2**63 - 1024, 0, 127)
    assert 98 < row["m"] < 100


def test_a_frame_that_pandas_wrote_comes_back_with_its_index_and_types(tmp_path: Path) -> None:
    index = pd.Index(list("tuvwxyz"), name="key")
    frame = ROWS.set_axis(index).assign(b=pd.array([1, None, 3, 4, None, 6, 7], dtype="Int64"))
    frame.to_parquet(tmp_path / "x.parquet")
    impute(tmp_path / "x.parquet", tmp_path / "i.parquet", chunk_rows=3)
    filled = pd.read_parquet(tmp_path / "i.parquet")
    pd.testing.assert_index_equal(filled.index, frame.index)
    assert filled["b"].tolist() == [1, 11, 3, 4, 11, 6, 7]
    assert filled["b"].dtype == "Int64"


@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_draws_make_a_long_table(tmp_path: Path, chunk_rows: int | None) -> None:
    write_csv(ROWS.assign(key=list("tuvwxyz")), tmp_path / "x.csv")
    options = {"id_column": "key", "chunk_rows": chunk_rows, "draws": 2, "seed": 3}
    impute(tmp_path / "x.csv", tmp_path / "i.parquet", **options)
    frame = pd.read_parquet(tmp_path / "i.parquet")
    assert list(frame) == ["a", "b", "c", "key", "row", "draw", "note"]
    assert frame["row"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert frame["draw"].tolist() == [0, 1] * 7
    assert frame["key"].tolist() == list("ttuuvvwwxxyyzz")
    missing = ROWS.isna().to_numpy().repeat(2, axis=0)
    drawn = np.array([hashed(3, key, m) for key in "tuvwxyz" for m in range(2)])[:, None]
    np.testing.assert_array_equal(
        frame[["a", "b", "c"]], np.where(missing, drawn, ROWS.to_numpy().repeat(2, axis=0))
    )


class Counting(FakeBundle):
    """Notes how many rows it is asked for at once."""

    most = 0

    def impute(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self.most = max(self.most, len(x))
        return super().impute(x, *args, **kwargs)


@pytest.mark.parametrize(("draws", "most"), [(None, 6), (2, 4), (11, 1)])
def test_draws_are_made_for_fewer_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draws: int | None, most: int
) -> None:
    # 36 cells are 12 rows of 3, of which each takes the place of 1 + draws.
    monkeypatch.setattr(chunks, "CELLS_PER_CHUNK", 36)
    write_csv(ROWS[:6], tmp_path / "x.csv")
    bundle = Counting(TABLE)
    impute(tmp_path / "x.csv", tmp_path / "i.parquet", bundle, draws=draws)
    assert bundle.most == most


@pytest.mark.parametrize(
    ("write", "options", "keys"),
    [
        (write_csv, {}, list(range(7))),
        (lambda frame, path: frame.to_csv(path), {}, [f"k{i}" for i in range(7)]),
        (
            lambda frame, path: frame.reset_index().to_csv(path, index=False),
            {"id_column": "index"},
            [f"k{i}" for i in range(7)],
        ),
        (
            lambda frame, path: frame.reset_index().to_csv(path, index=False),
            {"id_column": "index", "on_duplicate": "keep"},
            list(range(7)),
        ),
    ],
    ids=["row number", "index", "id column", "kept duplicates"],
)
def test_draws_follow_the_identity_of_the_row(
    tmp_path: Path, write: Write, options: dict[str, Any], keys: list[Any]
) -> None:
    write(ROWS.set_axis([f"k{i}" for i in range(7)]), tmp_path / "x.csv")
    bundle = FakeBundle(TABLE)
    impute(tmp_path / "x.csv", tmp_path / "i.parquet", bundle, draws=1, chunk_rows=2, **options)
    assert bundle.ids == keys


def test_rows_set_aside_do_not_shift_the_numbers_of_others(tmp_path: Path) -> None:
    bundle = FakeBundle(TABLE)
    impute(
        infinite_rows(tmp_path / "x.csv"),
        tmp_path / "i.parquet",
        bundle,
        draws=1,
        chunk_rows=2,
        ignore_unknown=True,
    )
    assert bundle.ids == [0, 1, 3, 4, 5]


@pytest.mark.parametrize(("name", "write"), BARE, ids=[name for name, _ in BARE])
@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_arrays_come_back_filled(tmp_path: Path, name: str, write: Write, chunk_rows: int | None) -> None:
    write(ROWS, tmp_path / name)
    impute(tmp_path / name, tmp_path / "i.npy", with_std=True, chunk_rows=chunk_rows)
    filled = np.load(tmp_path / "i.npy")
    assert filled.tobytes() == np.array(FILLED, dtype=filled.dtype).tobytes()
    assert filled.dtype == (">f8" if name.startswith("big") else "<f8")
    np.testing.assert_array_equal(np.load(tmp_path / "i__std.npy"), STD)
    impute(tmp_path / name, tmp_path / "d.npy", draws=2, seed=3, chunk_rows=chunk_rows)
    drawn = np.array([[hashed(3, i, m) for i in range(7)] for m in range(2)])[..., None]
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), np.where(ROWS.isna(), drawn, ROWS.to_numpy()))


@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_rows_set_aside_are_nan_in_an_array(tmp_path: Path, chunk_rows: int | None) -> None:
    values = ROWS.to_numpy().copy()
    values[1, 0] = values[5, 2] = np.inf
    np.save(tmp_path / "x.npy", values)
    summary = impute(tmp_path / "x.npy", tmp_path / "i.npy", chunk_rows=chunk_rows)
    expected = np.array(FILLED)
    expected[[1, 5]] = np.nan
    np.testing.assert_array_equal(np.load(tmp_path / "i.npy"), expected)
    assert (summary.rows, summary.rejected) == (5, 2)


def test_arrays_of_images_keep_dtype_and_shape(tmp_path: Path) -> None:
    images = grey_images()[:, 0]
    mask = np.ones((6, 8, 10), dtype=bool)
    mask[:, 0, :3] = False
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "m.npy", mask)
    impute(tmp_path / "x.npy", tmp_path / "i.npy", FakeBundle(GREY), mask=tmp_path / "m.npy")
    expected = images.copy()
    expected[:, 0, :3] = [1, 11, 21]  # 10 j + 0.75, rounded
    filled = np.load(tmp_path / "i.npy")
    assert filled.dtype == np.uint8
    np.testing.assert_array_equal(filled, expected)


@pytest.mark.parametrize("chunk_rows", [1, 4, None])
@pytest.mark.parametrize("schema", [GREY, COLOUR], ids=["grey", "colour"])
def test_folders_come_back_as_png_of_the_same_names(
    tmp_path: Path, chunk_rows: int | None, schema: ImageSchema
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, *schema.shape), dtype=np.uint8)
    write_images(tmp_path / "x", images, ["a/1.png", "a/2.PNG", "b c.png"])
    (tmp_path / "x" / "bad.png").touch()
    mask = np.full((8, 10), 255, dtype=np.uint8)
    mask[0, :2] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    summary = impute(
        tmp_path / "x",
        out,
        FakeBundle(schema),
        mask=tmp_path / "mask.png",
        with_std=True,
        chunk_rows=chunk_rows,
    )
    assert (summary.rows, summary.rejected) == (3, 1)
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert names == ["a/1.png", "a/1__std.png", "a/2.PNG", "a/2__std.PNG", "b c.png", "b c__std.png"]
    place = np.arange(schema.elements).reshape(schema.shape)
    expected, spread = images.copy(), np.zeros(schema.shape)
    expected[:, :, 0, :2] = np.clip(np.rint(10 * place + 0.75), 0, 255)[:, 0, :2]
    spread[:, 0, :2] = np.clip(np.rint(2 * (place + 1) / 127.5 * 255), 0, 255)[:, 0, :2]
    for name, image in zip(["a/1", "a/2", "b c"], expected, strict=True):
        suffix = ".PNG" if name == "a/2" else ".png"
        shape = (8, 10, 3) if schema is COLOUR else (8, 10, 1)
        got, std = (
            np.asarray(Image.open(out / f"{name}{part}{suffix}")).reshape(shape) for part in ("", "__std")
        )
        np.testing.assert_array_equal(got.transpose(2, 0, 1), image)
        np.testing.assert_array_equal(std.transpose(2, 0, 1), spread)
    assert left_in(tmp_path) == ["mask.png", "out", "rejected.parquet", "x"]


def test_a_model_of_fractions_gives_the_pixels_back(tmp_path: Path) -> None:
    write_images(tmp_path / "x", grey_images(), [f"{i}.png" for i in range(6)])
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        out = tmp_path / f"out{low}"
        impute(tmp_path / "x", out, FakeBundle(ImageSchema(1, 8, 10, "float32", low, high)), convert=True)
        for i, image in enumerate(grey_images()):
            np.testing.assert_array_equal(np.asarray(Image.open(out / f"{i}.png")), image[0])


def test_jpegs_come_back_as_png_and_may_not_meet_another(tmp_path: Path) -> None:
    write_images(tmp_path / "x", grey_images(1), ["sub/a.png"])
    (tmp_path / "x" / "sub" / "a.png").rename(tmp_path / "x" / "sub" / "b.png")
    Image.fromarray(grey_images(1)[0, 0]).save(tmp_path / "x" / "sub" / "a.jpg", quality=100)
    impute(tmp_path / "x", tmp_path / "out", FakeBundle(GREY), draws=2)
    assert left_in(tmp_path / "out" / "sub") == [
        "a__draw0.png",
        "a__draw1.png",
        "b__draw0.png",
        "b__draw1.png",
    ]
    pixels = np.asarray(Image.open(tmp_path / "x" / "sub" / "a.jpg"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "sub" / "a__draw1.png")), pixels)
    (tmp_path / "x" / "sub" / "b.png").rename(tmp_path / "x" / "sub" / "a.png")
    message = (
        f"two images would both be written as {tmp_path / 'again' / 'sub' / 'a.png'}; rename one of them"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        impute(tmp_path / "x", tmp_path / "again", FakeBundle(GREY))
    assert left_in(tmp_path) == ["out", "x"]


def test_a_model_that_does_not_impute_says_so_before_the_first_row(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    with pytest.raises(UnsupportedError):
        impute(tmp_path / "x.csv", tmp_path / "i.parquet", FakeBundle(TABLE, generative=False))
    with pytest.raises(ConfigError, match=r"^draws is 0; expected 1 or more$"):
        impute(tmp_path / "x.csv", tmp_path / "i.parquet", draws=0)
    assert left_in(tmp_path) == ["x.csv"]


def test_serving_imports_no_training_library() -> None:
    code = "import sys, serving.batch; print([m for m in ('torch', 'mlflow', 'sklearn') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
