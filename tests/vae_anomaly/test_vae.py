"""Where the truth is known in closed form, the log-weights must equal it.

With a linear decoder, Gaussian noise and the exact posterior every importance weight equals
p(x observed): no Monte Carlo error is left to hide behind.
"""

import math
from typing import Literal

import pytest
import torch
from linear_gaussian import ALL_MASKS, D, L, linear_gaussian, log_marginal, rows_under_every_mask
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vae_anomaly.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, Laplace
from vae_anomaly.networks import ModelConfig, Posterior
from vae_anomaly.vae import (
    VAE,
    Autoencoder,
    kl_per_latent,
    log_mean_exp,
    log_prior_ratio,
    make_likelihood,
    make_model,
    parameter_count,
    reparameterise,
)

ROWS = rows_under_every_mask()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posteriors() -> Posterior:
    return Posterior(normal(6, 3), normal(6, 3, seed=1))


@pytest.mark.parametrize("draws", [1, 8])
def test_every_log_weight_equals_the_marginal_under_every_mask(draws: int) -> None:
    weights = linear_gaussian().log_weights(ROWS.x, ROWS.observed, normal(draws, len(ROWS.x), L))
    exact = log_marginal(ROWS.x, ROWS.observed)
    torch.testing.assert_close(weights, exact.expand(draws, -1))
    torch.testing.assert_close(log_mean_exp(weights), exact)
    assert weights[:, ~ALL_MASKS.any(dim=1)].abs().max() < 1e-12


def test_the_bound_is_tight_at_the_exact_posterior_and_nowhere_else() -> None:
    exact = log_marginal(ROWS.x, ROWS.observed)
    for shift, stretch in ((0.1, 1.0), (0.0, 1.5), (-0.1, 0.8)):
        model = linear_gaussian(shift, stretch)
        weights = model.log_weights(ROWS.x, ROWS.observed, normal(4096, 1, L))
        elbo, bound = weights.mean(dim=0), log_mean_exp(weights)
        assert (elbo < exact - 0.005).all()
        assert (bound > elbo).all()
        torch.testing.assert_close(bound, exact, rtol=0, atol=0.1)


def test_the_expected_bound_rises_with_the_draws() -> None:
    model = linear_gaussian(shift=0.4, stretch=1.3)
    x, observed = ROWS.x[-1:], ROWS.observed[-1:]
    exact = log_marginal(x, observed).item()
    bounds = []
    for draws in (1, 4, 16, 64):
        weights = model.log_weights(x, observed, normal(draws, 4000, L))
        bounds.append(log_mean_exp(weights).mean().item())
    # The standard error of each is below .03; the steps measure above .2.
    assert bounds[0] < bounds[1] - 0.1
    assert bounds[1] < bounds[2] - 0.05
    assert bounds[2] < bounds[3] < exact + 0.03


def test_one_noise_for_all_rows_is_the_same_as_repeated() -> None:
    model, noise = linear_gaussian(shift=0.5), normal(7, 1, L)
    shared = model.log_weights(ROWS.x, ROWS.observed, noise)
    repeated = model.log_weights(ROWS.x, ROWS.observed, noise.expand(-1, len(ROWS.x), -1))
    torch.testing.assert_close(shared, repeated)


def test_log_prior_ratio_is_that_of_two_normals() -> None:
    posterior, noise = posteriors(), normal(5, 6, 3, seed=2)
    assert posterior.log_variance is not None
    z = reparameterise(posterior, noise)
    q = Normal(posterior.mean, torch.exp(0.5 * posterior.log_variance))
    exact = (Normal(0, 1).log_prob(z) - q.log_prob(z)).sum(dim=-1)
    torch.testing.assert_close(log_prior_ratio(posterior, z, noise), exact)


def test_reparameterise_by_hand() -> None:
    posterior = Posterior(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, math.log(4)]]))
    noise = torch.tensor([[[1.0, -1.0]], [[0.0, 3.0]]])
    torch.testing.assert_close(reparameterise(posterior, noise), torch.tensor([[[2.0, 0.0]], [[1.0, 8.0]]]))
    code = Posterior(torch.tensor([[1.0, 2.0]]), None)
    assert torch.equal(reparameterise(code, noise), torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]]]))


def test_analytic_kl_is_that_of_normals_and_of_monte_carlo() -> None:
    posterior = posteriors()
    assert posterior.log_variance is not None
    kl = kl_per_latent(posterior)
    q = Normal(posterior.mean, torch.exp(0.5 * posterior.log_variance))
    torch.testing.assert_close(kl, kl_divergence(q, Normal(torch.zeros(6, 3).double(), 1.0)))
    noise = normal(20_000, 6, 3, seed=3)
    ratios = -log_prior_ratio(posterior, reparameterise(posterior, noise), noise)
    error = ratios.std(dim=0) / math.sqrt(len(ratios))
    assert ((ratios.mean(dim=0) - kl.sum(dim=1)).abs() < 4.5 * error).all()


def test_known_kl() -> None:
    # (mu^2 + sigma^2 - 1 - log sigma^2) / 2 at mu = 1, sigma = 2.
    kl = kl_per_latent(Posterior(torch.tensor([[1.0, 0.0]]), torch.tensor([[math.log(4), 0.0]])))
    torch.testing.assert_close(kl, torch.tensor([[(4 - math.log(4)) / 2, 0.0]]))


