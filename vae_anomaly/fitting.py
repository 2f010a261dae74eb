"""From samples to a fitted model: recommended settings, training, scores, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vae_anomaly.assembly import ExportConfig, Fitted, Parts, assemble, chosen_scores
from vae_anomaly.batches import take, with_something
from vae_anomaly.budget import within_budget
from vae_anomaly.choices import check_fields
from vae_anomaly.encoding import Encoding, fit_encoding
from vae_anomaly.exceptions import ConfigError, DataError
from vae_anomaly.networks import ModelConfig
from vae_anomaly.objectives import ObjectiveConfig
from vae_anomaly.schema import ImageSchema, Samples, Schema
from vae_anomaly.training import Callback, Data, Epoch, Trainer, TrainingConfig
from vae_anomaly.vae import make_likelihood, make_model

# To train on: what is left of 10 rows, the fewest that scikit-learn's checks fit an estimator to.
MINIMUM_ROWS = 7
# Rows shown to the model in all, whatever the size of the data; within the bounds on epochs.
ROWS_SHOWN = {"image": 300_000, "table": 300_000}
EPOCHS = {"image": (4, 100), "table": (20, 600)}

# The first shows every row: what to leave out is told by its losses.
TRIMMED_EPOCHS = 2

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """How a model is built, trained and made ready; what is None is recommended from the data.

    Attributes
    ----------
    model : ModelConfig, optional
    objective : ObjectiveConfig, optional
    training : TrainingConfig, optional
    export : ExportConfig
    """

    model: ModelConfig | None = None
    objective: ObjectiveConfig | None = None
    training: TrainingConfig | None = None
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        check_fields(self)

    def otherwise(self, recommended: Settings) -> Settings:
        """The same with every None taken from others; the export, which is never None, is one's own."""
        return Settings(
            self.model or recommended.model,
            self.objective or recommended.objective,
            self.training or recommended.training,
            self.export,
        )

    def completed(self, schema: Schema, rows: int) -> Settings:
        """The same with every None filled in."""
        model, objective = self.model or recommended_model(schema), self.objective or ObjectiveConfig()
        recommended = recommended_training(schema, rows)
        fewest = 1
        if objective.trim:
            recommended, fewest = _underfit(recommended), TRIMMED_EPOCHS
        training = self.training or within_budget(recommended, model, schema, rows, fewest=fewest)
        return Settings(model, objective, training, self.export)


class Fit(NamedTuple):
    """A fitted model, the settings that made it and its figures per epoch."""

    fitted: Fitted
    settings: Settings
    history: list[Epoch]


def recommended_model(schema: Schema) -> ModelConfig:
    """A convolutional model for images, a multilayer perceptron for tables, sized by the sample.

    Images get one stride-2 convolution per halving down to a side of about 4, and a decoder that
    ends with its last transposed convolution: one more at full size would take most of the time.
    Tables get two layers of about 8 units per column, 128 to 256, and one latent dimension per
    column, 2 to 32: chosen on scikit-learn's bundled and synthetic data, see docs/scores.md.
    """
    if isinstance(schema, ImageSchema):
        stages, side = 1, min(schema.height, schema.width) / 2
        while side > 4 and stages < 5:
            stages, side = stages + 1, side / 2
        return ModelConfig(
            network="conv",
            hidden=tuple(32 * 2 ** min(i, 2) for i in range(stages)),
            latent_size=16,
            likelihood="gaussian",
            scale="learned",
            output="sigmoid",
            activation="silu",
            dense=256,
            kernel=4 if stages > 1 else 3,
            head="transpose" if stages > 1 else "conv",
        )
    width = int(np.clip(2 ** round(np.log2(8 * schema.elements)), 128, 256))
    latent = int(np.clip(schema.elements, 2, 32))
    return ModelConfig(
        hidden=(width, width), latent_size=latent, likelihood="gaussian", scale="element", activation="silu"
    )


