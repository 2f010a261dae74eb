"""Imputation: our default beside scikit-learn, miceforest and MIWAE, on identical masks and seeds.

``python -m benchmarks.imputation --data-root DIR --work WORK --part mcar`` keeps each cell (set and
mechanism, seed, method) below WORK as it finishes and goes on from there; one part per table.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.cells import cell
from benchmarks.harness import parsed, parser, show, write
from benchmarks.imputation_methods import METHODS, Filled, Method
from benchmarks.imputation_tasks import Task, breast, coverage, development, gaussian, images, mcar, mnar

POINT = ("vae-anomaly", "mean", "KNNImputer", "IterativeImputer", "missForest", "miceforest", "MIWAE")
# What regresses every pixel on all others, forest by forest, does not finish.
ON_IMAGES = ("vae-anomaly", "mean", "KNNImputer", "IterativeImputer", "MIWAE")
VARIANTS = ("vae-anomaly", "half the rate", "twice the steps", "Student's t")
# Fast enough to sit beside the variants.
ON_TABLES = ("mean", "KNNImputer", "IterativeImputer", "missForest")
LEVEL = 0.95


class Part(NamedTuple):
    """A table: its tasks, who takes part, and the figure that decides."""

    tasks: Callable[[Path, bool], Iterator[Task]]
    methods: tuple[str, ...]
    figure: str


PARTS = {
    "breast": Part(breast, POINT, "mse"),
    "mcar": Part(mcar, POINT, "nmse"),
    "mnar": Part(mnar, POINT, "rmse"),
    "images": Part(images, ON_IMAGES, "mse"),
    "coverage": Part(coverage, ("vae-anomaly", "MICE draws", "miceforest", "MIWAE"), "coverage"),
    "gaussian": Part(
        gaussian, ("vae-anomaly", "exact", "mean", "KNNImputer", "IterativeImputer", "MIWAE"), "mse"
    ),
    "development": Part(development, (*VARIANTS, *ON_TABLES), "nmse"),
}


def main() -> None:
    """Measure the part asked for and write imputation.json."""
    made = parser(__doc__)
    made.add_argument("--work", type=Path, required=True, help="folder of finished cells")
    made.add_argument("--part", choices=PARTS, required=True)
    made.add_argument("--method", action="append", choices=METHODS, help="one of the methods; repeatable")
    made.add_argument("--only", default="", help="sets whose name starts so")
    made.add_argument("--seed", type=int, help="one of the seeds")
    options = parsed(made)
    torch.set_num_threads(1)
    part = PARTS[options.part]
    for task in part.tasks(options.data_root, options.quick):
        if not task.name.startswith(options.only) or options.seed not in (None, task.seed):
            continue
        for method in options.method or part.methods:
            run = partial(judged, METHODS[method], task)
            cell(options.work / options.part, file_name(task, method), run)
    write("imputation", {options.part: summary(part, options)}, options)


def file_name(task: Task, method: str) -> str:
    """Of a cell."""
    return f"{task.name}-{task.seed}-{method}"


def judged(run: Method, task: Task) -> dict[str, Any]:
    """One method on one task: errors on hidden cells, observed cells changed, intervals."""
    started = time.perf_counter()
    filled = run(task)
    seconds = time.perf_counter() - started
    hidden = np.isnan(task.query)
    errors = (filled.mean - task.truth)[hidden]
    # As if every column were filled by its complete mean.
    baseline = (task.truth - task.truth.mean(axis=0))[hidden]
    found = {
        "mse": float(np.mean(errors**2)),
        "rmse": float(np.sqrt(np.mean(errors**2))),
        "nmse": float(np.mean(errors**2) / np.mean(baseline**2)),
        "mae": float(np.mean(np.abs(errors))),
        "changed": int((filled.mean[~hidden] != task.query[~hidden]).sum()),
        "seconds": seconds,
    }
    return found | intervals(filled, task) if task.draws else found


def intervals(filled: Filled, task: Task) -> dict[str, float]:
    """Coverage and mean width of the central interval of the draws, column by column equal."""
    if filled.draws is None:
        return {}
    hidden = np.isnan(task.query)
    tail = (1 - LEVEL) / 2
    # Weibull's positions i / (M + 1): the interval of M draws covers as promised on average.
    low, high = np.quantile(filled.draws, (tail, 1 - tail), axis=0, method="weibull")
    inside = (task.truth >= low) & (task.truth <= high)
    return {"coverage": float(inside[hidden].mean()), "width": float((high - low)[hidden].mean())}


def summary(part: Part, options: argparse.Namespace) -> dict[str, Any]:
    """Mean and spread over seeds per set and method, of the cells there are."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted((options.work / options.part).glob("*.json")):
        if (words := re.fullmatch(r"(.+)-(\d+)-(.+)", path.stem)) is not None:
            name, _, method = words.groups()
            rows.setdefault(name, {}).setdefault(method, []).append(json.loads(path.read_text()))
    found = {
        name: {method: _over_seeds(cells) for method, cells in methods.items()}
        for name, methods in rows.items()
    }
    show(f"{options.part}: {part.figure}", [_row(name, found[name], part) for name in found])
    return {"sets": found, "figure": part.figure}


def _over_seeds(cells: list[dict[str, Any]]) -> dict[str, Any]:
    values = {key: [cell[key] for cell in cells] for key in cells[0]}
    means = {key: statistics.fmean(each) for key, each in values.items()}
    spreads = {f"{key}_std": statistics.stdev(each) if len(each) > 1 else 0.0 for key, each in values.items()}
    return {**means, **spreads, "seeds": len(cells)}


def _row(name: str, methods: dict[str, Any], part: Part) -> dict[str, object]:
    return {"set": name} | {m: methods[m].get(part.figure) if m in methods else None for m in part.methods}


if __name__ == "__main__":
    main()
