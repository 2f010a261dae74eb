"""The main job in one go, on bundled data: train, track, export, register, score, impute, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.data import load
from pipelines.evaluate import evaluate
from pipelines.recipe import load_recipe
from pipelines.splits import split
from pipelines.train import TrainingRun, run_folder, train
from serving.batch import impute_file, score_file
from serving.chunks import ReadOptions
from vae_anomaly.masks import mcar
from vae_anomaly.runtime import load_bundle
from vae_anomaly.training import Callback

NOVEL_DIGIT = 8
HIDDEN_SHARE = 0.5
ALIAS = "champion"


@dataclass(frozen=True)
class DemoResult:
    """What the demo found and where it put it."""

    run: TrainingRun
    metrics: dict[str, float]
    folder: Path

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
        source = self.folder / "test-images.npy"
        return [
            f"vae-anomaly score models:/digits@{ALIAS} {source} --rank --out my-scores.parquet",
            f"mlflow ui --backend-store-uri {self.run.tracking_uri}",
        ]


def run_demo(
    root: Path,
    epochs: int | None = None,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
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
    callbacks : sequence of callables
    say : callable
        Hears what happens next.
    """
    recipe = load_recipe("digits", sections={"data": {"novel": [NOVEL_DIGIT]}})
    if epochs:
        rows = len(load(recipe.data)) // 2
        complete = recipe.settings.completed(load(recipe.data).schema, rows).training
        recipe = replace(recipe, training=replace(complete, epochs=epochs) if complete else None)
    folder = run_folder(root, "demo")
    say(f"training on digits without the {NOVEL_DIGIT}")
    run = train(recipe, root=root, out=folder, device=device, alias=ALIAS, callbacks=callbacks)
    say(f"loading models:/{recipe.name}@{ALIAS} from the registry")
    bundle = load_bundle(f"models:/{recipe.name}@{ALIAS}" if run.registered else run.bundle, device=device)
    say("scoring and imputing the test images as batch jobs")
    dataset = load(recipe.data)
    images = np.asarray(dataset.values)[split(dataset, recipe.data, recipe.seed).test]
    np.save(folder / "test-images.npy", images)
    np.save(folder / "observed.npy", mcar(images.shape, HIDDEN_SHARE, seed=0))
    score_file(bundle, folder / "test-images.npy", folder / "scores.parquet", rank=True)
    impute_file(
        bundle, folder / "test-images.npy", folder / "imputed.npy", ReadOptions(mask=folder / "observed.npy")
    )
    say("judging the bundle and writing the report")
    _, evaluations = evaluate([bundle], folder / "report")
    metrics = evaluations[0].metrics()
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return DemoResult(run, metrics, folder)
