"""Every format holds the same rows, read in chunks of any size; what cannot be read is named."""

from __future__ import annotations

import re
import tracemalloc
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
    CHUNKS,
    FORMATS,
    GREY,
    IMAGES,
    NAMED,
    NAN,
    ROWS,
    TABLE,
    TABLES,
    Write,
    ids_of,
    observed_of,
    read,
    rejects_of,
    rows_csv,
    values_of,
    write_csv,
    write_images,
    write_parquet,
)

from serving.formats import ReadOptions, open_source
from vae_anomaly.exceptions import ConfigError, DataError, SchemaError
from vae_anomaly.schema import Column, Schema, TableSchema


@FORMATS
@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, name: str, write: Write, chunk_rows: int | None
) -> None:
    write(ROWS, tmp_path / name)
    chunks = read(tmp_path / name, chunk_rows=chunk_rows)
    assert max(chunk.size for chunk in chunks) <= (chunk_rows or 7)
    np.testing.assert_array_equal(values_of(chunks), ROWS.to_numpy())
    np.testing.assert_array_equal(observed_of(chunks), ROWS.notna().to_numpy())
    assert ids_of(chunks) == list(range(7))
    assert [row for chunk in chunks for row in chunk.rows.tolist()] == list(range(7))
    # The sign of zero is part of the caller's bits.
    assert np.signbit(values_of(chunks)[5, 1])


@FORMATS
def test_no_rows_are_no_chunks_of_rows(tmp_path: Path, name: str, write: Write) -> None:
    write(ROWS[:0], tmp_path / name)
    source = open_source(tmp_path / name, TABLE)
    assert sum(chunk.size for chunk in source.chunks()) == 0


@TABLES
def test_columns_are_read_by_name_in_any_order(tmp_path: Path, name: str, write: Write) -> None:
    write(ROWS[["c", "a", "b"]], tmp_path / name)
    np.testing.assert_array_equal(values_of(read(tmp_path / name)), ROWS.to_numpy())


