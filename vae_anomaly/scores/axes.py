"""Principal axes of training data, kept few."""

from __future__ import annotations

import torch
from torch import Tensor

# Largest covariance kept whole; beyond it the leading directions are, and the rest
# share one variance (probabilistic PCA).
FULL_COVARIANCE = 512
LEADING_DIRECTIONS = 128
# Share of the mean variance added to every direction, for collapsed units.
RIDGE = 1e-4
# Powers of the covariance applied to a random subspace: spectra of latents fall fast enough for four.
SUBSPACE_ITERATIONS = 4


def principal(centred: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """Directions (L, R), their variances (R,), and the variance of all others (None if R = L)."""
    rows, latent = centred.shape
    if latent <= FULL_COVARIANCE:
        covariance = centred.T @ centred / rows + torch.diag(diagonal)
        variances, directions = torch.linalg.eigh(covariance)
        return directions, variances.clamp_min(0) + RIDGE * variances.mean() + 1e-12, None
    directions, variances = _leading(centred.float(), max(1, min(LEADING_DIRECTIONS, rows - 1)))
    total, noise = (centred**2).sum() / rows, diagonal.mean()
    floor = noise + RIDGE * (total / latent + noise) + 1e-12
    others = (total - variances.sum()).clamp_min(0) / (latent - len(variances))
    return directions, variances + floor, float(others + floor)


def _leading(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors (L, R) and eigenvalues (R,) of the covariance, by subspace iteration.

    `torch.svd_lowrank` does the same from the global generator: scores would depend on it.
    """
    start = torch.randn(centred.shape[1], count, generator=torch.Generator().manual_seed(0))
    basis, rows = start.to(centred), len(centred)
    for _ in range(SUBSPACE_ITERATIONS):
        basis = torch.linalg.qr(centred.T @ (centred @ basis))[0]
    _, singular, right = torch.linalg.svd(centred @ basis, full_matrices=False)
    return basis @ right.T, singular.double() ** 2 / rows
