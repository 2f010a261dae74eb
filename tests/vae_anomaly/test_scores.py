"""Scores equal their formulas, and larger means more anomalous."""

import math
import re

import pytest
import torch
from linear_gaussian import ALL_MASKS, D, L, linear_gaussian, log_marginal
from score_evidence import ROWS, Fixed, Raw, encoded, evidence, normal
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vae_anomaly.encoding import Encoded
from vae_anomaly.exceptions import ConfigError, UnsupportedError
from vae_anomaly.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Laplace,
    Likelihood,
    observed_log_prob,
)
from vae_anomaly.networks import ModelConfig
from vae_anomaly.scores import (
    SCORES,
    Evidence,
    IwNll,
    LatentMaha,
    NegElbo,
    Rate,
    Recon,
    Score,
    Typicality,
    check_scores,
    default_score,
    default_scores,
    fit_scores,
    noise_bank,
)
from vae_anomaly.vae import VAE, make_model

EVERY_SCORE = pytest.mark.parametrize("name", SCORES)


@pytest.mark.parametrize("draws", [1, 8])
def test_bounds_equal_the_marginal_given_the_exact_posterior(draws: int) -> None:
    exact = -log_marginal(ROWS.x, ROWS.observed)
    torch.testing.assert_close(IwNll()(evidence(linear_gaussian(), draws)), exact)
    many = NegElbo()(evidence(linear_gaussian(), 20_000))
    torch.testing.assert_close(many, exact, rtol=0, atol=0.15)


def test_neg_elbo_is_kl_minus_the_mean_log_likelihood() -> None:
    model, found = linear_gaussian(0.2, 1.2), evidence(linear_gaussian(0.2, 1.2), 5)
    q = model.encode(ROWS.x, ROWS.observed)
    assert q.log_variance is not None
    distribution = Normal(q.mean, (q.log_variance / 2).exp())
    kl = kl_divergence(distribution, Normal(torch.zeros_like(q.mean), 1.0)).sum(dim=-1)
    z = q.mean + distribution.stddev * normal(5, L)[:, None]
    density = torch.where(ROWS.observed, Normal(model.decode(z), 0.6).log_prob(ROWS.x), 0.0).sum(dim=-1)
    torch.testing.assert_close(Rate()(found), kl)
    torch.testing.assert_close(NegElbo()(found), kl - density.mean(dim=0))


def test_iw_nll_of_one_draw_is_the_one_sample_bound() -> None:
    model = linear_gaussian(0.2, 1.2)
    noise = normal(1, L)
    q = model.encode(ROWS.x, ROWS.observed)
    assert q.log_variance is not None
    distribution = Normal(q.mean, (q.log_variance / 2).exp())
    z = q.mean + distribution.stddev * noise
    ratio = (distribution.log_prob(z) - Normal(0, 1).log_prob(z)).sum(dim=-1)
    expected = ratio - observed_log_prob(model.likelihood, model.decode(z), ROWS.x, ROWS.observed)
    torch.testing.assert_close(IwNll()(Evidence(model, ROWS, noise)), expected)


def test_the_expected_iw_nll_falls_with_the_draws() -> None:
    model = linear_gaussian(0.3, 1.3)
    row = Encoded(ROWS.x[-1:], ROWS.observed[-1:], ROWS.clipped[-1:])
    means = []
    for draws in (1, 4, 16):
        scores = [IwNll()(evidence(model, draws, row, seed)).item() for seed in range(600)]
        means.append(sum(scores) / len(scores))
    exact = -log_marginal(row.x, row.observed).item()
    assert means[0] > means[1] + 0.2 > means[2] + 0.3 > exact + 0.3


def test_typicality_is_the_distance_of_the_bound_to_its_training_mean() -> None:
    """Given the exact posterior the bound is the marginal: too likely counts as too unlikely does."""
    model = linear_gaussian()
    score = Typicality()
    score.fit(lambda: iter([evidence(model)]))
    exact = -log_marginal(ROWS.x, ROWS.observed)
    got = score(evidence(model, seed=1))
    torch.testing.assert_close(got, (exact - exact.mean()).abs())
    assert (exact < exact.mean()).any()
    assert got.min() >= 0


PERFECT = {
    "gaussian": (Gaussian(scale=0.5), torch.tensor([0.3, -2.0, 5.0]), torch.tensor([0.3, -2.0, 5.0])),
    "laplace": (Laplace(scale=0.5), torch.tensor([0.3, -2.0, 5.0]), torch.tensor([0.3, -2.0, 5.0])),
    "bernoulli": (Bernoulli(), torch.logit(torch.tensor([0.3, 0.5, 0.9])), torch.tensor([0.3, 0.5, 0.9])),
    "binary": (Bernoulli(), torch.tensor([200.0, -200.0, 200.0]), torch.tensor([1.0, 0.0, 1.0])),
    "continuous-bernoulli": (
        ContinuousBernoulli(),
        torch.tensor([0.0, 20.0, -20.0]),
        torch.tensor([0.5, 1.0, 0.0]),
    ),
}


def recon_of(likelihood: Likelihood, raw: Tensor, rows: Encoded) -> tuple[Tensor, Tensor]:
    model = VAE(Fixed(torch.zeros(len(rows.x), 1), torch.zeros(len(rows.x), 1)), Raw(raw), likelihood, 1)
    found = Evidence(model, rows, torch.zeros(1, 1))
    return Recon()(found), found.contributions


