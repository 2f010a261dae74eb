"""Tables, arrays and images come back with their gaps filled and nothing else changed."""

from __future__ import annotations

import re
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
    CHUNKS,
    COLOUR,
    GREY,
    ROWS,
    TABLE,
    TABLES,
    FakeBundle,
    Write,
    grey_images,
    hashed,
    impute,
    infinite_rows,
    left_in,
    write_csv,
    write_images,
)
from PIL import Image
from sample_models import table_rows

from serving import chunks
from vae_anomaly import VAEDetector, VAEImputer
from vae_anomaly.exceptions import (
    ConfigError,
    DataError,
    UnsupportedError,
)
from vae_anomaly.runtime import Bundle
from vae_anomaly.schema import Column, ImageSchema, TableSchema

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
    assert list(frame) == ["other", "c", "a", "key", "b", "c__std", "a__std", "b__std", "ess", "note"]
    np.testing.assert_array_equal(frame[["a", "b", "c"]], FILLED)
    assert np.signbit(frame["b"][5])
    np.testing.assert_array_equal(frame[["a__std", "b__std", "c__std"]], STD)
    np.testing.assert_array_equal(frame["ess"], 5.0 * ROWS.notna().sum(axis=1))
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


def test_integers_of_a_csv_that_no_float_holds_keep_their_digits(tmp_path: Path) -> None:
    large = [1_700_000_000_000_000_001, -(2**60) - 1]
    text = f"a,b,c,d\n{large[0]},1,1.5,9007199254740993\n NA ,,2,0.5\n{large[1]},3,,1\n"
    (tmp_path / "x.csv").write_text(text)
    schema = TableSchema(tuple(map(Column, "abcd")))
    impute(tmp_path / "x.csv", tmp_path / "i.parquet", FakeBundle(schema))
    filled = pq.read_table(tmp_path / "i.parquet")
    assert filled["a"].to_pylist() == [large[0], 1, large[1]]
    # Small ones may be numbers of any kind, and a fraction beside a large one makes all of them floats.
    assert [str(filled.schema.field(name).type) for name in "abcd"] == ["int64", "double", "double", "double"]
    assert filled["b"].to_pylist() == [1.0, 10.75, 3.0]


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
    assert left_in(tmp_path) == ["mask.png", "out", "out.rejected.parquet", "x"]


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


def test_a_served_model_fills_as_the_imputer_that_was_exported(
    tmp_path: Path, table_detector: VAEDetector, table_bundle: Bundle
) -> None:
    """Through a file and back: the bundle's own bits, the estimator's values within 1e-5 of the scale."""
    rows = table_rows(40, 3)
    rows.to_parquet(tmp_path / "x.parquet")
    impute(tmp_path / "x.parquet", tmp_path / "i.parquet", table_bundle, chunk_rows=7)
    served = pd.read_parquet(tmp_path / "i.parquet")[list(rows)]
    assert served.equals(table_bundle.impute(rows).mean)
    ours = VAEImputer.from_detector(table_detector).transform(rows)
    assert (np.abs(ours - served) / table_rows().std()).to_numpy().max() < 1e-5
