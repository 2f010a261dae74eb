"""MAR, MNAR and the masks of images: who decides, what is hidden, how much."""

import re

import numpy as np
import pandas as pd
import pytest

from vae_anomaly.exceptions import ConfigError
from vae_anomaly.masks import Mask, drawn, given, hidden_share, mar, mcar, mnar, pixels, stripes

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((4000, 6)) @ RNG.standard_normal((6, 6))
# Four deviations of the share of 24,000 coins.
TOLERANCE = 4 * 0.5 / np.sqrt(TABLE.size)
IMAGES = (20, 3, 8, 10)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_mar_hides_the_share_asked_for(share: float) -> None:
    assert abs(hidden_share(mar(TABLE, share, 0)) - share) < TOLERANCE


def test_mar_is_decided_by_columns_that_stay_visible() -> None:
    observed = mar(TABLE, 0.4, 1)
    deciding = observed.all(axis=0)
    assert deciding.sum() == 2
    # Given the deciding columns alone, a change of any other value moves nothing.
    other = TABLE.copy()
    other[:, ~deciding] = RNG.standard_normal(other[:, ~deciding].shape)
    np.testing.assert_array_equal(mar(other, 0.4, 1), observed)
    moved = TABLE.copy()
    moved[:, deciding] = -moved[:, deciding]
    assert (mar(moved, 0.4, 1) != observed).any()


@pytest.mark.parametrize(("tail", "sign"), [("high", 1), ("low", -1)])
def test_mnar_hides_values_of_its_tail(tail: str, sign: int) -> None:
    observed = mnar(TABLE, 0.3, 0, tail=tail)  # type: ignore[arg-type]
    assert abs(hidden_share(observed) - 0.3) < TOLERANCE
    for column, seen in zip(TABLE.T, observed.T, strict=True):
        assert sign * (column[~seen].mean() - column[seen].mean()) > column.std()


@pytest.mark.parametrize("mechanism", [mar, mnar], ids=["mar", "mnar"])
def test_what_is_hidden_does_not_hang_on_the_unit(mechanism: object) -> None:
    expected: Mask = mechanism(TABLE, 0.3, 0)  # type: ignore[operator]
    for unit in (2.0**-990, 2.0**1000):
        np.testing.assert_array_equal(mechanism(unit * TABLE, 0.3, 0), expected)  # type: ignore[operator]


def test_mnar_by_quantile_hides_exactly_the_largest_of_the_columns_named() -> None:
    observed = mnar(TABLE, 0.25, 0, process="quantile", columns=[1, 4])
    assert observed[:, [0, 2, 3, 5]].all()
    for column in (1, 4):
        seen = observed[:, column]
        assert (~seen).sum() == 1000
        assert TABLE[~seen, column].min() > TABLE[seen, column].max()


def test_mnar_of_both_tails_hides_what_is_far_from_the_mean() -> None:
    column = np.linspace(-1, 1, 101)[:, None]
    observed = mnar(column, 0.2, 0, tail="both", process="quantile")[:, 0]
    np.testing.assert_array_equal(observed, np.abs(column[:, 0]) < 0.805)


@pytest.mark.parametrize("mechanism", [mar, mnar], ids=["mar", "mnar"])
def test_what_was_missing_stays_missing_and_does_not_count(mechanism: object) -> None:
    gaps = TABLE.copy()
    present = mcar(gaps.shape, 0.2, 3)
    gaps[~present] = np.nan
    observed: Mask = mechanism(gaps, 0.3, 0)  # type: ignore[operator]
    assert not observed[~present].any()
    assert abs(hidden_share(observed, present) - 0.3) < TOLERANCE


@pytest.mark.parametrize("mechanism", [mar, mnar], ids=["mar", "mnar"])
@pytest.mark.parametrize("dtype", ["Float64", "object"])
def test_a_frame_with_nulls_is_masked_as_its_numbers_are(mechanism: object, dtype: str) -> None:
    gaps = np.where(mcar(TABLE.shape, 0.2, 3), TABLE, np.nan)
    frame = pd.DataFrame(gaps).astype(dtype)
    found = mechanism(frame.mask(frame.isna(), pd.NA), 0.3, 0)  # type: ignore[operator]
    np.testing.assert_array_equal(found, mechanism(gaps, 0.3, 0))  # type: ignore[operator]


def test_given_patterns_are_drawn_whole() -> None:
    patterns = np.array([[True, False, True], [False, True, True]])
    observed = given((500, 3), patterns, 0)
    first = (observed == patterns[0]).all(axis=1)
    assert (first | (observed == patterns[1]).all(axis=1)).all()
    assert 200 < first.sum() < 300


