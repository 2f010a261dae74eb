"""Detection on images: our default beside PyOD and scikit-learn, on the same splits and seeds.

``python -m benchmarks.images --data-root DIR --work WORK`` keeps each cell (protocol, class, seed, method)
and each trained model below WORK as it finishes, and goes on from there.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh, qr
from scipy.linalg.lapack import dpstrf
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM
from torchvision.datasets import MNIST, FashionMNIST

from benchmarks.cells import RATES, Rows, cell, found_cells
from benchmarks.detection import on_pyod, on_sklearn
from benchmarks.harness import Stopwatch, parsed, parser, show, write
from vae_anomaly.calibration import false_alarm_interval
from vae_anomaly.fitting import Settings, fit_model, split_parts
from vae_anomaly.schema import infer_schema
from vae_anomaly.scores import default_scores
from vae_anomaly.scores.latent import IMAGE_BANK_ROWS
from vae_anomaly.training import TrainingConfig

Images = npt.NDArray[np.uint8]
Judge = Callable[[Images, dict[str, Images], Path, int], dict[str, Any]]

SETS = {"MNIST": MNIST, "Fashion-MNIST": FashionMNIST}
CLASSES = range(10)
HELD_OUT = 0.2
# Of the test images of each kind so many are judged, and peers train on so many: both drawn at random.
JUDGED = 5_000
PEERS_TRAIN_ON = 5_000
QUICK = 600
# More to look at: costs as much as training.
BESIDE = ("iw_nll", "lpath", "conditional", "typicality")
PROTOCOLS = {
    "novel": "one class novel, nine normal",
    "one": "one class normal",
    "other": "another data set, and its own flips",
}


class Task(NamedTuple):
    """Images to train on, normal ones to judge, and anomalies by name."""

    name: str
    train: Images
    normal: Images
    anomalies: dict[str, Images]


def main() -> None:
    """Measure what is asked for and write images.json."""
    made = parser(__doc__)
    made.add_argument("--work", type=Path, required=True, help="folder of finished cells and models")
    made.add_argument("--protocol", choices=PROTOCOLS, action="append", help="repeatable; all where left out")
    made.add_argument("--data", choices=SETS, action="append", help="repeatable; both where left out")
    made.add_argument("--method", choices=METHODS, action="append", help="repeatable; all where left out")
    made.add_argument("--seed", type=int, action="append", help="repeatable; 0 where left out")
    made.add_argument("--beside", action="store_true", help="scores beside the default ones, too")
    made.add_argument("--epochs", type=int, default=0, help="in place of the recommended number")
    options = parsed(made)
    torch.set_num_threads(1)
    seeds = options.seed or [0]
    for protocol in options.protocol or PROTOCOLS:
        for data in options.data or SETS:
            for seed in seeds:
                for task in tasks(protocol, data, seed, options.data_root):
                    run_task(shortened(task) if options.quick else task, seed, options)
                    if options.quick:
                        break
    write("images", summary(options.work, seeds, options.epochs), options)


def run_task(task: Task, seed: int, options: argparse.Namespace) -> None:
    """Every method on one task."""
    for name in options.method or METHODS:
        run = (
            partial(METHODS[name], epochs=options.epochs, beside=options.beside)
            if name == OURS
            else METHODS[name]
        )
        model = options.work / "models" / f"{task.name}-{seed}-{options.epochs}"
        beside = BESIDE if options.beside and name == OURS else ()
        wanted = [f"auroc|{kind}|{score}" for kind in task.anomalies for score in beside]
        held = cell_name(task.name, seed, name, options.epochs)
        cell(options.work, held, partial(judged, run, task, model, seed), wanted)


def cell_name(task: str, seed: int, method: str, epochs: int) -> str:
    """Of a cell's file; another number of epochs than the recommended one is another cell of ours."""
    return f"{task}-{seed}-{method}" + (f"-{epochs}" if epochs and method == OURS else "")


def tasks(protocol: str, data: str, seed: int, root: Path) -> Iterator[Task]:
    """The tasks of a protocol: train and test merged where it is about classes."""
    train, test = (images_of(data, root, part) for part in (True, False))
    if protocol == "other":
        other = next(name for name in SETS if name != data)
        strangers = images_of(other, root, False)[0]
        normal = test[0]
        flips = {"flipped left-right": normal[:, :, ::-1], "flipped up-down": normal[:, ::-1]}
        yield Task(f"{data}-other", train[0], normal, {other: strangers, **flips})
        return
    images, labels = (np.concatenate(pair) for pair in zip(train, test, strict=True))
    for label in CLASSES:
        normal = (labels != label) == (protocol == "novel")
        order = np.random.default_rng(seed).permutation(np.flatnonzero(normal))
        held, rest = np.split(order, [round(HELD_OUT * len(order))])
        yield Task(f"{data}-{protocol}-{label}", images[rest], images[held], {"novel": images[~normal]})


