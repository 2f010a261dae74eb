"""What is hidden: boolean arrays called ``observed``, True where a value is present.

Every mask is reproducible by its seed. What is missing completely at random (`mcar`, `given` and all
masks of images) is made before anything looks at the values; `mar` looks at other columns that stay
visible, `mnar` at the value that it hides. `hidden_share` says what share a mask really hid.

References
----------
.. [1] Rubin, "Inference and Missing Data", Biometrika 1976. https://doi.org/10.1093/biomet/63.3.581
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from vae_anomaly.choices import whole_number
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.mechanisms import Mask, check_share, check_word, generator, mar, mnar

__all__ = [
    "Mask",
    "block",
    "drawn",
    "given",
    "half",
    "hidden_share",
    "mar",
    "mcar",
    "mnar",
    "pixels",
    "stripes",
]
Side = Literal["left", "right", "top", "bottom"]


def mcar(shape: Sequence[int], share: float, seed: int) -> Mask:
    """Hide every element on its own with probability ``share``.

    Parameters
    ----------
    shape : sequence of int
        Of the data: (B, D), (B, C, H, W) or any other.
    share : float
        Expected share of hidden elements, in [0, 1].
    seed : int

    Returns
    -------
    bool ndarray of that shape, True = observed

    Raises
    ------
    ConfigError
        If ``share`` lies outside [0, 1].

    Examples
    --------
    >>> mcar((2, 3), 0.5, seed=0)
    array([[ True, False, False],
           [False,  True,  True]])
    """
    check_share(share)
    # random() < 1 always, so a share of 0 hides nothing and a share of 1 everything.
    return generator(seed).random(tuple(shape)) >= share


def given(shape: Sequence[int], patterns: npt.ArrayLike, seed: int) -> Mask:
    """Rows that miss what other rows were seen to miss: patterns drawn with replacement.

    Parameters
    ----------
    shape : (B, ...)
    patterns : bool array-like, shape (P, ...), True = observed
        For example ``~numpy.isnan(table)`` of real data.
    seed : int

    Returns
    -------
    bool ndarray of that shape, True = observed

    Raises
    ------
    ConfigError
        If there is no pattern, or patterns are of another shape than the rows.
    """
    kinds = np.asarray(patterns, dtype=np.bool_)
    if not len(kinds) or kinds.shape[1:] != tuple(shape[1:]):
        raise ConfigError(
            f"patterns have shape {kinds.shape}; for samples of shape {tuple(shape[1:])} give (P, "
            f"{', '.join(map(str, shape[1:]))}) with P at least 1"
        )
    drawn: Mask = kinds[generator(seed).integers(len(kinds), size=shape[0])]
    return drawn


def pixels(shape: Sequence[int], share: float, seed: int) -> Mask:
    """Hide single pixels with probability ``share``, in all channels at once.

    Parameters
    ----------
    shape : (B, C, H, W)
    share : float
    seed : int

    Returns
    -------
    bool ndarray, shape (B, C, H, W), True = observed

    Raises
    ------
    ConfigError
        If ``shape`` is not that of images or ``share`` lies outside [0, 1].
    """
    count, _, height, width = _image_shape(shape)
    return np.broadcast_to(mcar((count, 1, height, width), share, seed), tuple(shape)).copy()


def block(shape: Sequence[int], size: int | tuple[int, int], seed: int) -> Mask:
    """Hide one rectangle per image, anywhere inside it, in all channels at once.

    Parameters
    ----------
    shape : (B, C, H, W)
    size : int or (height, width)
        Of the rectangle, in pixels; an int for a square.
    seed : int

    Returns
    -------
    bool ndarray, shape (B, C, H, W), True = observed

    Raises
    ------
    ConfigError
        If ``shape`` is not that of images or the rectangle does not fit into one, in whole numbers.
    """
    count, _, height, width = _image_shape(shape)
    sides: Any = size if np.ndim(size) else (size, size)
    high, wide = (whole_number("size", side) for side in sides)
    if not (0 <= high <= height and 0 <= wide <= width):
        raise ConfigError(f"a hidden block of {high}x{wide} does not fit into images of {height}x{width}")
    rng = generator(seed)
    top = rng.integers(0, height - high + 1, size=(count, 1, 1, 1))
    left = rng.integers(0, width - wide + 1, size=(count, 1, 1, 1))
    row = np.arange(height).reshape(1, 1, height, 1)
    column = np.arange(width).reshape(1, 1, 1, width)
    hidden = (row >= top) & (row < top + high) & (column >= left) & (column < left + wide)
    return np.broadcast_to(~hidden, tuple(shape)).copy()


def half(shape: Sequence[int], side: Side) -> Mask:
    """Hide one half of every image; the middle line of an odd size stays visible.

    Parameters
    ----------
    shape : (B, C, H, W)
    side : {"left", "right", "top", "bottom"}
        The half that is hidden.

    Returns
    -------
    bool ndarray, shape (B, C, H, W), True = observed

    Raises
    ------
    ConfigError
        If ``shape`` is not that of images or ``side`` is none of the four.
    """
    _, _, height, width = _image_shape(shape)
    hidden: dict[str, tuple[slice, slice]] = {
        "left": (slice(None), slice(0, width // 2)),
        "right": (slice(None), slice(width - width // 2, None)),
        "top": (slice(0, height // 2), slice(None)),
        "bottom": (slice(height - height // 2, None), slice(None)),
    }
    if side not in hidden:
        raise ConfigError(f"unknown side {side!r}; choose from {', '.join(get_args(Side))}")
    observed = np.ones(tuple(shape), dtype=np.bool_)
    observed[(..., *hidden[side])] = False
    return observed


def stripes(
    shape: Sequence[int], width: int, gap: int, seed: int, *, along: Literal["rows", "columns"] = "rows"
) -> Mask:
    """Hide stripes of ``width`` pixels, ``gap`` pixels apart, shifted at random per image.

    Parameters
    ----------
    shape : (B, C, H, W)
    width, gap : int
        Hidden and visible pixels in turn.
    seed : int
        Of the shift.
    along : {"rows", "columns"}
        Horizontal or vertical stripes.

    Returns
    -------
    bool ndarray, shape (B, C, H, W), True = observed

    Raises
    ------
    ConfigError
        If ``shape`` is not that of images, ``width`` or ``gap`` is below 1, or ``along`` unknown.
    """
    count, _, height, wide = _image_shape(shape)
    check_word("along", along, ("rows", "columns"))
    if min(width, gap) < 1:
        raise ConfigError(f"stripes need a width and a gap of at least 1, got {width} and {gap}")
    shift = generator(seed).integers(width + gap, size=(count, 1))
    side = height if along == "rows" else wide
    visible = (np.arange(side) + shift) % (width + gap) >= width
    lines = visible[:, None, :, None] if along == "rows" else visible[:, None, None, :]
    return np.broadcast_to(lines, tuple(shape)).copy()


def drawn(shape: Sequence[int], picture: npt.ArrayLike) -> Mask:
    """Hide in every image what a drawn mask paints: its pixels other than 0.

    Parameters
    ----------
    shape : (B, C, H, W)
    picture : array-like, shape (H, W)
        For example ``numpy.asarray(PIL.Image.open("mask.png").convert("L"))``.

    Returns
    -------
    bool ndarray, shape (B, C, H, W), True = observed

    Raises
    ------
    ConfigError
        If ``shape`` is not that of images or the picture has another size.
    """
    _, _, height, width = _image_shape(shape)
    painted = np.asarray(picture)
    if painted.shape != (height, width):
        raise ConfigError(f"the drawn mask has shape {painted.shape}; these images need {(height, width)}")
    return np.broadcast_to(painted == 0, tuple(shape)).copy()


def hidden_share(observed: npt.ArrayLike, present: npt.ArrayLike | None = None) -> float:
    """Share of cells that a mask really hid, of those that were present before it.

    Parameters
    ----------
    observed : bool array-like
        The mask, True = observed.
    present : bool array-like, optional
        What was present before it; everything if left out.

    Returns
    -------
    float
        0 where nothing was present.

    Examples
    --------
    >>> hidden_share(mcar((2, 3), 0.5, seed=0))
    0.5
    """
    seen = np.asarray(observed, dtype=np.bool_)
    before = np.ones(seen.shape, dtype=np.bool_) if present is None else np.asarray(present, dtype=np.bool_)
    return float((before & ~seen).sum() / max(1, before.sum()))


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    if len(shape) != 4:
        raise ConfigError(f"shape is {tuple(shape)}; this mask is for images (B, C, H, W)")
    count, channels, height, width = shape
    return count, channels, height, width
