"""The loss is the bound it says, with beta, warm-up and free bits where they belong."""

import math
import re
from typing import Any

import pytest
import torch
from linear_gaussian import L, linear_gaussian, log_marginal, rows_under_every_mask
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vae_anomaly.exceptions import ConfigError
from vae_anomaly.networks import ModelConfig, Posterior
from vae_anomaly.objectives import Losses, ObjectiveConfig, losses
from vae_anomaly.vae import VAE, kl_per_latent, log_mean_exp, make_model

ROWS = rows_under_every_mask()


def noise(draws: int, rows: int = len(ROWS.x), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(draws, rows, L, generator=generator, dtype=torch.float64)


def evaluate(model: VAE, draws: int, weight: float = 1.0, **settings: Any) -> Losses:
    config = ObjectiveConfig(draws=draws, **settings)
    return losses(model, ROWS.x, ROWS.observed, noise(draws), config, weight)


def posterior(model: VAE) -> Posterior:
    return model.encode(ROWS.x, ROWS.observed)


def reconstruction(model: VAE, draws: int) -> Tensor:
    """-log p(x | z), mean over draws and rows, by torch's own densities."""
    q = posterior(model)
    assert q.log_variance is not None
    z = q.mean + (q.log_variance / 2).exp() * noise(draws)
    density = Normal(model.decode(z), 0.6).log_prob(ROWS.x)
    return -torch.where(ROWS.observed, density, 0.0).sum(dim=-1).mean()


def kl(model: VAE) -> Tensor:
    q = posterior(model)
    assert q.log_variance is not None
    normal = Normal(q.mean, (q.log_variance / 2).exp())
    return kl_divergence(normal, Normal(torch.zeros_like(q.mean), 1.0)).sum(dim=-1).mean()


@pytest.mark.parametrize("draws", [1, 5])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 4.0])
def test_elbo_is_reconstruction_plus_weighted_kl(draws: int, weight: float) -> None:
    model = linear_gaussian(shift=0.2, stretch=1.2)
    got = evaluate(model, draws, weight)
    torch.testing.assert_close(got.reconstruction, reconstruction(model, draws))
    torch.testing.assert_close(got.kl, kl(model))
    torch.testing.assert_close(got.loss, reconstruction(model, draws) + weight * kl(model))


@pytest.mark.parametrize("draws", [1, 6])
def test_iw_is_minus_the_log_marginal_at_the_exact_posterior(draws: int) -> None:
    got = evaluate(linear_gaussian(), draws, bound="iw")
    torch.testing.assert_close(got.loss, -log_marginal(ROWS.x, ROWS.observed).mean())


def test_iw_is_the_log_mean_of_the_weights() -> None:
    model = linear_gaussian(shift=0.2, stretch=1.2)
    weights = model.log_weights(ROWS.x, ROWS.observed, noise(7))
    got = evaluate(model, 7, bound="iw")
    torch.testing.assert_close(got.loss, -log_mean_exp(weights).mean())
    torch.testing.assert_close(got.kl, kl(model))
    assert got.loss < evaluate(model, 7).loss


def test_iw_without_kl_weight_is_reconstruction_alone() -> None:
    model = linear_gaussian(shift=0.2)
    torch.testing.assert_close(evaluate(model, 1, 0.0, bound="iw").loss, reconstruction(model, 1))


def test_what_the_encoder_is_not_shown_is_judged_all_the_same() -> None:
    """-log p(x observed | z) + KL with z ~ q(z | x shown), and nothing else of x reaches q."""
    model, known = linear_gaussian(shift=0.2, stretch=1.2), torch.ones_like(ROWS.observed)
    got = losses(model, ROWS.x, known, noise(3), ObjectiveConfig(draws=3), 0.5, ROWS.observed)
    q = posterior(model)
    assert q.log_variance is not None
    z = q.mean + (q.log_variance / 2).exp() * noise(3)
    density = Normal(model.decode(z), 0.6).log_prob(ROWS.x).sum(dim=-1)
    torch.testing.assert_close(got.loss, 0.5 * kl(model) - density.mean())


