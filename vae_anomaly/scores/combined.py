"""Several scores as one, each by its place among validation rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vae_anomaly.scores.base import Evidence, Score, TrainingEvidence
from vae_anomaly.scores.quantiles import NormalScore


class Combined(Score):
    """Mean of the normal scores of several scores, without unit; about 0 on average over normal rows.

    Each component goes through its quantiles among validation rows to a standard normal number,
    so that none outweighs another by its scale; beyond both ends the numbers go on growing, so that
    strong anomalies do not tie. The mean is Stouffer's combination [1]_ but for a constant: the
    components depend on each other, and the p-value comes from calibration rows, not from a normal.

    References
    ----------
    .. [1] Stouffer et al., "The American Soldier", Vol. 1, 1949.
    .. [2] Aggarwal & Sathe, "Theoretical Foundations and Algorithms for Outlier Ensembles", SIGKDD
       Explorations 2015. https://doi.org/10.1145/2830544.2830549
    """

    variational = True
    held_out = True
    reads = ("neg_elbo", "recon", "latent_knn", "rapp")

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
        """Mean of the components' normal scores."""
        values = zip(self.normal_scores.values(), self._values(evidence), strict=True)
        return torch.stack([score(column) for score, column in values]).mean(dim=0)

    def _values(self, evidence: Evidence) -> Tensor:
        """Each component's scores, scaled to rows without gaps, shape (C, B); float64."""
        components = (score for score in self.components.values() if isinstance(score, Score))
        return torch.stack([score.comparable(evidence) for score in components]).double()
