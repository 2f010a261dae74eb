"""A job's answers are the bundle's, whatever the format and the size of a chunk."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
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
    BUNDLE,
    CHUNKS,
    FORMATS,
    GREY,
    NAN,
    ROWS,
    TABLES,
    FakeBundle,
    Write,
    impute,
    infinite_rows,
    left_in,
    score,
    write_csv,
    write_images,
    write_parquet,
)

from serving.batch import JobSummary
from vae_anomaly.exceptions import (
    CalibrationError,
    ConfigError,
    DataError,
    SchemaError,
)

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
            filled[-1]["rejected"] = pd.read_parquet(folder / "i.rejected.parquet").to_json().encode()
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


@pytest.mark.parametrize("chunk_rows", [2, None], ids=["two", "all"])
def test_a_false_discovery_rate_looks_at_the_whole_job(tmp_path: Path, chunk_rows: int | None) -> None:
    """p = 1 / (1 + score): three of six pass q k / m = .05, .1, .15; of two alone 1 / 3.5 would pass .3."""
    rows = pd.DataFrame({"a": [19, 1, 11, NAN, 8, 2.5, 1], "b": 0.0, "c": [0, 0, 0, NAN, 0, 0, 0]})
    rows.loc[3, "b"] = NAN
    write_csv(rows, tmp_path / "x.csv")
    for rank in (False, True):
        summary, frame = score(
            tmp_path / "x.csv", tmp_path / f"s{rank}.parquet", fdr=0.3, rank=rank, chunk_rows=chunk_rows
        )
        assert frame["is_outlier"].tolist() == [True, False, True, None, True, False, False]
        assert summary.outliers == 3
        assert ("rank" in frame) == rank
    assert left_in(tmp_path) == ["sFalse.parquet", "sTrue.parquet", "x.csv"]


def test_a_discovery_rate_is_checked_before_the_first_row(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    with pytest.raises(CalibrationError, match=r"^a false discovery rate of 0\.001 needs"):
        score(tmp_path / "x.csv", tmp_path / "s.parquet", fdr=0.001)
    message = "got a false alarm rate of 0.1 and an fdr of 0.2; name one"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        score(tmp_path / "x.csv", tmp_path / "s.parquet", fdr=0.2, false_alarm_rate=0.1)
    assert left_in(tmp_path) == ["x.csv"]


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


@pytest.mark.parametrize("job", [score, impute])
def test_rows_set_aside_are_listed(tmp_path: Path, job: Callable[..., Any]) -> None:
    out = tmp_path / "o.parquet"
    result = job(infinite_rows(tmp_path / "x.csv"), out, id_column="key", chunk_rows=4)
    summary = result[0] if isinstance(result, tuple) else result
    rejected = tmp_path / "o.rejected.parquet"
    assert (summary.rows, summary.rejected, summary.rejected_out) == (5, 2, rejected)
    assert pd.read_parquet(rejected).to_dict("list") == {
        "id": ["k2", "k6"],
        "reason": ["infinite", "infinite"],
        "place": ["column 'c'", "column 'a'"],
        "row": [2, 6],
        "detail": ["infinite value in column 'c'", "infinite value in column 'a'"],
    }
    assert pd.read_parquet(out)["key"].tolist() == ["k0", "k1", "k3", "k4", "k5"]
    # Each output has a list of its own; without rejects a job removes its own, and no other.
    write_csv(ROWS.assign(key=range(7)), tmp_path / "y.csv")
    job(tmp_path / "y.csv", tmp_path / "other.parquet", id_column="key")
    job(tmp_path / "x.csv", tmp_path / "third.parquet", id_column="key")
    assert {"o.rejected.parquet", "third.rejected.parquet"} <= set(left_in(tmp_path))
    job(tmp_path / "y.csv", tmp_path / "third.parquet", id_column="key")
    assert "o.rejected.parquet" in left_in(tmp_path)
    job(tmp_path / "y.csv", out, id_column="key")
    assert left_in(tmp_path) == ["o.parquet", "other.parquet", "third.parquet", "x.csv", "y.csv"]


@pytest.mark.parametrize("job", [score, impute])
def test_strict_stops_at_the_first(tmp_path: Path, job: Callable[..., Any]) -> None:
    message = (
        "row 2 (id 'k2'): infinite value in column 'c'; strict stops at the first row that cannot be read"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        job(infinite_rows(tmp_path / "x.csv"), tmp_path / "o.parquet", id_column="key", strict=True)
    assert left_in(tmp_path) == ["x.csv"]


def test_serving_imports_no_training_library() -> None:
    code = "import sys, serving.batch; print([m for m in ('torch', 'mlflow', 'sklearn') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
