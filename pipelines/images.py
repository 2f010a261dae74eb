"""Folders of image files as one array."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pipelines.sources import Raw, pick_rows
from vae_anomaly.exceptions import DataError

Array = npt.NDArray[Any]
ImageMode = Literal["as-is", "grey", "rgb"]

SUFFIXES = (".jpg", ".jpeg", ".png")
CHANNELS = {"1": "L", "L": "L", "RGB": "RGB", "P": "RGB"}  # Pillow's modes that lose nothing as uint8
CONVERTIBLE = {*CHANNELS, "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
EXIF_ORIENTATION = 0x0112


def read_folder(folder: Path, mode: ImageMode, size: tuple[int, int] | None, limit: int | None) -> Raw:
    """Every JPEG and PNG image below a folder, in the order of their paths, which are the ids.

    The name of the first-level subfolder is the label; without subfolders there is none.
    """
    found = sorted(
        os.path.relpath(Path(place, name), folder)
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
    if not found:
        raise DataError(f"no image below {folder}; expected {', '.join(SUFFIXES)} files")
    names = [found[i] for i in pick_rows(len(found), limit)]
    first = read_image(folder / names[0], mode, size)
    values = np.empty((len(names), *first.shape), dtype=np.uint8)
    for i, name in enumerate(names):
        image = read_image(folder / name, mode, size)
        if image.shape != first.shape:
            raise DataError(
                f"images differ: {names[0]!r} is {_shape(first)}, {name!r} is {_shape(image)} (channels x "
                "height x width); unify them with image_size and image_mode"
            )
        values[i] = image
    paths = [_printable(Path(name).as_posix()) for name in names]
    labels = [path.partition("/")[0] if "/" in path else "" for path in paths]
    return Raw(values, np.array(paths, dtype=object), np.array(labels, dtype=object) if any(labels) else None)


def read_image(path: Path, mode: ImageMode, size: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    """One image file as uint8 (C, H, W), one channel when grey and three when RGB.

    Parameters
    ----------
    path : Path
    mode : {"as-is", "grey", "rgb"}
        "as-is" keeps the channels and refuses what would lose something: transparency,
        CMYK, a rotation kept in EXIF. The other two convert, and rotate.
    size : (height, width), optional
        Resized to, bilinear, with antialiasing.
    """
    try:
        with Image.open(path) as opened:
            image = _convert(opened, path, mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read image {path}: {error}") from error
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _convert(image: Image.Image, path: Path, mode: ImageMode) -> Image.Image:
    if image.mode not in CONVERTIBLE:
        raise DataError(
            f"image {path} has mode {image.mode}, more than 8 bits; save it with 8 bits a channel"
        )
    rotated = image.getexif().get(EXIF_ORIENTATION, 1) != 1
    if mode == "as-is":
        if image.mode not in CHANNELS or "transparency" in image.info:
            raise DataError(
                f"image {path} has mode {image.mode}; set image_mode to 'rgb' or 'grey' to convert"
            )
        if rotated:
            raise DataError(f"image {path} is rotated by EXIF; set image_mode to 'rgb' or 'grey' to convert")
        return image.convert(CHANNELS[image.mode])
    return ImageOps.exif_transpose(image).convert("L" if mode == "grey" else "RGB")


def _shape(image: Array) -> str:
    return "x".join(str(side) for side in image.shape)


def _printable(name: str) -> str:
    """The name with bytes that are no UTF-8 written as backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