def recommended_training(schema: Schema, rows: int, longer: int = 1) -> TrainingConfig:
    """As many epochs as show the model `ROWS_SHOWN` rows, within bounds; or so many times longer.

    Images come in smaller batches: convolutions cost as much per row in those, and steps are few.
    """
    rows = max(rows, 1)
    share, most, rate = (64, 128, 2e-3) if isinstance(schema, ImageSchema) else (16, 256, 3e-3)
    fewest, most_epochs = EPOCHS[schema.kind]
    epochs = int(np.clip(longer * ROWS_SHOWN[schema.kind] // rows, fewest, longer * most_epochs))
    batch = int(np.clip(2 ** round(np.log2(rows / share)), 64, most))
    return TrainingConfig(epochs=epochs, batch_size=batch, learning_rate=rate, random_mask=0.5)


def _underfit(training: TrainingConfig) -> TrainingConfig:
    """A tenth of the epochs, at least ten: what is rare is learnt last, so do not wait for it."""
    return replace(training, epochs=min(training.epochs, max(10, training.epochs // 10)))


def fit_model(
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
    """Train a model, fit its scores and calibrate them.

    Raises
    ------
    DataError
        If there are too few training rows, or a column holds no value.
    DivergedError
        If the loss loses its way.
    """
    complete, model_config, objective, _ = _complete(settings, schema, parts)
    trainer, encoding = make_trainer(schema, parts, complete, seed, device, checkpoints, callbacks)
    history = trainer.fit(parts.train, parts.validation, parts.hidden, resume=resume)
    if objective.trim:
        parts, provenance = _trimmed(trainer, parts, history[-1]["trimmed"], provenance or {})
    fitted = assemble(
        trainer.model,
        encoding,
        schema,
        model_config,
        complete.export,
        parts,
        name=name,
        provenance=provenance,
        seed=seed,
        # Metropolis steps know of no missing process; a model with one saw the masks of its own data.
        saw_masks=trainer.config.random_mask > 0 or model_config.missing != "mar",
    )
    return Fit(fitted, complete, history)


def make_trainer(
    schema: Schema,
    parts: Parts,
    settings: Settings,
    seed: int,
    device: str,
    checkpoints: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[Trainer, Encoding]:
    """A fresh model with the encoding that its training rows give, ready to be trained."""
    _, config, objective, training = _complete(settings, schema, parts)
    likelihood = make_likelihood(config, schema)
    encoding = fit_encoding(schema, parts.train, likelihood.output_range, config.scaling)
    model = make_model(schema.shape, config, torch.Generator().manual_seed(seed), likelihood)
    if model.missing is not None:
        model.missing.start(_skewness(encoding, parts.train))
    trainer = Trainer(model, encoding, objective, training, seed, device, checkpoints, callbacks)
    return trainer, encoding


def _skewness(encoding: Encoding, samples: Samples) -> torch.Tensor:
    """Of the observed values of each column, 0 where there is none."""
    encoded = encoding(torch.from_numpy(samples.values), torch.from_numpy(samples.observed))
    count = encoded.observed.sum(dim=0).clamp_min(1)
    skewness: torch.Tensor = torch.where(encoded.observed, encoded.x, 0.0).pow(3).sum(dim=0) / count
    return skewness


class _Complete(NamedTuple):
    settings: Settings
    model: ModelConfig
    objective: ObjectiveConfig
    training: TrainingConfig


def _complete(settings: Settings, schema: Schema, parts: Parts) -> _Complete:
    rows = len(parts.train.values)
    if rows < MINIMUM_ROWS or not len(parts.validation.values):
        raise DataError(
            f"{rows} training and {len(parts.validation.values)} validation rows are too few; "
            f"at least {MINIMUM_ROWS} and 1 are needed"
        )
    complete = settings.completed(schema, rows)
    model, objective, training = complete.model, complete.objective, complete.training
    if model is None or objective is None or training is None:
        raise TypeError("completed settings hold a model, its objective and its training")
    # Before training, not after it.
    chosen_scores(complete.export, model)
    if objective.trim and training.epochs < TRIMMED_EPOCHS:
        raise ConfigError(
            f"trim leaves rows out from the second epoch on, and training has {training.epochs}; give it more"
        )
    if model.missing != "mar":
        # Cells that training hides itself would pass for ones that the process took.
        training = replace(training, random_mask=0.0, denoise=False)
    return _Complete(replace(complete, training=training), model, objective, training)


def _trimmed(
    trainer: Trainer, parts: Parts, share: float, provenance: dict[str, Any]
) -> tuple[Parts, dict[str, Any]]:
    """What the scores are fitted on: anomalies would pass for neighbours of anomalies.

    Calibration rows stay as they are, or p-values would promise what they do not hold.
    """
    device = next(trainer.model.parameters()).device
    rows = [trainer.kept(Data.of(part, device), share).cpu().numpy() for part in parts[:2]]
    kept = Parts(take(parts.train, rows[0]), take(parts.validation, rows[1]), parts.calibration)
    return kept, {**provenance, "rows_trimmed": len(parts.train.values) - len(rows[0])}


def split_parts(samples: Samples, seed: int, validation: float = 0.1, calibration: float = 0.2) -> Parts:
    """Training, validation and calibration rows at random, each share at least one row.

    Rows with nothing observed are none of them: nothing can be learnt from them, and they have no score.

    Raises
    ------
    DataError
        If too few are left to train on.
    """
    given, samples = len(samples.values), with_something(samples)
    rows = len(samples.values)
    order = np.random.default_rng(seed).permutation(rows)
    sizes = [max(1, round(share * rows)) for share in (validation, calibration)]
    cuts = np.cumsum([max(0, rows - sum(sizes)), sizes[0]])
    train, held, last = np.split(order, cuts)
    train, last = covering(train, last, samples)
    train, held = covering(train, held, samples)
    if len(train) < MINIMUM_ROWS:
        empty = f", {given - rows} of them without any value," if given > rows else ""
        raise DataError(
            f"n_samples={given}{empty} leaves {len(train)} rows to train on; "
            f"at least {MINIMUM_ROWS} are needed: fit on more"
        )
    return Parts(take(samples, train), take(samples, held), take(samples, last))


def covering(train: Rows, others: Rows, samples: Samples) -> tuple[Rows, Rows]:
    """Both, with a row moved to training for every column that has its values among the others only."""
    if samples.observed.all():
        return train, others
    observed = samples.observed.reshape(len(samples.observed), -1)
    for column in np.flatnonzero(~observed[train].any(axis=0)):
        known = others[observed[others, column]]
        if len(others) > 1 and len(known) and not observed[train, column].any():
            train, others = np.append(train, known[0]), others[others != known[0]]
    return train, others
