"""The Student-t likelihood: its density by known values, its draws, and tails learned from data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sample_models import settings

from vae_anomaly.fitting import fit_model, split_parts
from vae_anomaly.heavy_tails import StudentT
from vae_anomaly.networks import ModelConfig
from vae_anomaly.schema import infer_schema

DOUBLE = torch.float64


def student(df: float, scale: float = 1.0, elements: int = 1) -> StudentT:
    likelihood = StudentT(scale, elements=elements).double().requires_grad_(False)
    likelihood.log_df.fill_(math.log(df - 3))
    return likelihood


@pytest.mark.parametrize(("df", "scale"), [(3.5, 1.0), (5.0, 0.3), (30.0, 2.0)], ids=str)
def test_density_sums_to_one(df: float, scale: float) -> None:
    grid = torch.linspace(-400, 400, 800_001, dtype=DOUBLE)[:, None]
    density = student(df, scale).log_prob(torch.zeros(1, dtype=DOUBLE), grid).exp()
    assert density.sum().item() * 1e-3 == pytest.approx(1.0, abs=1e-5)


def test_known_values() -> None:
    # df 5: (1 + t^2 / 5)^-3 8 / (3 pi sqrt 5)
    at = torch.tensor([0.0, 1.0, -2.0], dtype=DOUBLE)
    found = student(5.0).log_prob(torch.zeros(3, dtype=DOUBLE), at)
    expected = [math.log(8 / (3 * math.pi * math.sqrt(5)) * (1 + t * t / 5) ** -3) for t in (0.0, 1.0, -2.0)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert student(5.0, 2.0).variance(torch.zeros(1, dtype=DOUBLE)).item() == pytest.approx(4 * 5 / 3)


def test_many_degrees_of_freedom_are_a_normal() -> None:
    at = torch.tensor([0.0, 1.0, 3.0], dtype=DOUBLE)
    found = student(1e6).log_prob(torch.zeros(3, dtype=DOUBLE), at)
    torch.testing.assert_close(found, -0.5 * at**2 - 0.5 * math.log(2 * math.pi), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    # Quantiles of Student's t at the normal's 1, 2 and 3 sigma.
    ("df", "quantiles"),
    [(5.0, [1.1105, 2.6487, 5.5070]), (10.0, [1.0526, 2.2837, 3.9569])],
    ids=str,
)
def test_draws_are_the_quantiles_of_the_noise(df: float, quantiles: list[float]) -> None:
    noise = torch.tensor([1.0, 2.0, 3.0, -3.0], dtype=DOUBLE)
    drawn = student(df).sample(torch.zeros(4, dtype=DOUBLE), noise).tolist()
    assert drawn[:3] == pytest.approx(quantiles, rel=0.03)
    assert drawn[3] == -drawn[2]


def test_the_constant_is_stored_when_training_ends() -> None:
    likelihood = StudentT("element", elements=2)
    raw, x = torch.zeros(4), torch.tensor([0.5, -4.0])
    with torch.no_grad():
        likelihood.log_df.copy_(torch.tensor([0.0, 3.0]))
    trained = likelihood.train().log_prob(raw, x)
    torch.testing.assert_close(likelihood.eval().log_prob(raw, x), trained)
    assert (likelihood.best_log_prob(raw, x) >= likelihood.log_prob(raw, x)).all()


def test_heavy_tails_are_learned_from_the_data() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.standard_t(3, 1500), rng.normal(size=1500)])
    schema = infer_schema(x)
    model = ModelConfig(hidden=(8,), latent_size=1, likelihood="student-t", scale="element")
    parts = split_parts(schema.read(x), seed=0)
    fitted = fit_model(schema, parts, settings(model, epochs=25), device="cpu").fitted
    likelihood = fitted.model.likelihood
    assert isinstance(likelihood, StudentT)
    heavy, light = likelihood.df().tolist()
    assert heavy < light
