"""An imputer trains on all rows, for as long as hidden cells become more likely."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from linear_gaussian import ALL_MASKS, OFFSET, linear_gaussian, log_marginal

from vae_anomaly import VAEImputer, imputer_fitting
from vae_anomaly.assembly import ExportConfig, Parts
from vae_anomaly.budget import MOST_ROWS, MOST_WORK, PASSES, work_per_row
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.fitting import Settings, make_trainer, split_parts
from vae_anomaly.imputer_fitting import (
    HIDDEN_SHARE,
    _best_epoch,
    _hidden_cells,
    fit_imputer,
    imputer_parts,
    imputer_settings,
)
from vae_anomaly.missing import Missing
from vae_anomaly.networks import ModelConfig, make_networks
from vae_anomaly.objectives import ObjectiveConfig, predictive_loss
from vae_anomaly.schema import ImageSchema, Samples, infer_schema
from vae_anomaly.training import CELL_COST, TrainingConfig

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((240, 1)) @ RNG.standard_normal((1, 5)) + 0.3 * RNG.standard_normal((240, 5))


def samples(missing: float = 0.3) -> Samples:
    return Samples(ROWS, np.random.default_rng(1).random(ROWS.shape) >= missing)


def test_predictive_loss_is_the_conditional_density_of_the_hidden_cells() -> None:
    model, hidden = linear_gaussian(), ~ALL_MASKS
    # Near the mean, where the proposal, the posterior of what is visible, covers all of the posterior.
    x = OFFSET + 0.5 * torch.randn(
        ALL_MASKS.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    expected = log_marginal(x, ALL_MASKS) - log_marginal(x, ALL_MASKS | hidden)
    noise = torch.randn(40_000, 1, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = torch.cat(
        [
            predictive_loss(model, x[i : i + 1], ALL_MASKS[i : i + 1], hidden[i : i + 1], noise)
            for i in range(len(x))
        ]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0.15)


def test_the_hidden_cells_leave_every_row_and_column_a_value() -> None:
    shown = samples()
    hidden = _hidden_cells(shown, seed=0)
    assert not (hidden & ~shown.observed).any()
    left = shown.observed & ~hidden
    np.testing.assert_array_equal(left.any(axis=1), shown.observed.any(axis=1))
    assert left.any(axis=0).all()
    assert abs(hidden.sum() / shown.observed.sum() - HIDDEN_SHARE) < 0.05


def test_all_rows_but_those_that_calibrate_train() -> None:
    parts = imputer_parts(samples(), seed=0)
    assert (len(parts.train.values), len(parts.calibration.values)) == (221, 19)
    both = np.concatenate([parts.train.values, parts.calibration.values])
    np.testing.assert_array_equal(np.sort(both[:, 0]), np.sort(ROWS[:, 0]))


def test_every_column_that_has_a_value_has_one_in_training() -> None:
    for seed in range(20):
        for split in (imputer_parts, split_parts):
            given = samples(0.0)
            given.observed[:, 1:3] = False
            given.observed[seed, 1] = given.observed[seed + 1, 2] = True
            parts = split(given, seed)
            assert parts.train.observed[:, :3].any(axis=0).all()
            rows = np.concatenate([part.values for part in (parts.train, parts.calibration)])
            if split is split_parts:
                rows = np.concatenate([rows, parts.validation.values])
            np.testing.assert_array_equal(np.sort(rows[:, 0]), np.sort(ROWS[:, 0]))


@pytest.mark.parametrize(("rows", "watched"), [(240, 0), (70, 7)], ids=["many", "few"])
def test_all_rows_train_where_others_calibrate_but_of_few_some_only_watch(rows: int, watched: int) -> None:
    shown = Samples(ROWS[:rows], samples().observed[:rows])
    shown.observed[:20] = False
    others = Samples(ROWS[:20], samples().observed[:20])
    parts = imputer_parts(shown, 0, others)
    rows_used = [parts.train.values[:, 0], *([parts.validation.values[:, 0]] if watched else [])]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows_used)), np.sort(ROWS[:rows, 0]))
    assert len(parts.train.values) == rows - watched
    assert parts.validation.observed.any(axis=1).all()
    assert parts.calibration is others


def test_a_table_however_large_stays_within_the_limit_of_work() -> None:
    for rows, columns in ((5_000_000, 5), (600_000, 20), (200_000, 300)):
        few = infer_schema(RNG.normal(size=(3, columns)))
        table = np.broadcast_to(0.0, (rows, columns))
        settings = imputer_settings(few, Samples(table, np.broadcast_to(True, table.shape)))
        assert settings.training is not None
        assert settings.model is not None
        shown = settings.training.epochs * (settings.training.epoch_rows or rows)
        assert shown <= MOST_ROWS
        assert shown * PASSES * work_per_row(settings.model, few.shape, draws=10) <= MOST_WORK


def test_an_imputer_learns_from_every_row() -> None:
    settings = Settings(objective=ObjectiveConfig(trim=0.1))
    with pytest.raises(
        ConfigError, match=r"^trim is 0\.1 and an imputer learns from every row; leave it out$"
    ):
        fit_imputer(infer_schema(ROWS), imputer_parts(samples(), 0), settings)


def test_what_settings_leave_open_is_an_imputers() -> None:
    """To ask for more draws must not train another model."""
    schema, shown = infer_schema(ROWS), samples()
    expected, export = imputer_settings(schema, shown), ExportConfig(imputation_draws=50)
    assert Settings(export=export).otherwise(expected) == replace(expected, export=export)
    quick = replace(expected.training or TrainingConfig(), epochs=2)
    imputer = VAEImputer(settings=Settings(training=quick, export=export), random_state=0, device="cpu")
    found = imputer.fit(np.where(shown.observed, shown.values, np.nan)).settings_
    assert (found.model, found.objective, found.export) == (expected.model, expected.objective, export)


def test_few_rows_split_as_a_detector_splits_them() -> None:
    parts = imputer_parts(Samples(ROWS[:50], np.ones((50, 5), dtype=bool)), seed=0)
    assert [len(part.values) for part in parts[:3]] == [35, 5, 10]


def test_the_best_epoch_is_that_of_the_mean_over_a_twentieth() -> None:
    losses = np.concatenate([np.linspace(3, 1, 50), np.linspace(1, 2, 50)])
    losses[90] = 0.5  # a lucky epoch in bad company
    assert abs(_best_epoch([{"val_loss": loss} for loss in losses]) - 51) <= 1


@pytest.mark.parametrize(
    ("best", "half", "quarter", "eighth", "epochs"),
    [
        (60, [1.0, 1.0, 1.0, 1.0], [0.9, 0.8, 0.9, 0.8], [0.5, 0.4, 0.4, 0.5], 60),
        (7, [1.0, 1.0, 1.0, 1.0], [1.1, 1.2, 1.1, 1.2], [0.0, 0.0, 0.0, 0.0], 40),  # a quarter is no likelier
        (7, [1.0, 1.0, 1.0, 1.0], [-2.0, 1.5, 1.5, 1.5], [0.0, 0.0, 0.0, 0.0], 40),  # by one row alone
        (7, [1.0, 1.0, 1.0, 1.0], [0.9, 0.8, 0.9, 0.8], [0.9, 0.8, 0.9, 0.7], 20),  # an eighth is by one row
        (7, [1.0, 1.0, 1.0, 1.0], [0.9, 0.8, 0.9, 0.8], [0.5, 0.4, 0.4, 0.5], 10),  # and by every row
    ],
)
def test_the_likeliest_epoch_counts_in_the_second_half_and_shorter_trainings_beyond_chance(
    best: int,
    half: list[float],
    quarter: list[float],
    eighth: list[float],
    epochs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = {10: eighth, 20: quarter, 40: half, 80: half}

    class Trainer:
        def __init__(self, config: TrainingConfig) -> None:
            self.epochs = config.epochs

        def fit(self, *watched: object, resume: bool) -> list[dict[str, float]]:
            return [{"epoch": i, "val_loss": abs(best - i)} for i in range(1, self.epochs + 1)]

        def hidden_costs(self, *watched: object) -> np.ndarray:
            return np.array(costs[self.epochs])

    def make(schema: object, parts: object, settings: Settings, *rest: object) -> tuple[Trainer, None]:
        return Trainer(settings.training or TrainingConfig()), None

    monkeypatch.setattr(imputer_fitting, "make_trainer", make)
    shown = samples()
    watched = Parts(shown, shown, shown, shown.observed)
    settings = Settings(training=TrainingConfig(epochs=80))
    search = imputer_fitting._Search(infer_schema(ROWS), watched, settings)
    assert imputer_fitting._long_enough(search) == pytest.approx(epochs, abs=1)
    trained = {60: 80, 40: 80 + 40 + 20, 20: 80 + 40 + 20 + 10, 10: 80 + 40 + 20 + 10}
    assert [figures["epoch"] for figures in search.history] == list(range(1, trained[epochs] + 1))


def test_costs_of_hidden_cells_are_the_validation_loss_row_by_row() -> None:
    shown = samples()
    hidden = _hidden_cells(shown, seed=0)
    parts = Parts(Samples(shown.values, shown.observed & ~hidden), shown, shown, hidden)
    settings = Settings(
        ModelConfig(hidden=(4,), latent_size=2, scale="element"),
        training=TrainingConfig(epochs=2, keep="last", precision="float32"),
    )
    trainer, _ = make_trainer(infer_schema(ROWS), parts, settings, seed=0, device="cpu")
    last = trainer.fit(parts.train, parts.validation, hidden)[-1]["val_loss"]
    costs = trainer.hidden_costs(parts.validation, hidden)
    assert costs.shape == (240,)
    assert costs.mean() == pytest.approx(last, rel=1e-6)
    assert (costs[~hidden.any(axis=1)] == 0).all()


def test_one_cell_far_out_cannot_choose_the_epoch() -> None:
    rows, hidden = samples().values[:40].copy(), np.zeros((40, 5), dtype=bool)
    hidden[0, 0] = True
    settings = Settings(
        ModelConfig(hidden=(4,), latent_size=2, scale="element"),
        training=TrainingConfig(epochs=1, random_mask=0.0),
    )
    costs = []
    for value in (0.0, 1e6):
        rows[0, 0] = value
        watched = Samples(rows[:1], np.ones((1, 5), dtype=bool))
        parts = Parts(Samples(rows[1:], np.ones((39, 5), dtype=bool)), watched, watched, hidden[:1])
        trainer, _ = make_trainer(infer_schema(ROWS), parts, settings, seed=0, device="cpu")
        costs.append(trainer.fit(parts.train, parts.validation, parts.hidden)[-1]["val_loss"])
    assert costs[0] < CELL_COST
    assert costs[1] == CELL_COST


@pytest.mark.parametrize(("missing", "masked"), [(0.0, 0.5), (0.5, 0.25)])
def test_the_less_is_missing_the_more_is_masked(missing: float, masked: float) -> None:
    shown = samples(missing)
    settings = imputer_settings(infer_schema(ROWS), shown)
    assert settings.training is not None
    assert settings.training.random_mask == pytest.approx(masked, abs=0.02)


@pytest.mark.parametrize(
    ("side", "latents", "shown"), [(8, 16, 1_200_000), (28, 64, 1_200_000), (96, 64, 72_000)]
)
def test_images_get_latents_by_their_pixels_and_training_by_their_cost(
    side: int, latents: int, shown: int
) -> None:
    rows = 6_000
    images = np.zeros((rows, 1, side, side), dtype=np.uint8)
    settings = imputer_settings(ImageSchema(1, side, side), Samples(images, np.ones_like(images, dtype=bool)))
    assert settings.model is not None
    assert settings.training is not None
    assert settings.model.latent_size == latents
    assert settings.training.epochs * rows == shown
    assert settings.training.denoise


@pytest.mark.parametrize(("rows", "rate"), [(200, 3e-3), (1_000, 3e-3 * 2**0.5), (60_000, 6e-3)])
def test_the_learning_rate_grows_with_the_root_of_the_batch(rows: int, rate: float) -> None:
    table = np.zeros((rows, 2))
    settings = imputer_settings(infer_schema(ROWS[:, :2]), Samples(table, np.ones_like(table, dtype=bool)))
    assert settings.training is not None
    assert settings.training.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize(("columns", "width"), [(3, 128), (30, 128), (64, 256), (500, 256)])
def test_tables_get_four_units_per_column_within_bounds(columns: int, width: int) -> None:
    rows = np.random.default_rng(0).normal(size=(100, columns))
    settings = imputer_settings(infer_schema(rows), Samples(rows, np.ones_like(rows, dtype=bool)))
    assert settings.model is not None
    assert settings.model.hidden == (width, width)


@pytest.mark.parametrize(("rows", "times"), [(240, 2), (90, 1)], ids=["twice", "once"])
def test_a_second_training_lasts_as_long_as_the_best_of_the_first_ones(rows: int, times: int) -> None:
    shown = Samples(ROWS[:rows], samples().observed[:rows])
    settings = Settings(
        ModelConfig(hidden=(8,), latent_size=2, scale="element", skip=True),
        training=TrainingConfig(epochs=8, random_mask=0.3),
    )
    fit = fit_imputer(infer_schema(ROWS), imputer_parts(shown, seed=0), settings, device="cpu")
    assert fit.settings.training is not None
    best = fit.settings.training.epochs
    first = len(fit.history) - best
    assert [epoch["epoch"] for epoch in fit.history] == list(range(1, len(fit.history) + 1))
    assert ["val_loss" in epoch for epoch in fit.history] == [
        times == 1 or i < first for i in range(first + best)
    ]
    twice = [*((8, late) for late in range(5, 9)), (8 + 4 + 2, 4), (8 + 4 + 2 + 1, 2), (8 + 4 + 2 + 1, 1)]
    assert (first, best) in (twice if times == 2 else [(0, 8)])
    assert fit.fitted.manifest.provenance["rows_train"] == (221 if times == 2 else 63)


def either_or(rows: int) -> np.ndarray:
    """Two columns, one value per row."""
    return np.where(np.arange(rows)[:, None] % 2 == [0, 1], ROWS[:rows, :2], np.nan)


@pytest.mark.parametrize(
    ("rows", "missing"),
    [
        (np.where(np.arange(240)[:, None] % 5, ROWS[:, :1], np.nan), "mar"),
        (either_or(240), "mar"),
        (either_or(240), "mnar-self-high"),
        (np.where(np.arange(240)[:, None] < 5, ROWS, np.nan), "mar"),
    ],
    ids=["one column", "one value per row", "not at random", "five rows with a value"],
)
def test_where_no_cell_can_be_hidden_one_training_does(rows: np.ndarray, missing: Missing) -> None:
    schema = infer_schema(rows)
    settings = Settings(
        ModelConfig(hidden=(8,), latent_size=2, scale="element", likelihood="gaussian", missing=missing),
        training=TrainingConfig(epochs=3),
    )
    fit = fit_imputer(schema, imputer_parts(schema.read(rows), seed=0), settings, device="cpu")
    assert len(fit.history) == 3
    assert np.isfinite([epoch["val_loss"] for epoch in fit.history]).all()


def test_rows_without_a_value_neither_calibrate_nor_are_watched() -> None:
    for filled, calibrating in ((60, 12), (5, 1)):
        seen = np.zeros(ROWS.shape, dtype=bool)
        seen[np.random.default_rng(2).permutation(240)[:filled]] = True
        parts = imputer_parts(Samples(ROWS, seen), seed=0)
        assert (len(parts.train.values), len(parts.calibration.values)) == (240 - calibrating, calibrating)
        assert parts.calibration.observed.all()
        assert parts.validation.observed.all(axis=1).sum() == min(24, filled - calibrating)


def test_a_linear_path_needs_no_hidden_layer() -> None:
    config = ModelConfig(hidden=(4,), latent_size=2, skip=True)
    _, decoder = make_networks((3,), 1, config)
    with torch.no_grad():
        for parameter in decoder.trunk.parameters():  # type: ignore[union-attr]
            parameter.zero_()
        z = torch.randn(7, 5, 2)
        weights = decoder.out.weight[:, 4:]  # type: ignore[union-attr,index]
        torch.testing.assert_close(decoder(z), z @ weights.T + decoder.out.bias)  # type: ignore[union-attr]


def test_images_have_no_linear_path() -> None:
    message = "skip is for multilayer perceptrons, got network = 'conv'; drop one"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        ModelConfig(network="conv", hidden=(4,), skip=True)
