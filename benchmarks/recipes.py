"""Every recipe once on real data: parameters, epochs, time, losses, AUROC where there are labels.

``python -m benchmarks.recipes --data-root DIR --work WORK`` keeps each run below WORK; started again it
goes on where it was, and leaves out recipes whose figures are recorded already (``--again`` does not).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, parsed, parser, show, write
from pipelines.config import recipe_names


@dataclass(frozen=True)
class Job:
    """A recipe on data.

    Attributes
    ----------
    recipe : str
    data : str, optional
        Below the data root; recipes without data of their own need it.
    novel : str, optional
        Label of the anomalies; they are kept out of training and give an AUROC.
    settings : tuple of str
        ``section.key=value`` each.
    """

    recipe: str
    data: str | None = None
    novel: str | None = None
    settings: tuple[str, ...] = ()


# What each recipe is run on. A recipe that is not here runs as it is.
JOBS = {
    "default-image, digit 4 novel": Job("default-image", novel="4"),
    "default-imputer, cardio": Job("default-imputer", "adbench/cardio.npz", "1"),
    "default-table, cardio": Job("default-table", "adbench/cardio.npz", "1"),
    "default-table, satellite": Job("default-table", "adbench/satellite.npz", "1"),
    "digits, digit 4 novel": Job("digits", novel="4"),
    "mnist-mlp, digit 4 novel": Job("mnist-mlp", novel="4"),
    "mnist-mse, digit 4 novel": Job("mnist-mse", novel="4"),
    "mnist-mse, latent size 2": Job("mnist-mse", settings=("model.latent_size=2",)),
    "rgb64-autoencoder": Job("rgb64-autoencoder", "cifar10/test"),
    "rgb64-conv": Job("rgb64-conv", "cifar10/test"),
    "table, cardio": Job("table", "adbench/cardio.npz", "1"),
    "table, satellite": Job("table", "adbench/satellite.npz", "1"),
}
NEED_DATA = ("default-imputer", "default-table", "table")
QUICK = ("digits", "mnist-mlp", "table, cardio")
QUICK_SETTINGS = ("training.epochs=1", "data.limit=300")


def main() -> None:
    """Run the recipes asked for, writing recipes.json after each."""
    made = parser(__doc__)
    made.add_argument(
        "--work", type=Path, required=True, help="folder of the runs; kept, so that they can go on"
    )
    made.add_argument("--only", action="append", choices=tuple(all_jobs()), help="one of them; repeatable")
    made.add_argument("--again", action="store_true", help="also those that are recorded already")
    options = parsed(made)
    done = set() if options.again else recorded(options)
    for name in options.only or (QUICK if options.quick else all_jobs()):
        if name in done:
            print(f"{name}: recorded already")
            continue
        figures = run_recipe(
            name, options.data_root, QUICK_SETTINGS if options.quick else (), work=options.work
        )
        print_figures(name, figures)
        write("recipes", {name: figures}, options)


def all_jobs() -> dict[str, Job]:
    """Every recipe that comes with the package, on its own data or on what `JOBS` says."""
    plain = {name: Job(name) for name in recipe_names() if name not in NEED_DATA}
    return dict(sorted((plain | JOBS).items()))


def recorded(options: argparse.Namespace) -> set[str]:
    """Names that the file of results holds."""
    path = (options.results or RESULTS) / "recipes.json"
    return set(json.loads(path.read_text())) if path.exists() else set()


def run_recipe(name: str, data_root: Path, overrides: Sequence[str] = (), *, work: Path) -> dict[str, Any]:
    """Train one job, going on from its checkpoint if there is one, and judge it where there are labels.

    The one place that knows how a recipe is run.
    """
    job = all_jobs()[name]
    folder = work / name.replace(", ", "-").replace(" ", "-")
    trained = folder / "run.json"
    if not trained.exists():
        words = ["train", job.recipe, "--out", folder, "--no-track", "--device", "cpu"]
        words += ["--data-root", data_root] if job.recipe != "digits" else []
        words += ["--data", job.data] if job.data else []
        words += ["--novel", job.novel] if job.novel else []
        for setting in (*job.settings, *overrides):
            words += ["--set", setting]
        words += ["--resume"] if any((folder / "checkpoints").rglob("checkpoint.json")) else []
        command_line(*words)
    run = json.loads(trained.read_text())
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    metrics = judge(folder, data_root, job) if job.novel else {}
    history = manifest["provenance"]["history"]
    return {
        "recipe": job.recipe,
        "data": job.data,
        "novel": job.novel,
        "settings": [*job.settings, *overrides],
        "parameters": run["parameters"],
        "rows": run["rows"],
        "epochs": len(history),
        "seconds": run["seconds"],
        "last": run["last"],
        "best_val_loss": min(epoch["val_loss"] for epoch in history if "val_loss" in epoch),
        "auroc": metrics.get("auroc"),
        "metrics": metrics,
    }


def judge(folder: Path, data_root: Path, job: Job) -> dict[str, Any]:
    """Metrics on the bundle's own test rows."""
    where = ["--data-root", data_root] if job.recipe != "digits" else []
    found = command_line("evaluate", folder / "bundle", "--out", folder / "report", *where)
    metrics: dict[str, Any] = found[0]
    return metrics


def command_line(*words: object) -> Any:
    """Run a verb of ``vae-anomaly`` and read its JSON summary."""
    call = [sys.executable, "-m", "pipelines.cli", *map(str, words), "--json"]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"vae-anomaly {words[0]} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def print_figures(name: str, figures: dict[str, Any]) -> None:
    """One line of the table."""
    keys = ("parameters", "epochs", "seconds", "auroc")
    last = {key: figures["last"].get(key) for key in ("loss", "val_loss")}
    show(name, [{**{key: figures[key] for key in keys}, **last}])


if __name__ == "__main__":
    main()
