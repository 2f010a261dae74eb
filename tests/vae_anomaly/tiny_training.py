"""A training run small enough to repeat in every test, with gaps, masks and a warm-up."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_anomaly.encoding import Encoding, TableEncoding
from vae_anomaly.networks import ModelConfig
from vae_anomaly.objectives import ObjectiveConfig
from vae_anomaly.schema import Samples
from vae_anomaly.training import Epoch, Trainer, TrainingConfig
from vae_anomaly.vae import Autoencoder, make_model

CPU = torch.device("cpu")
MODEL = ModelConfig(hidden=(8,), latent_size=2, batch_norm=True, scale="element")
CONFIG = TrainingConfig(epochs=6, batch_size=16, learning_rate=1e-2, precision="float32")
# A table in which some cells are missing, a warm-up, masks: everything a resumed run must get right.
OBJECTIVE = ObjectiveConfig(draws=2, warmup_epochs=4.0)
CLOCKS = ("seconds", "samples_per_second")


def table(rows: int = 50, seed: int = 0) -> Samples:
    """Four columns of two factors, a tenth of the cells missing."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(rows, 2)) @ np.array([[1.0, 0.8, 0.1, -1.0], [0.0, 0.6, 1.0, 0.5]])
    values = factors + 0.1 * rng.normal(size=(rows, 4))
    values[rng.random(values.shape) < 0.1] = np.nan
    return Samples(values, ~np.isnan(values))


TRAIN, VALIDATION = table(), table(20, seed=1)


def trainer(config: TrainingConfig = CONFIG, seed: int = 0, init: int = 0, **settings: Any) -> Trainer:
    model = make_model((4,), settings.pop("model", MODEL), torch.Generator().manual_seed(init))
    encoding: Encoding = TableEncoding(torch.zeros(4), torch.ones(4))
    objective = settings.pop("objective", OBJECTIVE)
    return Trainer(model, encoding, objective, config, seed, "cpu", **settings)


def weights(model: Autoencoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def figures(history: list[Epoch]) -> list[Epoch]:
    """Without the clock's."""
    return [{name: value for name, value in epoch.items() if name not in CLOCKS} for epoch in history]


MASKED = replace(CONFIG, random_mask=0.7, clip_norm=1.0)
