"""Several scores as one, each by its place among validation rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vae_anomaly.scores.base import Evidence, Score, TrainingEvidence
from vae_anomaly.scores.quantiles import NormalScore
from vae_anomaly.vae import log_mean_exp


class Combined(Score):
    """Soft maximum of the normal scores of several scores, without unit.

    .. math:: \\log \\frac{1}{C} \\sum_c \\exp(s_c)

    Each component goes through its quantiles among validation rows to a standard normal number s_c,
    so that none outweighs another by its scale; beyond both ends the numbers go on growing, so that
    strong anomalies do not tie. One component that is sure outweighs others that are blind [1]_,
    several that are not quite sure add up. The p-value comes from calibration rows.

    References
    ----------
    .. [1] Aggarwal & Sathe, "Theoretical Foundations and Algorithms for Outlier Ensembles", SIGKDD
       Explorations 2015. https://doi.org/10.1145/2830544.2830549
    """

    variational = True
    held_out = True
    reads = ("neg_elbo", "latent_knn", "rapp")

    def __init__(self) -> None:
        super().__init__()
        self.components = nn.ModuleDict()
        self.normal_scores = nn.ModuleDict()

    def take(self, scores: Mapping[str, Score]) -> None:
        """Keep the components."""
        self.components = nn.ModuleDict({name: scores[name] for name in self.reads})

    def fit(self, training: TrainingEvidence) -> None:
        """Quantiles of each component among validation rows."""
        found = [self._values(evidence) for evidence in training()]
        values = torch.cat(found, dim=1)
        named = zip(self.reads, values, strict=True)
        self.normal_scores = nn.ModuleDict({name: NormalScore(column) for name, column in named})

    def forward(self, evidence: Evidence) -> Tensor:
        """Log of the mean of exp(normal score)."""
        values = zip(self.normal_scores.values(), self._values(evidence), strict=True)
        return log_mean_exp(torch.stack([score(column) for score, column in values]))

    def _values(self, evidence: Evidence) -> Tensor:
        """Each component's scores, scaled to rows without gaps, shape (C, B); float64."""
        components = (score for score in self.components.values() if isinstance(score, Score))
        return torch.stack([score.comparable(evidence) for score in components]).double()
