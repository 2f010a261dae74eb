"""The entry points, as torch modules: each against a closed form or another entry point."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sample_models import ALL_SCORES, colour_images, grey_images, table_rows
from torch import Tensor

from vae_anomaly.assembly import Fitted, TorchBackend
from vae_anomaly.calibration import p_values
from vae_anomaly.estimators import VAEDetector
from vae_anomaly.graphs import PValue
from vae_anomaly.imputing import fresh_state
from vae_anomaly.schema import Samples
from vae_anomaly.vae import VAE

ROWS = 6


@pytest.fixture(scope="module", params=["table", "image"])
def fitted(request: pytest.FixtureRequest, table_detector: VAEDetector, image_fitted: Fitted) -> Fitted:
    return table_detector.fitted_ if request.param == "table" else image_fitted


def samples_of(fitted: Fitted) -> Samples:
    """Unseen rows, a third of their cells hidden."""
    x = table_rows(ROWS, seed=9) if fitted.manifest.schema.kind == "table" else grey_images(ROWS, seed=9)
    values, observed = fitted.manifest.schema.read(x)
    return Samples(values, observed & (np.random.default_rng(3).random(values.shape) < 0.67))


def run(fitted: Fitted, graph: str, **feeds: npt.NDArray[np.generic]) -> dict[str, npt.NDArray[np.generic]]:
    return TorchBackend(fitted.graphs).run(graph, feeds)


def model_space(fitted: Fitted, samples: Samples) -> tuple[Tensor, Tensor]:
    """Values and mask as the model sees them, in float64 arithmetic from there on."""
    encoded = fitted.score_graph.encoding(
        torch.from_numpy(samples.values), torch.from_numpy(samples.observed)
    )
    return encoded.x, encoded.observed


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 100])
def test_p_values_by_search_are_those_by_counting(n: int) -> None:
    rng = np.random.default_rng(n)
    table = np.sort(rng.integers(0, max(2, n // 2), n)).astype(np.float32)
    around = [np.nextafter(table, np.float32(side)) for side in (-np.inf, np.inf)]
    scores = np.concatenate([table, *around, [-1e30, 1e30, 0, -np.inf, np.inf]]).astype(np.float32)
    found = PValue(torch.from_numpy(table))(torch.from_numpy(scores)).numpy()
    assert found.dtype == np.float64
    assert found.tolist() == p_values(table, scores).tolist()
    assert found.tolist() == [(1 + int((table >= score).sum())) / (n + 1) for score in scores]


def test_scores_come_in_their_order_and_the_default_once_more(fitted: Fitted) -> None:
    values, observed = samples_of(fitted)
    out = run(fitted, "score", x=values, observed=observed)
    assert tuple(out) == (*ALL_SCORES, "score", "p_value", "clipped")
    assert np.array_equal(out["score"], out["neg_elbo"])
    assert np.array_equal(out["p_value"], p_values(fitted.calibration["score_score"], out["score"]))


def test_scores_are_the_formulas_over_the_stored_noise(fitted: Fitted) -> None:
    samples = samples_of(fitted)
    out = run(fitted, "score", x=samples.values, observed=samples.observed)
    model, noise = fitted.model, fitted.score_graph.noise[:, None, :]
    assert isinstance(model, VAE)
    with torch.inference_mode():
        x, observed = model_space(fitted, samples)
        weights = model.log_weights(x, observed, noise).double()
        mean, log_variance = model.encode(x, observed)
        assert log_variance is not None
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).double().sum(dim=1)
        z = mean + (0.5 * log_variance).exp() * noise
        likelihood = model.log_likelihood(z, x, observed).double().mean(dim=0)
    bound = weights.logsumexp(dim=0) - math.log(4)
    np.testing.assert_allclose(out["iw_nll"], -bound.numpy(), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(out["rate"], kl.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["neg_elbo"], (kl - likelihood).numpy(), rtol=1e-5, atol=1e-4)


def test_what_is_hidden_has_no_say(fitted: Fitted) -> None:
    values, observed = samples_of(fitted)
    garbage = np.where(observed, values, np.nan if values.dtype.kind == "f" else 255).astype(values.dtype)
    for graph in ("score", "explain", "encode"):
        clean, dirty = (run(fitted, graph, x=x, observed=observed) for x in (values, garbage))
        for name, expected in clean.items():
            assert np.array_equal(expected, dirty[name]), (graph, name)


def test_contributions_sum_to_recon_and_are_zero_where_hidden(fitted: Fitted) -> None:
    values, observed = samples_of(fitted)
    out = run(fitted, "explain", x=values, observed=observed)
    recon = run(fitted, "score", x=values, observed=observed)["recon"]
    assert out["contributions"].shape == values.shape
    assert not out["contributions"][~observed].any()
    assert (out["contributions"] >= 0).all()
    flat = out["contributions"].reshape(ROWS, -1).astype(np.float64)
    np.testing.assert_allclose(flat.sum(axis=1), recon, rtol=1e-6)


def test_the_reconstruction_is_the_decoded_mean(fitted: Fitted) -> None:
    values, observed = samples_of(fitted)
    mean = run(fitted, "encode", x=values, observed=observed)["mean"]
    decoded = run(fitted, "decode", z=mean)["reconstruction"]
    expected = run(fitted, "explain", x=values, observed=observed)["reconstruction"]
    assert decoded.shape == values.shape
    assert decoded.dtype == (np.float64 if values.dtype == np.float64 else np.float32)
    np.testing.assert_allclose(decoded, expected, rtol=1e-6, atol=1e-6)


def test_an_autoencoder_encodes_to_a_point(autoencoder_fitted: Fitted) -> None:
    assert set(autoencoder_fitted.graphs) == {"score", "explain", "encode", "decode"}
    values, observed = autoencoder_fitted.manifest.schema.read(colour_images(3))
    assert tuple(run(autoencoder_fitted, "encode", x=values, observed=observed)) == ("mean",)


def chunked(fitted: Fitted, samples: Samples, latent: npt.NDArray[np.float32], sizes: list[int]) -> dict:
    """The impute graph over chunks of the given sizes, one draw kept."""
    rows, elements = len(samples.values), fitted.manifest.schema.elements
    rng = np.random.default_rng(4)
    gumbel = rng.gumbel(size=(1, len(latent), rows)).astype(np.float32)
    element = rng.standard_normal((1, rows, elements)).astype(np.float32)
    state, out = fresh_state(rows, elements, 1), {}
    for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
        part = slice(stop - size, stop)
        noise = {"latent": latent[part], "gumbel": gumbel[:, part], "element": element}
        out = run(fitted, "impute", x=samples.values, observed=samples.observed, **noise, **state)
        state = {name: out[f"next_{name}"] for name in state}
    return out


@pytest.fixture(scope="module")
def noise(fitted: Fitted) -> npt.NDArray[np.float32]:
    shape = (60, ROWS, fitted.manifest.latent_size)
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def test_imputation_does_not_depend_on_the_chunks(fitted: Fitted, noise: npt.NDArray[np.float32]) -> None:
    samples = samples_of(fitted)
    whole = chunked(fitted, samples, noise, [60])
    for sizes in ([1, 59], [20, 20, 20], [7, 53]):
        parts = chunked(fitted, samples, noise, sizes)
        for name in ("mean_raw", "std_raw", "ess", "draws_raw", "next_log_total"):
            np.testing.assert_allclose(parts[name], whole[name], rtol=2e-3, err_msg=f"{name} {sizes}")


def test_imputation_is_the_weighted_mean_of_the_decoder(
    fitted: Fitted, noise: npt.NDArray[np.float32]
) -> None:
    """By hand, in float64: w = softmax(log p(x | z) + log p(z) - log q(z | x))."""
    samples, model = samples_of(fitted), fitted.model
    assert isinstance(model, VAE)
    out = chunked(fitted, samples, noise, [30, 30])
    with torch.inference_mode():
        x, observed = model_space(fitted, samples)
        eps = torch.from_numpy(noise)
        weights = model.log_weights(x, observed, eps).double().softmax(dim=0)[:, :, None]
        mean, log_variance = model.encode(x, observed)
        assert log_variance is not None
        raw = model.decode(mean + (0.5 * log_variance).exp() * eps)
        means = model.likelihood.mean(raw).double()
        variances = model.likelihood.variance(raw).double()
        expected = (weights * means).sum(dim=0)
        variance = (weights * (variances + (means - expected) ** 2)).sum(dim=0)
        raw_mean = fitted.score_graph.encoding.decode(expected.float()).numpy()
        raw_std = fitted.score_graph.encoding.decode_scale(variance.sqrt().float(), mean.float()).numpy()
    np.testing.assert_allclose(out["mean_raw"], raw_mean, rtol=1e-3)
    np.testing.assert_allclose(out["std_raw"], raw_std, rtol=1e-3)
    np.testing.assert_allclose(out["ess"], 1 / (weights[:, :, 0] ** 2).sum(dim=0).numpy(), rtol=1e-3)
    assert (out["ess"] >= 1 - 1e-4).all()
    assert (out["ess"] <= 60 + 1e-2).all()
