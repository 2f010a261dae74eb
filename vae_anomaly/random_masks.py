"""Masks that training puts on rows, so that one model answers any pattern of gaps."""

from __future__ import annotations

import torch
from torch import Tensor


def random_masks(
    shape: torch.Size, image: tuple[int, int, int] | None, share: float, generator: torch.Generator
) -> Tensor:
    """Masks for training, shape (B, D): a share of the rows loses a uniform share of its elements.

    Tables lose single cells. Of the images half lose pixels and half a random rectangle, all
    channels together.
    """
    rows, device = shape[0], generator.device
    masked = torch.rand(rows, 1, generator=generator, device=device) < share
    hidden_share = torch.rand(rows, 1, generator=generator, device=device)
    if image is None:
        hidden = torch.rand(shape, generator=generator, device=device) < hidden_share
        return ~(hidden & masked)
    channels, height, width = image
    pixels = torch.rand(rows, height * width, generator=generator, device=device) < hidden_share
    rectangles = _rectangles(rows, height, width, generator).flatten(1)
    as_rectangle = torch.rand(rows, 1, generator=generator, device=device) < 0.5
    hidden = torch.where(as_rectangle, rectangles, pixels)
    return ~(hidden & masked).repeat(1, channels)


def _rectangles(rows: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """One random rectangle per row, True inside, shape (B, H, W)."""
    inside = []
    for side in (height, width):
        ends = (torch.rand(rows, 2, generator=generator, device=generator.device) * (side + 1)).long()
        place = torch.arange(side, device=generator.device)
        low, high = ends.amin(dim=1, keepdim=True), ends.amax(dim=1, keepdim=True)
        inside.append((place >= low) & (place < high))
    return inside[0][:, :, None] & inside[1][:, None, :]
