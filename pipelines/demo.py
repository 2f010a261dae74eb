"""The main job in one go, on bundled data: train, track, export, register, score, impute, report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.data import load
from pipelines.evaluate import evaluate
from pipelines.models import open_model
from pipelines.recipe import Recipe, load_recipe
from pipelines.splits import split
from pipelines.train import TrainingRun, run_folder, train
from serving.batch import impute_file, score_file
from serving.chunks import ReadOptions
from vae_anomaly.masks import mcar
from vae_anomaly.mlflow_access import default_tracking_uri, redact
from vae_anomaly.runtime import Bundle
from vae_anomaly.training import Callback

NOVEL_DIGIT = 8
HIDDEN_SHARE = 0.5
ALIAS = "champion"
IMAGES, MASK = "test-images.npy", "observed.npy"


@dataclass(frozen=True)
class DemoResult:
    """What the demo found and where it put it."""

    run: TrainingRun
    metrics: dict[str, float]
    folder: Path
    root: Path
    model: str

    def headlines(self) -> list[str]:
        """The three figures."""
        found = self.metrics
        own, mean, neighbours = (found[f"imputation_nrmse_{name}"] for name in ("model", "mean", "knn"))
        return [
            f"AUROC on digit {NOVEL_DIGIT}, never seen in training: {found['auroc']:.3f}",
            f"false alarms on normal digits, 5 % asked: {100 * found['false_alarm_rate']:.1f} %",
            f"imputation error on hidden pixels (normalised RMSE): {own:.3f}; "
            f"mean fill {mean:.3f}, nearest neighbours {neighbours:.3f}",
        ]

    def places(self) -> list[tuple[str, object]]:
        """What was written, and where."""
        return [
            ("report", self.folder / "report" / "report.html"),
            ("predictions", self.folder / "scores.parquet"),
            ("imputations", self.folder / "imputed.npy"),
            ("bundle", self.run.bundle),
            ("tracking", self.run.tracking_uri),
            ("registered", f"{self.run.registered}, alias @{ALIAS}"),
        ]

    def next_commands(self) -> list[str]:
        """What to try now."""
        images = str(self.folder / IMAGES)
        score = ["vae-anomaly", "score", self.model, images, "--rank", "--out", "my-scores.parquet"]
        if self.root != Path("mlruns"):
            score += ["--root", str(self.root)]
        return [
            shlex.join(score),
            shlex.join(["mlflow", "ui", "--backend-store-uri", str(self.run.tracking_uri)]),
        ]


def run_demo(
    root: Path,
    epochs: int | None = None,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[int], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Run everything; one digit is held out of training and must be found.

    Parameters
    ----------
    root : Path
        Holds the tracking store; the demo's own files go below ``work/demo``.
    epochs : int, optional
        In place of the recommended number.
    device : {"auto", "cpu", "cuda"}
    callbacks, on_start
        As `train`.
    say : callable
        Hears what happens next.
    """
    changes = [f"training.epochs={epochs}"] if epochs else []
    recipe = load_recipe("digits", changes, {"data": {"novel": [NOVEL_DIGIT]}})
    folder = run_folder(root, "demo")
    say(f"training on digits without the {NOVEL_DIGIT}")
    run = train(
        recipe, root=root, out=folder, device=device, alias=ALIAS, callbacks=callbacks, on_start=on_start
    )
    model = _model(run, root)
    say(f"loading {model}, scoring and imputing the test images as batch jobs")
    bundle = open_model(model, root, device)
    _batch_jobs(bundle, recipe, folder)
    say("judging the bundle and writing the report")
    _, evaluations = evaluate([bundle], folder / "report")
    metrics = evaluations[0].metrics()
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return DemoResult(run, metrics, folder, root, model)


def _model(run: TrainingRun, root: Path) -> str:
    """The registered model, or the bundle's folder while its server is away."""
    if run.registered is None or run.tracking_uri != redact(default_tracking_uri(root)):
        return str(run.bundle)
    return run.registered.rpartition("/")[0] + f"@{ALIAS}"


def _batch_jobs(bundle: Bundle, recipe: Recipe, folder: Path) -> None:
    """Score the test images, and impute them with half of their pixels hidden."""
    dataset = load(recipe.data)
    images = np.asarray(dataset.values)[split(dataset, recipe.data, recipe.seed).test]
    np.save(folder / IMAGES, images)
    np.save(folder / MASK, mcar(images.shape, HIDDEN_SHARE, seed=0))
    score_file(bundle, folder / IMAGES, folder / "scores.parquet", rank=True)
    impute_file(bundle, folder / IMAGES, folder / "imputed.npy", ReadOptions(mask=folder / MASK))
