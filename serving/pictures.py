"""PNG and JPEG files as arrays that fit a model, and arrays as PNG."""

from __future__ import annotations

import errno
import stat
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from serving.chunks import ReadOptions
from vae_anomaly.exceptions import SchemaError
from vae_anomaly.schema import Array, ImageSchema, Mask

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
GREY = ("1", "L", "LA", "La")
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_AT = 24  # byte of the header with the bits per sample
HALF = 128  # darker is black, more transparent is missing
WHITE = (255, 255, 255, 255)
# Float models whose range ends here or below take fractions, not 0..255; so says `ImageSchema.read`.
FRACTIONS_BELOW = 2.0


class BadImageError(Exception):
    """A picture to be set aside.

    Attributes
    ----------
    reason : str
        A stable code.
    detail : str
        What was wrong, in words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def check_schema(schema: ImageSchema, convert: bool) -> None:
    """Raise `SchemaError` if no image file can fit the model."""
    if schema.channels not in MODES:
        raise SchemaError(
            f"image files have 1 to 4 channels, the model takes {schema.channels}; save the images as .npy"
        )
    if takes_fractions(schema) and not convert:
        raise SchemaError(
            f"image files hold 0 to 255, the model was trained on {schema.low:g} to {schema.high:g}; "
            "pass --convert to rescale them"
        )


def takes_fractions(schema: ImageSchema) -> bool:
    """Whether 0..255 must be rescaled for this model."""
    return schema.dtype == "float32" and schema.high <= FRACTIONS_BELOW


def open_image(source: Path | BytesIO) -> Image.Image:
    """A picture with its pixels not yet decoded, whatever its size.

    Parameters
    ----------
    source : Path or BytesIO
        A file, or its bytes.

    Raises
    ------
    BadImageError
        If it is no PNG or JPEG, cannot be reached, or announces too many pixels.
    """
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
            raise BadImageError("not_a_file", "not an ordinary file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(source, formats=FORMATS)
    except BadImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise BadImageError("image_bomb", f"it announces more than {limit} pixels") from error
    except UnidentifiedImageError as error:
        raise _unidentified(source) from error
    except OSError as error:
        reason = "symlink_loop" if error.errno == errno.ELOOP else "unreadable"
        raise BadImageError(reason, f"cannot open it: {error.strerror}") from error
    except Exception as error:  # decoders raise many kinds on hostile bytes
        raise BadImageError("unreadable", "not a valid PNG or JPEG") from error


def _unidentified(source: Path | BytesIO) -> BadImageError:
    if not (source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes):
        return BadImageError("empty_file", "the file has no bytes")
    return BadImageError("not_an_image", "not a PNG or JPEG")


def read_image(
    source: Path | BytesIO, schema: ImageSchema, options: ReadOptions, max_pixels: int | None = None
) -> tuple[Array, Mask]:
    """Pixels of one picture, and where they are present.

    Parameters
    ----------
    source : Path or BytesIO
        A file, or its bytes.
    schema : ImageSchema
    options : ReadOptions
    max_pixels : int, optional
        Refuse larger pictures before they are decoded; Pillow's own bound by default.

    Returns
    -------
    values : ndarray, shape (C, H, W)
        uint8, or float32 in the model's range.
    observed : bool ndarray, shape (C, H, W)

    Raises
    ------
    BadImageError
        If the file cannot be read, or does not fit and ``options.convert`` is off.
    """
    with open_image(source) as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise BadImageError("image_bomb", f"it announces more than {max_pixels:,} pixels")
        if not options.convert:
            _refuse_misfit(image, source, schema, options.alpha_is_mask)
        _decode(image)
        if not options.convert:
            _refuse_rotation(image)  # a PNG may say so after its pixels
        pixels, opaque = _adapt(ImageOps.exif_transpose(image), schema, options.alpha_is_mask)
    values = np.asarray(pixels).reshape(schema.height, schema.width, schema.channels).transpose(2, 0, 1)
    observed = np.broadcast_to(opaque, values.shape)
    if options.missing_value is not None:
        observed = observed & ~np.all(values == options.missing_value, axis=0)
    values = pixels_in(np.ascontiguousarray(values), schema)
    try:
        schema.read(values[None], observed[None])
    except SchemaError as error:
        raise BadImageError("wrong_units", str(error)) from error
    return values, observed


def _decode(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # as above
        raise BadImageError("truncated", "the file is cut short or damaged") from error


def _refuse_misfit(
    image: Image.Image, source: Path | BytesIO, schema: ImageSchema, alpha_is_mask: bool
) -> None:
    if image.format == "JPEG" or "exif" in image.info:
        _refuse_rotation(image)
    if _bits(source) == 16:
        raise BadImageError(
            "sixteen_bit", "expected 8 bits per channel, received 16; pass --convert to shorten"
        )
    colours = 1 if image.mode in GREY else 3
    alpha = image.has_transparency_data
    if alpha and schema.channels in (1, 3) and not alpha_is_mask:
        raise BadImageError(
            "alpha", "it has transparency; pass --alpha-is-mask, or --convert to lay it on white"
        )
    received = (colours + (alpha and schema.channels in (2, 4)), image.height, image.width)
    if received != schema.shape or image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        expected = "x".join(map(str, schema.shape))
        detail = f"expected {expected}, received {'x'.join(map(str, received))} ({image.mode})"
        raise BadImageError("wrong_shape", f"{detail}; pass --convert to adapt")


def _refuse_rotation(image: Image.Image) -> None:
    if image.getexif().get(ORIENTATION, 1) != 1:
        raise BadImageError("exif_rotation", "EXIF asks to turn it; pass --convert to turn it")


def _bits(source: Path | BytesIO) -> int:
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(PNG_DEPTH_AT + 1)
    else:
        head = bytes(source.getbuffer()[: PNG_DEPTH_AT + 1])
    return head[PNG_DEPTH_AT] if head.startswith(PNG_SIGNATURE) else 8


def _adapt(image: Image.Image, schema: ImageSchema, alpha_is_mask: bool) -> tuple[Image.Image, Mask]:
    """The picture in the model's mode and size, and where it is opaque, shape (H, W)."""
    size, mode = (schema.width, schema.height), MODES[schema.channels]
    opaque = np.ones((schema.height, schema.width), dtype=np.bool_)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if alpha_is_mask:
            opaque = ~dark(image.getchannel("A").resize(size, Image.Resampling.NEAREST))
        elif mode in ("L", "RGB"):
            image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
        # By way of RGB, which drops the transparency and keeps grey exact.
        image = image.convert("RGB") if mode in ("L", "RGB") else image
    image = image.convert(mode)
    return (image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)), opaque


def dark(image: Image.Image) -> Mask:
    """Where a grey picture is black, shape (H, W)."""
    return np.asarray(image) < HALF


def pixels_in(values: Array, schema: ImageSchema) -> Array:
    """8 bit pixels in the model's own range and dtype."""
    if schema.dtype == "uint8":
        return values
    if not takes_fractions(schema):
        return values.astype(np.float32)
    return (values / 255 * (schema.high - schema.low) + schema.low).astype(np.float32)


def pixels_out(values: Array, schema: ImageSchema) -> Array:
    """The reverse of `pixels_in`, rounded, for values of any dtype."""
    if takes_fractions(schema):
        values = (values - schema.low) / (schema.high - schema.low) * 255
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def to_picture(pixels: Array) -> Image.Image:
    """Pixels of shape (C, H, W), uint8, as a picture."""
    channels_last = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return Image.fromarray(channels_last[..., 0] if len(pixels) == 1 else channels_last)
