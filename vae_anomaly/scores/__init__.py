"""Anomaly scores: one float per row, larger means more anomalous.

Each score is a small module fitted on training data and then exported. A new one is a class in a
file here and a line in `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable

from vae_anomaly.exceptions import ConfigError, UnsupportedError
from vae_anomaly.scores.background import BackgroundRatio
from vae_anomaly.scores.base import Evidence, Score, TrainingEvidence
from vae_anomaly.scores.bounds import IwNll, NegElbo, Rate, Typicality
from vae_anomaly.scores.combined import Combined
from vae_anomaly.scores.conditional import Conditional
from vae_anomaly.scores.draws import noise_bank
from vae_anomaly.scores.latent import LatentKnn, LatentMaha
from vae_anomaly.scores.lpath import LPath
from vae_anomaly.scores.rapp import Rapp
from vae_anomaly.scores.reconstruction import Recon
from vae_anomaly.scores.whitening import FULL_COVARIANCE, LEADING_DIRECTIONS, RIDGE

__all__ = [
    "FULL_COVARIANCE",
    "LEADING_DIRECTIONS",
    "RIDGE",
    "SCORES",
    "BackgroundRatio",
    "Combined",
    "Conditional",
    "Evidence",
    "IwNll",
    "LPath",
    "LatentKnn",
    "LatentMaha",
    "NegElbo",
    "Rapp",
    "Rate",
    "Recon",
    "Score",
    "TrainingEvidence",
    "Typicality",
    "check_scores",
    "default_score",
    "default_scores",
    "fit_scores",
    "noise_bank",
    "possible_scores",
]

SCORES: dict[str, type[Score]] = {
    "neg_elbo": NegElbo,
    "iw_nll": IwNll,
    "recon": Recon,
    "rate": Rate,
    "latent_maha": LatentMaha,
    "latent_knn": LatentKnn,
    "lpath": LPath,
    "rapp": Rapp,
    "conditional": Conditional,
    "typicality": Typicality,
    "background_ratio": BackgroundRatio,
    "combined": Combined,
}


def default_score(variational: bool) -> str:
    """The score that decides when nobody names one."""
    return "combined" if variational else "recon"


def default_scores(variational: bool) -> tuple[str, ...]:
    """What is exported when nobody says: the default score with its components, and the latent distance."""
    if not variational:
        return ("recon", "latent_maha")
    return ("combined", "neg_elbo", "recon", "latent_knn", "rapp", "latent_maha")


def possible_scores(variational: bool, mask_input: bool = True) -> tuple[str, ...]:
    """Every score that a kind of model can have."""
    return tuple(
        name
        for name, score in SCORES.items()
        if variational >= score.variational and mask_input >= score.mask_aware
    )


def check_scores(names: tuple[str, ...], variational: bool, mask_input: bool = True) -> None:
    """Raise `ConfigError` for an unknown score, `UnsupportedError` for one the model cannot have."""
    for name in names:
        if name not in SCORES:
            raise ConfigError(f"unknown score {name!r}; choose among {', '.join(SCORES)}")
        if SCORES[name].variational and not variational:
            raise UnsupportedError(
                f"an autoencoder has no {name}: it has no distribution over z; "
                "use recon or latent_maha, or train a VAE"
            )
        if SCORES[name].mask_aware and not mask_input:
            raise UnsupportedError(
                f"a model that does not see the mask has no {name}: what is hidden would pass for zeros; "
                "use recon or latent_maha, or train with mask_input = true and random masks"
            )


def fit_scores(names: tuple[str, ...], evidence: Callable[[Score], TrainingEvidence]) -> dict[str, Score]:
    """Fitted modules of the scores named, on the evidence for each; those that read others share theirs."""
    made: dict[str, Score] = {}
    read = [part for name in names for part in SCORES[name].reads]
    for name in (*read, *names):
        if name not in made:
            made[name] = score = SCORES[name]()
            score.take(made)
            score.fit(evidence(score))
    return {name: made[name] for name in names}
