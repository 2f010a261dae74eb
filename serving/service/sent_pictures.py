"""Pictures as they are sent: PNG or JPEG, transparent pixels missing, a mask beside them if wanted."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np

from serving.chunks import ReadOptions
from serving.pictures import BadImageError, check_schema, read_image
from serving.service.options import Options
from serving.service.problems import Problem
from vae_anomaly.schema import Array, ImageSchema, Mask, Samples

PICTURES_HINT = 'send {"images": [{"image": "<PNG in base64>", "mask": "<PNG in base64, black = missing>"}]}'
# Codes of `BadImageError` that mean a broken file; every other one is a good file that does not fit.
BROKEN = {"unreadable", "not_an_image", "empty_file", "truncated"}


def read_pictures(sent: Any, schema: ImageSchema, options: Options, max_pixels: int) -> Samples:
    """Pictures of a JSON body, each with its mask if there is one.

    Raises
    ------
    Problem
        400 for what is damaged, 413 for what announces too many pixels, 422 for what does not fit.
    """
    if not isinstance(sent, list):
        raise Problem(422, "bad_sample", "images is not a list", hint=PICTURES_HINT, field="images")
    read = [_image(item, i, schema, options, max_pixels) for i, item in enumerate(sent)]
    values = np.array([values for values, _ in read]).reshape(-1, *schema.shape)
    observed = np.array([observed for _, observed in read], np.bool_).reshape(-1, *schema.shape)
    return schema.read(values.astype(schema.dtype), observed)


def _image(item: Any, row: int, schema: ImageSchema, options: Options, max_pixels: int) -> tuple[Array, Mask]:
    if not isinstance(item, dict) or "image" not in item or set(item) - {"image", "mask"}:
        detail = f"image {row} is not an object with the members 'image' and, if wanted, 'mask'"
        raise Problem(422, "bad_sample", detail, hint=PICTURES_HINT, row=row)
    values, observed = read_picture(_decoded(item["image"], "image", row), schema, options, max_pixels, row)
    if item.get("mask") is not None:
        observed = observed & _mask(_decoded(item["mask"], "mask", row), schema, row)
    return values, observed


def _decoded(text: Any, name: str, row: int) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else None, validate=True)  # type: ignore[arg-type]
    except (binascii.Error, ValueError, TypeError) as error:
        raise Problem(
            400,
            "bad_base64",
            f"{name} {row} is not base64",
            hint="encode the file's bytes",
            field=name,
            row=row,
        ) from error


def read_picture(
    data: bytes, schema: ImageSchema, options: Options, max_pixels: int, row: int | None = None
) -> tuple[Array, Mask]:
    """Pixels of one picture's bytes, and where they are opaque, both (C, H, W); raises as `read_pictures`."""
    check_schema(schema, convert=True)
    reading = ReadOptions(alpha_is_mask=True, convert=options.convert)
    try:
        return read_image(io.BytesIO(data), schema, reading, max_pixels=max_pixels)
    except BadImageError as error:
        raise _bad_image(error, row) from error


def _bad_image(error: BadImageError, row: int | None) -> Problem:
    detail, _, hint = error.detail.partition("; ")
    if error.reason == "image_bomb":
        return Problem(413, "image_bomb", detail, hint="send a smaller picture", row=row)
    status, code = (400, "bad_image") if error.reason in BROKEN else (422, error.reason)
    hint = hint.replace("--convert", "convert=true") or "send a whole PNG or JPEG that fits GET /v1/model"
    return Problem(status, code, detail, hint=hint, row=row)


def _mask(data: bytes, schema: ImageSchema, row: int) -> Mask:
    """Where a grey picture of the model's size is not black."""
    grey = ImageSchema(1, schema.height, schema.width)
    reading = ReadOptions(alpha_is_mask=True)
    try:
        values, _ = read_image(io.BytesIO(data), grey, reading)
    except BadImageError as error:
        problem = _bad_image(error, row)
        problem.field = "mask"
        raise problem from error
    return np.asarray(values >= 128)
