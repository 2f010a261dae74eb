"""Recommended settings stay within a stated amount of work, whatever the size of the data."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import CONFIG, TRAIN, VALIDATION, figures, trainer

from vae_anomaly import budget
from vae_anomaly.budget import MOST_ROWS, MOST_WORK, PASSES, within_budget, work_per_row
from vae_anomaly.columns import Column
from vae_anomaly.fitting import Settings
from vae_anomaly.networks import ModelConfig
from vae_anomaly.objectives import ObjectiveConfig
from vae_anomaly.schema import ImageSchema, Schema, TableSchema, infer_schema
from vae_anomaly.training import TrainingConfig
from vae_anomaly.vae import make_likelihood, make_model


def table(columns: int) -> Schema:
    return infer_schema(np.random.default_rng(0).normal(size=(3, columns)))


def test_work_is_the_weights_of_linear_layers() -> None:
    config = ModelConfig(hidden=(16, 8), latent_size=3, scale="element")
    model = make_model((7,), config, torch.Generator())
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert work_per_row(config, (7,)) == sum(layer.weight.numel() for layer in layers)


def test_work_of_convolutions_by_hand() -> None:
    """One 3x3 convolution of stride 2 from two channels, the image and its mask, to four of 4x4."""
    config = ModelConfig(
        network="conv", hidden=(4,), latent_size=2, likelihood="bernoulli", kernel=4, head="transpose"
    )
    encoder = 2 * 4 * 16 * 16 + 64 * 4
    decoder = 2 * 64 + 16 * 4 * 16
    assert work_per_row(config, (1, 8, 8)) == encoder + decoder


@pytest.mark.parametrize("rows", [80, 5_000, 40_000, 600_000, 5_000_000])
@pytest.mark.parametrize("columns", [5, 1500], ids=["narrow", "wide"])
def test_no_table_takes_more_than_the_budget(columns: int, rows: int) -> None:
    schema = table(columns)
    complete = Settings().completed(schema, rows)
    assert complete.model is not None
    assert complete.training is not None
    shown = complete.training.epochs * (complete.training.epoch_rows or rows)
    assert shown <= MOST_ROWS
    assert shown * PASSES * work_per_row(complete.model, schema.shape) <= MOST_WORK


def test_a_category_works_as_much_as_it_has_classes() -> None:
    """Encoder (2 + 30 features and 2 masks)-16-(2 x 2), decoder 2-16-(2 reals, of which one; 30 logits)."""
    columns = (Column("x"), Column("word", "categorical", categories=tuple(map(str, range(30)))))
    schema, config = TableSchema(columns), ModelConfig(hidden=(16,), latent_size=2, scale="element")
    model = make_model((2,), config, torch.Generator(), make_likelihood(config, schema))
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    found = work_per_row(config, (2,), make_likelihood(config, schema))
    assert found == sum(layer.weight.numel() for layer in layers)
    assert found > 10 * work_per_row(config, (2,)) / 2
    wide = TableSchema(tuple(replace(columns[1], name=f"c{i}") for i in range(100)))
    complete = Settings().completed(wide, 2_000_000)
    assert complete.model is not None
    assert complete.training is not None
    shown = complete.training.epochs * (complete.training.epoch_rows or 2_000_000)
    likelihood = make_likelihood(complete.model, wide)
    assert shown * PASSES * work_per_row(complete.model, wide.shape, likelihood) <= MOST_WORK


@pytest.mark.parametrize("rows", [100, 20_000, 1_000_000])
@pytest.mark.parametrize("side", [8, 28, 128])
@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
def test_no_images_take_more_than_the_budget(channels: int, side: int, rows: int) -> None:
    schema = ImageSchema(channels, side, side)
    complete = Settings().completed(schema, rows)
    assert complete.model is not None
    assert complete.training is not None
    shown = complete.training.epochs * (complete.training.epoch_rows or rows)
    assert shown * PASSES * work_per_row(complete.model, schema.shape) <= MOST_WORK


def test_what_fits_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, training = ModelConfig(hidden=(8,)), TrainingConfig(epochs=10, batch_size=16)
    schema = table(4)
    assert within_budget(training, model, schema, 1000) is training
    monkeypatch.setattr(budget, "MOST_ROWS", 2500)
    assert within_budget(training, model, schema, 1000) == replace(training, epochs=2)
    assert within_budget(training, model, schema, 9000) == replace(training, epochs=1, epoch_rows=2500)
    assert within_budget(replace(training, epochs=1), model, schema, 2500).epoch_rows == 0
    assert within_budget(training, model, schema, 9000, fewest=2) == replace(
        training, epochs=2, epoch_rows=1250
    )


def test_trimming_has_an_epoch_to_look_and_one_to_leave_rows_out() -> None:
    schema = ImageSchema(3, 128, 128)
    trimmed = Settings(objective=ObjectiveConfig(trim="auto")).completed(schema, 100_000).training
    plain = Settings().completed(schema, 100_000).training
    assert trimmed is not None
    assert plain is not None
    assert (plain.epochs, trimmed.epochs) == (1, 2)
    assert trimmed.epoch_rows == plain.epoch_rows // 2


def test_settings_that_a_caller_gives_are_not_cut() -> None:
    given = TrainingConfig(epochs=1000)
    assert Settings(training=given).completed(table(5), 1_000_000).training is given


def test_an_epoch_draws_so_many_rows() -> None:
    run = trainer(replace(CONFIG, epoch_rows=20))
    batches = list(run._batches(50, torch.Generator().manual_seed(0)))
    drawn = torch.cat(batches)
    assert [len(batch) for batch in batches] == [16, 4]
    assert len(drawn.unique()) == 20
    assert set(drawn.tolist()) <= set(range(50))
    first, second = (trainer(replace(CONFIG, epoch_rows=20)).fit(TRAIN, VALIDATION) for _ in range(2))
    assert figures(first) == figures(second)
