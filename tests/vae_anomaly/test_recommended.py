"""What is recommended follows from the size and the number of the samples."""

import numpy as np
import pytest

from vae_anomaly.fitting import recommended_model, recommended_training
from vae_anomaly.networks import make_networks
from vae_anomaly.schema import infer_schema


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
    make_networks(schema.shape, 1, model)


@pytest.mark.parametrize(
    ("side", "rows", "epochs", "batch"),
    [
        (8, 1_000, 100, 64),
        (28, 20_000, 15, 128),
        (28, 60_000, 5, 128),
        (28, 500_000, 4, 128),
        (64, 20_000, 4, 128),
        (64, 6_000, 12, 128),
        (128, 6_000, 5, 128),
        (128, 1_000, 30, 64),
    ],
)
def test_images_are_shown_as_often_as_time_allows(side: int, rows: int, epochs: int, batch: int) -> None:
    schema = infer_schema(np.zeros((20, side, side), dtype=np.uint8))
    training = recommended_training(schema, rows)
    assert (training.epochs, training.batch_size) == (epochs, batch)


def test_tables_are_shown_as_often_as_before() -> None:
    training = recommended_training(infer_schema(np.zeros((20, 5))), 1_000)
    assert (training.epochs, training.batch_size, training.learning_rate) == (300, 64, 3e-3)
