"""Train a recipe: data, model, tracking, sealed bundle, registered version."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data import DataConfig, Dataset, load
from pipelines.recipe import Recipe
from pipelines.splits import Rows, Splits, split
from pipelines.tracking import Tracker
from serving.claim import Claim
from vae_anomaly.assembly import Parts
from vae_anomaly.devices import choose_device
from vae_anomaly.exceptions import ConfigError, DivergedError
from vae_anomaly.export import export_bundle
from vae_anomaly.fitting import Fit, Settings, fit_model
from vae_anomaly.imputer_fitting import fit_imputer, imputer_parts, past_epochs
from vae_anomaly.runtime import load_bundle
from vae_anomaly.schema import Samples
from vae_anomaly.training import Callback, Epoch
from vae_anomaly.vae import parameter_count

log = logging.getLogger(__name__)

EXAMPLES = 4
SECTIONS = ("model", "objective", "training", "export")
# Files of a run's folder, beside checkpoints/ and bundle/: its settings, and what came of it.
BEGUN, DONE = "settings.json", "run.json"


@dataclass(frozen=True)
class TrainingRun:
    """What a training run leaves behind.

    Attributes
    ----------
    bundle : Path
        The sealed bundle.
    digest : str
    run_id : str or None
        In the tracking store; None when nothing was tracked.
    tracking_uri : str or None
    registered : str or None
        ``models:/name/version``.
    parameters : int
        Trainable ones.
    rows : dict
        Rows per split.
    seconds : float
        In training epochs.
    last : dict
        Figures of the last epoch.
    """

    bundle: Path
    digest: str
    run_id: str | None
    tracking_uri: str | None
    registered: str | None
    parameters: int
    rows: dict[str, int]
    seconds: float
    last: Epoch

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "bundle": str(self.bundle)}


@dataclass(frozen=True)
class _Job:
    """A recipe with its data at hand, and the folder where it works."""

    recipe: Recipe
    dataset: Dataset
    splits: Splits
    samples: Samples
    settings: Settings
    folder: Path
    device: str

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    def params(self) -> dict[str, Any]:
        """Every setting, as the tracking store shows it."""
        return {
            "task": self.recipe.task,
            "seed": self.recipe.seed,
            "data": _data_config(self.recipe.data),
            **{name: asdict(getattr(self.settings, name)) for name in SECTIONS},
        }


def train(
    recipe: Recipe,
    *,
    root: Path = Path("mlruns"),
    out: Path | None = None,
    device: str = "auto",
    alias: str | None = None,
    resume: bool = False,
    track: bool = True,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[int], None] | None = None,
) -> TrainingRun:
    """Run a recipe from data to a registered bundle.

    Parameters
    ----------
    recipe : Recipe
    root : Path
        Holds the local tracking store and, below ``work/``, checkpoints and bundles.
    out : Path, optional
        Folder of the run in place of a numbered one below ``root``.
    device : {"auto", "cpu", "cuda"}
    alias : str, optional
        Set on the registered version.
    resume : bool
        Go on from the newest checkpoint of the run's folder.
    track : bool
        Log to MLflow and register.
    callbacks : sequence of callables
        Each gets every epoch's figures.
    on_start : callable, optional
        Gets the number of epochs before the first, where it is known.

    Raises
    ------
    ConfigError
        If the folder holds another run, or is to be resumed with other settings.
    DataError
        If the data cannot be used, or another job works in the folder.
    DivergedError
        If the loss loses its way; the last good checkpoint is kept.
    """
    choose_device(device)
    dataset = load(recipe.data)
    splits = split(dataset, recipe.data, recipe.seed)
    samples = samples_of(dataset, _shown(recipe, splits))
    settings = recipe.settings(dataset.schema, samples)
    folder = out or run_folder(root, recipe.name, resume)
    job = _Job(recipe, dataset, splits, samples, settings, folder, device)
    with Claim(folder):
        _begin(job, resume)
        # How long an imputer trains is found out on the way.
        if on_start is not None and settings.training is not None and recipe.task == "detection":
            on_start(settings.training.epochs)
        if not track:
            return _run(job, resume, callbacks)
        with Tracker(root=root) as tracker:
            return _run(job, resume, callbacks, tracker, alias)


def run_folder(root: Path, name: str, resume: bool = False) -> Path:
    """A new numbered folder for a recipe below ``root/work``, or the newest one to resume.

    Raises
    ------
    ConfigError
        If there is nothing to resume.
    """
    home = root / "work" / name
    while True:
        taken = sorted(int(path.name) for path in home.glob("*") if path.name.isdecimal())
        if resume and not taken:
            raise ConfigError(f"nothing to resume in {home}; leave out --resume")
        if resume:
            return home / str(taken[-1])
        folder = home / str(taken[-1] + 1 if taken else 1)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another job was faster
            continue
        return folder


def samples_of(dataset: Dataset, rows: Rows) -> Samples:
    """Some rows of a data set as the model reads them."""
    values = dataset.values
    return dataset.schema.read(values[rows] if isinstance(values, np.ndarray) else values.iloc[rows])


def _shown(recipe: Recipe, splits: Splits) -> Rows:
    """The rows that weights are fitted to; an imputer watches cells of these, not further rows."""
    if recipe.task == "detection":
        return splits.train
    return np.sort(np.concatenate([splits.train, splits.validation]))


def _begin(job: _Job, resume: bool) -> None:
    """Note the settings in the folder, or compare them with those it was begun with."""
    if (job.folder / DONE).exists():
        raise ConfigError(f"{job.folder} holds a finished run; leave out --resume, or choose another --out")
    noted = json.loads(json.dumps({"data_fingerprint": job.dataset.fingerprint, **job.params()}))
    begun = job.folder / BEGUN
    if past_epochs(job.checkpoints):
        if not resume:
            raise ConfigError(f"{job.folder} holds an unfinished run; give --resume, or choose another --out")
        before = json.loads(begun.read_text()) if begun.exists() else {}
        if changed := first_difference(noted, before):
            raise ConfigError(
                f"{job.folder} was begun with another {changed}; resume with what {begun} says, or start anew"
            )
        # Sealed but never registered: that part is done again.
        shutil.rmtree(job.bundle, ignore_errors=True)
    elif job.bundle.exists():
        raise ConfigError(f"{job.bundle} exists already, and is of no run; choose another --out")
    job.folder.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(noted, indent=1) + "\n")


def first_difference(now: Mapping[str, Any], before: Mapping[str, Any]) -> str | None:
    """The first setting with another value, by its dotted name."""
    for key, value in now.items():
        was = before.get(key)
        if isinstance(value, Mapping) and isinstance(was, Mapping):
            if inner := first_difference(value, was):
                return f"{key}.{inner}"
        elif value != was:
            return key
    return None


def _run(
    job: _Job,
    resume: bool,
    callbacks: Sequence[Callback],
    tracker: Tracker | None = None,
    alias: str | None = None,
) -> TrainingRun:
    if tracker is not None:
        tracker.start(job.recipe.name, job.params(), {"data.fingerprint": job.dataset.fingerprint})
        for figures in past_epochs(job.checkpoints) if resume else ():
            _log_epoch(tracker, figures)
        callbacks = [*callbacks, lambda figures: _log_epoch(tracker, figures)]
    try:
        fit = _fit(job, resume, callbacks, tracker.run_id if tracker else None)
        return _finish(job, fit, tracker, alias)
    except DivergedError:  # it would again
        raise
    except BaseException:
        if past_epochs(job.checkpoints):
            log.warning("stopped; the same command with --resume goes on from %s", job.folder)
        raise


def _fit(job: _Job, resume: bool, callbacks: Sequence[Callback], run_id: str | None) -> Fit:
    splits, seed = job.splits, job.recipe.seed
    calibration = samples_of(job.dataset, splits.calibration)
    if job.recipe.task == "imputation":
        fit, parts = fit_imputer, imputer_parts(job.samples, seed, calibration)
    else:
        fit, parts = fit_model, Parts(job.samples, samples_of(job.dataset, splits.validation), calibration)
    return fit(
        job.dataset.schema,
        parts,
        job.settings,
        seed=seed,
        device=job.device,
        name=job.recipe.name,
        provenance={
            "run_id": run_id,
            "recipe": job.recipe.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": _data_config(job.recipe.data),
            "data_fingerprint": job.dataset.fingerprint,
            "rows_test": len(splits.test),
        },
        checkpoints=job.checkpoints,
        resume=resume,
        callbacks=callbacks,
    )


def _finish(job: _Job, fit: Fit, tracker: Tracker | None, alias: str | None) -> TrainingRun:
    history = [{key: float(f"{value:.6g}") for key, value in epoch.items()} for epoch in fit.history]
    manifest = fit.fitted.manifest
    fit.fitted.manifest = replace(manifest, provenance={**manifest.provenance, "history": history})
    digest = export_bundle(fit.fitted, job.bundle)
    version = _register(job, digest, tracker, alias) if tracker else None
    run = TrainingRun(
        bundle=job.bundle,
        digest=digest,
        run_id=tracker.run_id if tracker else None,
        tracking_uri=tracker.uri if tracker else None,
        registered=f"models:/{job.recipe.name}/{version}" if version else None,
        parameters=parameter_count(fit.fitted.model),
        rows={name: len(rows) for name, rows in vars(job.splits).items()},
        seconds=sum(epoch["seconds"] for epoch in fit.history),
        last=fit.history[-1],
    )
    (job.folder / DONE).write_text(json.dumps(run.to_dict(), indent=1) + "\n")
    return run


def _register(job: _Job, digest: str, tracker: Tracker, alias: str | None) -> str | None:
    few, values = job.splits.test[:EXAMPLES], job.dataset.values
    example = values[few] if isinstance(values, np.ndarray) else values.iloc[few]
    verdicts = load_bundle(job.bundle, device="cpu", threads=1).verdicts(example)
    return tracker.log_bundle(job.bundle, job.recipe.name, digest, example, alias=alias, verdicts=verdicts)


def _data_config(config: DataConfig) -> dict[str, Any]:
    """As JSON, without the place of the data on this machine."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(replace(config, data_root=None))))
    return plain


def _log_epoch(tracker: Tracker, figures: Epoch) -> None:
    values = {key: value for key, value in figures.items() if key != "epoch"}
    tracker.log_metrics(values, step=int(figures["epoch"]))
