"""Images of one size, and how raw pixels are read as one."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from vae_anomaly.exceptions import SchemaError
from vae_anomaly.samples import Array, Mask, Samples, array_of, mask_of, numbers_of, refuse_infinite

log = logging.getLogger(__name__)

# Share of pixels outside the trained range above which an image batch is in other units: of all, or of those
# other than the darkest, which a dark background is in any units.
OUT_OF_RANGE_SHARE = 0.5
# Of the latter if more than strays: hot pixels are fewer, the ink of a sparse drawing is more.
STRAY_SHARE = 0.02
# A model of floats up to here is of 0..1 or -1..1, one beyond of levels such as 0..255.
UNIT_AT_MOST = 2


@dataclass(frozen=True)
class ImageSchema:
    """Images of one size.

    Attributes
    ----------
    channels, height, width : int
    dtype : {"uint8", "float32"}
        What the graphs take; other dtypes are cast where that loses nothing.
    low, high : float
        The range of pixel values, in raw units.
    """

    channels: int
    height: int
    width: int
    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0
    kind: ClassVar[str] = "image"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)

    @property
    def elements(self) -> int:
        """D = C * H * W."""
        return self.channels * self.height * self.width

    @property
    def features(self) -> int:
        """F = D, the numbers of one image in model space."""
        return self.elements

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, read back by `schema_from_dict`."""
        return {"kind": self.kind, **asdict(self)}

    def read(self, x: Any, observed: Any = None, *, strict: bool = False) -> Samples:
        """Cast images to the model's dtype and shape (B, C, H, W).

        Parameters
        ----------
        x : array-like, shape (B, C, H, W), (B, H, W) for one channel, or (B, C*H*W)
            NaN means missing.
        observed : bool array-like, optional
            Same shape as ``x``, or (B, H, W) to hide all channels at once.
        strict : bool
            Images have no categories to be strict about.

        Raises
        ------
        SchemaError
            If shape, dtype or range do not fit, naming expected and received.
        """
        pixels = array_of(x, "pixels")
        self._refuse_truths(pixels)
        values = numbers_of(pixels, "pixels")
        values = values.reshape(self._batch_shape(values.shape))
        present = self._read_observed(observed, values.shape)
        if values.dtype.kind == "f":
            present &= ~np.isnan(values)
            refuse_infinite(values, "image")
        if values.dtype != np.uint8 or self.dtype != "uint8":
            self._check_units(values[present])
        return Samples(self._cast(values, present), present)

    def clipped_by_cast(self, x: Any, observed: Mask) -> npt.NDArray[np.int64]:
        """Observed pixels per image that `read` clipped in its cast to uint8, shape (B,).

        Parameters
        ----------
        x : array-like
            As given to `read`.
        observed : bool ndarray, shape (B, C, H, W)
            As `read` returned it.
        """
        values = np.asarray(x)
        if self.dtype != "uint8" or values.dtype == np.uint8:
            return np.zeros(len(observed), dtype=np.int64)
        pixels = numbers_of(values, "pixels").reshape(observed.shape)
        outside = observed & ((pixels < 0) | (pixels > 255))
        return np.asarray(outside.sum(axis=(1, 2, 3)), dtype=np.int64)

    def _batch_shape(self, got: tuple[int, ...]) -> tuple[int, ...]:
        flat = got[1:] == (self.elements,)
        grey = self.channels == 1 and got[1:] == (self.height, self.width)
        if got[1:] == self.shape or flat or grey:
            return (got[0], *self.shape)
        expected = f"(B, {self.channels}, {self.height}, {self.width})"
        if got[1:] == (self.height, self.width, self.channels):
            raise SchemaError(
                f"images have shape {got}, channels last; expected {expected}; "
                "move the channels with x.transpose(0, 3, 1, 2)"
            )
        if got == self.shape or (self.channels == 1 and got == self.shape[1:]):
            raise SchemaError(f"got one image of shape {got}; expected a batch {expected}; pass x[None]")
        raise SchemaError(f"images have shape {got}; expected {expected}")

    def _read_observed(self, observed: Any, shape: tuple[int, ...]) -> Mask:
        if observed is None:
            return np.ones(shape, dtype=np.bool_)
        mask = mask_of(observed)
        if mask.shape == (shape[0], self.height, self.width):
            mask = mask[:, None]
        elif mask.shape == (shape[0], self.elements):
            mask = mask.reshape(shape)
        if mask.ndim != 4 or mask.shape not in (shape, (shape[0], 1, self.height, self.width)):
            raise SchemaError(f"observed has shape {np.shape(observed)}; expected {shape}, as the images")
        return np.broadcast_to(mask, shape).copy()

    def _refuse_truths(self, pixels: Array) -> None:
        if pixels.dtype.kind == "b" and self.high > UNIT_AT_MOST:
            raise SchemaError(
                f"pixels are booleans, the model was trained on {self.low:g} to {self.high:g}; rescale them "
                "to the trained range"
            )

    def _check_units(self, values: Array) -> None:
        if not values.size:
            return
        units = self.high <= UNIT_AT_MOST
        # The reverse: a whole batch of 0..1 floats where 0..255 was trained.
        shrunk = not units and 0 < np.max(values) <= 1 and np.min(values) >= 0
        if self._mostly_outside(values, units) or (shrunk and np.any(values % 1)):
            raise SchemaError(
                f"pixels run from {np.min(values):g} to {np.max(values):g}, the model was trained on "
                f"{self.low:g} to {self.high:g}; rescale them to the trained range"
            )

    def _mostly_outside(self, values: Array, units: bool) -> bool:
        margin = 0.5 * (self.high - self.low)
        outside = (values < self.low - margin) | (values > self.high + margin)
        if values.dtype == np.uint8 and units:  # bytes have no strays: they are levels up to 255
            return bool(outside.any())
        share = float(outside.mean())
        lit = max(1, np.count_nonzero(values != np.min(values)))
        among_lit = float(outside.sum() / lit)
        return share > OUT_OF_RANGE_SHARE or (share > STRAY_SHARE and among_lit > OUT_OF_RANGE_SHARE)

    def _cast(self, values: Array, present: Mask) -> Array:
        if self.dtype == "float32":
            low, high = np.finfo(np.float32).min, np.finfo(np.float32).max
            return np.clip(values, low, high).astype(np.float32) if values.dtype != np.float32 else values
        if values.dtype == np.uint8:
            return values
        filled = np.where(present, values, 0)
        if values.dtype.kind == "f" and np.any(filled % 1):
            raise SchemaError(
                "pixels are not whole numbers, the model was trained on uint8; round them first"
            )
        log.info("pixels cast from %s to uint8", values.dtype)
        return np.clip(filled, 0, 255).astype(np.uint8)


def infer_image(values: Array) -> ImageSchema:
    """The schema of training images, shape (B, C, H, W)."""
    _, channels, height, width = values.shape
    if channels > 4 >= width:
        raise SchemaError(
            f"images have shape {values.shape}, channels last; move them with x.transpose(0, 3, 1, 2)"
        )
    if min(height, width) < 8:
        raise SchemaError(f"images are {height}x{width}; both sides must be at least 8 pixels")
    if values.dtype == np.uint8:
        return ImageSchema(channels, height, width)
    refuse_infinite(values, "image")
    present = values[~np.isnan(values)]
    low, high = (float(present.min()), float(present.max())) if present.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return ImageSchema(channels, height, width, "float32", low, high if high > low else low + 1.0)
