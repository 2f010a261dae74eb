"""Every format holds the same rows, read in chunks of any size; what cannot be read is named."""

from __future__ import annotations

import os
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
    COLOUR,
    GREY,
    NAMED,
    NAN,
    ROWS,
    TABLE,
    grey_images,
    write_arrow,
    write_csv,
    write_images,
    write_parquet,
)
from PIL import Image

from serving import arrays, delimited, identity
from serving.formats import Chunk, ReadOptions, open_source
from vae_anomaly.exceptions import ConfigError, DataError, SchemaError
from vae_anomaly.schema import Column, ImageSchema, Schema, TableSchema

CHUNKS = [1, 2, 7, None]
FORMATS = pytest.mark.parametrize(("name", "write"), NAMED + BARE, ids=[name for name, _ in NAMED + BARE])
TABLES = pytest.mark.parametrize(("name", "write"), NAMED, ids=[name for name, _ in NAMED])
Write = Callable[[pd.DataFrame, Path], None]


def read(path: Path, schema: Schema = TABLE, **options: Any) -> list[Chunk]:
    return list(open_source(path, schema, ReadOptions(**options)).chunks())


def values_of(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([np.asarray(chunk.values) for chunk in chunks])


def observed_of(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.observed for chunk in chunks])


def ids_of(chunks: list[Chunk]) -> list[Any]:
    return [key for chunk in chunks for key in chunk.ids.to_pylist()]


def rejects_of(chunks: list[Chunk]) -> list[tuple[Any, ...]]:
    return [tuple(reject) for chunk in chunks for reject in chunk.rejects]


def rows_csv(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


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
    assert list(chunks[0].values) == ["x0", "x1", "x2"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "a,b,c\n1,2,3\n4,5\n6,7,8\n",
            {},
            "row 1 of {} has 2 cells, the header 3; mend the row, or name another delimiter than ','",
        ),
        ("a,b,c\n1,2,3\n4,x5,6\n", {}, "column 'b' of {} holds 'x5' in row 1; expected a number"),
        (
            "a;b;c\n1;2,5;3\n",
            {},
            "column 'b' of {} holds '2,5' in row 0; expected a number; for a decimal comma say decimal=','",
        ),
        ("", {}, "{} is empty; expected a header line with the column names"),
        (
            "1,2,3\n4,5,6\n",
            {},
            "the first line of {} holds numbers; expected the column names: add a header line",
        ),
        ("a,b,c\n1,2,\xff\n", {}, "{} is not UTF-8 text; save it as UTF-8"),
        ('a,b,c\n1,2,"3\n4,5,6\n', {}, "column 'c' of {} holds '3\\n4,5,6' in row 0; expected a number"),
        (
            "k,a,b,c\n7,1,2,3\n,4,5,6\n",
            {"id_column": "k"},
            "id column 'k' is empty in row 1; give every row an id",
        ),
    ],
    ids=["ragged", "text", "decimal comma", "empty", "no header", "latin-1", "open quote", "no id"],
)
def test_a_csv_that_is_no_table_is_refused_when_opening(
    tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=f"^{re.escape(message.format(path))}$"):
        open_source(path, TABLE, ReadOptions(**options))


def test_damage_far_down_a_csv_is_found_when_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b,c\n" + b"1,2,3\n" * 20_000 + b"1,2,\xff\n")
    with pytest.raises(DataError, match=r"^.*x\.csv is not UTF-8 text; save it as UTF-8$"):
        open_source(path, TABLE)
    path.write_bytes(b"a,b,c\n" + b"1,2,3\n" * 20_000 + b"1,2\n")
    with pytest.raises(DataError, match=r"^row 20000 of .*x\.csv has 2 cells, the header 3; "):
        open_source(path, TABLE)
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 2**20)
    path.write_bytes(b'a,b,c\n1,2,"' + b"3" * 3 * 2**20)
    with pytest.raises(DataError, match=r"x\.csv has a row of more than 1 MB; look for an unclosed quote$"):
        open_source(path, TABLE)


