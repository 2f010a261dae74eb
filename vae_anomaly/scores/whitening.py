"""Principal axes of training data, kept few."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vae_anomaly.likelihoods import sum_elements

# Largest covariance kept whole; beyond it the leading directions are, and the rest share one
# variance (probabilistic PCA).
FULL_COVARIANCE = 512
LEADING_DIRECTIONS = 128
# Share of the mean variance added to every direction, for collapsed units.
RIDGE = 1e-4
# Smallest variance of a direction, as a share of the largest, where directions may be dropped: below
# it, differences of activations are rounding of float32.
KEPT = 1e-3
# Powers of the covariance applied to a random subspace: spectra of latents fall fast enough for four.
SUBSPACE_ITERATIONS = 4
BLOCK = 8


class Whitening(nn.Module):
    """Coordinates along principal axes, in units of the standard deviation there.

    Stored as eigenvectors: an inverse does not export. More than `FULL_COVARIANCE` features keep
    the leading directions and share one variance in all others, as in probabilistic PCA [1]_. Rows
    are whitened in the precision of what is stored: a code's offset may be a hundred times its spread.

    Parameters
    ----------
    centre : Tensor, shape (F,)
    directions : Tensor, shape (F, R)
    variances : Tensor, shape (R,)
        Float64 or float32, all three alike.
    rest : float, optional
        The variance of all other directions; None if there are none.

    References
    ----------
    .. [1] Tipping & Bishop, "Probabilistic Principal Component Analysis", JRSS B 1999.
       https://doi.org/10.1111/1467-9868.00196
    """

    def __init__(
        self, centre: Tensor, directions: Tensor, variances: Tensor, rest: float | None = None
    ) -> None:
        super().__init__()
        self.centre: Tensor
        self.directions: Tensor
        self.precisions: Tensor
        self.register_buffer("centre", centre)
        # Empty directions fill a block: torch's product with five, seven or nine columns rounds a row
        # by its place in the batch.
        self.kept = directions.shape[1]
        fill = -self.kept % BLOCK
        self.register_buffer("directions", pad(directions, (0, fill)))
        self.register_buffer("precisions", pad(1 / variances, (0, fill)))
        self.rest = rest

    @classmethod
    def fit(cls, rows: Tensor, diagonal: Tensor | None = None) -> Whitening:
        """From the covariance (divisor n) of rows (N, F), plus a diagonal (F,) if given."""
        rows = rows.double()
        centre = rows.mean(dim=0)
        diagonal = torch.zeros_like(centre) if diagonal is None else diagonal.double()
        return cls(centre, *_principal(rows - centre, diagonal))

    @classmethod
    def leading(cls, rows: Tensor) -> Whitening:
        """From rows (N, F), without the directions whose variance is all but none; in float32.

        At most half as many directions as rows: along all that there are, rows less one, each of these rows
        is equally far from their mean, whatever it is, and others seem nearer. The mean squared norm of
        these rows is the number of directions kept, R.
        """
        rows = rows.detach().double()
        centre = rows.mean(dim=0)
        if rows.shape[1] <= FULL_COVARIANCE:
            variances, directions = torch.linalg.eigh((rows - centre).T @ (rows - centre) / len(rows))
        else:
            directions, variances = leading_directions((rows - centre).float())
        most = min(max(1, len(rows) // 2), len(variances))
        kept = variances >= torch.maximum(KEPT * variances.max(), variances.topk(most).values[-1])
        # Rows that are all alike have no variance at all.
        return cls(centre.float(), directions[:, kept].float(), variances[kept].clamp_min(1e-12).float())

    @classmethod
    def unscaled(cls, rows: Tensor) -> Whitening:
        """Centred rows (N, F) in their own units; of more than `FULL_COVARIANCE` the leading directions."""
        rows = rows.double()
        centre, features = rows.mean(dim=0), rows.shape[1]
        if features <= FULL_COVARIANCE:
            directions = torch.eye(features, dtype=rows.dtype, device=rows.device)
        else:
            directions = leading_directions((rows - centre).float())[0]
        return cls(centre, directions, torch.ones(directions.shape[1], dtype=rows.dtype, device=rows.device))

    def forward(self, rows: Tensor) -> Tensor:
        """Coordinates of rows (B, F) along the directions kept, shape (B, R)."""
        coordinates: Tensor = self._centred(rows) @ self.directions * self.precisions.sqrt()
        return coordinates[:, : self.kept].to(rows.dtype)

    def squared_norm(self, rows: Tensor) -> Tensor:
        """(h - c)' S^-1 (h - c) of rows (B, F), all directions included, shape (B,)."""
        centred = self._centred(rows)
        leading = centred @ self.directions
        distance = sum_elements(leading**2 * self.precisions)
        if self.rest is not None:
            distance = distance + sum_elements((centred - leading @ self.directions.T) ** 2) / self.rest
        return distance.to(rows.dtype)

    def _centred(self, rows: Tensor) -> Tensor:
        return rows.to(self.centre.dtype) - self.centre


def leading_directions(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors (F, R) and eigenvalues (R,) of the covariance, by subspace iteration.

    `torch.svd_lowrank` does the same from the global generator: scores would depend on it.
    """
    rows, count = len(centred), max(1, min(LEADING_DIRECTIONS, len(centred) - 1))
    start = torch.randn(centred.shape[1], count, generator=torch.Generator().manual_seed(0))
    basis = start.to(centred)
    for _ in range(SUBSPACE_ITERATIONS):
        basis = torch.linalg.qr(centred.T @ (centred @ basis))[0]
    _, singular, right = torch.linalg.svd(centred @ basis, full_matrices=False)
    return (basis @ right.T).double(), singular.double() ** 2 / rows


def _principal(centred: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """Directions (F, R), their variances (R,), and the variance of all others (None if R = F)."""
    rows, features = centred.shape
    if features <= FULL_COVARIANCE:
        covariance = centred.T @ centred / rows + torch.diag(diagonal)
        variances, directions = torch.linalg.eigh(covariance)
        return directions, variances.clamp_min(0) + RIDGE * variances.mean() + 1e-12, None
    directions, variances = leading_directions(centred.float())
    total, noise = (centred**2).sum() / rows, diagonal.mean()
    floor = noise + RIDGE * (total / features + noise) + 1e-12
    others = (total - variances.sum()).clamp_min(0) / (features - len(variances))
    return directions, variances + floor, float(others + floor)