def test_log_mean_exp_keeps_large_numbers() -> None:
    weights = torch.tensor([[-1000.0, 0.0], [-1000.0 + math.log(3), -math.inf]])
    torch.testing.assert_close(log_mean_exp(weights), torch.tensor([-1000 + math.log(2), -math.log(2)]))


def test_hidden_values_have_no_say_in_value_and_gradient() -> None:
    config = ModelConfig(hidden=(6,), latent_size=2, scale="element")
    model = make_model((D,), config, torch.Generator().manual_seed(0)).double()
    assert isinstance(model, VAE)
    outcomes = []
    for fill in (0.0, 1e4):
        raw = torch.where(ROWS.observed, ROWS.x, fill)
        x = torch.where(ROWS.observed, raw, 0.0)
        weights = model.log_weights(x, ROWS.observed, normal(3, 1, 2))
        outcomes.append((weights.detach(), torch.autograd.grad(weights.sum(), list(model.parameters()))))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert all(
        torch.equal(a, b) and a.isfinite().all() for a, b in zip(*(g for _, g in outcomes), strict=True)
    )


def test_an_autoencoder_has_no_density_over_codes() -> None:
    model = make_model((D,), ModelConfig(kind="autoencoder", hidden=(), latent_size=2), torch.Generator())
    assert type(model) is Autoencoder
    posterior = model.encode(ROWS.x.float(), ROWS.observed)
    assert posterior.log_variance is None
    assert torch.equal(kl_per_latent(posterior), torch.zeros(len(ROWS.x), 2))
    with pytest.raises(TypeError, match=r"^an autoencoder's code has no density$"):
        log_prior_ratio(posterior, posterior.mean, torch.zeros(1, 1, 2))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ModelConfig(likelihood="bernoulli"), Bernoulli),
        (ModelConfig(likelihood="continuous-bernoulli"), ContinuousBernoulli),
        (ModelConfig(likelihood="gaussian", scale=0.25), Gaussian),
        (ModelConfig(likelihood="laplace", output="tanh"), Laplace),
    ],
    ids=["bernoulli", "continuous-bernoulli", "gaussian", "laplace"],
)
def test_the_configuration_names_the_likelihood(config: ModelConfig, expected: type[nn.Module]) -> None:
    likelihood = make_likelihood(config)
    assert type(likelihood) is expected
    if isinstance(likelihood, Gaussian):
        assert likelihood.parameters_of(torch.zeros(1))[1].item() == 0.25
    if isinstance(likelihood, Laplace):
        assert likelihood.output_range == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((D,), ModelConfig(hidden=(4,), latent_size=2, batch_norm=True)),
        ((2, 9, 8), ModelConfig(network="conv", hidden=(3, 4), latent_size=2, dense=3)),
    ],
    ids=["mlp", "conv"],
)
def test_the_generator_decides_the_weights_and_nothing_else_is_touched(
    shape: tuple[int, ...], config: ModelConfig
) -> None:
    before = torch.get_rng_state()
    first, again, other = (make_model(shape, config, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    later = make_model(shape, config, torch.Generator().manual_seed(3))
    for model in (again, later):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), model.parameters(), strict=True))
    weights = [p for p in first.parameters() if p.ndim > 1]
    others = [p for p in other.parameters() if p.ndim > 1]
    assert not any(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_first_weights_have_the_variance_of_their_fan_in(network: Literal["mlp", "conv"]) -> None:
    config = ModelConfig(network=network, hidden=(40,), latent_size=20, mask_input=False, kernel=4)
    model = make_model((3, 8, 8), config, torch.Generator().manual_seed(0))
    checked = 0
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            fan_in = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):
                # Kernel 4 and stride 2: an output sees four values of each of 40 channels.
                fan_in = 40 * 4
            gain = 2 if network == "conv" and ".head" not in name else 1 / 3
            deviation = math.sqrt(gain / fan_in)
            assert layer.weight.abs().max() <= deviation * math.sqrt(3) + 1e-6
            assert layer.weight.std().item() == pytest.approx(deviation, rel=0.08)
            checked += 1
    assert checked == {"mlp": 5, "conv": 6}[network]


def test_a_signal_keeps_its_size_through_a_deep_decoder() -> None:
    """Weights that shrink it in every layer leave the latents without a say, and they collapse."""
    config = ModelConfig(
        network="conv", hidden=(8, 16, 32, 32), latent_size=16, dense=64, activation="relu", kernel=4
    )
    model = make_model((1, 64, 64), config, torch.Generator().manual_seed(0))
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        raw = model.decode(z)
    assert 0.2 < raw.std(dim=0).mean().item() < 3


def test_parameter_count_leaves_frozen_ones_out() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert parameter_count(layer) == 6


def test_mixed_precision_rounds_networks_and_keeps_densities() -> None:
    model = make_model((D,), ModelConfig(hidden=(8,), latent_size=2), torch.Generator().manual_seed(0))
    assert isinstance(model, VAE)
    x, noise = ROWS.x.float(), normal(4, 1, 2).float()
    exact = model.log_weights(x, ROWS.observed, noise)
    model.mixed_precision = True
    rounded = model.log_weights(x, ROWS.observed, noise)
    assert rounded.dtype == model.decode(noise).dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.3)
