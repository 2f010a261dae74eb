"""Anomaly scores: one float per row, larger means more anomalous.

Each score is a small module fitted on training data and then exported. A new one is a class here
and a line in `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from vae_anomaly.encoding import Encoded
from vae_anomaly.exceptions import ConfigError, UnsupportedError
from vae_anomaly.likelihoods import sum_elements
from vae_anomaly.networks import Posterior
from vae_anomaly.vae import Autoencoder, kl_per_latent, log_mean_exp, log_prior_ratio, reparameterise

# Largest covariance of latents kept whole; beyond it the leading directions are, and the rest
# share one variance (probabilistic PCA).
FULL_COVARIANCE = 512
LEADING_DIRECTIONS = 128
# Share of the mean latent variance added to every direction, for collapsed units.
RIDGE = 1e-4
# Powers of the covariance applied to a random subspace: spectra of latents fall fast enough for four.
SUBSPACE_ITERATIONS = 4


class Evidence:
    """What scores read of a batch, each quantity computed once and only if somebody asks.

    Parameters
    ----------
    model : Autoencoder or VAE
    encoded : Encoded
    noise : Tensor, shape (K, L)
        The same draws for every row.
    """

    def __init__(self, model: Autoencoder, encoded: Encoded, noise: Tensor) -> None:
        self.model = model
        self.encoded = encoded
        self.noise = noise[:, None, :]

    @cached_property
    def posterior(self) -> Posterior:
        """q(z | x observed)."""
        return self.model.encode(self.encoded.x, self.encoded.observed)

    @cached_property
    def reconstruction(self) -> Tensor:
        """Raw likelihood parameters at z = mu, shape (B, P * D)."""
        return self.model.decode(self.posterior.mean)

    @cached_property
    def contributions(self) -> Tensor:
        """Terms of `recon`, shape (B, D), nats: best_d - log p(x_d | mu), 0 where missing.

        Scaled by D / number observed, so that rows with gaps compare with whole ones.
        """
        x, observed, _ = self.encoded
        likelihood = self.model.likelihood
        best = likelihood.best_log_prob(self.reconstruction, x)
        gap = (best - likelihood.log_prob(self.reconstruction, x)).clamp_min(0.0)
        present = sum_elements(observed.to(x.dtype)).clamp_min(1.0)
        return torch.where(observed, gap, 0.0) * (x.shape[-1] / present)[:, None]

    @cached_property
    def latents(self) -> Tensor:
        """z_k, shape (K, B, L)."""
        return reparameterise(self.posterior, self.noise)

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(x observed | z_k), shape (K, B)."""
        return self.model.log_likelihood(self.latents, self.encoded.x, self.encoded.observed)

    @cached_property
    def kl(self) -> Tensor:
        """KL(q || p), shape (B,)."""
        return sum_elements(kl_per_latent(self.posterior))

    @cached_property
    def log_weights(self) -> Tensor:
        """log w_k, shape (K, B)."""
        return self.log_likelihood + log_prior_ratio(self.posterior, self.latents, self.noise)


TrainingEvidence = Callable[[], Iterator[Evidence]]


class Score(nn.Module):
    """One float per row; larger means more anomalous.

    Attributes
    ----------
    variational : bool
        Whether the score needs a distribution over z: an autoencoder has none.
    """

    variational = False

    def fit(self, training: TrainingEvidence) -> None:
        """Store what the score needs of the training data; nothing by default."""

    def forward(self, evidence: Evidence) -> Tensor:
        """Score of each row, shape (B,)."""
        raise NotImplementedError


class NegElbo(Score):
    """Negative evidence lower bound, KL(q || p) - mean_k log p(x_obs | z_k), in nats.

    References
    ----------
    .. [1] Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014.
       https://arxiv.org/abs/1312.6114
    """

    variational = True

    def forward(self, evidence: Evidence) -> Tensor:
        """KL minus the mean log-likelihood over draws."""
        return evidence.kl - evidence.log_likelihood.mean(dim=0)