def test_a_csv_may_have_spaces_gaps_in_words_and_decimal_commas(tmp_path: Path) -> None:
    path = rows_csv(tmp_path / "x.csv", "b;a;c\n 1,5 ;NA;-2\nnull;;1e3\n")
    chunks = read(path, decimal=",")
    np.testing.assert_array_equal(values_of(chunks), [[NAN, 1.5, -2.0], [NAN, NAN, 1000.0]])


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        (["10", "-2", "0"], [10, -2, 0]),
        (["007", "8", "9"], ["007", "8", "9"]),
        (["1.0", "2", "3"], ["1.0", "2", "3"]),
        (["99999999999999999999", "2", "3"], ["99999999999999999999", "2", "3"]),
        (['"say ""a"",\nb"', "NA", " c"], ['say "a",\nb', "NA", " c"]),
    ],
    ids=["integers", "leading zeros", "decimals", "too long", "text"],
)
def test_csv_ids_are_integers_or_text_as_written(tmp_path: Path, cells: list[str], ids: list[Any]) -> None:
    path = rows_csv(tmp_path / "x.csv", "id,a,b,c\n" + "".join(f"{cell},1,2,3\n" for cell in cells))
    for chunk_rows in CHUNKS:
        assert ids_of(read(path, id_column="id", chunk_rows=chunk_rows)) == ids


def test_a_pandas_index_in_a_csv_names_the_rows(tmp_path: Path) -> None:
    ROWS.set_axis(list("tuvwxyz")).to_csv(tmp_path / "x.csv")
    assert ids_of(read(tmp_path / "x.csv")) == list("tuvwxyz")


