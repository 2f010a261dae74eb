"""Reconstruction error in every hidden layer of the encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_anomaly.scores.base import Evidence, Score, TrainingEvidence
from vae_anomaly.scores.whitening import Whitening


class Rapp(Score):
    """Whitened difference of the encoder's activations of x and of its reconstruction, squared.

    .. math:: \\lVert \\Sigma^{-1} V^\\top (d(x) - \\bar d) \\rVert^2, \\quad d(x) = h(x) - h(\\hat x)

    h holds the outputs of all layers, feature maps as their spatial means, and the code; mean and
    singular vectors are those of the training rows' differences, in units of the standard
    deviation: "normalised aggregation along pathway" (NAP) of [1]_. Without unit; on average over
    training rows the number of directions kept. The reconstruction is seen through the row's mask.

    References
    ----------
    .. [1] Kim et al., "RaPP: Novelty Detection with Reconstruction along Projection Pathway",
       ICLR 2020. https://openreview.net/forum?id=HkgeGeBYDB
    """

    whitening: Whitening

    def fit(self, training: TrainingEvidence) -> None:
        """Mean and leading singular vectors of the differences."""
        self.whitening = Whitening.leading(torch.cat([_difference(evidence) for evidence in training()]))

    def forward(self, evidence: Evidence) -> Tensor:
        """Squared norm of the whitened difference."""
        return self.whitening.squared_norm(_difference(evidence))


def _difference(evidence: Evidence) -> Tensor:
    """Activations of x less those of its reconstruction, shape (B, F)."""
    x, observed, _ = evidence.encoded
    again = torch.where(evidence.model.likelihood.widened(observed), evidence.expected, 0.0)
    return evidence.model.activations(x, observed) - evidence.model.activations(again, observed)
