"""How much less likely a row is to the model than to one that knows no structure."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from vae_anomaly.encoding import Encoded
from vae_anomaly.schema import Samples
from vae_anomaly.scores.base import Evidence, Score, TrainingEvidence
from vae_anomaly.training import Trainer, TrainingConfig
from vae_anomaly.vae import Autoencoder, initialise

# Share of the elements that take the value they have in another row: in the middle of the range
# that Ren et al. searched.
PERTURBED = 0.2
# Rows shown to the background model in all, within the bounds on epochs.
ROWS_SHOWN = 150_000
EPOCHS = (4, 100)
VALIDATION = 0.1


class BackgroundRatio(Score):
    """`iw_nll` less the `iw_nll` of a background model, in nats: a log-likelihood ratio.

    .. math:: \\log p_{background}(x_{obs}) - \\log p(x_{obs})

    The background model has the same architecture and is trained on the training rows with every
    fifth element replaced by its value in another row: it knows how bright, busy or large rows
    are, and little of what belongs together. What makes any row simple or hard to describe
    cancels [1]_.

    References
    ----------
    .. [1] Ren et al., "Likelihood Ratios for Out-of-Distribution Detection", NeurIPS 2019.
       https://arxiv.org/abs/1906.02845
    """

    variational = True
    background: Autoencoder

    def fit(self, training: TrainingEvidence) -> None:
        """Train the background model on perturbed training rows: up to half as long again as the model."""
        found = list(training())
        generator, model = torch.Generator().manual_seed(0), found[0].model
        x, observed = (torch.cat([each.encoded[i] for each in found]).cpu() for i in (0, 1))
        widened = deepcopy(model.likelihood).cpu().widened
        samples = Samples(perturbed(x, observed, generator, widened).numpy(), observed.numpy())
        self.background = initialise(deepcopy(model), generator)
        aware = bool(getattr(model.encoder, "mask_input", False))
        trainer = Trainer(
            self.background,
            _Identity(found[0].shape),
            config=_schedule(len(x), aware),
            device=str(_device(found[0])),
        )
        trainer.fit(*_parts(samples))
        self.background.requires_grad_(False)

    def forward(self, evidence: Evidence) -> Tensor:
        """Bound of the background model less that of the model, under the same draws."""
        background = Evidence(self.background, evidence.encoded, evidence.noise[:, 0, :])
        return evidence.iw_nll - background.iw_nll


class _Identity(nn.Module):
    """The encoding of rows that are in model space already."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape or None

    def forward(self, x: Tensor, observed: Tensor) -> Encoded:
        return Encoded(x, observed, torch.zeros(len(x), dtype=torch.int64, device=x.device))


def perturbed(
    x: Tensor, observed: Tensor, generator: torch.Generator, widened: Callable[[Tensor], Tensor]
) -> Tensor:
    """Rows (N, F) with a share `PERTURBED` of the D elements replaced by the same element of another row.

    An element that is missing in either row stays as it is. ``widened`` takes (N, D) to (N, F): the classes
    of a column go together.
    """
    donors = torch.randint(len(x), observed.shape, generator=generator)
    held = torch.gather(observed, 0, donors)
    chosen = torch.rand(observed.shape, generator=generator) < PERTURBED
    return torch.where(widened(chosen & held & observed), torch.gather(x, 0, widened(donors)), x)


def _device(evidence: Evidence) -> torch.device:
    return evidence.encoded.x.device


def _schedule(rows: int, mask_aware: bool) -> TrainingConfig:
    """As many epochs as show the model a fixed number of rows, within bounds."""
    epochs = int(np.clip(ROWS_SHOWN // rows, *EPOCHS))
    batch = int(np.clip(2 ** round(np.log2(rows / 16)), 64, 256))
    return TrainingConfig(
        epochs=epochs, batch_size=batch, learning_rate=3e-3, random_mask=0.5 if mask_aware else 0.0
    )


def _parts(samples: Samples) -> tuple[Samples, Samples]:
    """Rows to train on and rows to choose the epoch by."""
    order = np.random.default_rng(0).permutation(len(samples.values))
    held, rest = np.split(order, [max(1, round(VALIDATION * len(order)))])
    first, second = (Samples(samples.values[rows], samples.observed[rows]) for rows in (rest, held))
    return first, second
