"""Every recipe once on real data: parameters, losses, seconds, and what its bundle does on test rows.

``python -m benchmarks.recipes --data-root DIR --work DIR`` keeps finished runs below the work folder and
goes on from there when it is started again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import parser, show, write

QUICK = ("--set", "training.epochs=1", "--set", "data.limit=400")


@dataclass(frozen=True)
class Run:
    """A recipe on data.

    Attributes
    ----------
    recipe : str
    data : str, optional
        Below the data root, in place of the recipe's own source.
    options : tuple of str
        Further options of ``vae-anomaly train``.
    """

    recipe: str
    data: str | None = None
    options: tuple[str, ...] = ()

    def command(self, data_root: Path) -> list[str]:
        """Arguments of ``vae-anomaly train``."""
        source = ("--data", str(data_root / self.data)) if self.data else ()
        return [self.recipe, "--data-root", str(data_root), *source, *self.options]


COLOUR = "cifar10/test"
TABLE = ("--label", "y", "--novel", "1")
RUNS = {
    "mnist-mlp": Run("mnist-mlp"),
    "mnist-mse, latent 20": Run("mnist-mse"),
    "mnist-mse, latent 2": Run("mnist-mse", options=("--set", "model.latent_size=2")),
    "default-image, MNIST": Run("default-image"),
    "digits, 8 novel": Run("digits", options=("--novel", "8")),
    "table, cardio": Run("table", "adbench/cardio.npz", TABLE),
    "default-table, cardio": Run("default-table", "adbench/cardio.npz", TABLE),
    "table, satellite": Run("table", "adbench/satellite.npz", TABLE),
    "default-table, satellite": Run("default-table", "adbench/satellite.npz", TABLE),
    "fashion-conv": Run("fashion-conv"),
    "fashion-autoencoder": Run("fashion-autoencoder"),
    "rgb64-conv, CIFAR-10": Run("rgb64-conv", COLOUR),
    "rgb64-autoencoder, CIFAR-10": Run("rgb64-autoencoder", COLOUR),
}


def main() -> None:
    """Run what is not finished yet, judge it, and write recipes.json."""
    made = parser(__doc__)
    made.add_argument("--work", type=Path, required=True, help="folder that keeps finished runs")
    made.add_argument("--only", action="append", choices=list(RUNS), help="these runs; repeatable")
    options = made.parse_args()
    payload = {}
    for name in options.only or RUNS:
        payload[name] = one(RUNS[name], options.work / name.replace(",", "").replace(" ", "-"), options)
        show(name, [{key: value for key, value in payload[name].items() if not isinstance(value, dict)}])
        write("recipes", payload, options)


def one(run: Run, folder: Path, options: Any) -> dict[str, Any]:
    """Train and judge one recipe; a finished run is only read."""
    if not (folder / "run.json").exists():
        short = QUICK if options.quick else ()
        arguments = ("train", *run.command(options.data_root), *short, "--no-track", "--out", str(folder))
        resume = ("--resume",) if (folder / "checkpoints").exists() else ()
        call((*arguments, *resume))
    report = folder / "report"
    if not (report / "report.json").exists():
        call(
            ("evaluate", str(folder / "bundle"), "--data-root", str(options.data_root), "--out", str(report))
        )
    return figures(
        json.loads((folder / "run.json").read_text()), json.loads((report / "report.json").read_text())
    )


def call(arguments: Sequence[str]) -> None:
    """Run the command line in a process of its own."""
    subprocess.run([sys.executable, "-m", "pipelines.cli", *arguments], check=True)


def figures(run: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """What the run and its report say, flat."""
    model = report["models"][0]
    history = model["history"]
    patterns = model["imputation"].get("patterns", {})
    random = patterns.get("random", {}).get("methods", {})
    return {
        "parameters": run["parameters"],
        "epochs": len(history),
        "train_rows": run["rows"]["train"],
        "seconds": run["seconds"],
        "loss": history[-1]["loss"],
        "reconstruction": history[-1]["reconstruction"],
        "kl": history[-1]["kl"],
        "best_validation": min(epoch["val_loss"] for epoch in history),
        "active_units": history[-1]["active_units"],
        "auroc": model["scores"]["score"]["auroc"],
        "imputation_nrmse": random.get("model", {}).get("nrmse"),
        "mean_fill_nrmse": random.get("mean", {}).get("nrmse"),
        "neighbours_nrmse": random.get("knn", {}).get("nrmse"),
    }


if __name__ == "__main__":
    main()
