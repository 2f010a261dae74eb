"""How much work a fit may be: a rule in rows and multiply-adds, never in seconds, so that it repeats.

A limit by the clock would train a busy machine's model for fewer epochs than an idle one's: the same seed
would give other weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.networks import ModelConfig
from vae_anomaly.schema import Schema
from vae_anomaly.training import TrainingConfig
from vae_anomaly.vae import make_likelihood, make_model

# Rows shown in all, where recommended settings would show more: small networks spend their time per batch.
MOST_ROWS = 2_000_000
# Multiply-adds of a fit, three passes per row shown: about five minutes on two cores.
MOST_WORK = 1.2e13
# Forward, gradient of the weights, gradient of the inputs.
PASSES = 3

Layer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


def within_budget(
    training: TrainingConfig,
    model: ModelConfig,
    schema: Schema,
    rows: int,
    *,
    times: int = 1,
    fewest: int = 1,
    draws: int = 1,
) -> TrainingConfig:
    """The same training, cut to what a fit may be: fewer epochs, and where those are few a part of the rows.

    Parameters
    ----------
    training : TrainingConfig
    model : ModelConfig
    schema : Schema
    rows : int
        Training rows.
    times : int
        So many times the work may it be.
    fewest : int
        Epochs that it must have.
    draws : int
        K of the bound: how often a row is decoded.
    """
    work = PASSES * work_per_row(model, schema.shape, make_likelihood(model, schema), draws)
    most = max(training.batch_size, times * min(MOST_ROWS, int(MOST_WORK / work)))
    if training.epochs * rows <= most:
        return training
    epochs = max(fewest, most // rows)
    return replace(training, epochs=epochs, epoch_rows=most // epochs if most < epochs * rows else 0)


def work_per_row(
    config: ModelConfig, shape: tuple[int, ...], likelihood: Likelihood | None = None, draws: int = 1
) -> int:
    """Multiply-adds of encoding one sample and decoding its draws.

    Parameters
    ----------
    config : ModelConfig
    shape : tuple of int
        Of a sample, (D,) or (C, H, W).
    likelihood : Likelihood, optional
        Of columns that are no real numbers: a category is as many inputs and outputs as it has classes.

    Examples
    --------
    >>> work_per_row(ModelConfig(hidden=(8,), latent_size=2, mask_input=False), (4,))
    112
    """
    # One linear layer 4-8, one of mean and variance 8-4, and back 2-8, 8-4: 32 + 32 + 16 + 32.
    model = make_model(shape, config, torch.Generator(), likelihood).eval().to("meta")
    counted: list[int] = []

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(layer, nn.ConvTranspose2d):
            counted.append(given[0].numel() * layer.weight[0].numel())
        elif isinstance(layer, nn.Conv2d):
            counted.append(out.numel() * layer.weight[0].numel())
        elif isinstance(layer, nn.Linear):
            counted.append(layer.weight.numel() * (out.numel() // out.shape[-1]))

    for layer in model.modules():
        if isinstance(layer, Layer):
            layer.register_forward_hook(count)
    elements = torch.Size(shape).numel()
    x = torch.zeros(1, model.likelihood.features(elements), device="meta")
    with torch.no_grad():
        posterior = model.encode(x, torch.ones(1, elements, dtype=torch.bool, device="meta"))
        model.decode(posterior.mean.expand(draws, -1))
    return sum(counted)