@pytest.mark.parametrize(
    ("index", "ids"),
    [
        (pd.Index(list("tuvwxyz")), list("tuvwxyz")),
        (pd.Index(list("tuvwxyz"), name="key"), list("tuvwxyz")),
        (pd.Index([5, 3, 9, 1, 7, 11, 2]), [5, 3, 9, 1, 7, 11, 2]),
        (pd.RangeIndex(10, 24, 2), list(range(10, 24, 2))),
        (pd.Index(list("ttuvwxy")), list(range(7))),
        (pd.MultiIndex.from_product([[0], range(7)]), list(range(7))),
    ],
    ids=["text", "named", "integers", "range", "repeated", "levels"],
)
def test_a_unique_pandas_index_names_the_rows(tmp_path: Path, index: pd.Index[Any], ids: list[Any]) -> None:
    ROWS.set_axis(index).to_parquet(tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet", TABLE, ReadOptions(chunk_rows=2))
    assert ids_of(list(source.chunks())) == ids
    assert source.id_name == (index.name or "id")


@TABLES
def test_repeated_ids_are_refused_or_kept(tmp_path: Path, name: str, write: Write) -> None:
    write(ROWS.assign(key=["p", "q", "r", "s", "q", "t", "u"]), tmp_path / name)
    message = "id 'q' of rows 1 and 4 is not unique; make ids unique, or pass --on-duplicate keep"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        open_source(tmp_path / name, TABLE, ReadOptions(id_column="key"))
    chunks = read(tmp_path / name, id_column="key", on_duplicate="keep", chunk_rows=4)
    assert ids_of(chunks) == ["p", "q", "r", "s", "q", "t", "u"]
    # Repeated ids would repeat random draws: these follow the row number instead.
    assert np.concatenate([chunk.keys for chunk in chunks]).tolist() == list(range(7))


def batches(*parts: list[Any]) -> Callable[[], list[np.ndarray]]:
    return lambda: [np.array(part, dtype=object) for part in parts]


def test_repeats_are_found_within_a_block_of_rows_only() -> None:
    ids = batches(["a", "b"], ["c", "a", "d"], ["d"])
    assert identity.find_repeat(ids) == ("a", 0, 3)
    assert identity.find_repeat(ids, window=3) == ("d", 4, 5)
    assert identity.find_repeat(ids, window=2) == ("d", 4, 5)
    assert identity.find_repeat(batches(["a"], ["b", "a"]), window=2) is None


def test_equal_hashes_of_different_ids_are_no_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_hash", lambda ids: np.array([len(i) for i in ids], dtype=np.uint64))
    assert identity.find_repeat(batches(["aa", "bb"], ["cc"])) is None
    assert identity.find_repeat(batches(["aa", "bb"], ["cc", "bb"])) == ("bb", 1, 3)


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


@FORMATS
def test_a_number_may_mean_missing(tmp_path: Path, name: str, write: Write) -> None:
    write(ROWS.fillna(-999.0), tmp_path / name)
    chunks = read(tmp_path / name, missing_value=-999)
    np.testing.assert_array_equal(observed_of(chunks), ROWS.notna().to_numpy())


def test_the_number_for_missing_is_compared_in_the_columns_own_precision(tmp_path: Path) -> None:
    table = pa.table(
        {"a": pa.array([0.1, 1.0], pa.float32()), "b": pa.array([0.1, 2.0]), "c": pa.array([1, 0])}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    chunks = read(tmp_path / "x.parquet", missing_value=0.1)
    assert observed_of(chunks).tolist() == [[False, False, True], [True, True, True]]


HIDDEN = np.array([[0, 1, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0]])


@FORMATS
@pytest.mark.parametrize("kind", ["npy", "csv"])
@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_a_mask_file_hides_cells(
    tmp_path: Path, name: str, write: Write, kind: str, chunk_rows: int | None
) -> None:
    names = ["c", "a", "b"] if (name, write) in NAMED else ["a", "b", "c"]
    # An infinite cell that is hidden is no reason to set the row aside.
    write(ROWS.assign(a=[np.inf, *ROWS["a"][1:]])[names], tmp_path / name)
    hidden = pd.DataFrame(HIDDEN, columns=["a", "b", "c"])[names]
    mask = tmp_path / f"mask.{kind}"
    if kind == "npy":
        np.save(mask, hidden.to_numpy().astype(bool))
    else:
        hidden.to_csv(mask, index=False)
    chunks = read(tmp_path / name, mask=mask, chunk_rows=chunk_rows)
    assert not rejects_of(chunks)
    np.testing.assert_array_equal(observed_of(chunks), ROWS.notna().to_numpy() & (HIDDEN == 1))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (HIDDEN[:5], "mask {} has 5 rows, the input 7; give one row of mask for each row"),
        (np.ones((9, 3)), "mask {} has 9 rows, the input 7; give one row of mask for each row"),
        (HIDDEN[:, :2], "mask {} has shape (7, 2); expected (rows, 3)"),
        (HIDDEN * 0.5, "mask {} holds other values than 0 and 1; expected 1 where present"),
    ],
    ids=["short", "long", "narrow", "grey"],
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path, mask: np.ndarray, message: str) -> None:
    write_csv(ROWS, tmp_path / "x.csv")
    np.save(tmp_path / "m.npy", mask)
    with pytest.raises(DataError, match=f"^{re.escape(message.format(tmp_path / 'm.npy'))}$"):
        read(tmp_path / "x.csv", mask=tmp_path / "m.npy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,1\n", "mask {} has no column 'c'; give it the columns of the input"),
        ("a,b,c\n1,1,2\n", "mask {} holds other cells than 0 and 1; expected 1 where present"),
        ("c,b,a\n1,1,1\n", "mask {} has 1 rows, the input 7; give one row of mask for each row"),
        ("a,b,c\n1,,1\n", "mask {} holds other cells than 0 and 1; expected 1 where present"),
    ],
    ids=["column", "number", "short", "gap"],
)
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_a_csv_mask_that_does_not_fit_is_refused(
    tmp_path: Path, text: str, message: str, length: str
) -> None:
    write = {"known": write_csv, "unknown": write_arrow}[length]
    path = tmp_path / {"known": "x.csv", "unknown": "x.arrow"}[length]
    write(ROWS if "short" in message or "1 rows" in message else ROWS[:1], path)
    mask = rows_csv(tmp_path / "m.csv", text)
    message = message.replace("input 7", "input more") if length == "unknown" else message
    with pytest.raises(DataError, match=f"^{re.escape(message.format(mask))}$"):
        read(path, mask=mask)


