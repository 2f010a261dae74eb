"""Rows that may be anomalies are left out by their losses, and by nothing else."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sample_models import TABLE_MODEL, settings, table_rows
from tiny_training import CONFIG, CPU, MODEL, OBJECTIVE, TRAIN, VALIDATION, figures, same, trainer, weights
from torch import Tensor

from vae_anomaly import VAEDetector, training
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.fitting import Settings
from vae_anomaly.objectives import ObjectiveConfig
from vae_anomaly.schema import Samples, infer_schema
from vae_anomaly.training import Data
from vae_anomaly.trimming import MOST, excess_share, kept_rows, row_losses


def chi_squares(rows: int, degrees: int, strange: int = 0, seed: int = 0) -> Tensor:
    """Half chi-squares, the losses of a Gaussian; the first ones are tripled."""
    values = np.random.default_rng(seed).chisquare(degrees, rows) / 2
    values[:strange] = degrees * 3.0
    return torch.from_numpy(values)


@pytest.mark.parametrize("degrees", [10, 400], ids=["ten", "four-hundred"])
@pytest.mark.parametrize(("strange", "low", "high"), [(0, 0, 0.004), (20, 0, 0.015), (100, 0.03, 0.06)])
def test_the_excess_is_the_share_of_strange_rows(degrees: int, strange: int, low: float, high: float) -> None:
    assert low <= excess_share(chi_squares(2000, degrees, strange)) <= high


def test_symmetric_or_constant_losses_have_no_excess() -> None:
    cubes = torch.linspace(0, 2, 401, dtype=torch.float64) ** 3
    assert excess_share(cubes) == 0.0
    assert excess_share(torch.ones(10)) == 0.0
    assert excess_share(torch.ones(1)) == 0.0


def test_a_clear_excess_is_counted_exactly() -> None:
    cubes = torch.linspace(0, 2, 101, dtype=torch.float64) ** 3
    losses = torch.cat([cubes, torch.full((10,), 1000.0)])
    # Ten rows above shift the median by five places, which then outweigh as many below it.
    assert excess_share(losses) == pytest.approx(10 / 111)
    assert kept_rows(losses, excess_share(losses)).tolist() == list(range(101))


@pytest.mark.parametrize(
    ("trim", "kept"), [(0.0, [0, 1, 2, 3, 4]), (0.2, [0, 2, 3, 4]), (0.39, [0, 2, 3, 4]), (0.4, [0, 2, 4])]
)
def test_the_rows_with_the_highest_losses_go(trim: float, kept: list[int]) -> None:
    assert kept_rows(torch.tensor([5.0, 9.0, 1.0, 5.0, 2.0]), trim).tolist() == kept


def test_auto_leaves_most_rows() -> None:
    losses = chi_squares(1000, 50, strange=400)
    assert excess_share(losses) == MOST


def test_losses_are_scaled_to_full_rows() -> None:
    """Two equal columns: hiding one leaves the loss per element, apart from the posterior."""
    run = trainer()
    run.model.eval()
    data = Data.of(TRAIN, CPU)
    encoded = run.encoding(*data.batch(torch.arange(len(data))))
    posterior = run.model.encode(encoded.x, encoded.observed)
    assert posterior.log_variance is not None
    by_hand = -run.model.log_likelihood(posterior.mean, encoded.x, encoded.observed)
    by_hand = by_hand * 4 / encoded.observed.sum(dim=1).clamp_min(1)
    variance = posterior.log_variance.exp()
    kl = 0.5 * (posterior.mean**2 + variance - 1 - posterior.log_variance).sum(dim=1)
    torch.testing.assert_close(row_losses(run.model, [encoded]), by_hand + kl)


@pytest.mark.parametrize("trim", [-0.1, 0.5, 1.0, float("nan"), "automatic"])
def test_a_trim_out_of_range_is_refused(trim: Any) -> None:
    sentence = f"trim is {trim!r}; choose 'auto', or a share of the rows of at least 0 and below 0.5"
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        ObjectiveConfig(trim=trim)
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        VAEDetector(trim=trim, settings=QUICK).fit(table_rows())


QUICK = settings(TABLE_MODEL, epochs=4)


def spoilt() -> Samples:
    """The tiny table with its first five rows thrown far off."""
    values = TRAIN.values.copy()
    values[:5] = 25.0
    return Samples(values, ~np.isnan(values))


def test_trimmed_rows_do_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a warm-up strange rows leave no trace: farther ones give the same weights."""
    monkeypatch.setattr(training, "WARMUP", 0.0)
    config = replace(CONFIG, epochs=2)
    runs = []
    for far in (25.0, 60.0):
        values = spoilt().values * np.where(np.arange(50) < 5, far / 25.0, 1.0)[:, None]
        run = trainer(config, objective=replace(OBJECTIVE, trim=0.1), model=replace(MODEL, batch_norm=False))
        run.fit(Samples(values, ~np.isnan(values)), VALIDATION)
        assert run.kept(Data.of(spoilt(), CPU), 0.1).tolist() == list(range(5, 50))
        runs.append(weights(run.model))
    untrimmed = trainer(config, model=replace(MODEL, batch_norm=False))
    untrimmed.fit(spoilt(), VALIDATION)
    assert same(*runs)
    assert not same(runs[0], weights(untrimmed.model))


