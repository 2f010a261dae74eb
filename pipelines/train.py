"""Train a recipe: data, model, tracking, sealed bundle, registered version."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data import DataConfig, Dataset, load
from pipelines.recipe import Recipe
from pipelines.splits import Rows, Splits, split
from pipelines.tracking import Tracker
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.export import export_bundle
from vae_anomaly.fitting import Fit, Parts, fit_model
from vae_anomaly.runtime import load_bundle
from vae_anomaly.schema import Samples
from vae_anomaly.training import Callback, Epoch
from vae_anomaly.vae import parameter_count

log = logging.getLogger(__name__)

EXAMPLES = 4


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
    """
    dataset = load(recipe.data)
    splits = split(dataset, recipe.data, recipe.seed)
    folder = out or run_folder(root, recipe.name, resume)
    if (folder / "bundle").exists():
        raise ConfigError(f"{folder} holds a finished run; choose another --out or leave out --resume")
    if not track:
        fit = _fit(recipe, dataset, splits, folder, device, resume, callbacks, None)
        return _finish(recipe, fit, dataset, splits, folder, None, alias)
    with Tracker(root=root) as tracker:
        settings = recipe.settings.completed(dataset.schema, len(splits.train))
        tracker.start(recipe.name, _params(recipe, settings), {"data.fingerprint": dataset.fingerprint})
        logged = [*callbacks, lambda figures: _log_epoch(tracker, figures)]
        fit = _fit(recipe, dataset, splits, folder, device, resume, logged, tracker.run_id)
        return _finish(recipe, fit, dataset, splits, folder, tracker, alias)


def run_folder(root: Path, name: str, resume: bool = False) -> Path:
    """The next numbered folder of a recipe below ``root/work``, or the newest one to resume.

    Raises
    ------
    ConfigError
        If there is nothing to resume.
    """
    home = root / "work" / name
    taken = sorted(int(path.name) for path in home.glob("*") if path.name.isdigit())
    if resume and not taken:
        raise ConfigError(f"nothing to resume in {home}; leave out --resume")
    return home / str(taken[-1] if resume else (taken[-1] + 1 if taken else 1))


def samples_of(dataset: Dataset, rows: Rows) -> Samples:
    """Some rows of a data set as the model reads them."""
    values = dataset.values
    return dataset.schema.read(values[rows] if isinstance(values, np.ndarray) else values.iloc[rows])


def _fit(
    recipe: Recipe,
    dataset: Dataset,
    splits: Splits,
    folder: Path,
    device: str,
    resume: bool,
    callbacks: Sequence[Callback],
    run_id: str | None,
) -> Fit:
    parts = Parts(
        *(samples_of(dataset, rows) for rows in (splits.train, splits.validation, splits.calibration))
    )
    return fit_model(
        dataset.schema,
        parts,
        recipe.settings,
        seed=recipe.seed,
        device=device,
        name=recipe.name,
        provenance={
            "run_id": run_id,
            "recipe": recipe.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": _data_config(recipe.data),
            "data_fingerprint": dataset.fingerprint,
            "rows_test": len(splits.test),
        },
        checkpoints=folder / "checkpoints",
        resume=resume,
        callbacks=callbacks,
    )


def _finish(
    recipe: Recipe,
    fit: Fit,
    dataset: Dataset,
    splits: Splits,
    folder: Path,
    tracker: Tracker | None,
    alias: str | None,
) -> TrainingRun:
    history = [{key: float(f"{value:.6g}") for key, value in epoch.items()} for epoch in fit.history]
    manifest = fit.fitted.manifest
    fit.fitted.manifest = replace(manifest, provenance={**manifest.provenance, "history": history})
    digest = export_bundle(fit.fitted, folder / "bundle")
    version = None
    if tracker is not None:
        version = _register(recipe, dataset, splits, folder / "bundle", digest, tracker, alias)
    run = TrainingRun(
        bundle=folder / "bundle",
        digest=digest,
        run_id=tracker.run_id if tracker else None,
        tracking_uri=tracker.uri if tracker else None,
        registered=f"models:/{recipe.name}/{version}" if version else None,
        parameters=parameter_count(fit.fitted.model),
        rows={name: len(rows) for name, rows in vars(splits).items()},
        seconds=sum(epoch["seconds"] for epoch in fit.history),
        last=fit.history[-1],
    )
    (folder / "run.json").write_text(json.dumps(run.to_dict(), indent=1) + "\n")
    return run


def _register(
    recipe: Recipe,
    dataset: Dataset,
    splits: Splits,
    bundle: Path,
    digest: str,
    tracker: Tracker,
    alias: str | None,
) -> str | None:
    few = splits.test[:EXAMPLES]
    example = dataset.values[few] if isinstance(dataset.values, np.ndarray) else dataset.values.iloc[few]
    verdicts = load_bundle(bundle, device="cpu", threads=1).verdicts(example)
    return tracker.log_bundle(bundle, recipe.name, digest, example, alias=alias, verdicts=verdicts)


def _params(recipe: Recipe, settings: Any) -> dict[str, Any]:
    return {
        "seed": recipe.seed,
        "data": _data_config(recipe.data),
        **{name: asdict(getattr(settings, name)) for name in ("model", "objective", "training", "export")},
    }


def _data_config(config: DataConfig) -> dict[str, Any]:
    """As JSON, without the place of the data on this machine."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(replace(config, data_root=None))))
    return plain


def _log_epoch(tracker: Tracker, figures: Epoch) -> None:
    values = {key: value for key, value in figures.items() if key != "epoch"}
    tracker.log_metrics(values, step=int(figures["epoch"]))
