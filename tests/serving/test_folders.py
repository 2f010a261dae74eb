"""Folders of images: order, bad files, and what `convert` does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_samples import (
    CHUNKS,
    COLOUR,
    GREY,
    IMAGES,
    UNIT,
    ids_of,
    read,
    rejects_of,
    values_of,
    write_images,
)
from PIL import Image

from serving.formats import open_source
from vae_anomaly.exceptions import SchemaError
from vae_anomaly.schema import ImageSchema


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
