"""Training masks have the shares and shapes they promise, from their generator alone."""

import math

import pytest
import torch

from vae_anomaly.training import random_masks


def test_random_masks_touch_a_share_of_the_rows() -> None:
    rows, generator = 20_000, torch.Generator().manual_seed(0)
    observed = random_masks(torch.Size((rows, 50)), None, 0.3, generator)
    touched = ~observed.all(dim=1)
    # A touched row hides nothing with probability 1 / 51.
    expected = 0.3 * 50 / 51
    assert abs(touched.float().mean() - expected) < 4.5 * math.sqrt(0.21 / rows)
    hidden = (~observed).float().mean(dim=1)[touched]
    # Uniform: every number of hidden cells is as likely as any other.
    assert hidden.mean().item() == pytest.approx(0.5 * 51 / 50, abs=0.02)
    assert hidden.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.02)
    counts = torch.histc(hidden * 50, bins=50, min=0.5, max=50.5)
    mean = len(hidden) / 50
    # Quantile .999 of chi-square with 49 degrees of freedom.
    assert ((counts - mean) ** 2 / mean).sum() < 85.35


@pytest.mark.parametrize(("share", "touched"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_ends_of_the_share_are_exact(share: float, touched: float) -> None:
    observed = random_masks(torch.Size((500, 3 * 400)), (3, 20, 20), share, torch.Generator().manual_seed(0))
    # An empty rectangle touches nothing: 1 - (20/21)^2 of half the rows.
    expected = touched * (1 - 0.5 * (1 - (20 / 21) ** 2))
    assert (~observed).any(dim=1).float().mean().item() == pytest.approx(expected, abs=0.04)


def test_half_of_the_images_lose_a_rectangle_all_channels_together() -> None:
    rows, shape = 4000, (2, 12, 15)
    observed = random_masks(torch.Size((rows, 360)), shape, 1.0, torch.Generator().manual_seed(0))
    hidden = ~observed.reshape(rows, *shape)
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    image = hidden[:, 0]
    high, wide = image.any(dim=2), image.any(dim=1)
    filled = (image == (high[:, :, None] & wide[:, None, :])).flatten(1).all(dim=1)
    contiguous = torch.stack(
        [(part.long().diff(dim=1) == 1).sum(dim=1) + part[:, 0] <= 1 for part in (high, wide)]
    )
    rectangle = filled & contiguous.all(dim=0)
    # Pixels rarely form a rectangle: with 0, 1 or all of them hidden, 3 / 181, and a few pairs.
    assert rectangle.float().mean().item() == pytest.approx(0.51, abs=0.035)
    assert [part[rectangle].sum(dim=1).max().item() for part in (high, wide)] == [12, 15]
    corners = image[rectangle][:, [0, 0, -1, -1], [0, -1, 0, -1]].any(dim=0)
    assert corners.all()


def test_random_masks_are_their_generator() -> None:
    first, again, other = (
        random_masks(torch.Size((20, 64)), (1, 8, 8), 0.5, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