class IwNll(Score):
    """Importance-weighted negative log-likelihood, -(logsumexp_k log w_k - log K), in nats.

    References
    ----------
    .. [1] Burda et al., "Importance Weighted Autoencoders", ICLR 2016.
       https://arxiv.org/abs/1509.00519
    """

    variational = True

    def forward(self, evidence: Evidence) -> Tensor:
        """Minus the log-mean-exp of the weights."""
        return -log_mean_exp(evidence.log_weights)


class Recon(Score):
    """Bias-corrected reconstruction error at z = mu: how far each element is from the best
    density it could have had, in nats, so that bright and dark pixels compare.
    """

    def forward(self, evidence: Evidence) -> Tensor:
        """Sum of the contributions."""
        return sum_elements(evidence.contributions)


class Rate(Score):
    """KL(q || p), the information the encoder spends on the row, in nats.

    References
    ----------
    .. [1] Alemi et al., "Fixing a Broken ELBO", ICML 2018. https://arxiv.org/abs/1711.00464
    """

    variational = True

    def forward(self, evidence: Evidence) -> Tensor:
        """The analytic KL."""
        return evidence.kl


class LatentMaha(Score):
    """Latent distance (mu - c)' S^-1 (mu - c), without unit.

    c is the mean of mu over training data, S = Cov(mu) + mean diag sigma^2. Stored as its
    eigenvectors; codes longer than `FULL_COVARIANCE` keep the leading ones and share one variance
    in all other directions, as in probabilistic PCA [1]_.

    References
    ----------
    .. [1] Tipping & Bishop, "Probabilistic Principal Component Analysis", JRSS B 1999.
       https://doi.org/10.1111/1467-9868.00196
    """

    def __init__(self) -> None:
        super().__init__()
        self.centre: Tensor
        self.directions: Tensor
        self.precisions: Tensor
        self.register_buffer("centre", torch.zeros(1))
        self.register_buffer("directions", torch.ones(1, 1))
        self.register_buffer("precisions", torch.ones(1))
        self.rest: float | None = None

    def fit(self, training: TrainingEvidence) -> None:
        """Centre and principal directions of the training latents."""
        posteriors = [evidence.posterior for evidence in training()]
        means = torch.cat([p.mean for p in posteriors]).double()
        self.centre = means.mean(dim=0)
        noise = [p.log_variance.double().exp() for p in posteriors if p.log_variance is not None]
        diagonal = torch.cat(noise).mean(dim=0) if noise else torch.zeros_like(self.centre)
        directions, variances, self.rest = _principal(means - self.centre, diagonal)
        self.directions, self.precisions = directions.float(), (1 / variances).float()
        self.centre = self.centre.float()

    def forward(self, evidence: Evidence) -> Tensor:
        """Squared norm of the whitened mean."""
        centred = evidence.posterior.mean - self.centre
        leading = centred @ self.directions
        distance = sum_elements(leading**2 * self.precisions)
        if self.rest is None:
            return distance
        return distance + sum_elements((centred - leading @ self.directions.T) ** 2) / self.rest


def _principal(centred: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor, float | None]:
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


SCORES: dict[str, type[Score]] = {
    "neg_elbo": NegElbo,
    "iw_nll": IwNll,
    "recon": Recon,
    "rate": Rate,
    "latent_maha": LatentMaha,
}


def default_score(variational: bool) -> str:
    """The score that decides when nobody names one."""
    return "neg_elbo" if variational else "recon"


def default_scores(variational: bool) -> tuple[str, ...]:
    """What is exported when nobody says: the default score and the latent distance."""
    return (default_score(variational), *(("recon",) if variational else ()), "latent_maha")


def check_scores(names: tuple[str, ...], variational: bool) -> None:
    """Raise `ConfigError` for an unknown score, `UnsupportedError` for one the model cannot have."""
    for name in names:
        if name not in SCORES:
            raise ConfigError(f"unknown score {name!r}; choose among {', '.join(SCORES)}")
        if SCORES[name].variational and not variational:
            raise UnsupportedError(
                f"an autoencoder has no {name}: it has no distribution over z; "
                "use recon or latent_maha, or train a VAE"
            )


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
