"""Distances in latent space equal their dense formulas and scikit-learn's."""

import math

import pytest
import torch
from score_evidence import fitted, latents_only, normal
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from vae_anomaly.scores import FULL_COVARIANCE, LEADING_DIRECTIONS, RIDGE, LatentKnn, LatentMaha
from vae_anomaly.scores.latent import BANK_ROWS, IMAGE_BANK_NUMBERS, IMAGE_BANK_ROWS


def fit_maha(mean: Tensor, log_variance: Tensor | None = None) -> LatentMaha:
    return fitted(LatentMaha(), mean, log_variance)


def test_latent_maha_and_posterior_spread_fill_the_latent_size() -> None:
    latent, rows = 6, 400
    mean = normal(rows, latent) @ normal(latent, latent, seed=1) + 3.0
    log_variance = normal(rows, latent, seed=2) - 1.0
    score = fit_maha(mean, log_variance)
    centred = mean - mean.mean(dim=0)
    spread = log_variance.exp().mean(dim=0)
    dense = centred.T @ centred / rows + torch.diag(spread)
    ridge = RIDGE * dense.diagonal().mean() * torch.eye(latent)
    inverse = torch.linalg.inv(dense + ridge)
    got = score(latents_only(mean, log_variance))
    expected = ((centred @ inverse) * centred).sum(dim=1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
    # The identity of SCIENCE, section 2, divisor n; the ridge takes its own small share.
    assert got.mean() + (inverse * torch.diag(spread)).sum() == pytest.approx(latent, rel=3e-3)
    assert got.mean() + (inverse * (torch.diag(spread) + ridge)).sum() == pytest.approx(latent, rel=1e-5)
    divisor = rows / (rows - 1)
    assert got.mean() * divisor + (inverse * (torch.diag(spread) + ridge)).sum() != pytest.approx(
        latent, rel=1e-3
    )


def test_latent_maha_of_collapsed_units_stays_finite() -> None:
    mean = normal(200, 4)
    mean[:, 2] = 0.5
    score = fit_maha(mean)
    whole = score(latents_only(mean))
    without = fit_maha(mean[:, [0, 1, 3]])(latents_only(mean[:, [0, 1, 3]]))
    torch.testing.assert_close(whole, without, rtol=1e-3, atol=1e-4)
    off = mean[:1].clone()
    off[:, 2] += 1.0
    assert score(latents_only(off)).item() > 1000
    assert fit_maha(torch.ones(50, 3))(latents_only(torch.ones(1, 3))).item() == 0


def test_a_code_distance_uses_the_covariance_alone() -> None:
    mean = normal(300, 3) * torch.tensor([1.0, 10.0, 0.1])
    got = fit_maha(mean)(latents_only(mean))
    centred = mean - mean.mean(dim=0)
    inverse = torch.linalg.inv(
        centred.T @ centred / 300 + RIDGE * centred.var(correction=0, dim=0).mean() * torch.eye(3)
    )
    torch.testing.assert_close(got.double(), ((centred @ inverse) * centred).sum(dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variational", [True, False])
def test_long_codes_keep_leading_directions_and_one_variance_for_the_rest(variational: bool) -> None:
    latent, rows = FULL_COVARIANCE + 40, 700
    turn = torch.linalg.qr(normal(latent, latent, seed=1))[0]
    mean = normal(rows, latent) * 0.94 ** torch.arange(latent) @ turn
    log_variance = torch.full((rows, latent), math.log(0.3), dtype=torch.float64) if variational else None
    got = fit_maha(mean, log_variance)(latents_only(mean, log_variance))
    centred = mean - mean.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / rows)
    noise = 0.3 if variational else 0.0
    others = values[:-LEADING_DIRECTIONS].mean().expand(latent - LEADING_DIRECTIONS)
    floor = noise + RIDGE * (values.mean() + noise)
    spectrum = torch.cat([others, values[-LEADING_DIRECTIONS:]]) + floor
    expected = ((centred @ vectors) ** 2 / spectrum).sum(dim=1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=0)
    if variational:
        assert got.mean() + noise * (1 / spectrum).sum() == pytest.approx(latent, rel=2e-3)


def test_fewer_rows_than_directions_span_all_there_is() -> None:
    mean = normal(30, FULL_COVARIANCE + 10)
    score = fit_maha(mean)
    got = score(latents_only(mean))
    # Each training row lies in the span, at distance n - 1 in all: the mean over n rows of n - 1 axes.
    assert got.mean().item() == pytest.approx(29, rel=0.01)
    assert score(latents_only(mean + normal(*mean.shape, seed=1))).min() > 1e4


def test_fitting_depends_on_no_global_generator() -> None:
    mean = normal(200, FULL_COVARIANCE + 1)
    before = torch.get_rng_state()
    first = fit_maha(mean)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = fit_maha(mean)
    assert torch.equal(first.whitening.directions, again.whitening.directions)
    assert torch.equal(first.whitening.precisions, again.whitening.precisions)


@pytest.mark.parametrize("variational", [True, False])
def test_latent_knn_is_scikit_learns_mean_distance(variational: bool) -> None:
    mean = normal(300, 3) @ normal(3, 3, seed=1)
    log_variance = normal(300, 3, seed=2) - 2.0 if variational else None
    score = fitted(LatentKnn(), mean, log_variance)
    new = torch.cat([mean[:5], normal(60, 3, seed=3) @ normal(3, 3, seed=1), torch.full((1, 3), 1e4)])
    near = NearestNeighbors(n_neighbors=5).fit(mean.numpy())
    distances, _ = near.kneighbors(new.numpy())
    got = score(latents_only(new, None if log_variance is None else torch.zeros_like(new)))
    torch.testing.assert_close(got.double(), torch.from_numpy(distances.mean(axis=1)), rtol=1e-5, atol=1e-5)


def test_a_collapsed_dimension_adds_next_to_nothing_to_the_distance() -> None:
    mean = normal(300, 3) * torch.tensor([1.0, 1.0, 1e-6])
    found = fitted(LatentKnn(), mean)(latents_only(mean[:20]))
    torch.testing.assert_close(found, fitted(LatentKnn(), mean[:, :2])(latents_only(mean[:20, :2])))


def test_the_bank_is_bounded_and_drawn_by_a_fixed_seed() -> None:
    mean = normal(BANK_ROWS + 500, 2)
    first, again = fitted(LatentKnn(), mean), fitted(LatentKnn(), mean)
    assert first.bank.shape == (BANK_ROWS, 2)
    assert torch.equal(first.bank, again.bank)
    # Every row of the bank is a training row, none of them twice.
    rows = first.axes(mean.float())
    assert {tuple(row) for row in first.bank.tolist()} <= {tuple(row) for row in rows.tolist()}
    assert len(first.bank.unique(dim=0)) == BANK_ROWS
    few = fitted(LatentKnn(), mean[:3])
    lone = few(latents_only(mean[:1]))
    others = (few.bank - few.bank[0]).norm(dim=1)
    torch.testing.assert_close(lone, others.mean()[None])


@pytest.mark.parametrize(
    ("latent", "kept"), [(2, IMAGE_BANK_ROWS), (128, IMAGE_BANK_NUMBERS // 128), (512, 2_500), (640, 10_000)]
)
def test_images_keep_a_larger_bank_of_so_many_numbers(latent: int, kept: int) -> None:
    score, mean = LatentKnn(), normal(IMAGE_BANK_ROWS + 500, latent)
    score.fit(lambda: iter([latents_only(mean, shape=(1, 28, 28))]))
    assert len(score.bank) == kept


def test_long_codes_keep_a_bank_of_leading_directions() -> None:
    mean = normal(300, FULL_COVARIANCE + 10) * 0.9 ** torch.arange(FULL_COVARIANCE + 10)
    score = fitted(LatentKnn(), mean)
    assert score.bank.shape == (300, LEADING_DIRECTIONS)
    assert score(latents_only(mean[:4])).isfinite().all()
