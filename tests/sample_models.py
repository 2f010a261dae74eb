"""Tiny models and their data: small enough to fit and export in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from vae_anomaly.assembly import ExportConfig, Fitted
from vae_anomaly.fitting import Settings, fit_model, split_parts
from vae_anomaly.networks import ModelConfig
from vae_anomaly.schema import infer_schema
from vae_anomaly.training import TrainingConfig

ALL_SCORES = ("neg_elbo", "iw_nll", "recon", "rate", "latent_maha")
TABLE_MODEL = ModelConfig(hidden=(32,), latent_size=2, scale="element")
IMAGE_MODEL = ModelConfig(
    network="conv", hidden=(4, 8), latent_size=3, likelihood="bernoulli", batch_norm=True, activation="silu"
)
AUTOENCODER = ModelConfig(
    kind="autoencoder",
    network="conv",
    hidden=(4, 8),
    latent_size=3,
    likelihood="laplace",
    output="tanh",
    activation="leaky-relu",
    mask_input=False,
    kernel=4,
    head="transpose",
)


def table_rows(rows: int = 240, seed: int = 0) -> pd.DataFrame:
    """Four columns of two factors: one a timestamp, one tiny; a tenth of the cells missing."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(rows, 2)) @ np.array([[1.0, 0.8, 0.1, -1.0], [0.0, 0.6, 1.0, 0.5]])
    values = factors + rng.normal(scale=0.1, size=(rows, 4))
    values = values * np.array([1.0, 1e3, 1e-6, 3600.0]) + np.array([0.0, -50.0, 0.0, 1.7e9])
    values[rng.random(values.shape) < 0.1] = np.nan
    return pd.DataFrame(values, columns=["plain", "large", "tiny", "time"])


def grey_images(rows: int = 240, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Bright bars on noise, uint8, shape (rows, 8, 9)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (rows, 8, 9))
    images[np.arange(rows), rng.integers(0, 8, rows)] += 180
    return images.astype(np.uint8)


def colour_images(rows: int = 240, seed: int = 0) -> npt.NDArray[np.float32]:
    """A brightness per channel with noise, float32 in 0..1, shape (rows, 3, 8, 10)."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.1, 0.9, (rows, 3, 1, 1))
    return np.clip(level + rng.normal(scale=0.05, size=(rows, 3, 8, 10)), 0, 1).astype(np.float32)


def settings(model: ModelConfig, epochs: int = 2, **export: Any) -> Settings:
    """Short training in float32, random masks and all."""
    training = TrainingConfig(
        epochs=epochs, batch_size=32, learning_rate=1e-2, random_mask=0.5, precision="float32"
    )
    return Settings(model=model, training=training, export=ExportConfig(**export))


def fit(x: Any, model: ModelConfig, epochs: int = 2, **export: Any) -> Fitted:
    """A model fitted to data, ready to export."""
    schema = infer_schema(x)
    parts = split_parts(schema.read(x), seed=0)
    return fit_model(schema, parts, settings(model, epochs, **export), device="cpu").fitted


def stretch_logits(fitted: Fitted, reach: float = 200.0) -> None:
    """Scale the last layer of the decoder so that its raw output reaches +-``reach``."""
    kinds = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    layers = [module for module in fitted.model.decoder.modules() if isinstance(module, kinds)]
    z = torch.randn(256, fitted.model.latent_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        factor = reach / float(fitted.model.decode(z).abs().max())
        for parameter in layers[-1].parameters():
            parameter.mul_(factor)