def shortened(task: Task) -> Task:
    """A few images of each kind, to see whether it runs."""
    return Task(
        task.name, task.train[:QUICK], task.normal[:QUICK], {k: v[:QUICK] for k, v in task.anomalies.items()}
    )


def images_of(data: str, root: Path, train: bool) -> tuple[Images, npt.NDArray[np.int64]]:
    """Images (n, 28, 28) and labels as torchvision has them."""
    found = SETS[data](root, train=train, download=False)
    return found.data.numpy(), found.targets.numpy()


def judged(run: Judge, task: Task, model: Path, seed: int) -> dict[str, Any]:
    """One method on one task: AUROC per kind of anomaly and score, false alarms, seconds."""
    rng = np.random.default_rng(seed)
    kinds = {"normal": task.normal, **task.anomalies}
    shown = {kind: np.ascontiguousarray(few(images, JUDGED, rng)) for kind, images in kinds.items()}
    watch = Stopwatch()
    found = run(task.train, shown, model, seed)
    figures: dict[str, Any] = {"seconds": watch.seconds, "normal": len(shown["normal"])}
    for kind in task.anomalies:
        for name, values in found["scores"].items():
            both = np.concatenate([values["normal"], values[kind]])
            labels = np.arange(len(both)) >= len(values["normal"])
            figures[f"auroc|{kind}|{name}"] = float(roc_auc_score(labels, both))
    for rate in RATES if "p_value" in found else ():
        alarms = int((found["p_value"] <= rate).sum())
        low, high = false_alarm_interval(found["rows"], figures["normal"], rate, level=0.99)
        figures |= {f"alarms_{rate}": alarms, f"inside_{rate}": int(low <= alarms <= high)}
    return figures


def few(images: Images, most: int, rng: np.random.Generator) -> Images:
    """At most so many images."""
    return images if len(images) <= most else images[rng.choice(len(images), most, replace=False)]


