"""Whatever the form, the same rows arrive, or a sentence that says why not."""

import re
import struct
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from pipelines.config import from_mapping
from pipelines.data import DataConfig, load
from pipelines.sources import pick_rows
from pipelines.splits import split
from vae_anomaly.exceptions import ConfigError, DataError, SchemaError
from vae_anomaly.schema import Column, ImageSchema, TableSchema

ROWS = 40
FRAME = pd.DataFrame(
    {
        "key": [f"r{i}" for i in range(ROWS)],
        "a": np.arange(ROWS, dtype=np.int64),
        "b": np.where(np.arange(ROWS) % 4 == 0, np.nan, np.arange(ROWS) / 8),
        "kind": ["odd" if i % 10 == 3 else "normal" for i in range(ROWS)],
        "day": [f"2026-01-{1 + (7 * i) % 20:02d}" for i in range(ROWS)],
        "house": [f"h{i % 9}" for i in range(ROWS)],
        "note": ["text"] * ROWS,
    }
)
TABLE = DataConfig(id_column="key", label="kind", exclude=("note", "day", "house"))


def write_csv(path: Path) -> None:
    FRAME.to_csv(path, index=False)


def write_semicolons(path: Path) -> None:
    FRAME.to_csv(path, index=False, sep=";", quoting=1, encoding="utf-8-sig")


def write_parquet(path: Path) -> None:
    FRAME.iloc[np.argsort(-np.arange(ROWS))].iloc[::-1].to_parquet(path)  # its index becomes a column


@pytest.mark.parametrize(
    ("name", "write"),
    [("t.csv", write_csv), ("s.csv", write_semicolons), ("t.parquet", write_parquet)],
    ids=["csv", "semicolons", "parquet"],
)
def test_tables_arrive_alike(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name)
    data = load(replace(TABLE, source=str(tmp_path / name)))
    assert isinstance(data.values, pd.DataFrame)
    pd.testing.assert_frame_equal(data.values, FRAME[["a", "b"]].astype(float))
    assert data.schema == TableSchema(
        (Column("a", "integer", 0.0, 39.0, "int64", lower=0.0), Column("b", "real", 0.125, 39 / 8, "float64"))
    )
    assert data.ids.tolist() == FRAME["key"].tolist()
    assert data.labels is not None
    assert data.labels.tolist() == FRAME["kind"].tolist()


def test_names_stay_names_for_a_model_with_other_codes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": range(20), "city": ["oslo", "rome"] * 9 + [None, "oslo"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    values = load(DataConfig(source=str(tmp_path / "t.csv"))).values
    assert isinstance(values, pd.DataFrame)
    assert [str(dtype) for dtype in values.dtypes] == ["float64", "str"]
    other = TableSchema(
        (Column("x"), Column("city", "categorical", 0.0, 2.0, "str", ("lima", "oslo", "rome")))
    )
    assert other.read(values).values[[0, 1, 19], 1].tolist() == [1.0, 2.0, 1.0]
    assert other.read(values).observed[18].tolist() == [True, False]


