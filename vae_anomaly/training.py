"""The training loop: data kept on the device, one-cycle schedule, early stopping, checkpoints.

The whole data set stays on the device as stored (uint8 stays uint8); batches are selected by
index and encoded there. Same seed, machine and thread count: same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vae_anomaly.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from vae_anomaly.choices import check_fields
from vae_anomaly.devices import choose_device, few_threads, gains_from_bfloat16
from vae_anomaly.encoding import Encoded
from vae_anomaly.exceptions import ConfigError, DivergedError
from vae_anomaly.objectives import ObjectiveConfig, losses, predictive_loss
from vae_anomaly.random_masks import random_masks
from vae_anomaly.schema import Mask, Samples
from vae_anomaly.trimming import LEAST, WARMUP, excess_share, kept_rows, row_losses
from vae_anomaly.vae import VAE, Autoencoder

# Variance of a latent mean over the data above which the unit carries information (Burda et al., 2016).
ACTIVE_VARIANCE = 0.01
# Most that a hidden cell may cost on average in a row, nats, a normal one three deviations away: one cell
# far out in a column that is constant otherwise would outweigh all others in the choice of an epoch.
CELL_COST = 5.0
# A loss this many times the first epoch's, so many epochs in a row, has lost its way: in one epoch alone it
# may be a row far out that the network met badly.
DIVERGED, LOST_EPOCHS = 100.0, 3
# How many times faster a learned scale goes than weights: Adam moves a parameter by about the learning
# rate per step, and the logarithm of a scale has whole units to go while latents wait for it.
SCALE_PACE = 10.0


@dataclass(frozen=True)
class TrainingConfig:
    """The ``[training]`` section of a recipe.

    Attributes
    ----------
    epochs, batch_size : int
    epoch_rows : int
        Rows drawn at random for each epoch where there are more; 0 shows all.
    learning_rate : float
        The peak of the one-cycle schedule, or the constant rate.
    schedule : {"one-cycle", "constant"}
        One cycle rises for a share ``rise`` of the steps and falls to 0 along a cosine [1]_.
    rise : float
    optimizer : {"adamw", "adam"}
    weight_decay : float
    clip_norm : float
        Largest norm of the gradient; 0 leaves it alone.
    patience : int
        Epochs without a better validation bound before training stops; 0 never stops early.
    keep : {"best", "last"}
        Which weights the model ends with: those of the best validation bound, or the last.
    random_mask : float
        Share of the rows of each batch that get a random mask, so that the model answers any
        pattern of gaps.
    denoise : bool
        Judge a row under a random mask by all that is known of it, not only by what the mask leaves
        [2]_: its code is then one to fill gaps from.
    precision : {"auto", "float32", "bfloat16"}
        "auto" is bfloat16 where the device gains by it.
    max_seconds : float
        Wall-clock limit, looked at after each epoch; the schedule does not know of it. 0 is none.

    References
    ----------
    .. [1] Smith & Topin, "Super-Convergence", 2018. https://arxiv.org/abs/1708.07120
    .. [2] Im et al., "Denoising Criterion for Variational Auto-Encoding Framework", AAAI 2017.
       https://arxiv.org/abs/1511.06406
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    rise: float = 0.2
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = 1e-4
    clip_norm: float = 100.0
    patience: int = 0
    keep: Literal["best", "last"] = "best"
    random_mask: float = 0.0
    denoise: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    max_seconds: float = 0.0
    epoch_rows: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("epochs", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("random_mask", "rise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("weight_decay", "clip_norm", "patience", "max_seconds", "epoch_rows"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.denoise and not self.random_mask:
            raise ConfigError(
                "denoise judges what random masks take, and random_mask is 0; raise it or drop denoise"
            )
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at a step of a run of so many steps."""
        if self.schedule == "constant":
            return self.learning_rate
        rise = max(1.0, self.rise * steps)
        if step < rise:
            return self.learning_rate * (0.04 + 0.96 * (step + 1) / (rise + 1))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / (steps - rise))))


Epoch = dict[str, float]
Callback = Callable[[Epoch], None]


@dataclass
class Data:
    """Samples on the device, as stored.

    Attributes
    ----------
    values, observed : Tensor, shape (n, ...)
        ``observed`` is None when nothing is missing.
    hidden : Tensor, shape (n, ...), optional
        Observed cells to predict from the others.
    """

    values: Tensor
    observed: Tensor | None
    hidden: Tensor | None = None

    @classmethod
    def of(cls, samples: Samples, device: torch.device, hidden: Mask | None = None) -> Data:
        """Move samples to the device once."""
        observed = None if samples.observed.all() else torch.from_numpy(samples.observed).to(device)
        cells = None if hidden is None else torch.from_numpy(hidden).to(device)
        return cls(torch.from_numpy(samples.values).to(device), observed, cells)

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Values and mask of some rows."""
        # A twentieth of the time of values[index].
        x = self.values.index_select(0, index)
        if self.observed is None:
            return x, torch.ones_like(x, dtype=torch.bool)
        return x, self.observed.index_select(0, index)


@dataclass
class Trainer:
    """Fits a model to samples.

    Parameters
    ----------
    model : Autoencoder or VAE
        Trained in place; holds the best weights at the end, or the last ones, see `TrainingConfig.keep`.
    encoding : Encoding
        Or another module from values and mask to `Encoded`.
    objective : ObjectiveConfig
    config : TrainingConfig
    seed : int
        Of batches, noise and masks.
    device : {"auto", "cpu", "cuda"}
    checkpoints : Path, optional
        Folder for one checkpoint per epoch; the newest two are kept.
    callbacks : sequence of callables
        Each gets the epoch's figures.
    """

    model: Autoencoder
    encoding: nn.Module
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    config: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    device: str = "auto"
    checkpoints: Path | None = None
    callbacks: Sequence[Callback] = ()

    def fit(
        self, train: Samples, validation: Samples, hidden: Mask | None = None, *, resume: bool = False
    ) -> list[Epoch]:
        """Train, keep the weights of the best validation bound, return the figures per epoch.

        With ``hidden``, cells of the validation rows, val_loss is the negative log-density of those
        cells given the row's other observed ones, nats per row.

        Returns
        -------
        list of dict
            epoch, loss, reconstruction, kl (training means, nats per row), val_loss,
            active_units, learning_rate, samples_per_second, seconds; with ``trim`` the share
            ``trimmed``, and val_loss at z = E[z | x] over the rows that the same share leaves.

        Raises
        ------
        DivergedError
            If the loss turns NaN, infinite or grows without bound; the model then holds the
            best weights so far.
        """
        device = choose_device(self.device)
        self.model.to(device)
        self.encoding.to(device)
        wanted = self.config.precision
        self.model.mixed_precision = wanted == "bfloat16" or (
            wanted == "auto" and gains_from_bfloat16(device)
        )
        try:
            with few_threads(self.model, self.config.batch_size):
                return self._run(Data.of(train, device), Data.of(validation, device, hidden), device, resume)
        finally:
            self.model.mixed_precision = False
            self.model.eval()

    def _run(self, train: Data, validation: Data, device: torch.device, resume: bool) -> list[Epoch]:
        optimizer = self._optimizer(device)
        generator = torch.Generator(device).manual_seed(self.seed)
        state = Checkpoint.fresh(self.model)
        if resume and self.checkpoints is not None and (found := read_checkpoint(self.checkpoints)):
            state = found.restore(self.model, optimizer, generator)
        started = time.perf_counter()
        while state.epoch < self.config.epochs and not self._finished(state, started):
            share = self._share(train, state)
            figures = self._epoch(train, optimizer, generator, state.epoch, share)
            figures |= self._validate(validation)
            if self.objective.trim:
                figures |= {"trimmed": share, "val_loss": self._kept_loss(validation, share)}
            self._check(figures, state)
            state.advance(figures, self.model)
            for callback in self.callbacks:
                callback(figures)
            if self.checkpoints is not None:
                write_checkpoint(self.checkpoints, state, self.model, optimizer, generator)
        if self.config.keep == "best":
            self.model.load_state_dict(state.best)
        return state.history

    def _finished(self, state: Checkpoint, started: float) -> bool:
        late = state.epoch > 0 and 0 < self.config.max_seconds < time.perf_counter() - started
        return late or 0 < self.config.patience <= state.epochs_since_best

    def _optimizer(self, device: torch.device) -> torch.optim.Optimizer:
        named = list(self.model.named_parameters())
        groups = [
            {"params": [value for name, value in named if name.endswith("log_scale") == scale], "pace": pace}
            for scale, pace in ((False, 1.0), (True, SCALE_PACE))
        ]
        rate = self.config.learning_rate
        if self.config.optimizer == "adam":
            return torch.optim.Adam(groups, lr=rate, fused=True)
        return torch.optim.AdamW(groups, lr=rate, weight_decay=self.config.weight_decay, fused=True)

    def _epoch(
        self,
        train: Data,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        epoch: int,
        share: float = 0.0,
    ) -> Epoch:
        """One pass over the training rows; a last batch of one row is left out."""
        started = time.perf_counter()
        kept = self.kept(train, share) if share else None
        self.model.train()
        batches = list(self._batches(len(train) if kept is None else len(kept), generator))
        total = torch.zeros(3, device=train.values.device)
        rows = 0
        rate = 0.0
        for i, index in enumerate(batches):
            step, steps = epoch * len(batches) + i, self.config.epochs * len(batches)
            rate = self.config.rate(step, steps)
            rows_shown = index if kept is None else kept[index]
            encoded, shown = self._masked(train, rows_shown, generator)
            part = self._step(encoded, shown, optimizer, generator, rate, epoch + i / len(batches))
            total += torch.stack(part).detach() * len(index)
            rows += len(index)
        loss, reconstruction, kl = (total / max(rows, 1)).tolist()
        seconds = time.perf_counter() - started
        return {
            "epoch": epoch + 1.0,
            "loss": loss,
            "reconstruction": reconstruction,
            "kl": kl,
            "learning_rate": rate,
            "samples_per_second": rows / seconds,
            "seconds": seconds,
        }

    def kept(self, data: Data, share: float) -> Tensor:
        """Indices of the rows that trimming a share leaves, by their losses under the model as it is."""
        return kept_rows(self._row_losses(data), share)

    def _share(self, train: Data, state: Checkpoint) -> float:
        """What is trimmed in the coming epoch; "auto" looks once, when the warm-up ends."""
        if not self.objective.trim or state.epoch < WARMUP * self.config.epochs:
            return 0.0
        if not isinstance(self.objective.trim, str):
            return self.objective.trim
        if state.history and state.epoch - 1 >= WARMUP * self.config.epochs:
            return state.history[-1]["trimmed"]
        return max(LEAST, excess_share(self._row_losses(train)))

    def _kept_loss(self, data: Data, share: float) -> float:
        """Mean loss without that share: anomalies must not choose the epoch either."""
        losses = self._row_losses(data)
        return float(losses[kept_rows(losses, share)].mean())

    def _row_losses(self, data: Data) -> Tensor:
        self.model.eval()
        batches = torch.arange(len(data), device=data.values.device).split(1024)
        return row_losses(self.model, (self.encoding(*data.batch(rows)) for rows in batches))

    def _batches(self, rows: int, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(rows, generator=generator, device=generator.device)
        order = order[: self.config.epoch_rows or None]
        batches = order.split(min(self.config.batch_size, rows))
        # Batch norm has no variance over one row.
        return (batch for batch in batches if len(batch) > 1)

    def _masked(
        self, train: Data, index: Tensor, generator: torch.Generator
    ) -> tuple[Encoded, Tensor | None]:
        """Rows in model space, and what random masks leave of their observed elements, if there are any."""
        encoded = self.encoding(*train.batch(index))
        if not self.config.random_mask:
            return encoded, None
        shape, size = getattr(self.encoding, "shape", None), encoded.observed.shape
        return encoded, encoded.observed & random_masks(size, shape, self.config.random_mask, generator)

    def _step(
        self,
        encoded: Encoded,
        shown: Tensor | None,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        rate: float,
        epoch: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["pace"]
        judged = encoded.observed if shown is None or self.config.denoise else shown
        noise = self._noise(len(judged), generator)
        weight = self.objective.kl_weight(epoch)
        part = losses(self.model, encoded.x, judged, noise, self.objective, weight, shown)
        optimizer.zero_grad(set_to_none=True)
        part.loss.backward()
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        optimizer.step()
        return part

    def _noise(self, rows: int, generator: torch.Generator) -> Tensor:
        latent = self.model.latent_size if self.model.variational else 1
        shape = (self.objective.draws, rows, latent)
        return torch.randn(shape, generator=generator, device=generator.device)

    @torch.no_grad()
    def _validate(self, data: Data) -> Epoch:
        """The bound at full KL weight on validation rows, under the same noise every epoch."""
        total, means = 0.0, []
        for encoded, hidden, noise in self._watched(data):
            if hidden is not None:
                total += float(self._hidden_costs(encoded, hidden, noise).sum())
            else:
                part = losses(
                    self.model, encoded.x, encoded.observed, noise, self.objective, self.objective.beta
                )
                total += float(part.loss) * len(encoded.x)
            means.append(self.model.encode(encoded.x, encoded.observed).mean)
        active = (torch.cat(means).var(dim=0, correction=0) > ACTIVE_VARIANCE).sum()
        return {"val_loss": total / len(data), "active_units": float(active)}

    @torch.no_grad()
    def hidden_costs(self, samples: Samples, hidden: Mask) -> npt.NDArray[np.float64]:
        """Negative log-density of each row's ``hidden`` cells given its other ones, nats, shape (n,).

        At most `CELL_COST` per hidden cell; a row without any costs nothing.
        """
        device = choose_device(self.device)
        data = Data.of(samples, device, hidden)
        costs = [
            self._hidden_costs(encoded, cells, noise)
            for encoded, cells, noise in self._watched(data)
            if cells is not None
        ]
        return torch.cat(costs).double().cpu().numpy()

    def _watched(self, data: Data) -> Iterator[tuple[Encoded, Tensor | None, Tensor]]:
        """Rows in model space, their cells to predict if there are any, and the noise of every epoch."""
        self.model.eval()
        generator = torch.Generator(data.values.device).manual_seed(self.seed)
        hidden = data.hidden if isinstance(self.model, VAE) else None
        for rows in torch.arange(len(data), device=data.values.device).split(1024):
            encoded = self.encoding(*data.batch(rows))
            cells = None if hidden is None else hidden[rows].flatten(1) & encoded.observed
            yield encoded, cells, self._noise(len(rows), generator)

    def _hidden_costs(self, encoded: Encoded, cells: Tensor, noise: Tensor) -> Tensor:
        assert isinstance(self.model, VAE)
        costs = predictive_loss(self.model, encoded.x, encoded.observed & ~cells, cells, noise)
        return torch.minimum(costs, CELL_COST * cells.sum(dim=1))

    def _check(self, figures: Epoch, state: Checkpoint) -> None:
        first = abs(state.history[0]["val_loss"]) if state.history else math.inf
        loss = figures["loss"] if not math.isfinite(figures["loss"]) else figures["val_loss"]
        newest = [*(epoch["val_loss"] for epoch in state.history), loss][-LOST_EPOCHS:]
        if math.isfinite(loss) and min(newest) < DIVERGED * (first + 1.0):
            return
        self.model.load_state_dict(state.best)
        kept = (
            f"the checkpoint of epoch {state.best_epoch} is kept" if state.best_epoch else "no epoch was good"
        )
        raise DivergedError(
            f"the loss is {loss:g} after epoch {figures['epoch']:.0f}; {kept}; lower learning_rate "
            f"(now {self.config.learning_rate:g}) or clip_norm (now {self.config.clip_norm:g})"
        )