def test_pixels_hide_all_channels_at_once() -> None:
    observed = pixels((200, 3, 8, 10), 0.5, 0)
    assert (observed == observed[:, :1]).all()
    assert abs(hidden_share(observed) - 0.5) < 4 * 0.5 / np.sqrt(200 * 80)


@pytest.mark.parametrize(("along", "axis"), [("rows", 2), ("columns", 3)])
def test_stripes_have_their_width_and_gap(along: str, axis: int) -> None:
    hidden = ~stripes((30, 1, 12, 12), 2, 4, 0, along=along)  # type: ignore[arg-type]
    lines = hidden.any(axis=(1, 5 - axis))
    assert (lines == hidden.all(axis=(1, 5 - axis))).all()
    assert (lines.sum(axis=1) == 4).all()
    assert (lines[:, :6] == lines[:, 6:]).all()
    assert len(np.unique(lines, axis=0)) == 6


def test_a_drawn_mask_hides_what_it_paints() -> None:
    picture = np.zeros((8, 10), dtype=np.uint8)
    picture[2:4, 5] = 255
    observed = drawn(IMAGES, picture)
    assert (~observed).sum() == 20 * 3 * 2
    assert not observed[:, :, 2:4, 5].any()


def test_hidden_share_of_an_empty_table_is_zero() -> None:
    assert hidden_share(np.empty((0, 3))) == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: mar(TABLE, 0.3, seed),
        lambda seed: mnar(TABLE, 0.3, seed),
        lambda seed: given((50, 2), [[True, False], [False, True]], seed),
        lambda seed: pixels(IMAGES, 0.3, seed),
        lambda seed: stripes(IMAGES, 2, 3, seed),
    ],
    ids=["mar", "mnar", "given", "pixels", "stripes"],
)
def test_each_mask_follows_its_seed(make: object) -> None:
    first, again, other = (make(seed) for seed in (4, 4, 5))  # type: ignore[operator]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: mar(TABLE, 0.9, 0),
            "mar hides at most 0.67 of this table, got a share of 0.9; ask for less",
        ),
        (
            lambda: mar(TABLE[:, :1], 0.1, 0),
            "values have shape (4000, 1); this mask is for tables (B, D) of 2 columns or more",
        ),
        (
            lambda: mnar(TABLE, 0.3, 0, tail="upper"),  # type: ignore[arg-type]
            "unknown tail 'upper'; choose from high, low, both",
        ),
        (
            lambda: mnar(TABLE, 0.3, 0, columns=["a"]),  # type: ignore[list-item]
            "columns hold 'a'; give places from 0 to 5",
        ),
        (lambda: mnar(TABLE, 0.3, 0, columns=[7]), "columns hold 7; give places from 0 to 5"),
        (lambda: mnar(TABLE, 0.3, 0, columns=[True]), "columns hold True; give places from 0 to 5"),
        (
            lambda: mnar([["low", "high"]], 0.3, 0),
            "column '0' has dtype str; expected numbers: convert it or leave it out",
        ),
        (
            lambda: mar(pd.DataFrame({"a": [1.0, np.inf], "b": 0.0}), 0.3, 0),
            "column 'a' holds infinite values; use NaN for a missing value",
        ),
        (
            lambda: mnar(TABLE, 1.3, 0),
            "share of hidden elements is 1.3; give a number from 0 to 1",
        ),
        (lambda: mcar((3, 3), "a", 0), "share of hidden elements is 'a'; give a number from 0 to 1"),  # type: ignore[arg-type]
        (lambda: mcar((3, 3), 0.5, -1), "seed is -1; give 0 or more"),
        (lambda: mar(TABLE, 0.3, 0.5), "seed is 0.5; give a whole number"),  # type: ignore[arg-type]
        (
            lambda: given((5, 3), np.ones((2, 4), dtype=bool), 0),
            "patterns have shape (2, 4); for samples of shape (3,) give (P, 3) with P at least 1",
        ),
        (
            lambda: stripes(IMAGES, 0, 3, 0),
            "stripes need a width and a gap of at least 1, got 0 and 3",
        ),
        (
            lambda: drawn(IMAGES, np.zeros((10, 8))),
            "the drawn mask has shape (10, 8); these images need (8, 10)",
        ),
    ],
    ids=[
        "mar share",
        "mar table",
        "tail",
        "name",
        "place",
        "flag",
        "text",
        "infinite",
        "mnar share",
        "no share",
        "seed",
        "half a seed",
        "patterns",
        "stripes",
        "drawn",
    ],
)
def test_refusals_say_what_to_do(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make()  # type: ignore[operator]
