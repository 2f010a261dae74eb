"""Raw values <-> model space, as modules that are exported inside the graphs.

Model space is flat and float32: shape (B, D), zero where nothing was observed.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vae_anomaly.exceptions import DataError
from vae_anomaly.schema import ImageSchema, Mask, Samples, Schema, TableSchema

log = logging.getLogger(__name__)

# Standardised units beyond which a table's cell is clipped: far outside any training range, and
# small enough that squares and products of it stay finite in float32.
TABLE_LIMIT = 1e4


class Encoded(NamedTuple):
    """Samples in model space.

    Attributes
    ----------
    x : Tensor, shape (B, D)
        Zero where not observed.
    observed : bool Tensor, shape (B, D)
    clipped : int64 Tensor, shape (B,)
        Observed cells that lay outside the model's range.
    """

    x: Tensor
    observed: Tensor
    clipped: Tensor


class ImageEncoding(nn.Module):
    """Pixels to [low, high] of the likelihood, and back.

    Parameters
    ----------
    schema : ImageSchema
    low, high : float
        The likelihood's range: 0 and 1, or -1 and 1 for a tanh output.
    """

    def __init__(self, schema: ImageSchema, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.shape = schema.shape
        self.raw_low, self.raw_high = schema.low, schema.high
        self.low = low
        self.scale = (high - low) / (schema.high - schema.low)
        self.dtype = torch.uint8 if schema.dtype == "uint8" else torch.float32

    def forward(self, x: Tensor, observed: Tensor) -> Encoded:
        """Read raw images (B, C, H, W) with their mask."""
        x, observed = x.flatten(1), observed.flatten(1)
        if self.dtype == torch.uint8:
            clipped = torch.zeros_like(x[:, 0], dtype=torch.int64)
            pixels = x.float()
        else:
            observed = observed & ~torch.isnan(x)
            outside = observed & ((x < self.raw_low) | (x > self.raw_high))
            clipped = outside.long().sum(dim=1)
            pixels = x.clamp(self.raw_low, self.raw_high)
        y = (pixels - self.raw_low) * self.scale + self.low
        return Encoded(torch.where(observed, y, 0.0), observed, clipped)

    def decode(self, y: Tensor) -> Tensor:
        """Model space (..., D) to raw units (..., C, H, W), float32, inside the raw range."""
        raw = (y - self.low) / self.scale + self.raw_low
        image: Tensor = raw.clamp(self.raw_low, self.raw_high).unflatten(-1, self.shape)
        return image

    def decode_scale(self, deviation: Tensor) -> Tensor:
        """A standard deviation (..., D) in model space, in raw units (..., C, H, W)."""
        image: Tensor = (deviation / self.scale).unflatten(-1, self.shape)
        return image


class TableEncoding(nn.Module):
    """Standardised columns, computed in float64 so that large offsets keep their digits.

    Parameters
    ----------
    mean, scale : float64 Tensor, shape (D,)
        Raw units; the scale of a constant column is 1.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean.double())
        self.register_buffer("scale", scale.double())
        self.dtype = torch.float64

    @classmethod
    def fit(cls, samples: Samples, schema: TableSchema) -> TableEncoding:
        """Mean and standard deviation of the observed cells of each column.

        Raises
        ------
        DataError
            If a column holds no value at all.
        """
        seen = np.asarray(samples.observed.any(axis=0)).tolist()
        empty = [name for name, some in zip(schema.names, seen, strict=True) if not some]
        if empty:
            raise DataError(
                f"training column {empty[0]!r} has no value in any row; leave it out with --exclude"
            )
        mean, scale = _moments(samples.values, samples.observed)
        constant = [name for name, s in zip(schema.names, scale, strict=True) if s == 0]
        if constant:
            log.warning("constant training columns, kept with scale 1: %s", ", ".join(constant))
        return cls(torch.from_numpy(mean), torch.from_numpy(np.where(scale == 0, 1.0, scale)))

    def forward(self, x: Tensor, observed: Tensor) -> Encoded:
        """Read raw rows (B, D), float64, with their mask."""
        observed = observed & ~torch.isnan(x)
        units = (torch.where(observed, x, self.mean) - self.mean) / self.scale
        clipped = (units.abs() > TABLE_LIMIT).long().sum(dim=1)
        return Encoded(units.clamp(-TABLE_LIMIT, TABLE_LIMIT).float(), observed, clipped)

    def decode(self, y: Tensor) -> Tensor:
        """Standardised units (..., D) to raw units, float64."""
        return y.double() * self.scale + self.mean

    def decode_scale(self, deviation: Tensor) -> Tensor:
        """A standard deviation in standardised units, in raw units, float64."""
        return deviation.double() * self.scale


Encoding = ImageEncoding | TableEncoding


def fit_encoding(schema: Schema, samples: Samples, output_range: tuple[float, float]) -> Encoding:
    """The encoding for a schema, its statistics taken from training samples."""
    if isinstance(schema, ImageSchema):
        return ImageEncoding(schema, *output_range)
    return TableEncoding.fit(samples, schema)


def _moments(values: np.ndarray, observed: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per column.

    Divided by a power of two, so that 1e300 does not overflow and no digit is lost; measured from
    a value of the column, so that a constant one has exactly no deviation.
    """
    filled = np.where(observed, values, 0.0)
    exponent = np.frexp(np.abs(filled).max(axis=0))[1]
    unit = np.ldexp(filled, -exponent)
    origin = np.take_along_axis(unit, observed.argmax(axis=0)[None], axis=0)
    count = observed.sum(axis=0)
    shift = np.where(observed, unit - origin, 0.0)
    mean = shift.sum(axis=0) / count
    deviation = np.sqrt((np.where(observed, shift - mean, 0.0) ** 2).sum(axis=0) / count)
    # A few last bits are rounding of the source, not spread.
    deviation = np.where(deviation <= 4 * np.finfo(np.float64).eps, 0.0, deviation)
    return np.ldexp(origin[0] + mean, exponent), np.ldexp(deviation, exponent)
