"""Masks hide what they promise, the same cells for the same seed."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from vae_anomaly.exceptions import ConfigError
from vae_anomaly.masks import block, half, mcar

IMAGES = (50, 3, 9, 12)


def test_mcar_hides_the_share_asked_for() -> None:
    observed = mcar((1000, 100), 0.3, seed=1)
    # Binomial(100000, .3): standard deviation .00145 of the share.
    assert abs((~observed).mean() - 0.3) < 4 * 0.00145


@pytest.mark.parametrize(("share", "observed"), [(0.0, True), (1.0, False)])
def test_mcar_ends_are_exact(share: float, observed: bool) -> None:
    assert (mcar((40, 5), share, seed=0) == observed).all()


def test_block_hides_one_rectangle_in_all_channels() -> None:
    hidden = ~block(IMAGES, (4, 5), seed=3)
    assert (hidden.sum(axis=(1, 2, 3)) == 3 * 4 * 5).all()
    assert (hidden == hidden[:, :1]).all()
    for image in hidden[:, 0]:
        rows, columns = np.nonzero(image)
        assert [np.ptp(rows), np.ptp(columns)] == [3, 4]


def test_block_reaches_every_corner() -> None:
    hidden = ~block((2000, 1, 9, 12), 4, seed=0)[:, 0]
    assert hidden[:, [0, 0, -1, -1], [0, -1, 0, -1]].any(axis=0).all()


def test_a_block_as_large_as_the_image_hides_it() -> None:
    assert not block(IMAGES, (9, 12), seed=0).any()


@pytest.mark.parametrize(
    ("side", "visible"),
    [
        ("left", (slice(None), slice(6, None))),
        ("right", (slice(None), slice(0, 6))),
        ("top", (slice(4, None), slice(None))),
        ("bottom", (slice(0, 5), slice(None))),
    ],
)
def test_half_hides_its_side(side: str, visible: tuple[slice, slice]) -> None:
    expected = np.zeros(IMAGES, dtype=bool)
    expected[(..., *visible)] = True
    np.testing.assert_array_equal(half(IMAGES, side), expected)  # type: ignore[arg-type]


def test_the_seed_decides() -> None:
    for first, again, other in (
        [mcar((20, 5), 0.5, seed) for seed in (7, 7, 8)],
        [block(IMAGES, 3, seed) for seed in (7, 7, 8)],
    ):
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


def test_any_type_of_whole_number_is_the_size_of_a_block() -> None:
    for size in (np.int64(4), (np.uint8(4), 4), np.array([4, 4])):
        np.testing.assert_array_equal(block(IMAGES, size, 0), block(IMAGES, 4, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcar((2, 2), 1.5, 0), "share of hidden elements is 1.5; give a number from 0 to 1"),
        (lambda: mcar((2, 2), float("nan"), 0), "share of hidden elements is nan; give a number from 0 to 1"),
        (lambda: block((2, 1, 8, 8), 9, 0), "a hidden block of 9x9 does not fit into images of 8x8"),
        (lambda: block((2, 1, 8, 8), 2.5, 0), "size is 2.5; give a whole number"),  # type: ignore[arg-type]
        (lambda: block((2, 8), 2, 0), "shape is (2, 8); this mask is for images (B, C, H, W)"),
        (lambda: half((2, 1, 8, 8), "up"), "unknown side 'up'; choose from left, right, top, bottom"),  # type: ignore[arg-type]
    ],
    ids=["share", "nan", "block", "half", "table", "side"],
)
def test_impossible_masks_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        call()
