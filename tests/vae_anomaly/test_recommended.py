"""What is recommended follows from the size and the number of the samples."""

import numpy as np
import pytest
import torch

from vae_anomaly.fitting import Settings, recommended_model, recommended_training
from vae_anomaly.schema import infer_schema
from vae_anomaly.vae import make_model


@pytest.mark.parametrize(
    ("shape", "hidden", "head"),
    [
        ((8, 8), (32,), "conv"),
        ((3, 8, 8), (32,), "conv"),
        ((28, 28), (32, 64, 128), "transpose"),
        ((3, 32, 40), (32, 64, 128), "transpose"),
        ((3, 64, 64), (32, 64, 128, 128), "transpose"),
        ((100, 128), (32, 64, 128, 128, 128), "transpose"),
        ((3, 128, 128), (32, 64, 128, 128, 128), "transpose"),
    ],
)
def test_images_get_a_convolution_per_halving(
    shape: tuple[int, ...], hidden: tuple[int, ...], head: str
) -> None:
    schema = infer_schema(np.zeros((20, *shape), dtype=np.uint8))
    model = recommended_model(schema)
    assert (model.network, model.hidden, model.head) == ("conv", hidden, head)
    drawn = make_model(schema.shape, model, torch.Generator())
    assert drawn.decode(torch.zeros(2, 16)).shape == (2, schema.elements)


@pytest.mark.parametrize(
    ("rows", "epochs", "batch"),
    [(1_000, 100, 64), (6_000, 50, 128), (20_000, 15, 128), (60_000, 5, 128), (500_000, 4, 128)],
)
def test_images_are_shown_a_fixed_number_of_times(rows: int, epochs: int, batch: int) -> None:
    schema = infer_schema(np.zeros((20, 28, 28), dtype=np.uint8))
    training = recommended_training(schema, rows)
    assert (training.epochs, training.batch_size, training.learning_rate) == (epochs, batch, 2e-3)


def test_large_images_are_cut_to_the_budget() -> None:
    """Sixteen times the pixels of 32x32 in three colours: a sixteenth of the epochs, about."""
    small, large = (infer_schema(np.zeros((20, 3, side, side), dtype=np.uint8)) for side in (28, 128))
    epochs = []
    for schema in (small, large):
        training = Settings().completed(schema, 2_000).training
        assert training is not None
        epochs.append(training.epochs)
    assert epochs[0] == 100
    assert 5 < epochs[1] < 20


def test_tables_are_shown_a_fixed_number_of_times() -> None:
    training = recommended_training(infer_schema(np.zeros((20, 5))), 1_000)
    assert (training.epochs, training.batch_size, training.learning_rate) == (300, 64, 3e-3)
