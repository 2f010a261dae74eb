"""How well a sample's parts predict each other."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_anomaly.likelihoods import sum_elements
from vae_anomaly.scores.base import Evidence, Score, TrainingEvidence

# Parts of a sample, each hidden once while the others are seen.
FOLDS = 4
# Blocks of an image along height and along width: too large to be copied from their rim.
BLOCKS = 4


class Conditional(Score):
    """Mean over R fixed masks of -log p(hidden elements \\| visible ones), in nats.

    .. math:: \\frac{D}{D_{obs}} \\frac{1}{R} \\sum_r \\sum_{d \\in H_r}
        -\\log p(x_d \\mid z = \\mathrm{E}[z \\mid x_{visible}])

    The masks are disjoint folds H_r that cover all elements, drawn by a fixed seed: single cells of
    a table, blocks of an image with all channels together. The sum is over observed elements, scaled
    to all D. Bernoulli elements count from the best density they could have had, so that
    bright and dark pixels compare. With all elements hidden one by one this would be the
    pseudo-likelihood [1]_; the decoder is that of a model trained on random masks [2]_.

    References
    ----------
    .. [1] Besag, "Statistical Analysis of Non-Lattice Data", The Statistician 1975.
       https://doi.org/10.2307/2987782
    .. [2] Ivanov, Figurnov & Vetrov, "Variational Autoencoder with Arbitrary Conditioning", ICLR
       2019. https://arxiv.org/abs/1806.02382
    """

    mask_aware = True

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor
        self.register_buffer("hidden", torch.ones(1, 1, dtype=torch.bool))

    def fit(self, training: TrainingEvidence) -> None:
        """Draw the folds for samples of the training data's shape."""
        first = next(iter(training()))
        shape = first.shape or tuple(first.encoded.observed.shape[1:])
        self.hidden = folds(shape).to(first.encoded.x.device)

    def forward(self, evidence: Evidence) -> Tensor:
        """Mean over folds of what each costs given the others."""
        x, observed, _ = evidence.encoded
        cost = torch.stack([self._fold(evidence, hidden) for hidden in self.hidden]).sum(dim=0)
        present = sum_elements(observed.to(x.dtype)).clamp_min(1.0)
        return sum_elements(cost) * (observed.shape[-1] / present) / len(self.hidden)

    def _fold(self, evidence: Evidence, hidden: Tensor) -> Tensor:
        """Cost of each element, shape (B, D); 0 where visible or missing."""
        model, (x, observed, _) = evidence.model, evidence.encoded
        visible = observed & ~hidden
        seen = torch.where(model.likelihood.widened(visible), x, 0.0)
        raw = model.decode(model.encode(seen, visible).mean)
        cost = model.likelihood.surprise(raw, x)
        return torch.where(observed & hidden, cost, 0.0)


def folds(shape: tuple[int, ...]) -> Tensor:
    """Disjoint masks that hide every element of a sample once, bool, shape (R, D).

    Parameters
    ----------
    shape : (D,) or (C, H, W)
    """
    if len(shape) == 3:
        _, height, width = shape
        row, column = (torch.arange(side) * BLOCKS // side for side in (height, width))
        cells, count = row[:, None] * BLOCKS + column, BLOCKS**2
    else:
        cells, count = torch.arange(shape[0]), shape[0]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    fold = (order % FOLDS)[cells].expand(shape).flatten()
    return torch.stack([fold == part for part in range(min(FOLDS, count))])
