"""How far a sample's posterior mean is from those of the training data."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_anomaly.likelihoods import sum_elements
from vae_anomaly.scores.base import Evidence, Score, TrainingEvidence
from vae_anomaly.scores.whitening import Whitening

# Training rows kept in a bundle, and how many of them are a row's neighbours. More of them bring new images
# nearer to their neighbours than strange ones; on tables they change nothing and take time.
BANK_ROWS = 2_000
IMAGE_BANK_ROWS = 40_000
# Of long codes of images fewer rows are kept: 5 MB in all, unless `BANK_ROWS` take more.
IMAGE_BANK_NUMBERS = 1_280_000
NEIGHBOURS = 5


class LatentMaha(Score):
    """Latent distance (mu - c)' S^-1 (mu - c), without unit.

    c is the mean of mu over training data, S = Cov(mu) + mean diag sigma^2; see `Whitening` for
    codes of many dimensions.

    References
    ----------
    .. [1] Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
       Adversarial Attacks", NeurIPS 2018. https://arxiv.org/abs/1807.03888
    """

    whitening: Whitening

    def fit(self, training: TrainingEvidence) -> None:
        """Centre and principal directions of the training latents."""
        posteriors = [evidence.posterior for evidence in training()]
        noise = [p.log_variance.double().exp() for p in posteriors if p.log_variance is not None]
        means = torch.cat([p.mean for p in posteriors])
        self.whitening = Whitening.fit(means, torch.cat(noise).mean(dim=0) if noise else None)

    def forward(self, evidence: Evidence) -> Tensor:
        """Squared norm of the whitened mean."""
        return self.whitening.squared_norm(evidence.posterior.mean)


class LatentKnn(Score):
    """Mean distance from mu to the k nearest of a bank of training means, without unit.

    .. math:: \\frac{1}{k} \\sum_{j \\in N_k(\\mu)} \\lVert \\mu - \\mu_j \\rVert

    The prior gives a latent its unit: in it, a collapsed dimension adds nothing, where whitening would
    make it as loud as any other. Long codes keep their leading directions, so that the bank stays small.

    References
    ----------
    .. [1] Ramaswamy, Rastogi & Shim, "Efficient Algorithms for Mining Outliers from Large Data
       Sets", SIGMOD 2000. https://doi.org/10.1145/342009.335437
    .. [2] Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.
       https://arxiv.org/abs/2204.06507
    """

    derived_from_rows = ("latent_bank",)
    fit_images = IMAGE_BANK_ROWS
    axes: Whitening

    def __init__(self) -> None:
        super().__init__()
        self.bank: Tensor
        self.register_buffer("bank", torch.zeros(1, 1))

    def fit(self, training: TrainingEvidence) -> None:
        """Means of at most `BANK_ROWS` training rows, more of images, drawn by a fixed seed."""
        found = [(evidence.posterior.mean, bool(evidence.shape)) for evidence in training()]
        means, images = torch.cat([mean for mean, _ in found]), found[0][1]
        self.axes = Whitening.unscaled(means)
        most = IMAGE_BANK_NUMBERS // self.axes.kept if images else 0
        most = max(BANK_ROWS, min(IMAGE_BANK_ROWS, most))
        drawn = torch.randperm(len(means), generator=torch.Generator().manual_seed(0))[:most]
        self.bank = self.axes(means[drawn.sort().values.to(means.device)].float())

    def forward(self, evidence: Evidence) -> Tensor:
        """Mean distance to the nearest of the bank."""
        rows = self.axes(evidence.posterior.mean)
        # Squared distance less what all of the bank have in common: it ranks them, and a^2 + b^2 -
        # 2ab of near neighbours would keep no digit of their distance.
        ranks = sum_elements(self.bank**2) - 2 * rows @ self.bank.T
        count = min(NEIGHBOURS, len(self.bank))
        nearest = torch.topk(ranks, count, dim=1, largest=False).indices
        neighbours = self.bank.index_select(0, nearest.flatten()).unflatten(0, (-1, count))
        distances = sum_elements((rows[:, None, :] - neighbours) ** 2).sqrt()
        return sum_elements(distances) / count
