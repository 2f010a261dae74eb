"""What is hidden: boolean arrays called ``observed``, True where a value is present.

Every mask is reproducible by its seed and is made before anything looks at the values, so
the cells that it hides are missing completely at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from vae_anomaly.exceptions import ConfigError

Mask = npt.NDArray[np.bool_]
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
    if not 0 <= share <= 1:
        raise ConfigError(f"share of hidden elements is {share}; give a number from 0 to 1")
    # random() < 1 always, so a share of 0 hides nothing and a share of 1 everything.
    return np.random.default_rng(seed).random(tuple(shape)) >= share


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
        If ``shape`` is not that of images or the rectangle does not fit into one.
    """
    count, _, height, width = _image_shape(shape)
    high, wide = (size, size) if isinstance(size, int) else size
    if not (0 <= high <= height and 0 <= wide <= width):
        raise ConfigError(f"a hidden block of {high}x{wide} does not fit into images of {height}x{width}")
    rng = np.random.default_rng(seed)
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


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    if len(shape) != 4:
        raise ConfigError(f"shape is {tuple(shape)}; this mask is for images (B, C, H, W)")
    count, channels, height, width = shape
    return count, channels, height, width