def test_the_expected_one_draw_bounds_agree() -> None:
    model = linear_gaussian(shift=0.1, stretch=1.1)
    config = ObjectiveConfig(draws=4000)
    elbo = losses(model, ROWS.x, ROWS.observed, noise(4000), config).loss
    weights = model.log_weights(ROWS.x, ROWS.observed, noise(4000))
    error = weights.mean(dim=1).std() / math.sqrt(4000)
    assert abs(elbo + weights.mean()) < 4.5 * error


def test_free_bits_fill_up_each_latent_to_the_floor() -> None:
    model = linear_gaussian(shift=0.2, stretch=1.2)
    per_latent = kl_per_latent(posterior(model)).mean(dim=0)
    floor = per_latent.mean().item()
    assert per_latent.min() < floor < per_latent.max()
    got = evaluate(model, 3, 0.5, free_bits=floor)
    pressed = floor + per_latent.max()
    torch.testing.assert_close(got.loss, reconstruction(model, 3) + 0.5 * pressed)
    torch.testing.assert_close(got.kl, kl(model))


def test_a_latent_below_its_free_bits_is_not_pressed() -> None:
    model = make_model((5,), ModelConfig(hidden=(), latent_size=L), torch.Generator().manual_seed(0)).double()
    assert isinstance(model, VAE)
    slopes = {}
    for bits in (0.0, 1e6):
        loss = evaluate(model, 1, 1.0, free_bits=bits).loss - evaluate(model, 1, 0.0).loss
        slopes[bits] = torch.autograd.grad(loss, list(model.encoder.parameters()))
    assert all(slope.abs().max() > 0 for slope in slopes[0.0])
    assert all(slope.abs().max() < 1e-12 for slope in slopes[1e6])


def test_an_autoencoder_pays_for_reconstruction_alone() -> None:
    config = ModelConfig(kind="autoencoder", hidden=(), latent_size=L, scale=0.6)
    model = make_model((5,), config, torch.Generator().manual_seed(0)).double()
    got = losses(model, ROWS.x, ROWS.observed, noise(1), ObjectiveConfig(beta=7.0), 7.0)
    raw = model.decode(model.encode(ROWS.x, ROWS.observed).mean)
    exact = -torch.where(ROWS.observed, Normal(raw, 0.6).log_prob(ROWS.x), 0.0).sum(dim=-1).mean()
    torch.testing.assert_close(got, Losses(exact, exact, torch.zeros_like(exact)))


@pytest.mark.parametrize(
    ("beta", "warmup", "epoch", "weight"),
    [
        (1.0, 0.0, 0.0, 1.0),
        (4.0, 0.0, 0.0, 4.0),
        (1.0, 10.0, 0.0, 0.0),
        (2.0, 10.0, 2.5, 0.5),
        (2.0, 10.0, 10.0, 2.0),
        (2.0, 10.0, 99.0, 2.0),
        (0.0, 10.0, 99.0, 0.0),
    ],
)
def test_the_kl_weight_rises_along_a_ramp_to_beta(
    beta: float, warmup: float, epoch: float, weight: float
) -> None:
    assert ObjectiveConfig(beta=beta, warmup_epochs=warmup).kl_weight(epoch) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "draws must be at least 1, got 0"),
        (
            {"beta": -1.0},
            "beta, warmup_epochs and free_bits must not be negative, got -1.0, 0.0 and 0.0",
        ),
        (
            {"warmup_epochs": -2.0, "free_bits": 0.5},
            "beta, warmup_epochs and free_bits must not be negative, got 1.0, -2.0 and 0.5",
        ),
        (
            {"bound": "iw", "free_bits": 0.1},
            "free_bits needs the analytic KL of bound = 'elbo', got bound = 'iw'; drop one",
        ),
        ({"bound": "elbow"}, "bound is 'elbow'; did you mean 'elbo'?"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        ObjectiveConfig(**settings)