@pytest.mark.parametrize(("likelihood", "raw", "x"), PERFECT.values(), ids=PERFECT.keys())
def test_recon_is_zero_when_perfect_and_positive_otherwise(
    likelihood: Likelihood, raw: Tensor, x: Tensor
) -> None:
    perfect, _ = recon_of(likelihood, raw, encoded(x[None]))
    assert perfect.item() == pytest.approx(0, abs=2e-6)
    for place in range(3):
        wrong = raw.clone()
        wrong[place] = torch.where(wrong[place] > 0, wrong[place] - 0.3, wrong[place] + 0.3)
        wrong = wrong.clamp(-20, 20)
        score, contributions = recon_of(likelihood, wrong, encoded(x[None]))
        assert contributions.min() >= 0
        assert score.item() > 1e-9


def test_a_binary_reconstruction_is_perfect_in_the_limit_alone() -> None:
    one = encoded(torch.ones(1, 1))
    for logit in (2.0, 5.0, 9.0):
        score, _ = recon_of(Bernoulli(), torch.tensor([logit]), one)
        assert score.item() == pytest.approx(math.log1p(math.exp(-logit)), rel=1e-2)


def test_contributions_sum_to_recon_and_scale_with_what_is_observed() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(4, 4)
    observed = torch.tensor([[True] * 4, [True, False, True, True], [False, False, True, False], [False] * 4])
    score, contributions = recon_of(Gaussian(scale=1.0), torch.zeros(4), encoded(x, observed))
    # Half squares .5, 2, 4.5, 8, times 4 / number observed.
    expected = torch.tensor([[0.5, 2, 4.5, 8], [2 / 3, 0, 6, 32 / 3], [0, 0, 18, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(contributions, expected)
    torch.testing.assert_close(score, expected.sum(dim=1))


def fitted(name: str, training: Evidence) -> Score:
    return fit_scores((name,), lambda _: lambda: iter([training]))[name]


@EVERY_SCORE
def test_scores_are_rows_own_floats(name: str) -> None:
    config = ModelConfig(hidden=(6,), latent_size=2, scale="element")
    model = make_model((D,), config, torch.Generator().manual_seed(0)).eval()
    x = ROWS.x.float()
    rows = encoded(x, ALL_MASKS)
    noise = noise_bank(4, 2)
    score = fitted(name, Evidence(model, rows, noise))
    with torch.no_grad():
        whole = score(Evidence(model, rows, noise))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        shuffled = score(Evidence(model, encoded(x[order], ALL_MASKS[order]), noise))
        alone = torch.cat(
            [score(Evidence(model, encoded(x[i : i + 1], ALL_MASKS[i : i + 1]), noise)) for i in range(32)]
        )
    assert whole.shape == (32,)
    assert whole.dtype == torch.float32
    assert whole.isfinite().all()
    torch.testing.assert_close(shuffled, whole[order])
    torch.testing.assert_close(alone, whole)


# A ratio takes back what both models find far.
@pytest.mark.parametrize("name", [name for name in SCORES if name != "background_ratio"])
def test_larger_is_more_anomalous(name: str) -> None:
    model = linear_gaussian(stretch=1.1)
    ordinary, far = encoded(normal(300, D).float()), encoded(torch.full((1, D), 30.0))
    score = fitted(name, evidence(model, rows=ordinary))
    assert score(evidence(model, rows=far)).item() > score(evidence(model, rows=ordinary)).max()


def test_the_noise_bank_is_standard_normal() -> None:
    bank = noise_bank(1024, 16).double()
    assert bank.shape == (1024, 16)
    # Far below the standard error of independent draws, .03.
    assert bank.mean(dim=0).abs().max() < 2e-3
    torch.testing.assert_close(bank.var(dim=0), torch.ones(16, dtype=torch.float64), rtol=0, atol=0.02)
    torch.testing.assert_close((bank**4).mean(dim=0), torch.full((16,), 3.0).double(), rtol=0, atol=0.3)
    correlation = torch.corrcoef(bank.T) - torch.eye(16)
    assert correlation.abs().max() < 0.1
    # Kolmogorov's distance of 1,024 even points.
    cdf = torch.special.ndtr(bank.sort(dim=0).values)
    assert (cdf - torch.linspace(0, 1, 1024)[:, None]).abs().max() < 0.005


@pytest.mark.parametrize("latent", [1, 50, 21_300])
def test_the_noise_bank_is_its_seed(latent: int) -> None:
    before = torch.get_rng_state()
    first, again, other = (noise_bank(3, latent, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (3, latent)
    assert first.isfinite().all()


def test_the_default_scores_are_among_those_a_model_can_have() -> None:
    for variational in (True, False):
        names = default_scores(variational)
        assert names[0] == default_score(variational)
        check_scores(names, variational)
    assert default_scores(True) == ("combined", "neg_elbo", "recon", "latent_knn", "rapp", "latent_maha")
    assert default_scores(False) == ("recon", "latent_maha")


def test_scores_a_model_cannot_have_are_refused() -> None:
    message = f"unknown score 'elbo'; choose among {', '.join(SCORES)}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_scores(("recon", "elbo"), True)
    for name in ("neg_elbo", "iw_nll", "rate", "typicality"):
        message = (
            f"an autoencoder has no {name}: it has no distribution over z; "
            "use recon or latent_maha, or train a VAE"
        )
        with pytest.raises(UnsupportedError, match=f"^{re.escape(message)}$"):
            check_scores(("recon", name), False)


def test_an_autoencoder_gives_the_scores_it_can() -> None:
    config = ModelConfig(kind="autoencoder", hidden=(4,), latent_size=2)
    model = make_model((D,), config, torch.Generator().manual_seed(0))
    found = Evidence(model, encoded(ROWS.x.float(), ALL_MASKS), torch.zeros(1, 1))
    score = LatentMaha()
    score.fit(lambda: iter([found]))
    assert score(found).shape == Recon()(found).shape == (32,)
