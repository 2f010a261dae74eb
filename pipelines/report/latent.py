"""Latent space as pictures: two dimensions to look at, and a grid to decode."""

from __future__ import annotations

import math

import numpy as np

from pipelines.report.metrics import Floats
from pipelines.report.protocols import EvaluatedBundle
from pipelines.report.results import Traversal

STEPS = 11
REACH = 3.0


def two_dimensions(means: Floats) -> tuple[Floats, tuple[str, str]]:
    """Latent means as they are for L = 2, padded with 0 for L = 1, else their two principal axes."""
    size = means.shape[1]
    if size <= 2:
        return np.pad(means, ((0, 0), (0, 2 - size))), ("latent 1", "latent 2" if size == 2 else "")
    centred = means - means.mean(axis=0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    if len(axes) < 2:
        return np.pad(centred @ axes.T, ((0, 0), (0, 1))), ("first principal axis", "")
    # A sign that does not depend on the linear algebra library: the largest coordinate is positive.
    signs = np.sign(axes[np.arange(len(axes)), np.argmax(np.abs(axes), axis=1)])
    share = spread**2 / max(float(np.sum(spread**2)), math.ulp(1.0))
    names = tuple(f"principal axis {i + 1} ({share[i]:.0%})" for i in range(2))
    return centred @ (axes * signs[:, None])[:2].T, (names[0], names[1])


def traversal(bundle: EvaluatedBundle, means: Floats) -> Traversal:
    """Decode a grid over the two dimensions in which the latent means vary most.

    A VAE's prior is standard normal: the grid runs from -3 to 3, every other dimension at 0. An
    autoencoder has no prior: its grid is the mean plus -3 to 3 standard deviations.
    """
    steps = np.linspace(-REACH, REACH, STEPS)
    variational = bundle.kind == "vae"
    centre = np.zeros(means.shape[1]) if variational else means.mean(axis=0)
    unit = np.ones(means.shape[1]) if variational else means.std(axis=0)
    across, *rest = np.argsort(-means.var(axis=0), kind="stable")[:2].tolist()
    ys = steps[::-1] if rest else np.zeros(1)
    z = np.tile(centre, (len(ys) * STEPS, 1))
    z[:, across] += np.tile(steps, len(ys)) * unit[across]
    for down in rest:
        z[:, down] += np.repeat(ys, STEPS) * unit[down]
    where = "the other dimensions stay at 0" if variational else "the other dimensions stay at their mean"
    units = "" if variational else " standard deviations around the mean"
    vertical = f", bottom to top: dimension {rest[0] + 1} likewise" if rest else ""
    caption = f"Left to right: latent dimension {across + 1} from -3 to 3{units}{vertical}; {where}."
    return Traversal(np.asarray(bundle.decode(z.astype(np.float32))), STEPS, caption)