def test_the_first_tenth_of_the_epochs_sees_every_row() -> None:
    seen: list[int] = []
    run = trainer(replace(CONFIG, epochs=20), objective=replace(OBJECTIVE, trim=0.2))
    masked = run._masked
    run._masked = lambda data, index, generator: (  # type: ignore[method-assign]
        seen.append(len(index)),
        masked(data, index, generator),
    )[1]
    run.fit(TRAIN, VALIDATION)
    assert [sum(seen[:4]), sum(seen[4:8])] == [50, 50]
    assert sum(seen[8:]) == 18 * 40


def test_auto_looks_once_when_the_warm_up_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([0.1, 0.2])
    monkeypatch.setattr(training, "excess_share", lambda losses: next(looks))
    history = trainer(replace(CONFIG, epochs=20), objective=replace(OBJECTIVE, trim="auto")).fit(
        TRAIN, VALIDATION
    )
    assert [epoch["trimmed"] for epoch in history] == [0.0] * 2 + [0.1] * 18


def test_no_trim_is_what_it_was_and_a_trimmed_run_repeats() -> None:
    plain, zero = trainer(), trainer(objective=replace(OBJECTIVE, trim=0.0))
    assert figures(plain.fit(TRAIN, VALIDATION)) == figures(zero.fit(TRAIN, VALIDATION))
    first, second = (trainer(objective=replace(OBJECTIVE, trim="auto")) for _ in range(2))
    assert figures(first.fit(spoilt(), VALIDATION)) == figures(second.fit(spoilt(), VALIDATION))
    assert same(weights(first.model), weights(second.model))


def test_a_detector_fits_its_scores_on_what_is_left() -> None:
    rows = table_rows()
    rows.iloc[::20] *= 30.0
    detector = VAEDetector(trim=0.1, settings=QUICK, random_state=0, device="cpu").fit(rows)
    plain = VAEDetector(settings=QUICK, random_state=0, device="cpu").fit(rows)
    provenance = detector.fitted_.manifest.provenance
    assert (provenance["rows_train"], provenance["rows_trimmed"]) == (152, 16)
    assert plain.fitted_.manifest.provenance["rows_train"] == 168
    assert "rows_trimmed" not in plain.fitted_.manifest.provenance
    assert provenance["rows_calibration"] == 48
    assert detector.settings_.objective.trim == 0.1


def test_a_trimmed_fit_is_a_short_one() -> None:
    schema = infer_schema(TRAIN.values)
    trimmed = Settings(objective=ObjectiveConfig(trim="auto"))
    for rows, epochs in ((500, 60), (10_000, 10), (40_000, 10)):
        complete = trimmed.completed(schema, rows)
        assert complete.training is not None
        assert complete.training.epochs == epochs
    given = replace(CONFIG, epochs=77)
    assert replace(trimmed, training=given).completed(schema, 500).training is given


def test_trim_helps_where_a_tenth_is_strange() -> None:
    """Two factors; a tenth of the rows has none of their structure."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(2, 6))
    clean = rng.normal(size=(500, 2)) @ loadings + 0.1 * rng.normal(size=(500, 6))
    strange = rng.normal(size=(50, 6)) * 6 * clean.std(axis=0)
    rows = np.concatenate([clean, strange])
    made = settings(replace(TABLE_MODEL, hidden=(64,), latent_size=4), epochs=40)
    found = VAEDetector(settings=made, trim="auto", random_state=0, device="cpu").fit(rows)
    dropped = found.fitted_.manifest.provenance["rows_trimmed"]
    assert 25 <= dropped <= 55
    missed = VAEDetector(settings=made, random_state=0, device="cpu").fit(rows)
    margins = [
        np.median(detector.scores(strange)["recon"]) / np.median(detector.scores(clean)["recon"])
        for detector in (found, missed)
    ]
    assert margins[0] > 2 * margins[1]


def test_one_epoch_has_no_time_to_trim() -> None:
    message = "trim leaves rows out from the second epoch on, and training has 1; give it more"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        VAEDetector(settings=settings(TABLE_MODEL, epochs=1), trim=0.2, device="cpu").fit(table_rows())


@pytest.mark.parametrize("trim", [[0.1], "0.1", 0.5, -0.1, True, None], ids=str)
def test_what_is_no_share_is_refused_in_words(trim: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^trim is .*; choose 'auto', or a share of the rows of at least 0"
    ):
        ObjectiveConfig(trim=trim)