@pytest.mark.parametrize(
    ("name", "schema", "message"),
    [
        ("m.txt", TABLE, "cannot use mask {}; expected .npy or .csv"),
        ("m.csv", GREY, "cannot use mask {}; expected .npy, a PNG or a folder of PNG"),
        ("gone.npy", TABLE, "no such file: {}"),
        ("gone.png", GREY, "no such file: {}"),
        ("broken.png", GREY, "cannot use mask {}: the file has no bytes"),
        ("broken.npy", GREY, "cannot read {}: "),
    ],
)
def test_a_mask_of_the_wrong_kind_is_refused_when_opening(
    tmp_path: Path, name: str, schema: Schema, message: str
) -> None:
    for broken in ("broken.png", "broken.npy", "m.txt", "m.csv"):
        (tmp_path / broken).touch()
    write_csv(ROWS, tmp_path / "x.csv")
    write_images(tmp_path / "x", IMAGES)
    source = tmp_path / ("x" if schema is GREY else "x.csv")
    with pytest.raises(DataError, match=f"^{re.escape(message.format(tmp_path / name))}"):
        open_source(source, schema, ReadOptions(mask=tmp_path / name))


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
    with pytest.raises(DataError, match=f"^cannot read {re.escape(str(path))}: .*write it again$"):
        read(path)


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


