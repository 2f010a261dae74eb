"""What is missing is said by a mask file, by transparency or by a number."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from file_samples import (
    CHUNKS,
    COLOUR,
    FORMATS,
    GREY,
    IMAGES,
    NAMED,
    ROWS,
    TABLE,
    Write,
    ids_of,
    observed_of,
    read,
    rejects_of,
    rows_csv,
    values_of,
    write_arrow,
    write_csv,
    write_images,
)
from PIL import Image

from serving.formats import ReadOptions, open_source
from vae_anomaly.exceptions import DataError
from vae_anomaly.schema import Schema


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


FLAT = Image.fromarray(np.full((8, 10), 200, dtype=np.uint8))


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
