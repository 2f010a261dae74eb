"""Images as PNG data that stand inside the page: pixels, heatmaps, sheets of tiles."""

from __future__ import annotations

import base64
from io import BytesIO

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.report.metrics import Array, Bools, Floats
from vae_anomaly.schema import ImageSchema

Pixels = npt.NDArray[np.uint8]

# Small images are enlarged by whole factors up to about this side, so that their pixels stay square.
ENLARGED_SIDE = 56
GAP = 2
# A teal that stands on black and on white, absent from grey images and from the heatmaps' palette.
HIDDEN = (52, 152, 160)
PALETTE = "inferno"


def pixels(values: Array, schema: ImageSchema) -> Pixels:
    """Raw images, shape (B, C, H, W), as RGB, shape (B, H, W, 3).

    One channel is grey; three and four are RGB without alpha; other counts show their mean.
    """
    span = schema.high - schema.low
    scaled = np.nan_to_num((np.asarray(values, np.float64) - schema.low) / span, nan=0.0)
    image = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    if schema.channels not in (3, 4):
        return np.repeat(image.mean(axis=1).round().astype(np.uint8)[..., None], 3, axis=-1)
    return np.ascontiguousarray(image[:, :3].transpose(0, 2, 3, 1))


def masked(image: Pixels, hidden: Bools) -> Pixels:
    """Paint pixels of which any channel is hidden, shape (B, C, H, W), in a flat colour."""
    painted = np.any(hidden, axis=1, keepdims=True).transpose(0, 2, 3, 1)
    return np.where(painted, np.array(HIDDEN, np.uint8), image)


def heat(values: Floats, top: float) -> Pixels:
    """Numbers per element, shape (B, C, H, W), summed over channels, as colours from 0 to ``top``."""
    amount = np.clip(np.nan_to_num(values).sum(axis=1) / (top if top > 0 else 1.0), 0, 1)
    colours: Floats = matplotlib.colormaps[PALETTE](amount)
    return (colours[..., :3] * 255).round().astype(np.uint8)


def robust_top(values: Floats) -> float:
    """A common end for the colours of several heatmaps that one hot pixel cannot blind."""
    if not values.size:
        return 1.0
    return float(np.quantile(np.nan_to_num(values).sum(axis=1), 0.995)) or 1.0


def fitted(images: Pixels, side: int) -> Pixels:
    """Shrink to at most ``side`` pixels, or enlarge small images by a whole factor."""
    height, width = images.shape[1:3]
    longest = max(height, width)
    if longest > side:
        size = (max(1, round(width * side / longest)), max(1, round(height * side / longest)))
        shrunk = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images]
        return np.stack(shrunk) if shrunk else images
    factor = max(1, min(ENLARGED_SIDE, side) // longest)
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def sheet(images: Pixels, columns: int, side: int) -> str:
    """Tiles in rows of ``columns`` with transparent gaps, as a data address.

    Parameters
    ----------
    images : uint8 ndarray, shape (B, H, W, 3)
    columns : int
    side : int
        The longest side of a tile, in pixels.
    """
    tiles = fitted(images, side)
    count, height, width, _ = tiles.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        canvas[top : top + height, left : left + width, :3] = tile
        canvas[top : top + height, left : left + width, 3] = 255
    return address(Image.fromarray(canvas))


def address(image: Image.Image) -> str:
    """The picture as PNG in a ``data:`` address."""
    data = BytesIO()
    image.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
