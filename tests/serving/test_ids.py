"""CSV cells and row ids: as written, and each once."""

from __future__ import annotations

import re
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
    CHUNKS,
    NAN,
    ROWS,
    TABLE,
    TABLES,
    Write,
    ids_of,
    read,
    rows_csv,
    values_of,
)

from serving import delimited, identity
from serving.formats import ReadOptions, open_source
from vae_anomaly.exceptions import DataError


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
            "column 'b' of {} holds '2,5' in row 0; expected a number; for a decimal comma pass --decimal ,",
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
    monkeypatch.setattr(delimited, "LARGE_BLOCK_BYTES", 2**20)
    path.write_bytes(b'a,b,c\n1,2,"' + b"3" * 3 * 2**20)
    with pytest.raises(DataError, match=r"x\.csv has a row of more than 1 MB; look for an unclosed quote$"):
        open_source(path, TABLE)


def test_a_row_larger_than_a_block_is_read_by_large_blocks(tmp_path: Path) -> None:
    long = "x" * 3 * 2**20
    path = rows_csv(tmp_path / "x.csv", f"a,b,c,note\n1,2,3,short\n4,5,6,{long}\n")
    chunks = read(path, keep_columns=("note",))
    np.testing.assert_array_equal(values_of(chunks), [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


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


def test_ids_of_a_type_without_text_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(ROWS[:2]).append_column("key", pa.array([[1], [2, 3]]))
    pq.write_table(table, tmp_path / "x.parquet")
    message = (
        "id column 'key' has type list<element: int64>; expected integers or text: choose another id column"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        open_source(tmp_path / "x.parquet", TABLE, ReadOptions(id_column="key"))