@TABLES
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"d": 1.0}, {}, "unknown column 'd'; known: a, b, c"),
        ({"aa": 1.0}, {}, "unknown column 'aa'; did you mean 'a'?"),
        (
            {"a": None},
            {},
            "missing columns ['a']; to leave a value out, keep the column and set it to NaN",
        ),
        (
            {"key": 1.0},
            {"id_column": "kay", "label": "key"},
            "no column 'kay' in the input; did you mean 'key'?",
        ),
        ({}, {"keep_columns": ("zz",)}, "no column 'zz' in the input; the input has: a, b, c"),
    ],
)
def test_wrong_columns_are_refused_when_opening(
    tmp_path: Path, name: str, write: Write, change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    frame = ROWS.assign(**change)
    write(frame.drop(columns=[key for key, value in change.items() if value is None]), tmp_path / name)
    with pytest.raises(SchemaError, match=f"^{re.escape(message)}$"):
        open_source(tmp_path / name, TABLE, ReadOptions(**options))


@TABLES
def test_columns_set_aside_by_name(tmp_path: Path, name: str, write: Write) -> None:
    extra = ROWS.assign(key=list("tuvwxyz"), cls=1, note="n", other="?")
    write(extra, tmp_path / name)
    options: dict[str, Any] = {
        "id_column": "key",
        "label": "cls",
        "keep_columns": ("note",),
        "ignore_unknown": True,
    }
    chunks = read(tmp_path / name, chunk_rows=3, **options)
    np.testing.assert_array_equal(values_of(chunks), ROWS.to_numpy())
    assert ids_of(chunks) == list("tuvwxyz")
    assert chunks[0].table is not None
    assert chunks[0].table.column_names == ["a", "b", "c", "key", "note"]


def test_a_repeated_column_is_refused(tmp_path: Path) -> None:
    path = rows_csv(tmp_path / "x.csv", "a,b,c,a\n1,2,3,4\n")
    with pytest.raises(SchemaError, match=r"^column 'a' appears more than once; drop the repeats$"):
        open_source(path, TABLE)


def test_a_model_without_names_reads_by_position(tmp_path: Path) -> None:
    unnamed = TableSchema((Column("x0"), Column("x1"), Column("x2")), named=False)
    write_csv(ROWS.assign(key=range(7)), tmp_path / "x.csv")
    chunks = read(tmp_path / "x.csv", unnamed, id_column="key")
    np.testing.assert_array_equal(values_of(chunks), ROWS.to_numpy())


@FORMATS
@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_a_row_with_an_infinite_cell_is_set_aside(
    tmp_path: Path, name: str, write: Write, chunk_rows: int | None
) -> None:
    frame = ROWS.copy()
    frame.loc[2, "c"], frame.loc[6, "a"] = np.inf, -np.inf
    write(frame, tmp_path / name)
    chunks = read(tmp_path / name, chunk_rows=chunk_rows)
    assert ids_of(chunks) == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(values_of(chunks), ROWS.to_numpy()[[0, 1, 3, 4, 5]])
    c, a = ("column 'c'", "column 'a'") if (name, write) in NAMED else ("column 2", "column 0")
    found = [reject[:4] for reject in rejects_of(chunks)]
    assert found == [(2, "infinite", c, 2), (6, "infinite", a, 6)]


def flip_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 64]) + data[middle + 64 :]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("rows.parquet", lambda data: data[:-20]),
        ("rows.parquet", lambda data: b""),
        ("rows.parquet", lambda data: b"no Parquet at all"),
        ("rows.parquet", flip_middle),
        ("rows.arrow", lambda data: data[:-20]),
        ("rows.arrow", lambda data: b""),
        ("stream.arrow", lambda data: data[: len(data) // 2]),
        ("rows.npy", lambda data: data[:-8]),
        ("rows.npy", lambda data: data[:40]),
        ("rows.npy", lambda data: b""),
        ("rows.npy", lambda data: b"no numpy at all"),
        ("rows.npz", lambda data: data[:-30]),
        ("rows.npz", lambda data: b""),
        ("compressed.npz", flip_middle),
        ("fortran.npz", flip_middle),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(2000, 3)), columns=["a", "b", "c"])
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pandas(frame), path, write_page_checksum=True)
    else:
        dict(NAMED + BARE)[name](frame, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"^cannot read {re.escape(str(path))}: .*write it again$") as caught:
        read(path)
    # numpy's own words suggest to trust the file and unpickle it.
    assert "unsafe" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "schema", "message"),
    [
        ("none.parquet", TABLE, "no such file: {}"),
        ("none.png", GREY, "no such file: {}"),
        ("notes.txt", TABLE, "{} ends in '.txt'; expected a folder of images, or one of .parquet"),
        ("rows.csv", GREY, "{} is a table, the model knows images; pass a folder of images, .npy or .npz"),
        ("empty", TABLE, "{} is a folder, the model knows tables; pass one of .parquet"),
        ("empty", GREY, "no images in {}; expected files that end in .png, .jpg, .jpeg"),
        ("objects.npy", TABLE, "cannot read {}: "),
        ("two.npz", TABLE, "{} holds the arrays ['p', 'q']; call the one to read 'X'"),
    ],
)
def test_a_source_of_the_wrong_kind_is_refused(
    tmp_path: Path, name: str, schema: Schema, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("no image")
    (tmp_path / "notes.txt").write_text("a,b,c\n")
    write_csv(ROWS, tmp_path / "rows.csv")
    np.save(tmp_path / "objects.npy", np.array([[1, {}, 2]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", p=np.zeros(3), q=np.zeros(3))
    with pytest.raises(DataError, match=f"^{re.escape(message.format(tmp_path / name))}"):
        open_source(tmp_path / name, schema)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_duplicate": "drop"}, "on_duplicate is 'drop'; expected 'error' or 'keep'"),
        ({"chunk_rows": 0}, "chunk_rows is 0; expected 1 or more"),
        ({"decimal": "x"}, "decimal is 'x'; expected '.' or ','"),
        ({"delimiter": "::"}, "delimiter is '::'; expected one character"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        ReadOptions(**options)


@pytest.mark.parametrize(
    ("name", "schema", "options", "message"),
    [
        (
            "x.csv",
            TABLE,
            {"alpha_is_mask": True},
            "alpha_is_mask applies to image files only; use mask or missing_value",
        ),
        (
            "x.npy",
            GREY,
            {"alpha_is_mask": True},
            "alpha_is_mask applies to image files only; use mask or missing_value",
        ),
        ("x.csv", TABLE, {"convert": True}, "convert applies to images only; convert the table before"),
        ("x", GREY, {"label": "digit"}, "images have no columns; leave out 'digit'"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    tmp_path: Path, name: str, schema: Schema, options: dict[str, Any], message: str
) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    np.save(tmp_path / "x.npy", IMAGES)
    write_images(tmp_path / "x", IMAGES)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        open_source(tmp_path / name, schema, ReadOptions(**options))


def test_numeric_types_are_read_and_text_is_refused(tmp_path: Path) -> None:
    columns = {
        "i": pa.array([1, None, 3], pa.int64()),
        "big": pa.array([2**60, None, 5], pa.int64()),
        "u": pa.array([1, 2, 255], pa.uint8()),
        "h": pa.array([0.5, None, 2], pa.float16()),
        "t": pa.array([True, None, False]),
        "n": pa.nulls(3),
        "d": pa.array([1, None, 1], pa.int32()).dictionary_encode(),
        "m": pa.array([1.25, None, 3]).cast(pa.decimal128(9, 2)),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    pyarrow.feather.write_feather(pa.table(columns), tmp_path / "x.arrow")
    schema = TableSchema(tuple(Column(name) for name in columns))
    expected = [
        [1, 2**60, 1, 0.5, 1, NAN, 1, 1.25],
        [NAN, NAN, 2, NAN, NAN, NAN, NAN, NAN],
        [3, 5, 255, 2, 0, NAN, 1, 3],
    ]
    for name in ("x.parquet", "x.arrow"):
        np.testing.assert_array_equal(values_of(read(tmp_path / name, schema)), expected)
    pq.write_table(pa.table({**columns, "i": pa.array(["1", "2", "3"])}), tmp_path / "y.parquet")
    message = "column 'i' has type string; expected numbers: convert it or leave it out"
    with pytest.raises(SchemaError, match=f"^{re.escape(message)}$"):
        open_source(tmp_path / "y.parquet", schema)


def test_reading_an_array_holds_one_chunk(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((200_000, 3)))
    np.savez_compressed(tmp_path / "x.npz", np.zeros((200_000, 3)))
    for name in ("x.npy", "x.npz"):
        tracemalloc.start()
        count = sum(
            chunk.size for chunk in open_source(tmp_path / name, TABLE, ReadOptions(chunk_rows=1000)).chunks()
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 200_000
        assert peak < 1_000_000, f"{name}: {peak} bytes for a file of 4.8 MB"


def test_reading_a_parquet_file_holds_a_part_of_it(tmp_path: Path) -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(1_000_000, 3)), columns=["a", "b", "c"])
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "x.parquet", row_group_size=1_000_000)
    del frame
    before, peak, count = pa.total_allocated_bytes(), 0, 0
    for chunk in open_source(tmp_path / "x.parquet", TABLE, ReadOptions(chunk_rows=1000)).chunks():
        peak = max(peak, pa.total_allocated_bytes() - before)
        count += chunk.size
    assert count == 1_000_000
    # Pages of 1 MB and one batch, for each of three columns.
    assert peak < 12_000_000, f"{peak} bytes for a file of 24 MB"


def test_a_parquet_file_from_pandas_reads_the_same_as_without_its_notes(tmp_path: Path) -> None:
    write_parquet(ROWS, tmp_path / "plain.parquet")
    ROWS.to_parquet(tmp_path / "pandas.parquet")
    one, two = (read(tmp_path / f"{name}.parquet") for name in ("plain", "pandas"))
    np.testing.assert_array_equal(values_of(one), values_of(two))
    assert ids_of(one) == ids_of(two)
