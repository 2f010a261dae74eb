"""Positive columns: log-normal moments by value, and a table of them end to end."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from looked_up import Choice, Prior
from sample_models import TABLE_MODEL, settings
from sklearn.metrics import roc_auc_score
from torch import Tensor

from vae_anomaly import VAEDetector, load_bundle
from vae_anomaly.columns import Column
from vae_anomaly.encoding import Encoded, MixedEncoding, TableEncoding, fit_encoding
from vae_anomaly.graphs import ExplainGraph
from vae_anomaly.imputation import Noise, State, update
from vae_anomaly.imputing import fresh_state
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.log_columns import LOG_LIMIT, LogAverages, exp_less_one, log_range
from vae_anomaly.metropolis import Chains, StepNoise, step
from vae_anomaly.runtime import Bundle
from vae_anomaly.schema import TableSchema, infer_schema
from vae_anomaly.vae import VAE

DOUBLE = torch.float64
PRICE = Column("price", "positive", math.exp(-5.0), math.exp(9.0), lower=0.0)
# m and s of its logarithm.
M, S = 2.0, 1.5


def price_encoding(column: Column = PRICE) -> MixedEncoding:
    """A price between two plain numbers; model space (B, 3)."""
    columns = (Column("a"), column, Column("b"))
    mean, scale = torch.tensor([3.0, M, 0.0]), torch.tensor([2.0, S, 1.0])
    return MixedEncoding(columns, TableEncoding(mean, scale))


def logs_of(encoding: MixedEncoding) -> LogAverages:
    assert encoding.logs is not None
    return encoding.logs


def fitted(values: np.ndarray, scaling: str = "standard") -> MixedEncoding:
    schema = infer_schema(values, dict.fromkeys(range(values.shape[1]), "positive"))
    assert isinstance(schema, TableSchema)
    encoding = fit_encoding(schema, schema.read(values), (0.0, 1.0), scaling)
    assert isinstance(encoding, MixedEncoding)
    return encoding


def encode(encoding: MixedEncoding, values: np.ndarray) -> Encoded:
    x = torch.from_numpy(values)
    found: Encoded = encoding(x, ~torch.isnan(x))
    return found


@pytest.mark.parametrize("scaling", ["standard", "robust"])
def test_positive_values_come_back_from_the_standardised_logarithm(scaling: str) -> None:
    a = np.random.default_rng(0).normal(size=(400, 3))
    values = np.exp(a * [2.0, 0.5, 30.0] + [0.0, 20.0, -3.0])
    encoding = fitted(values, scaling)
    encoded = encode(encoding, values)
    if scaling == "standard":
        logs = np.log(values)
        standard = (logs - logs.mean(axis=0)) / logs.std(axis=0)
        np.testing.assert_allclose(encoded.x, standard, rtol=0, atol=2e-6)
    assert not encoded.clipped.any()
    # Float32 keeps 2^-24 of a logarithm that is up to 100 deviations of the third column.
    np.testing.assert_allclose(encoding.decode(encoded.x), values, rtol=2e-5)


def test_constant_and_nearly_constant_positive_columns_keep_their_value() -> None:
    values = np.column_stack([np.full(50, 7.0), 1.7e9 + 3600.0 * np.arange(50)])
    encoding = fitted(values)
    encoded = encode(encoding, values)
    np.testing.assert_allclose(encoding.decode(encoded.x), values, rtol=1e-9)
    assert not encoded.x[:, 0].any()


def test_what_is_not_positive_is_clipped_to_the_low_end_and_counted() -> None:
    encoding = price_encoding()
    prices = np.array([0.0, -3.0, 1e-200, math.exp(-5.0), math.exp(9.0), 1e200, np.nan])
    rows = np.column_stack([np.zeros(7), prices, np.zeros(7)])
    encoded = encode(encoding, rows)
    assert encoded.clipped.tolist() == [1, 1, 1, 0, 0, 1, 0]
    # The range of training, ten deviations of 1.5 wider; a gap is at the mean.
    expected = (np.array([-20.0, -20.0, -20.0, -5.0, 9.0, 24.0, M]) - M) / S
    np.testing.assert_allclose(encoded.x[:, 1], expected, rtol=1e-6)


def test_no_location_decodes_to_zero_or_infinity() -> None:
    y = torch.tensor([-1e30, -1e4, -20.0, 0.0, 20.0, 1e4, 1e30])
    rows = torch.stack([torch.zeros(7), y, torch.zeros(7)], dim=1)
    expected = np.exp([-20.0, -20.0, -20.0, M, 24.0, 24.0, 24.0])
    np.testing.assert_allclose(price_encoding().decode(rows)[:, 1], expected, rtol=1e-12)
    bounded = Column("price", "positive", 1.0, 9.0, lower=0.5, upper=100.0)
    found = price_encoding(bounded).decode(rows)[:, 1]
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5, math.exp(M), 100.0, 100.0, 100.0])
    assert log_range(Column("x", "positive", 1e-300, 1e300), 0.0, 200.0) == (-LOG_LIMIT, LOG_LIMIT)


def test_exp_less_one_keeps_its_digits() -> None:
    x = torch.tensor([-50.0, -1.0, -1e-3, -1e-9, 0.0, 1e-15, 0.99e-3, 1.01e-3, 0.5, 80.0], dtype=DOUBLE)
    torch.testing.assert_close(exp_less_one(x), torch.expm1(x), rtol=1e-12, atol=0)


def test_moments_given_z_are_those_of_a_log_normal() -> None:
    logs = logs_of(price_encoding())
    mu, sigma = 0.4, 0.7
    mean, variance = logs.given_z(torch.tensor([9.0, mu, 9.0]), torch.tensor([1.0, sigma**2, 1.0]))
    spread = (S * sigma) ** 2
    assert mean.item() == pytest.approx(S * mu + spread / 2, rel=1e-6)
    assert variance.item() == pytest.approx(math.exp(spread) - 1, rel=1e-6)
    draws = np.exp(S * (mu + sigma * np.random.default_rng(0).normal(size=400_000)))
    assert math.exp(mean.item()) == pytest.approx(draws.mean(), rel=0.01)
    assert math.sqrt(variance.item()) == pytest.approx(draws.std() / draws.mean(), rel=0.03)


@pytest.mark.parametrize(
    ("mu", "sigma", "variance"),
    [
        # Relative to m the largest training value is at 7: a + v stays below it,
        (0.0, 3.0, 7.0),
        (2.0, 3.0, 4.0),
        # but v is not cut below 1,
        (4.5, 3.0, 1.0),
        (1e6, 3.0, 1.0),
        # nor where it is smaller by itself.
        (4.5, 0.5, 0.5625),
    ],
)
def test_a_wide_spread_does_not_carry_the_mean_beyond_training(
    mu: float, sigma: float, variance: float
) -> None:
    logs = logs_of(price_encoding())
    mean, spread = logs.given_z(torch.tensor([0.0, mu, 0.0]), torch.tensor([0.0, sigma**2, 0.0]))
    assert spread.item() == pytest.approx(math.expm1(variance), rel=1e-6)
    assert mean.item() == pytest.approx(min(S * mu, 22.0) + variance / 2, rel=1e-6)


LOCATIONS = torch.tensor([[0.0, -1.0, 2.0], [0.5, 0.3, 1.0], [1.0, 2.0, 0.0]], dtype=DOUBLE)
SIGMA = 0.6


def imputed(cuts: list[list[int]]) -> tuple[State, Tensor]:
    """Row (0 seen, price and b missing) from three latents in chunks, and their weights."""
    model = VAE(Prior(), Choice(LOCATIONS), Gaussian(scale=SIGMA), 1)
    encoded = Encoded(
        torch.zeros(1, 3, dtype=DOUBLE),
        torch.tensor([[True, False, False]]),
        torch.zeros(1, dtype=torch.int64),
    )
    state = State(*(torch.from_numpy(part).double() for part in fresh_state(1, 3, 2).values()))
    for chunk in cuts:
        latent = torch.tensor(chunk, dtype=DOUBLE).reshape(-1, 1, 1)
        noise = Noise(latent, torch.zeros(2, len(chunk), 1, dtype=DOUBLE), torch.zeros(2, 1, 3, dtype=DOUBLE))
        state = update(model, encoded, noise, state, logs_of(price_encoding()))
    return state, torch.softmax(-0.5 * (LOCATIONS[:, 0] / SIGMA) ** 2, dim=0)


def raw_moments(weights: Tensor) -> tuple[float, float]:
    """Mean and deviation of a mixture of log-normals, in raw units, by hand."""
    spread = (S * SIGMA) ** 2
    means = torch.exp(M + S * LOCATIONS[:, 1] + spread / 2)
    squares = means**2 * math.exp(spread)
    mean = float(weights @ means)
    return mean, math.sqrt(float(weights @ squares) - mean**2)


@pytest.mark.parametrize("cuts", [[[0, 1, 2]], [[0], [1], [2]], [[2, 1], [0]]], ids=str)
def test_imputations_average_values_not_logarithms(cuts: list[list[int]]) -> None:
    state, weights = imputed(cuts)
    encoding = price_encoding()
    mean = encoding.decode(state.mean)[0]
    std = encoding.decode_scale(state.variance.sqrt(), state.mean)[0]
    expected = raw_moments(weights)
    assert mean[1].item() == pytest.approx(expected[0], rel=1e-10)
    assert std[1].item() == pytest.approx(expected[1], rel=1e-10)
    # Its neighbour is a plain number.
    assert mean[2].item() == pytest.approx(float(weights @ LOCATIONS[:, 2]), rel=1e-10)
    spread = float(weights @ LOCATIONS[:, 2] ** 2) - mean[2].item() ** 2 + SIGMA**2
    assert std[2].item() == pytest.approx(math.sqrt(spread), rel=1e-10)


def test_steps_average_values_too() -> None:
    model = VAE(Prior(), Choice(LOCATIONS), Gaussian(scale=SIGMA), 1)
    observed = torch.tensor([[True, False, False]])
    encoded = Encoded(torch.zeros(1, 3, dtype=DOUBLE), observed, torch.zeros(1, dtype=torch.int64))
    zeros = torch.zeros(2, 1, 3, dtype=DOUBLE)
    chains = Chains(zeros, zeros[..., :1], torch.zeros(1, dtype=DOUBLE), zeros[0], zeros[0], zeros)
    # Each chain proposes and takes these latents, step by step.
    for places in ([0.0, 1.0], [2.0, 2.0], [1.0, 2.0]):
        proposal = torch.tensor(places, dtype=DOUBLE).reshape(2, 1, 1)
        noise = StepNoise(proposal, zeros, torch.full((2, 1), -1e30, dtype=DOUBLE))
        chains, _ = step(model, encoded, noise, chains, logs_of(price_encoding()))
    encoding, weights = price_encoding(), torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE) / 6
    expected = raw_moments(weights)
    assert encoding.decode(chains.mean)[0, 1].item() == pytest.approx(expected[0], rel=1e-10)
    std = encoding.decode_scale(chains.variance.sqrt(), chains.mean)[0, 1]
    assert std.item() == pytest.approx(expected[1], rel=1e-10)
    by_chain = [[1 / 3, 1 / 3, 1 / 3], [0.0, 1 / 3, 2 / 3]]
    found = encoding.decode(chains.chain_mean)[:, 0, 1]
    wanted = [raw_moments(torch.tensor(part, dtype=DOUBLE))[0] for part in by_chain]
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_extreme_draws_leave_the_averages_finite() -> None:
    column = Column("x", "positive", 1e-250, 1e250)
    encoding = MixedEncoding((column,), TableEncoding(torch.zeros(1), torch.full((1,), 200.0)))
    logs = logs_of(encoding)
    shares = torch.log_softmax(torch.tensor([[0.0], [-300.0], [-900.0]], dtype=DOUBLE), dim=0)
    own = logs.averaged(shares, torch.tensor([[[-3.0]], [[0.0]], [[3.0]]]), torch.full((3, 1, 1), 9.0))
    zeros = torch.zeros(1, 1)
    mean, variance = logs.merged(torch.tensor([[-1e30], [0.0]], dtype=DOUBLE), zeros, zeros, own)
    std = encoding.decode_scale(variance.float().sqrt(), mean.float())
    for found in (mean.float(), variance.float(), std, encoding.decode(mean)):
        assert found.isfinite().all()
        assert (found != 0).all()


def test_the_expected_range_is_exp_of_the_gaussian_range() -> None:
    model = VAE(Prior(), Choice(LOCATIONS.float()), Gaussian(scale=SIGMA), 1)
    graph = ExplainGraph(model, price_encoding(), torch.zeros(1, 1))
    x = torch.tensor([[3.0, math.exp(M), 0.0]], dtype=DOUBLE)
    expected, _, low, high = graph(x, torch.ones(1, 3, dtype=torch.bool))
    reach = 1.96 * S * SIGMA
    for found, place in ((low, -reach), (expected, 0.0), (high, reach)):
        assert found[0, 1].item() == pytest.approx(math.exp(M - S + place), rel=1e-6)


def log_normal_rows(rows: int, seed: int) -> pd.DataFrame:
    """Six columns exp(2 a), a correlated by two factors."""
    loadings = np.random.default_rng(7).normal(size=(2, 6))
    loadings /= np.sqrt((loadings**2).sum(axis=0))
    rng = np.random.default_rng(seed)
    a = 0.92 * rng.normal(size=(rows, 2)) @ loadings + 0.4 * rng.normal(size=(rows, 6))
    return pd.DataFrame(np.exp(2 * a), columns=list("abcdef"))


def detector_of(rows: pd.DataFrame, kind: str | None) -> VAEDetector:
    kinds = None if kind is None else dict.fromkeys(rows, kind)
    choices = settings(TABLE_MODEL, epochs=40, imputation_draws=50)
    return VAEDetector(settings=choices, kinds=kinds, device="cpu", random_state=0).fit(rows)


@pytest.fixture(scope="module")
def detector() -> VAEDetector:
    return detector_of(log_normal_rows(600, seed=0), "positive")


@pytest.fixture(scope="module")
def bundle(detector: VAEDetector, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder: Path = tmp_path_factory.mktemp("positive") / "bundle"
    detector.export(folder)
    return load_bundle(folder, device="cpu")


def test_shuffled_columns_of_a_log_normal_table_stand_out(detector: VAEDetector) -> None:
    rows = log_normal_rows(400, seed=1)
    shuffled = pd.DataFrame(np.random.default_rng(0).permuted(rows.to_numpy(), axis=0), columns=rows.columns)
    both, strange = pd.concat([rows, shuffled], ignore_index=True), np.arange(800) >= 400
    plain = detector_of(log_normal_rows(600, seed=0), None)
    found, without = (roc_auc_score(strange, d.scores(both)["score"]) for d in (detector, plain))
    assert found > 0.8
    assert found > without + 0.1


def test_a_row_scores_the_same_alone_and_as_torch_has_it(bundle: Bundle, detector: VAEDetector) -> None:
    rows = log_normal_rows(40, seed=2)
    rows.iloc[3, 1], rows.iloc[4, 2], rows.iloc[5, 3] = 0.0, -1.0, 1e300
    together = bundle.scores(rows)
    assert np.isfinite(together.to_numpy()).all()
    for row in (0, 3, 39):
        assert np.array_equal(bundle.scores(rows.iloc[[row]]).to_numpy()[0], together.to_numpy()[row])
    np.testing.assert_allclose(together, detector.scores(rows), rtol=1e-4)
    assert bundle.verdicts(rows)["clipped"].tolist() == [0] * 3 + [1] * 3 + [0] * 34


def test_draws_are_positive_and_train_another_model(bundle: Bundle) -> None:
    rows = log_normal_rows(300, seed=3)
    hidden = np.random.default_rng(0).random(rows.shape) < 0.3
    found = bundle.impute(rows.mask(hidden), draws=5, seed=0)
    assert found.draws is not None
    for drawn in found.draws:
        assert (drawn[hidden] > 0).all()
        assert np.isfinite(drawn).all()
    complete = pd.DataFrame(np.where(hidden, found.draws[0], rows), columns=rows.columns)
    kinds = dict.fromkeys(rows, "positive")
    assert {column.kind for column in infer_schema(complete, kinds).columns} == {"positive"}  # type: ignore[union-attr]
    # A mean of draws, far above their median.
    many = bundle.impute(rows.mask(hidden), draws=200, seed=1)
    assert many.draws is not None
    means, medians = many.draws[:, hidden].mean(axis=0), np.median(many.draws[:, hidden], axis=0)
    imputed_means = many.mean.to_numpy()[hidden]
    assert abs(np.median(np.log(imputed_means / means))) < 0.1
    assert np.median(np.log(imputed_means / medians)) > 0.15


@pytest.mark.slow
def test_a_narrow_positive_column_takes_metropolis_steps(tmp_path: Path) -> None:
    a = np.random.default_rng(0).normal(size=(240, 2)) @ np.array([[1.0, 0.8, 1.0], [0.0, 0.6, -1.0]])
    rows = np.column_stack([1.7e9 + 3600 * a[:, 0], np.exp(3 * a[:, 1]), a[:, 2]])
    choices = settings(TABLE_MODEL, epochs=40, imputation_draws=50)
    assert choices.training is not None
    choices = replace(choices, training=replace(choices.training, random_mask=0.0))
    kinds = {0: "positive", 1: "positive"}
    detector = VAEDetector(settings=choices, kinds=kinds, device="cpu", random_state=0).fit(rows)
    # The gate compares steps of torch and of the graph by the digits of every column.
    detector.export(tmp_path / "bundle")
    hidden = rows[:40].copy()
    hidden[:, 0] = np.nan
    found = load_bundle(tmp_path / "bundle", device="cpu").impute(hidden, draws=2)
    assert "metropolis" in found.flags
    assert found.draws is not None
    # Rows spread by 3,600 seconds around 1.7e9: a millionth of the value.
    for seconds in (found.mean[:, 0], *found.draws[:, :, 0]):
        assert np.abs(seconds - 1.7e9).max() < 1e5
        assert 900 < seconds.std() < 9000
    stepped = found.std[found.flags == "metropolis", 0]
    assert ((stepped > 300) & (stepped < 9000)).all()


def test_explanations_are_in_raw_units(bundle: Bundle) -> None:
    rows = log_normal_rows(200, seed=4)
    found = bundle.explain(rows)
    assert found.low is not None
    assert found.high is not None
    assert (found.low > 0).all()
    inside = (found.low <= rows.to_numpy()) & (rows.to_numpy() <= found.high)
    assert (found.low < found.reconstruction).all()
    assert (found.reconstruction < found.high).all()
    assert 0.85 < inside.mean() < 1.0
