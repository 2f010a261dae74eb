"""Images to choose defaults on: made of what comes with scikit-learn and Pillow, none of them reported on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SIDE = 28
LETTERS = "ABEGKRSXYZ"
COPIES = 4
LETTERS_EACH = 600
PATCHES = 3_000
# Of the large sets: as many images of a class as the reported ones have.
MANY_COPIES = 72
MANY_LETTERS = 12_000


def picture_sets() -> Iterator[tuple[str, Images, npt.NDArray[np.bool_]]]:
    """Name, images and which of them are anomalies: a class novel, flips, another kind of picture."""
    digits, digit = warped_digits()
    letters, letter = warped_letters()
    patches, photograph = photograph_patches()
    for novel in (1, 4, 9):
        yield f"warped digits, {novel}", digits, digit == novel
    for novel in (1, 4):
        yield f"letters, {LETTERS[novel]}", letters, letter == novel
    yield "letters, digits", *joined(letters, digits)
    yield "digits, letters", *joined(digits, letters)
    yield "letters, flipped left-right", *joined(letters, letters[:, :, ::-1])
    yield "letters, flipped up-down", *joined(letters, letters[:, ::-1])
    yield "a photograph, another", patches, photograph == 1


def large_picture_sets() -> Iterator[tuple[str, Images, npt.NDArray[np.bool_]]]:
    """The like with ten times the images and more: a class novel, one class normal, flips, another kind."""
    digits, digit = warped_digits(MANY_COPIES)
    letters, letter = warped_letters(MANY_LETTERS)
    for novel in (0, 1, 5, 9):
        yield f"warped digits, {novel}", digits, digit == novel
    for novel in (0, 1, 4, 7):
        yield f"letters, {LETTERS[novel]}", letters, letter == novel
    for normal in (2, 7):
        yield f"only warped digits, {normal}", digits, digit != normal
    yield f"only letters, {LETTERS[3]}", letters, letter != 3
    yield "letters, digits", *joined(letters, digits)
    yield "digits, letters", *joined(digits, letters)
    yield "letters, flipped left-right", *joined(letters, letters[:, :, ::-1])


def joined(normal: Images, strange: Images) -> tuple[Images, npt.NDArray[np.bool_]]:
    """Normal images and every fourth strange one."""
    strange = strange[::4]
    return np.concatenate([normal, strange]), np.arange(len(normal) + len(strange)) >= len(normal)


def warped_digits(copies: int = COPIES) -> tuple[Images, Labels]:
    """scikit-learn's 8x8 digits at 28x28, turned, sheared and moved."""
    digits = load_digits()
    small = torch.from_numpy(digits.images / 16).float()[:, None]
    large = ((interpolate(small, size=(40, 40), mode="bicubic") - 0.35) / 0.3).clamp(0, 1)
    rng = np.random.default_rng(0)
    images = torch.cat([warped(large, rng) for _ in range(copies)])
    return as_bytes(images), np.tile(digits.target, copies)


def warped_letters(each: int = LETTERS_EACH) -> tuple[Images, Labels]:
    """Ten letters in sizes, greys and stripes: mostly black, as pictures of clothes on a table are."""
    rng, drawn = np.random.default_rng(1), []
    for letter in LETTERS:
        for _ in range(each):
            picture = Image.new("L", (40, 40))
            font = ImageFont.load_default(size=int(rng.integers(24, 36)))
            ImageDraw.Draw(picture).text((20, 20), letter, fill=255, font=font, anchor="mm")
            drawn.append(np.asarray(picture) / 255)
    images = warped(torch.from_numpy(np.stack(drawn)).float()[:, None], rng)
    grey = torch.from_numpy(rng.uniform(0.4, 1, (len(images), 1, 1, 1))).float()
    rows = torch.arange(SIDE)[:, None] * torch.from_numpy(rng.choice([0, 0.75, 1.5], (len(images), 1, 1, 1)))
    stripes = 1 - 0.35 * (torch.sin(rows) > 0).float()
    return as_bytes(images * grey * stripes), np.repeat(np.arange(len(LETTERS)), each)


def photograph_patches() -> tuple[Images, Labels]:
    """Patches of scikit-learn's two photographs, in grey at half size."""
    rng, found = np.random.default_rng(2), []
    for photograph in load_sample_images().images:
        grey = torch.from_numpy(photograph.mean(axis=-1)).float()[None, None]
        half = interpolate(grey, scale_factor=0.5, mode="area")[0, 0].numpy()
        places = [rng.integers(0, length - SIDE, PATCHES) for length in half.shape]
        found += [half[i : i + SIDE, j : j + SIDE] for i, j in zip(*places, strict=True)]
    return np.rint(np.stack(found)).astype(np.uint8), np.repeat([0, 1], PATCHES)


def warped(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image (n, 1, h, w) under an affine map of its own, shape (n, 1, SIDE, SIDE)."""
    n = len(images)
    angle, shear = rng.uniform(-0.25, 0.25, n), rng.uniform(-0.25, 0.25, n)
    size = 1 / rng.uniform(0.8, 1.05, n)
    maps = np.zeros((n, 2, 3))
    maps[:, 0, 0], maps[:, 0, 1] = size * np.cos(angle), size * (shear - np.sin(angle))
    maps[:, 1, 0], maps[:, 1, 1] = size * np.sin(angle), size * np.cos(angle)
    maps[:, :, 2] = rng.uniform(-0.16, 0.16, (n, 2))
    grid = affine_grid(torch.from_numpy(maps).float(), [n, 1, SIDE, SIDE], align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def as_bytes(images: Tensor) -> Images:
    """Grey from 0 to 1 as bytes, shape (n, SIDE, SIDE)."""
    rounded: Images = (images[:, 0] * 255).round().byte().numpy()
    return rounded