def test_ids_of_a_type_without_text_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(ROWS[:2]).append_column("key", pa.array([[1], [2, 3]]))
    pq.write_table(table, tmp_path / "x.parquet")
    message = (
        "id column 'key' has type list<element: int64>; expected integers or text: choose another id column"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        open_source(tmp_path / "x.parquet", TABLE, ReadOptions(id_column="key"))


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


IMAGES = grey_images()


@pytest.mark.parametrize("chunk_rows", CHUNKS)
@pytest.mark.parametrize("shape", [(6, 1, 8, 10), (6, 8, 10), (6, 80)], ids=["channels", "plain", "flat"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_images_of_any_accepted_shape(
    tmp_path: Path, chunk_rows: int | None, shape: tuple[int, ...], suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    (np.save if suffix == ".npy" else np.savez_compressed)(path, IMAGES.reshape(shape))
    chunks = read(path, GREY, chunk_rows=chunk_rows)
    np.testing.assert_array_equal(values_of(chunks), IMAGES)
    assert values_of(chunks).dtype == np.uint8


def test_channels_last_needs_convert(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 10), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images.transpose(0, 2, 3, 1))
    with pytest.raises(
        SchemaError, match=r"^x\.npy, of shape \(4, 8, 10, 3\): images have shape .* channels last"
    ):
        open_source(tmp_path / "x.npy", COLOUR)
    np.testing.assert_array_equal(values_of(read(tmp_path / "x.npy", COLOUR, convert=True)), images)


def test_ids_of_an_npz_stand_beside_its_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=IMAGES, name=np.array(list("fedcba")), few=np.arange(2))
    assert ids_of(read(tmp_path / "x.npz", GREY, id_column="name", chunk_rows=4)) == list("fedcba")
    with pytest.raises(SchemaError, match=r"^no array 'nome' in .*x\.npz; it holds X, name, few$"):
        open_source(tmp_path / "x.npz", GREY, ReadOptions(id_column="nome"))
    with pytest.raises(DataError, match=r"^array 'few' has shape \(2,\); expected \(6,\), one id a row$"):
        open_source(tmp_path / "x.npz", GREY, ReadOptions(id_column="few"))
    np.savez(tmp_path / "y.npz", X=IMAGES, name=np.array(list("fedfba")))
    with pytest.raises(DataError, match=r"^id 'f' of rows 0 and 3 is not unique; make ids unique"):
        open_source(tmp_path / "y.npz", GREY, ReadOptions(id_column="name"))
    np.save(tmp_path / "z.npy", IMAGES)
    with pytest.raises(ConfigError, match=r"^z\.npy has no columns; leave out 'name'$"):
        open_source(tmp_path / "z.npy", GREY, ReadOptions(id_column="name"))


UNIT = ImageSchema(1, 8, 10, "float32", 0.0, 1.0)


def test_pixels_in_other_units_are_refused_for_the_whole_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES.astype(np.float32))
    with pytest.raises(
        SchemaError, match=r"pixels run from .*, the model was trained on 0 to 1; rescale them"
    ):
        open_source(tmp_path / "x.npy", UNIT)
    np.save(tmp_path / "y.npy", IMAGES / 256)
    with pytest.raises(SchemaError, match=r"the model was trained on 0 to 255; rescale them"):
        open_source(tmp_path / "y.npy", GREY)


@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_single_images_out_of_range_or_infinite_are_set_aside(tmp_path: Path, chunk_rows: int | None) -> None:
    images = (IMAGES / 255).astype(np.float32)
    images[1] *= 100
    images[4, 0, 2, 3] = np.inf
    images[5, 0, 0, 0] = 1e30
    np.save(tmp_path / "x.npy", images)
    chunks = read(tmp_path / "x.npy", UNIT, chunk_rows=chunk_rows)
    np.testing.assert_array_equal(values_of(chunks), images[[0, 2, 3, 5]])
    found = [reject[:4] for reject in rejects_of(chunks)]
    assert found == [(1, "wrong_units", "all pixels", 1), (4, "infinite", "pixel [0, 2, 3]", 4)]


@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_single_images_of_fractions_are_set_aside_from_whole_numbers(
    tmp_path: Path, chunk_rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "UNITS_ROWS", 2)
    images = IMAGES.astype(np.float32)
    images[3, 0, 0, 0] = 0.5
    images[4] = np.float32(1 / 3)
    images[5] = 1.0
    np.save(tmp_path / "x.npy", images)
    chunks = read(tmp_path / "x.npy", GREY, chunk_rows=chunk_rows)
    np.testing.assert_array_equal(values_of(chunks), images[[0, 1, 2, 5]])
    assert [reject[1:4] for reject in rejects_of(chunks)] == [
        ("wrong_units", "all pixels", 3),
        ("wrong_units", "all pixels", 4),
    ]


@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_folders_are_read_in_the_order_of_relative_names(tmp_path: Path, chunk_rows: int | None) -> None:
    names = ["z.png", "a/b/two words.PNG", "a.png", "a/b.png", "ä.png", "Z/1.png"]
    write_images(tmp_path, IMAGES, names)
    (tmp_path / "readme.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    chunks = read(tmp_path, GREY, chunk_rows=chunk_rows)
    assert ids_of(chunks) == sorted(names)
    np.testing.assert_array_equal(values_of(chunks), IMAGES[[names.index(name) for name in sorted(names)]])
    assert open_source(tmp_path, GREY).rows == 6


def test_one_image_file_is_a_folder_of_one(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES[:1], ["x.png"])
    chunks = read(tmp_path / "x.png", GREY)
    assert ids_of(chunks) == ["x.png"]
    np.testing.assert_array_equal(values_of(chunks), IMAGES[:1])


def test_file_names_that_are_no_utf8_are_spelled_out(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES[:1], [os.fsdecode(b"caf\xe9 1.png")])
    assert ids_of(read(tmp_path, GREY)) == ["caf\\xe9 1.png"]


def exif(image: Image.Image, path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    image.save(path, exif=tags)


def truncated(image: Image.Image, path: Path) -> None:
    image.save(path)
    path.write_bytes(path.read_bytes()[:-30])


def bomb(image: Image.Image, path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


def words(image: Image.Image, path: Path) -> None:
    path.write_text("hello")


def loop(image: Image.Image, path: Path) -> None:
    path.symlink_to(path)


BAD: list[tuple[str, str, str, Callable[[Image.Image, Path], None]]] = [
    ("x.png", "empty_file", "the file has no bytes", lambda image, path: path.touch()),
    ("x.png", "not_an_image", "not a PNG or JPEG", words),
    ("x.png", "not_an_image", "not a PNG or JPEG", lambda image, path: image.save(path, format="GIF")),
    ("x.png", "truncated", "the file is cut short or damaged", truncated),
    ("x.jpg", "truncated", "the file is cut short or damaged", truncated),
    ("x.png", "symlink_loop", "cannot open it: Too many levels of symbolic links", loop),
    (
        "x.png",
        "unreadable",
        "cannot open it: No such file or directory",
        lambda i, path: path.symlink_to("gone"),
    ),
    ("x.png", "not_a_file", "not an ordinary file", lambda image, path: os.mkfifo(path)),
    ("x.png", "image_bomb", "it announces more than 89,478,485 pixels", bomb),
    (
        "x.png",
        "wrong_shape",
        "expected 1x8x10, received 1x10x8 (L); pass --convert to adapt",
        lambda image, path: image.transpose(Image.Transpose.ROTATE_90).save(path),
    ),
    (
        "x.jpg",
        "wrong_shape",
        "expected 1x8x10, received 3x8x10 (RGB); pass --convert to adapt",
        lambda image, path: image.convert("RGB").save(path),
    ),
    (
        "x.png",
        "alpha",
        "it has transparency; pass --alpha-is-mask, or --convert to lay it on white",
        lambda image, path: image.convert("LA").save(path),
    ),
    (
        "x.png",
        "sixteen_bit",
        "expected 8 bits per channel, received 16; pass --convert to shorten",
        lambda image, path: Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(path),
    ),
    ("x.jpg", "exif_rotation", "EXIF asks to turn it; pass --convert to turn it", exif),
]


@pytest.mark.parametrize(
    ("name", "reason", "detail", "spoil"), BAD, ids=[f"{b[0]}-{b[1]}-{i}" for i, b in enumerate(BAD)]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_image_is_set_aside_and_the_rest_goes_on(
    tmp_path: Path, name: str, reason: str, detail: str, spoil: Callable[[Image.Image, Path], None]
) -> None:
    write_images(tmp_path, IMAGES[:2], ["a.png", "z.png"])
    spoil(Image.fromarray(IMAGES[2, 0]), tmp_path / name)
    chunks = read(tmp_path, GREY)
    np.testing.assert_array_equal(values_of(chunks), IMAGES[:2])
    assert ids_of(chunks) == ["a.png", "z.png"]
    assert rejects_of(chunks) == [(name, reason, name, 1, detail)]


def test_a_folder_that_leads_back_into_itself_is_set_aside(tmp_path: Path) -> None:
    write_images(tmp_path / "real", IMAGES[:2], ["sub/a.png", "sub/b.png"])
    (tmp_path / "real" / "sub" / "up").symlink_to(tmp_path / "real")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "real")
    chunks = read(tmp_path / "images", GREY)
    assert ids_of(chunks) == ["linked/sub/a.png", "linked/sub/b.png"]
    assert [reject[:2] for reject in rejects_of(chunks)] == [("linked/sub/up", "symlink_loop")]


FLAT = Image.fromarray(np.full((8, 10), 200, dtype=np.uint8))


def converted(path: Path, image: Image.Image, schema: ImageSchema, **save: Any) -> np.ndarray:
    path.mkdir()
    image.save(path / "x.png", **save)
    return np.asarray(values_of(read(path, schema, convert=True))[0])


def test_convert_adapts_images(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    upright = Image.fromarray(IMAGES[0, 0])
    glass = Image.new("RGBA", (10, 8), (0, 0, 0, 0))
    deep = Image.fromarray(np.full((8, 10), 0x80FF, dtype=np.uint16))
    red = Image.new("RGB", (10, 8), (255, 0, 0))
    cases = [
        (upright.transpose(Image.Transpose.ROTATE_180), GREY, {"exif": turned}, IMAGES[0]),
        (FLAT.resize((40, 20)), GREY, {}, 200),
        (FLAT, COLOUR, {}, 200),
        (red, GREY, {}, 76),  # 0.299 * 255, the luma of ITU-R BT.601
        (glass, GREY, {}, 255),
        (glass, ImageSchema(4, 8, 10), {}, 0),
        (FLAT, ImageSchema(1, 8, 10, "float32", 0.0, 255.0), {}, 200),
        (deep, GREY, {}, 0x80),
        (FLAT, UNIT, {}, np.float32(200 / 255)),
        (FLAT, ImageSchema(1, 8, 10, "float32", -1.0, 1.0), {}, np.float32(200 / 255 * 2 - 1)),
    ]
    for i, (image, schema, save, expected) in enumerate(cases):
        got = converted(tmp_path / str(i), image, schema, **save)
        np.testing.assert_array_equal(got, np.broadcast_to(expected, schema.shape))


def test_files_that_lose_nothing_need_no_convert(tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0, 0] > 99).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(values_of(read(tmp_path, GREY))[0], np.where(IMAGES[0] > 99, 255, 0))
    palette = tmp_path / "palette"
    palette.mkdir()
    Image.new("RGB", (10, 8), (9, 80, 200)).convert("P", palette=Image.Palette.ADAPTIVE).save(
        palette / "x.png"
    )
    assert values_of(read(palette, COLOUR))[0, :, 0, 0].tolist() == [9, 80, 200]


def test_images_for_a_model_of_fractions_need_convert(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    message = "image files hold 0 to 255, the model was trained on 0 to 1; pass --convert to rescale them"
    with pytest.raises(SchemaError, match=f"^{message}$"):
        open_source(tmp_path, UNIT)


def test_transparent_pixels_can_mean_missing(tmp_path: Path) -> None:
    alpha = np.full((8, 10), 255, dtype=np.uint8)
    alpha[2:5, 3] = 0
    alpha[0, 0], alpha[0, 1] = 127, 128
    pixels = np.dstack([IMAGES[0, 0], IMAGES[1, 0], IMAGES[2, 0], alpha])
    Image.fromarray(pixels).save(tmp_path / "x.png")
    chunk = read(tmp_path, COLOUR, alpha_is_mask=True)[0]
    np.testing.assert_array_equal(chunk.values[0], IMAGES[:3, 0])
    np.testing.assert_array_equal(chunk.observed[0], np.broadcast_to(alpha >= 128, (3, 8, 10)))


def test_a_colour_pixel_is_missing_where_all_channels_say_so(tmp_path: Path) -> None:
    images = np.full((1, 3, 8, 10), 9, dtype=np.uint8)
    images[0, :, 1, 1] = 0
    images[0, 0, 2, 2] = 0
    write_images(tmp_path / "folder", images)
    np.save(tmp_path / "x.npy", images)
    expected = np.ones((1, 3, 8, 10), dtype=bool)
    expected[0, :, 1, 1] = False
    for source in (tmp_path / "folder", tmp_path / "x.npy"):
        np.testing.assert_array_equal(observed_of(read(source, COLOUR, missing_value=0)), expected)


HOLE = np.ones((8, 10), dtype=bool)
HOLE[4:, 5:] = False


def save_hole(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8)).save(path)


@pytest.mark.parametrize("kind", ["png", "folder", "npy", "npy plain"])
@pytest.mark.parametrize("source", ["folder", "array"])
@pytest.mark.parametrize("chunk_rows", [1, 4, None])
def test_masks_of_images(tmp_path: Path, kind: str, source: str, chunk_rows: int | None) -> None:
    names = write_images(tmp_path / "images", IMAGES, [f"{i}.png" for i in range(6)])
    np.save(tmp_path / "x.npy", IMAGES)
    mask = tmp_path / {"png": "m.png", "folder": "masks", "npy": "m.npy", "npy plain": "m.npy"}[kind]
    expected = np.broadcast_to(HOLE, (6, 1, 8, 10))
    if kind == "png":
        save_hole(mask)
    elif kind == "folder":
        for name in names:
            save_hole(mask / name)
    elif kind == "npy":
        expected = np.random.default_rng(3).random((6, 1, 8, 10)) > 0.5
        np.save(mask, expected[:, 0])
    else:
        np.save(mask, HOLE)
    path = tmp_path / ("images" if source == "folder" else "x.npy")
    if (kind, source) == ("folder", "array"):
        with pytest.raises(DataError, match=r"is a folder; rows of an array need one file of masks$"):
            read(path, GREY, mask=mask)
        return
    chunks = read(path, GREY, mask=mask, chunk_rows=chunk_rows)
    np.testing.assert_array_equal(observed_of(chunks), expected)
    np.testing.assert_array_equal(values_of(chunks), IMAGES)


def test_an_image_without_its_mask_is_set_aside(tmp_path: Path) -> None:
    write_images(tmp_path / "images", IMAGES[:3], ["a.png", "b.png", "c.png"])
    Image.fromarray(IMAGES[0, 0]).save(tmp_path / "images" / "d.jpg")
    save_hole(tmp_path / "masks" / "a.png")
    save_hole(tmp_path / "masks" / "d.png")
    FLAT.resize((5, 5)).save(tmp_path / "masks" / "c.png")
    chunks = read(tmp_path / "images", GREY, mask=tmp_path / "masks")
    assert ids_of(chunks) == ["a.png", "d.jpg"]
    assert [(reject[0], reject[1], reject[4]) for reject in rejects_of(chunks)] == [
        ("b.png", "no_mask", "the mask folder has no picture of this name; expected b.png"),
        ("c.png", "wrong_mask", "the mask is 5x5; expected 8x10"),
    ]


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
