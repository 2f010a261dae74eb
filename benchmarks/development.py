"""Tables to choose defaults on: scikit-learn's own sets and synthetic ones, none of them reported on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from benchmarks.cells import Rows

Labels = npt.NDArray[np.bool_]


def development_sets() -> Iterator[tuple[str, Rows, Labels]]:
    """Sets that come with scikit-learn, one class novel, as tables and as images, and two synthetic ones."""
    breast, wine, digits = load_breast_cancer(), load_wine(), load_digits()
    yield "breast, malignant", breast.data, breast.target == 0
    yield "wine, third", wine.data, wine.target == 2
    for digit in (1, 4, 7):
        yield f"digits, {digit}", digits.data, digits.target == digit
    for digit in (1, 3, 8):
        yield f"digits as images, {digit}", digits.images / 16, digits.target == digit
    yield from synthetic_sets()


def synthetic_sets(linear_rows: int = 2500, curve_rows: int = 2000) -> Iterator[tuple[str, Rows, Labels]]:
    """Rows on a plane and off it, rows on a curve and the same with their columns shuffled."""
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((3, 10))
    linear = rng.standard_normal((linear_rows, 3)) @ loadings + 0.3 * rng.standard_normal((linear_rows, 10))
    scattered = rng.standard_normal((linear_rows // 5, 10)) * linear.std(axis=0)
    yield (
        "linear, no factors",
        np.concatenate([linear, scattered]),
        np.arange(linear_rows + len(scattered)) >= linear_rows,
    )
    angle = rng.uniform(0, 6, (curve_rows, 1))
    curve = np.concatenate([np.cos(angle), np.sin(angle), angle, np.sin(2 * angle)], axis=1)
    curve += 0.05 * rng.standard_normal(curve.shape)
    shuffled = rng.permuted(curve[: curve_rows // 5], axis=0)
    yield (
        "curve, columns shuffled",
        np.concatenate([curve, shuffled]),
        np.arange(curve_rows + len(shuffled)) >= curve_rows,
    )
