"""Stored noise: the draws of z behind scores and imputations."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_bank(draws: int, latent_size: int, seed: int = 0) -> Tensor:
    """Standard normal draws that fill space evenly, shape (K, L).

    A scrambled Sobol sequence through the normal's inverse distribution function: the mean over
    K draws varies less than with independent ones.

    References
    ----------
    .. [1] Owen, "Scrambling Sobol' and Niederreiter-Xing points", J. Complexity 1998.
       https://doi.org/10.1006/jcom.1998.0487
    """
    if latent_size > torch.quasirandom.SobolEngine.MAXDIM:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(draws, latent_size, generator=generator)
    engine = torch.quasirandom.SobolEngine(latent_size, scramble=True, seed=seed)
    points: Tensor = engine.draw(draws, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    noise: Tensor = torch.special.ndtri(points).float()
    return noise
