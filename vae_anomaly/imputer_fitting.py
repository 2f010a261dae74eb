"""What an imputer fits otherwise than a detector: rows, objective, network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vae_anomaly.assembly import Parts
from vae_anomaly.batches import take
from vae_anomaly.budget import within_budget
from vae_anomaly.checkpoints import counted_on, read_checkpoint
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.fitting import (
    Fit,
    Settings,
    covering,
    fit_model,
    make_trainer,
    recommended_model,
    recommended_training,
    split_parts,
)
from vae_anomaly.masks import mcar
from vae_anomaly.objectives import ObjectiveConfig
from vae_anomaly.schema import ImageSchema, Mask, Samples, Schema
from vae_anomaly.training import Callback, Epoch, TrainingConfig

# Rows kept out to calibrate scores: as many as a false alarm rate of .05 needs, or this share; at most the
# last share of those that hold a value.
CALIBRATION_ROWS, CALIBRATION_SHARE, CALIBRATION_MOST = 19, 0.02, 0.2
# Fewer rows than this split as a detector's do.
SMALL = 100
# Steps of a table's training, within bounds on epochs.
STEPS, EPOCHS = 5_000, (20, 300)
# Peak of the learning rate for the smallest batches; it grows with the root of their size.
RATE, BATCHES = 3e-3, (32, 128)
# Observed cells hidden to find out how long to train; where they are fewer than the last share, for good.
HIDDEN_SHARE, HIDDEN_CELLS, FEW_CELLS = 0.1, 5_000, 0.03
# Of so few hidden cells one alone could say how long to train.
FEWEST_CELLS = 5
# K of the importance-weighted bound.
DRAWS = 10
# Standard errors that a difference exceeds by chance one time in twenty.
BEYOND_CHANCE = 1.645
# Trainings to look at that are shorter than half of the longest, parts of it.
SHORTER = (4, 8)
# Units of a hidden layer per column, and bounds on them.
UNITS, WIDTHS = 4, (128, 256)
# Images: rows shown against a detector's and work against its limit, share of them under a random mask,
# pixels per latent and bounds on latents.
LONGER, WORK, MASKED, PIXELS, LATENTS = 4, 2, 0.9, 8, (16, 64)


def imputer_settings(schema: Schema, samples: Samples) -> Settings:
    """The settings of an imputer where none are given.

    Tables get the importance-weighted bound, a linear path beside both networks and, as each gap is decoded
    many times, layers half as wide as a detector's, but 128 to 256 units. Extra masks hide
    cells of half of the rows of complete data, of fewer where cells are missing anyway. Chosen on
    scikit-learn's wine and diabetes and on synthetic tables.

    Images get more latents and four times the training of a detector's; nine rows in ten are under a mask and
    judged by what it took as well. Chosen on warped copies of scikit-learn's digits and drawn letters.
    """
    rows = len(samples.values)
    if isinstance(schema, ImageSchema):
        return _image_settings(schema, rows)
    latent = int(np.clip(8 + schema.elements // 8, 1, min(schema.elements, 32)))
    width = int(np.clip(2 ** round(np.log2(UNITS * schema.elements)), *WIDTHS))
    model = replace(recommended_model(schema), hidden=(width, width), latent_size=latent, skip=True)
    training = within_budget(_table_training(samples), model, schema, rows, draws=DRAWS)
    return Settings(model, ObjectiveConfig(bound="iw", draws=DRAWS), training)


def _image_settings(schema: ImageSchema, rows: int) -> Settings:
    latent = int(np.clip(schema.elements // PIXELS, *LATENTS))
    model = replace(recommended_model(schema), latent_size=latent)
    training = replace(recommended_training(schema, rows, LONGER), random_mask=MASKED, denoise=True)
    return Settings(model, training=within_budget(training, model, schema, rows, times=WORK))


def _table_training(samples: Samples) -> TrainingConfig:
    rows = len(samples.values)
    batch = int(np.clip(2 ** round(np.log2(max(rows, 1) / 16)), *BATCHES))
    epochs = int(np.clip(STEPS * batch // max(rows, 1), *EPOCHS))
    missing = 1 - float(samples.observed.mean()) if rows else 0.0
    return TrainingConfig(
        epochs=epochs,
        batch_size=batch,
        learning_rate=RATE * math.sqrt(batch / BATCHES[0]),
        random_mask=0.5 - missing / 2,
    )


def fit_imputer(
    schema: Schema,
    parts: Parts,
    settings: Settings,
    *,
    seed: int = 0,
    device: str = "auto",
    name: str = "model",
    provenance: dict[str, Any] | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Fit:
    """Train on all training rows for as long as cells hidden from training speak for.

    A tenth of the observed cells, at most `HIDDEN_CELLS`, is hidden from trainings of a few lengths and
    predicted from the rest of their rows, see `_long_enough`. A last one sees everything and is as long as
    was best. Where the hidden cells are few among all, one training's best weights are kept. Where fewer
    than `FEWEST_CELLS` can be hidden, as of rows that hold one value each, one training watches some of
    its own rows.

    Epochs are counted through all trainings, in the history and for the callbacks; those of the last one,
    which sees every cell, have no val_loss. Its checkpoints are in their folder, those of each training
    before it in a numbered one below; ``resume`` goes on in the training that was not finished.

    Raises
    ------
    ConfigError
        If the settings are of an autoencoder.
    DataError
        If there are too few rows, or a column holds no value.
    DivergedError
        If the loss loses its way.
    """
    if settings.model is not None and settings.model.kind == "autoencoder":
        raise ConfigError(
            "an autoencoder gives no imputations: its code has no distribution to weigh or draw from; "
            'set kind to "vae"'
        )
    if settings.objective is not None and settings.objective.trim:
        raise ConfigError(
            f"trim is {settings.objective.trim!r} and an imputer learns from every row; leave it out"
        )

    def fit(parts: Parts, settings: Settings, before: Sequence[Epoch] = ()) -> Fit:
        made = fit_model(
            schema,
            parts,
            settings,
            seed=seed,
            device=device,
            name=name,
            provenance=provenance,
            checkpoints=checkpoints,
            resume=resume,
            callbacks=[_told(callback, before) for callback in callbacks],
        )
        return Fit(made.fitted, made.settings, [*before, *_after(before, made.history)])

    train = parts.train
    if isinstance(schema, ImageSchema) or len(train.values) + len(parts.calibration.values) < SMALL:
        return fit(parts, settings)
    hidden = _hidden_cells(train, seed)
    if hidden.sum() < FEWEST_CELLS:
        return fit(parts, settings)
    visible = Samples(train.values, train.observed & ~hidden)
    rows = np.flatnonzero(hidden.any(axis=1))
    watched = Parts(visible, take(train, rows), parts.calibration, hidden[rows])
    complete = settings.completed(schema, len(visible.values))
    process = complete.model is not None and complete.model.missing != "mar"
    if hidden.sum() < FEW_CELLS * train.observed.sum() and not process:
        return fit(watched, complete)
    search = _Search(schema, watched, _ignorable(complete), seed, device, checkpoints, resume, callbacks)
    training = replace(complete.training or TrainingConfig(), epochs=_long_enough(search), keep="last")
    return fit(parts, replace(complete, training=training), search.history)


@dataclass
class _Search:
    """Trainings of parts of the longest length, one after the other, that predict hidden cells.

    Attributes
    ----------
    history : list of dict
        Figures per epoch of all of them, counted on.
    """

    schema: Schema
    watched: Parts
    settings: Settings
    seed: int = 0
    device: str = "auto"
    checkpoints: Path | None = None
    resume: bool = False
    callbacks: Sequence[Callback] = ()
    history: list[Epoch] = field(default_factory=list)

    def train(self, part: int) -> tuple[list[Epoch], npt.NDArray[np.float64]]:
        """A ``part``-th of the epochs: their figures, and the costs of each row's hidden cells at the end."""
        longest, watched = self.settings.training or TrainingConfig(), self.watched
        assert watched.hidden is not None
        training = replace(longest, epochs=max(1, longest.epochs // part), keep="last")
        trainer, _ = make_trainer(
            self.schema,
            watched,
            replace(self.settings, training=training),
            self.seed,
            self.device,
            self.checkpoints and self.checkpoints / str(part),
            [_told(callback, self.history, last=False) for callback in self.callbacks],
        )
        history = trainer.fit(watched.train, watched.validation, watched.hidden, resume=self.resume)
        self.history = [*self.history, *counted_on(history, self.history)]
        return history, trainer.hidden_costs(watched.validation, watched.hidden)


def _long_enough(search: _Search) -> int:
    """How many epochs the hidden cells speak for.

    Those after which they were likeliest, if that was in the second half of the longest training. A run
    whose rate is still high says little about a shorter one: half is trained to its end then, and gives way
    to a quarter where that makes the cells likelier beyond chance, and that to an eighth likewise. Errors
    are smaller after longer trainings, and intervals too narrow after too long ones.
    """
    history, _ = search.train(1)
    if (best := _best_epoch(history)) > len(history) / 2:
        return best
    history, costs = search.train(2)
    for part in SHORTER:
        shorter, short_costs = search.train(part)
        saved = costs - short_costs
        if len(saved) < 2 or saved.mean() <= BEYOND_CHANCE * saved.std(ddof=1) / np.sqrt(len(saved)):
            break
        history, costs = shorter, short_costs
    return len(history)


def past_epochs(checkpoints: Path) -> list[Epoch]:
    """Figures of the finished epochs of a detector or an imputer, as its history has them."""
    numbered = sorted(
        (path for path in checkpoints.glob("*") if path.name.isdecimal()), key=lambda p: int(p.name)
    )
    search: list[Epoch] = []
    for folder in numbered:
        if found := read_checkpoint(folder):
            search += counted_on(found.history, search)
    own = read_checkpoint(checkpoints)
    return [*search, *_after(search, own.history if own else [])]


def _told(callback: Callback, before: Sequence[Epoch], last: bool = True) -> Callback:
    """A callback that is told epochs as the history has them."""
    place = list(before)
    return lambda figures: callback(*(_after(place, [figures]) if last else counted_on([figures], place)))


def _after(search: Sequence[Epoch], history: list[Epoch]) -> list[Epoch]:
    """Epochs of the last training, which follow a search: what it watches, it has seen in training."""
    if not search:
        return history
    return [
        {key: value for key, value in epoch.items() if key != "val_loss"}
        for epoch in counted_on(history, search)
    ]


def _ignorable(settings: Settings) -> Settings:
    """Without a missing process: cells hidden at random are none of its doing."""
    return replace(settings, model=replace(settings.model, missing="mar")) if settings.model else settings


def _hidden_cells(samples: Samples, seed: int) -> Mask:
    """Observed cells at random; every row and column keeps one at least."""
    observed = samples.observed
    share = min(HIDDEN_SHARE, HIDDEN_CELLS / max(1, observed.sum()))
    hidden = observed & ~mcar(observed.shape, share, seed)
    hidden[np.arange(len(hidden)), observed.argmax(axis=1)] = False
    hidden[observed.argmax(axis=0), np.arange(hidden.shape[1])] = False
    return hidden


def _best_epoch(history: list[Epoch]) -> int:
    """Where the validation loss, averaged over a twentieth of the epochs, is least."""
    width = max(1, len(history) // 20)
    losses = np.array([epoch["val_loss"] for epoch in history])
    means = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    return int(means.argmin()) + (width + 1) // 2


def imputer_parts(samples: Samples, seed: int, calibration: Samples | None = None) -> Parts:
    """All rows train but the few that calibrate scores, or those given; some that train are watched.

    A detector's split would cost an imputer the third of the rows that it is to fill. Rows without any
    value neither calibrate nor are watched where others can: they have no score. Of fewer than `SMALL` rows,
    those that are watched do not train: their best epoch is all that says how long.
    """
    rows = len(samples.values)
    if rows < SMALL and calibration is None:
        return split_parts(samples, seed)
    small = calibration is not None and rows + len(calibration.values) < SMALL
    train = np.random.default_rng(seed).permutation(rows)
    empty = np.asarray(~samples.observed.reshape(rows, -1).any(axis=1))
    train = train[np.argsort(empty[train], kind="stable")]
    if calibration is None:
        wanted = max(CALIBRATION_ROWS, round(CALIBRATION_SHARE * rows))
        most = max(1, int(CALIBRATION_MOST * (rows - empty.sum())))
        last, train = np.split(train, [min(wanted, most)])
        train, last = covering(train, last, samples)
        calibration = take(samples, last)
    watched = train[: max(1, rows // 10)]
    if small:
        train, watched = covering(train[len(watched) :], watched, samples)
    return Parts(take(samples, train), take(samples, watched), calibration)
