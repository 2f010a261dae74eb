"""The likelihood ratio to a model of rows without structure."""

import numpy as np
import pytest
import torch
from linear_gaussian import OFFSET, linear_gaussian, log_marginal
from mixed_tables import mixed_rows
from sample_models import TABLE_MODEL, settings
from score_evidence import ROWS, encoded, evidence, normal
from torch import Tensor

from vae_anomaly import VAEDetector
from vae_anomaly.columns import Column
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.mixed import Mixed
from vae_anomaly.networks import ModelConfig
from vae_anomaly.scores import BackgroundRatio, Evidence, background, noise_bank
from vae_anomaly.scores.background import PERTURBED, perturbed
from vae_anomaly.vae import Autoencoder, make_model

TINY = ModelConfig(hidden=(16,), latent_size=2, activation="silu", scale="element")


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "ROWS_SHOWN", 9_000)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(mask: Tensor) -> Tensor:
    """Every element is one feature."""
    return mask


def tied(count: int, seed: int = 0) -> Tensor:
    """Four columns that are one number, and noise."""
    return (normal(count, 1, seed=seed) + 0.1 * normal(count, 4, seed=seed + 1)).float()


def tiny() -> Autoencoder:
    return make_model((4,), TINY, generator()).eval()


def found(x: Tensor, model: Autoencoder) -> Evidence:
    return Evidence(model, encoded(x), noise_bank(4, 2))


def test_it_is_the_ratio_of_both_marginals_given_exact_posteriors() -> None:
    score = BackgroundRatio()
    score.background = linear_gaussian(offset=OFFSET + 0.7)
    exact = log_marginal(ROWS.x - 0.7 * ROWS.observed, ROWS.observed) - log_marginal(ROWS.x, ROWS.observed)
    torch.testing.assert_close(score(evidence(linear_gaussian())), exact)
    assert exact.abs().max() > 1


def test_it_is_zero_where_the_background_is_the_model_itself() -> None:
    score = BackgroundRatio()
    score.background = linear_gaussian(0.2, 1.2)
    assert torch.equal(score(evidence(linear_gaussian(0.2, 1.2))), torch.zeros(len(ROWS.x)).double())


def test_perturbed_rows_borrow_from_the_same_element_of_other_rows() -> None:
    x = torch.arange(4000.0)[:, None] + torch.tensor([0.0, 0.25, 0.5])
    whole = torch.ones_like(x, dtype=torch.bool)
    drawn = perturbed(x, whole, generator(), same)
    changed = drawn != x
    # Four standard errors of 12,000 coin flips; one donor of 4,000 is the row itself.
    assert changed.double().mean().item() == pytest.approx(PERTURBED, abs=0.015)
    assert torch.equal(drawn.frac(), x.frac())
    seen = torch.arange(4000)[:, None] % 2 == torch.tensor([0, 0, 0])
    gaps = perturbed(torch.where(seen, x, 0.0), seen, generator(), same)
    assert torch.equal(gaps == 0, torch.where(seen, x, 0.0) == 0)


def test_perturbed_classes_of_a_column_go_together() -> None:
    columns = (Column("city", "categorical", categories=("a", "b", "c")), Column("real"))
    likelihood = Mixed(columns, Gaussian(scale="element"))
    city = torch.arange(2000) % 3
    x = torch.cat([torch.eye(3)[city], torch.arange(2000.0)[:, None]], dim=1)
    observed = torch.ones(2000, 2, dtype=torch.bool)
    observed[city == 2, 0] = False
    drawn = perturbed(x, observed, generator(), likelihood.widened)
    assert (drawn[:, :3].sum(dim=1) == 1).all()
    assert torch.equal(drawn[city == 2, :3], x[city == 2, :3])
    changed = (drawn != x).any(dim=0)
    assert changed.tolist() == [True, True, False, True]


def test_a_mixed_table_has_a_background() -> None:
    choices = settings(TABLE_MODEL, epochs=1, scores=("background_ratio",))
    rows = mixed_rows(60)
    detector = VAEDetector(settings=choices, device="cpu", random_state=0).fit(rows)
    assert np.isfinite(detector.scores(rows)["background_ratio"]).all()


def test_fitting_leaves_the_model_and_the_global_generator_alone() -> None:
    model, before = tiny(), torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    scores = []
    for _ in range(2):
        score = BackgroundRatio()
        score.fit(lambda: iter([found(tied(100), model)]))
        scores.append(score(found(tied(20, seed=5), model)))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(*scores)


def test_the_background_knows_less_of_what_ties_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "ROWS_SHOWN", 60_000)
    x = tied(200, seed=5)
    broken = perturbed(x, torch.ones_like(x, dtype=torch.bool), generator(), same)
    surprise = []
    for share in (0.0, PERTURBED):
        monkeypatch.setattr(background, "PERTURBED", share)
        score = BackgroundRatio()
        score.fit(lambda: iter([found(tied(300), tiny())]))
        costs = [found(rows, score.background).iw_nll.mean().item() for rows in (x, broken)]
        surprise.append(costs[1] - costs[0])
    assert surprise[0] > 2 * surprise[1] > 0