def test_tables_of_one_content_share_a_fingerprint(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv")
    write_parquet(tmp_path / "t.parquet")
    FRAME.assign(a=FRAME["a"].replace(5, 6)).to_csv(tmp_path / "u.csv", index=False)
    prints = [
        load(replace(TABLE, source=name, data_root=str(tmp_path))).fingerprint
        for name in ("t.csv", "t.parquet", "u.csv")
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"exclude": ()}, SchemaError,
         "columns ['day'] of {path} hold neither numbers nor categories; leave them out "
         "with --exclude, name one with --id-column or --label, or say by data.kinds what they are"),
        ({"label": "knid"}, DataError, "no column 'knid' in {path}; did you mean 'kind'?"),
        ({"exclude": ("note", "day", "house", "a", "b")}, DataError,
         "no feature column is left in {path}; exclude fewer"),
        ({"id_column": "house", "exclude": ("note", "day", "key")}, DataError,
         "id 'h0' appears more than once in column 'house'; make the ids unique"),
        ({"image_size": (8, 8)}, ConfigError,
         "image_size is (8, 8), which means nothing for {path!r}; leave it out"),
    ],
    ids=["text", "label", "nothing", "ids", "image"],
)  # fmt: skip
def test_slips_on_tables_are_named(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = str(tmp_path / "t.csv")
    write_csv(Path(path))
    message = message.replace("{path!r}", repr(path)).replace("{path}", path)
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        load(replace(TABLE, source=path, **change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,a\n" + "1,2\n" * 30, "column 'a' appears more than once; drop the repeats"),
        ("a,b\n" + "1,2\n" * 30 + "1,2,3\n", "Expected 2 columns, got 3"),
        ("a,b\n" + "1,2\n" * 30 + "1\n", "Expected 2 columns, got 1"),
        (
            "a,b\n" + "1,2\n" * 30 + "1,inf\n",
            "infinite values in row [30] of columns ['b']; use NaN for a missing value",
        ),
        ("", "Empty CSV file"),
        ("a,b\n" + "1,2\n" * 19, "t has 19 rows; at least 20 are needed to train and judge a model"),
    ],
    ids=["repeated", "long row", "short row", "infinite", "empty", "few"],
)
def test_bad_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises((DataError, SchemaError), match=re.escape(message)):
        load(DataConfig(source=str(path)))


def test_empty_cells_and_late_fractions_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,\n" * 30 + "2.5,7\n")
    data = load(DataConfig(source=str(path)))
    np.testing.assert_array_equal(data.values, [[1.0, np.nan]] * 30 + [[2.5, 7.0]])


def test_gaps_in_text_are_gaps_in_training_as_in_jobs(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "a,city,ok,number,kind\n"
        + "1, lima,true,2,None\n" * 15
        + "2,rome ,,None,x\n" * 15
        + "3,,false,NA,\n3,NA,,,x\n"
    )
    data = load(DataConfig(source=str(path), label="kind"))
    assert isinstance(data.schema, TableSchema)
    assert data.schema.columns[1].categories == ("lima", "rome")
    observed = data.schema.read(data.values).observed
    assert observed.sum(axis=0).tolist() == [32, 30, 16, 15]
    # A label may be called so.
    assert data.labels is not None
    assert set(data.labels) == {"None", "x", ""}


@pytest.mark.parametrize("content", [b"", b"PAR1 nothing", b"\x80\x04."], ids=["empty", "broken", "pickle"])
@pytest.mark.parametrize("name", ["t.npy", "t.npz", "t.parquet", "t.png/t.png"])
def test_corrupt_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    source = path.parent if "/" in name else path
    with pytest.raises(DataError, match=f"^cannot read (image )?{re.escape(str(path))}: "):
        load(DataConfig(source=str(source)))


def test_pickled_arrays_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    np.save(path, np.array([{}] * 30, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        load(DataConfig(source=str(path)))


def test_arrays_with_labels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 3))
    np.savez(tmp_path / "t.npz", X=x, y=np.arange(30.0) % 2, kind=np.array(["u", "v", "w"] * 10))
    data = load(DataConfig(source=str(tmp_path / "t.npz")))
    np.testing.assert_array_equal(data.values, x)
    assert isinstance(data.values, pd.DataFrame)
    assert list(data.values.columns) == ["x0", "x1", "x2"]
    assert isinstance(data.schema, TableSchema)
    assert not data.schema.named
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1] * 15
    named = load(DataConfig(source=str(tmp_path / "t.npz"), label="kind"))
    assert named.labels is not None
    assert named.labels.tolist() == ["u", "v", "w"] * 10
    with pytest.raises(DataError, match=r"; did you mean 'kind'\?$"):
        load(DataConfig(source=str(tmp_path / "t.npz"), label="kinds"))