def ours(
    train: Images, shown: dict[str, Images], model: Path, seed: int, epochs: int = 0, beside: bool = False
) -> dict[str, Any]:
    """What `VAEDetector` fits, with its default scores; its training is kept."""
    schema = infer_schema(train)
    parts = split_parts(schema.read(train), seed)
    plain = Settings().completed(schema, len(parts.train.values))
    training = plain.training or TrainingConfig()
    settings = replace(
        plain,
        training=replace(training, epochs=epochs or training.epochs),
        export=replace(plain.export, scores=(*default_scores(True), *(BESIDE if beside else ()))),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = fit_model(schema, parts, settings, seed=seed, device="cpu", checkpoints=model, resume=True)
    answers = fit.fitted.answers()
    verdicts = {kind: answers.verdicts(images) for kind, images in shown.items()}
    names = {"score": "score", **{f"score_{name}": name for name in answers.score_names}}
    scores = {
        name: {kind: frame[column].to_numpy() for kind, frame in verdicts.items()}
        for column, name in names.items()
    }
    return {
        "scores": scores,
        "p_value": verdicts["normal"]["p_value"].to_numpy(),
        "rows": len(parts.calibration.values),
    }


def peer(run: Callable[..., dict[str, Any]]) -> Judge:
    """A detector of rows, on a subsample of flat images from 0 to 1, standardised."""

    def judge(train: Images, shown: dict[str, Images], model: Path, seed: int) -> dict[str, Any]:
        sample = few(train, PEERS_TRAIN_ON, np.random.default_rng(seed))
        flat = [images.reshape(len(images), -1) / 255.0 for images in (sample, *shown.values())]
        scores = run(flat[0], np.concatenate(flat[1:]), seed)["score"]
        parts = np.split(scores, np.cumsum([len(images) for images in shown.values()])[:-1])
        return {"scores": {"score": dict(zip(shown, parts, strict=True))}}

    return judge


def mcd(train: Rows, test: Rows, seed: int) -> dict[str, Any]:
    """PyOD's MCD with faster pseudo-inverses: some 800 of 784 x 784 a fit are most of its time."""
    with patch("scipy.linalg.pinvh", pseudo_inverse):
        return on_pyod("MCD", "mcd")(train, test, seed)


def pseudo_inverse(a: Rows, check_finite: bool = True) -> Rows:
    """Of a covariance (d, d), as ``scipy.linalg.pinvh``: eigenvalues in the range of ``a`` alone."""
    factor, order, rank, _ = dpstrf(a, lower=1)
    lower = np.zeros((len(a), rank))
    lower[order - 1] = np.tril(factor)[:, :rank]
    basis, _ = qr(lower, mode="economic", check_finite=check_finite)
    values, vectors = eigh(basis.T @ a @ basis, driver="evd", check_finite=check_finite)
    kept = values > values.max() * len(a) * np.finfo(a.dtype).eps
    directions = basis @ vectors[:, kept]
    found: Rows = (directions / values[kept]) @ directions.T
    return found


OURS = "vae-anomaly"
METHODS: dict[str, Judge] = {
    OURS: ours,
    "PyOD KNN": peer(on_pyod("KNN", "knn")),
    "PyOD ECOD": peer(on_pyod("ECOD", "ecod")),
    "PyOD MCD": peer(mcd),
    "PyOD LUNAR": peer(on_pyod("LUNAR", "lunar")),
    "PyOD AutoEncoder": peer(on_pyod("AutoEncoder", "auto_encoder", verbose=0)),
    "PyOD VAE": peer(on_pyod("VAE", "vae", verbose=0)),
    "IsolationForest": peer(on_sklearn(lambda seed: IsolationForest(random_state=seed))),
    "LOF": peer(on_sklearn(lambda seed: LocalOutlierFactor(novelty=True))),
    "OCSVM": peer(on_sklearn(lambda seed: OneClassSVM())),
}


def summary(work: Path, seeds: list[int], epochs: int) -> dict[str, Any]:
    """Per protocol and data set: means over classes and seeds, of the cells there are."""
    found: dict[str, Any] = {}
    for protocol, told in PROTOCOLS.items():
        for data in SETS:
            classes = [""] if protocol == "other" else [f"-{label}" for label in CLASSES]
            names = [f"{data}-{protocol}{label}" for label in classes]
            rows = [row for method in METHODS if (row := method_row(work, names, seeds, method, epochs))]
            if not rows:
                continue
            rows.sort(key=lambda row: -statistics.mean(row["auroc"].values()))
            done = [
                seed
                for seed in seeds
                if found_cells(work, [cell_name(name, seed, OURS, epochs) for name in names])
            ]
            show(
                f"{data}: {told}",
                [{"method": row["method"], **row["auroc"], "tasks": row["tasks"]} for row in rows],
            )
            found[f"{data} {protocol}"] = {
                "rows": rows,
                "of": len(names),
                "seeds": done,
                "epochs": epochs,
                "judged": JUDGED,
                "peers_train_on": PEERS_TRAIN_ON,
                "bank": IMAGE_BANK_ROWS,
            }
    return found


def method_row(work: Path, names: list[str], seeds: list[int], method: str, epochs: int) -> dict[str, Any]:
    """A method's figures over the tasks it has finished; empty without any."""
    cells = {
        name: found_cells(work, [cell_name(name, seed, method, epochs) for seed in seeds]) for name in names
    }
    finished = {name: held for name, held in cells.items() if held}
    if not finished:
        return {}
    each = [found_cells(work, [cell_name(name, seed, method, epochs) for name in names]) for seed in seeds]
    whole = [held for held in each if len(held) == len(names)]
    return {"method": method, **figures_of(finished), "spread": spread_of(whole)}


def spread_of(seeds: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Largest less least mean over tasks of the seeds that have finished all of them, by kind of anomaly."""
    if len(seeds) < 2:
        return {}
    keys = [key for key in seeds[0][0] if key.startswith("auroc|") and key.endswith("|score")]
    means = {key: [statistics.mean(held[key] for held in cells) for cells in seeds] for key in keys}
    return {key.split("|")[1]: max(values) - min(values) for key, values in means.items()}


def figures_of(cells: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over tasks and seeds, and each task's own."""
    every = [held for of_task in cells.values() for held in of_task]
    keys = [key for key in every[0] if key.startswith("auroc|")]
    kinds = {key.split("|")[1] for key in keys}
    means = {key.partition("|")[2]: statistics.mean(held[key] for held in every) for key in keys}
    alarms = {
        str(rate): {
            "share": sum(held[f"alarms_{rate}"] for held in every) / sum(held["normal"] for held in every),
            "inside": sum(held[f"inside_{rate}"] for held in every),
        }
        for rate in RATES
        if f"alarms_{rate}" in every[0]
    }
    return {
        "auroc": {kind: means[f"{kind}|score"] for kind in sorted(kinds)},
        "scores": {key: value for key, value in means.items() if not key.endswith("|score")},
        "by_task": {
            name: statistics.mean(held[keys[0]] for held in of_task) for name, of_task in cells.items()
        },
        "tasks": len(cells),
        "cells": len(every),
        "false_alarms": alarms,
        "seconds": statistics.mean(held["seconds"] for held in every),
    }


if __name__ == "__main__":
    main()