@pytest.mark.parametrize(
    ("dtype", "schema"),
    [(np.uint8, ImageSchema(1, 8, 9)), (np.int64, ImageSchema(1, 8, 9, "float32", 0.0, 255.0))],
)
def test_image_arrays_become_batches_of_channels(
    tmp_path: Path, dtype: type[np.integer[Any]], schema: ImageSchema
) -> None:
    x = np.random.default_rng(0).integers(0, 256, size=(30, 8, 9)).astype(dtype)
    np.save(tmp_path / "t.npy", x)
    data = load(DataConfig(source=str(tmp_path / "t.npy")))
    assert isinstance(data.values, np.ndarray)
    assert data.values.dtype == schema.dtype
    np.testing.assert_array_equal(data.values[:, 0], x)
    assert data.schema == schema


def test_digits_keep_their_levels() -> None:
    data = load(DataConfig())
    assert isinstance(data.values, np.ndarray)
    assert data.values.shape == (1797, 1, 8, 8)
    # The first bundled digit's first row is 0 0 5 13 9 1 0 0, in sixteenths.
    assert data.values[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert data.values.max() == 255
    assert data.labels is not None
    assert data.labels[:4].tolist() == [0, 1, 2, 3]


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    """The idx format: a magic number that ends in the number of dimensions, their sizes, the bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def tiny_mnist(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, size=(count, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    return tmp_path


@pytest.mark.parametrize(
    ("official_test", "sizes", "test_rows"),
    [
        ("keep", [42, 7, 11, 20], range(60, 80)),
        ("divide", [60, 5, 7, 8], None),
        ("merge", [48, 8, 12, 12], None),
    ],
)
def test_the_official_test_set(
    tiny_mnist: Path, official_test: Any, sizes: list[int], test_rows: Any
) -> None:
    config = DataConfig(source="fashion-mnist", data_root=str(tiny_mnist), official_test=official_test)
    data = load(config)
    assert isinstance(data.values, np.ndarray)
    assert data.values.shape == (80, 1, 28, 28)
    assert data.official_test is not None
    assert data.official_test.nonzero()[0].tolist() == list(range(60, 80))
    splits = split(data, config, seed=0)
    assert [len(part) for part in astuple(splits)] == sizes
    if official_test == "divide":
        assert splits.train.tolist() == list(range(60))
    if test_rows is not None:
        assert splits.test.tolist() == list(test_rows)
    assert sorted(np.concatenate(astuple(splits)).tolist()) == list(range(80))


def test_novel_rows_of_an_official_training_set_are_tested_too(tiny_mnist: Path) -> None:
    config = DataConfig(source="fashion-mnist", data_root=str(tiny_mnist), novel=(4,))
    data = load(config)
    splits = split(data, config, seed=0)
    assert data.labels is not None
    assert set(np.flatnonzero(data.labels == 4)) <= set(splits.test)
    assert set(range(60, 80)) <= set(splits.test)
    assert sorted(np.concatenate(astuple(splits)).tolist()) == list(range(80))


def test_absent_official_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^no readable mnist below {re.escape(str(tmp_path))}: .*MNIST/raw"):
        load(DataConfig(source="mnist", data_root=str(tmp_path)))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / ("cat" if i % 2 else "dog") / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, size=(9, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d} x.PNG", format="PNG")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folders_of_images(pictures: Path) -> None:
    data = load(DataConfig(source=str(pictures)))
    assert data.schema == ImageSchema(3, 9, 10)
    assert data.ids[:2].tolist() == ["cat/deep/01 x.PNG", "cat/deep/03 x.PNG"]
    assert data.labels is not None
    assert data.labels.tolist() == ["cat"] * 12 + ["dog"] * 12
    first = np.asarray(Image.open(pictures / "cat/deep/01 x.PNG"))
    assert isinstance(data.values, np.ndarray)
    np.testing.assert_array_equal(data.values[0], first.transpose(2, 0, 1))


def test_images_without_subfolders_have_no_labels(pictures: Path) -> None:
    for i in range(20):
        Image.new("L", (8, 8), i).save(pictures / "cat" / f"{i}.jpg")
    for file in (pictures / "cat" / "deep").iterdir():
        file.unlink()
    data = load(DataConfig(source=str(pictures / "cat")))
    assert data.labels is None
    assert data.schema == ImageSchema(1, 8, 8)


def test_mixed_images_are_unified_only_on_request(pictures: Path) -> None:
    Image.new("L", (20, 30), 7).save(pictures / "cat" / "deep" / "02.jpg")
    message = (
        "images differ: 'cat/deep/01 x.PNG' is 3x9x10, 'cat/deep/02.jpg' is 1x30x20 (channels x height x "
        "width); unify them with image_size and image_mode"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(DataConfig(source=str(pictures)))
    for mode, channels in (("rgb", 3), ("grey", 1)):
        data = load(DataConfig(source=str(pictures), image_mode=mode, image_size=(12, 8)))  # type: ignore[arg-type]
        assert data.schema == ImageSchema(channels, 12, 8)
        assert (data.values[1] == 7).all()


def test_images_that_would_lose_something_wait_for_a_word(pictures: Path) -> None:
    target = pictures / "cat" / "deep" / "01 x.PNG"
    Image.new("RGBA", (10, 9), (1, 2, 3, 0)).save(target)
    with pytest.raises(DataError, match=r"has mode RGBA; set image_mode to 'rgb' or 'grey' to convert$"):
        load(DataConfig(source=str(pictures)))
    assert load(DataConfig(source=str(pictures), image_mode="rgb")).values[0, :, 0, 0].tolist() == [1, 2, 3]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 10)).save(target, exif=exif)
    with pytest.raises(DataError, match="is rotated by EXIF"):
        load(DataConfig(source=str(pictures)))
    assert load(DataConfig(source=str(pictures), image_mode="rgb")).schema.shape == (3, 9, 10)
    Image.fromarray(np.zeros((9, 10), np.uint16)).save(target)
    with pytest.raises(DataError, match=r"has mode I;16, more than 8 bits; save it with 8 bits a channel$"):
        load(DataConfig(source=str(pictures), image_mode="grey"))


def test_a_limit_is_always_the_same_rows(pictures: Path) -> None:
    full, some = load(DataConfig(source=str(pictures))), load(DataConfig(source=str(pictures), limit=21))
    chosen = pick_rows(24, 21)
    assert len(chosen) == 21
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(some.values, full.values[chosen])
    assert some.ids.tolist() == full.ids[chosen].tolist()
    digits = load(DataConfig(limit=100))
    assert digits.ids.tolist() == pick_rows(1797, 100).tolist()
    assert digits.labels is not None
    assert len(set(digits.labels)) == 10


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source": "digitz"}, DataError, "no data at 'digitz'; did you mean 'digits'?"),
        ({"label": "y"}, ConfigError, "label is 'y', which means nothing for 'digits'; leave it out"),
        ({"official_test": "merge"}, ConfigError,
         "official_test is 'merge', which means nothing for 'digits'; leave it out"),
    ],
)  # fmt: skip
def test_settings_a_source_would_ignore_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        load(DataConfig(**change))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"fractions": {"train": 0.7}}, "fractions (0.7, 0.1, 0.15, 0.15) sum to 1.1; they must sum to 1"),
        ({"fractions": {"train": 0.0, "test": 0.75}},
         "fractions are (0.0, 0.1, 0.15, 0.75); give none below 0, and some to train"),
        ({"fractions": {"train": 0.75, "calibration": 0.0}},
         "fractions are (0.75, 0.1, 0.0, 0.15); give some to calibrate, or no score has a p-value"),
        ({"split_by": "time"}, "split_by is 'time' and split_column None; time and group need a column, "
         "random takes none"),
        ({"limit": 3}, "limit is 3; at least 20 rows are needed"),
        ({"image_size": [4, 9]}, "image_size is (4, 9); both sides must be at least 8 pixels"),
        ({"novell": [1]}, "unknown key 'novell' in [data]; did you mean 'novel'?"),
    ],
)  # fmt: skip
def test_impossible_configurations_are_refused(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        from_mapping(DataConfig, mapping, "data")
