"""Detection on tables: our default beside PyOD and scikit-learn, on the same splits and seeds.

``python -m benchmarks.detection --data-root DIR --work WORK`` keeps each cell (set, seed, method) below WORK
as it finishes and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from benchmarks.cells import RATES, Detector, Rows, cell, half_of_normals, judged, load_set
from benchmarks.contaminated import TRIMS, contamination, unlabelled
from benchmarks.detection_speed import fitting, scoring
from benchmarks.development import development_sets
from benchmarks.discoveries import discoveries
from benchmarks.harness import parsed, parser, show, write
from vae_anomaly import VAEDetector

SETS = (
    "annthyroid",
    "cardio",
    "landsat",
    "letter",
    "pendigits",
    "satellite",
    "shuttle",
    "thyroid",
    "vowels",
    "Wilt",
)
SEEDS = (0, 1, 2)
# Peers that compare all pairs of rows get at most so many for training.
MOST_ROWS = 10_000


def main() -> None:
    """Measure the part asked for and write detection.json."""
    made = parser(__doc__)
    made.add_argument("--work", type=Path, required=True, help="folder of finished cells")
    made.add_argument("--part", choices=tuple(PARTS), default="tables")
    made.add_argument("--seeds", type=int, help="fewer than three, for a first look")
    made.add_argument("--method", action="append", help="one of the methods; repeatable")
    options = parsed(made)
    if options.part not in TIMED:
        torch.set_num_threads(1)
    payload = {options.part: PARTS[options.part](options)}
    write("detection", payload, options)


def tables(options: argparse.Namespace) -> dict[str, Any]:
    """Every method on every set: AUROC, seconds, false alarms."""
    methods, sets, seeds = chosen(METHODS, options), SETS[:2] if options.quick else SETS, seeds_of(options)
    for name in sets:
        x, anomalous = load_set(options.data_root, name)
        for seed in seeds:
            split = half_of_normals(x, anomalous, seed)
            for method, run in methods.items():
                cell(options.work, f"{name}-{seed}-{method}", partial(judged, run, split, seed))
    return summary(options.work, sets, seeds)


def chosen(methods: dict[str, Detector], options: argparse.Namespace) -> dict[str, Detector]:
    """Those that --method names, or all."""
    return {name: made for name, made in methods.items() if not options.method or name in options.method}


def seeds_of(options: argparse.Namespace) -> tuple[int, ...]:
    """One for a quick run."""
    return SEEDS[: 1 if options.quick else options.seeds]


def ours(train: Rows, test: Rows, seed: int, trim: float | str | None = None) -> dict[str, Any]:
    """The default, with every score of its export."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = VAEDetector(random_state=seed, false_alarm_rate=0.05, trim=trim).fit(train)
        verdicts = detector.answers_.verdicts(test)
    rows = detector.answers_.manifest.provenance["rows_calibration"]
    parts = {name: verdicts[f"score_{name}"].to_numpy() for name in detector.answers_.score_names}
    return {
        "score": verdicts["score"].to_numpy(),
        **parts,
        "p_value": verdicts["p_value"].to_numpy(),
        "p_rows": rows,
    }


def among_themselves(train: Rows, test: Rows, seed: int) -> dict[str, Any]:
    """The rows of one table by `cross_fit`, each from a model that has not seen it; ``test`` is ``train``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judged = VAEDetector(random_state=seed, false_alarm_rate=0.1, trim="auto").cross_fit(train)
    return {"score": -judged["p_value"].to_numpy()}


def on_pyod(name: str, module: str, **settings: Any) -> Detector:
    """A detector of PyOD on standardised columns, otherwise as it comes."""

    def run(train: Rows, test: Rows, seed: int) -> dict[str, Any]:
        from importlib import import_module

        kind = getattr(import_module(f"pyod.models.{module}"), name)
        seeded = {"random_state": seed} if "random_state" in kind.__init__.__code__.co_varnames else {}
        scale = StandardScaler().fit(train)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detector = kind(**settings, **seeded).fit(few(scale.transform(train), seed))
            return {"score": detector.decision_function(scale.transform(test))}

    return run


def on_sklearn(make: Callable[[int], Any]) -> Detector:
    """A detector of scikit-learn on standardised columns."""

    def run(train: Rows, test: Rows, seed: int) -> dict[str, Any]:
        scale = StandardScaler().fit(train)
        detector = make(seed).fit(few(scale.transform(train), seed))
        return {"score": -detector.score_samples(scale.transform(test))}

    return run


def few(rows: Rows, seed: int) -> Rows:
    """At most `MOST_ROWS` rows."""
    if len(rows) <= MOST_ROWS:
        return rows
    return rows[np.random.default_rng(seed).choice(len(rows), MOST_ROWS, replace=False)]


METHODS: dict[str, Detector] = {
    "vae-anomaly": ours,
    "PyOD VAE": on_pyod("VAE", "vae", verbose=0),
    "PyOD AutoEncoder": on_pyod("AutoEncoder", "auto_encoder", verbose=0),
    "PyOD KNN": on_pyod("KNN", "knn"),
    "PyOD IForest": on_pyod("IForest", "iforest"),
    "PyOD ECOD": on_pyod("ECOD", "ecod"),
    "PyOD MCD": on_pyod("MCD", "mcd"),
    "IsolationForest": on_sklearn(lambda seed: IsolationForest(random_state=seed)),
    "LOF": on_sklearn(lambda seed: LocalOutlierFactor(novelty=True)),
    "PyOD LUNAR": on_pyod("LUNAR", "lunar"),
    "OCSVM": on_sklearn(lambda seed: OneClassSVM()),
}


def summary(work: Path, sets: tuple[str, ...], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Mean AUROC per method and set, over the seeds there are; false alarms of ours."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in sets:
        for seed in seeds:
            for method in METHODS:
                path = work / f"{name}-{seed}-{method}.json"
                if path.exists():
                    found.setdefault(method, {}).setdefault(name, []).append(json.loads(path.read_text()))
    rows = []
    for method, by_set in found.items():
        if len(by_set) < len(sets):
            continue
        row: dict[str, Any] = {"method": method}
        row |= {name: statistics.mean(c["auroc_score"] for c in cells) for name, cells in by_set.items()}
        per_seed = [
            statistics.mean(cells[i]["auroc_score"] for cells in by_set.values())
            for i in range(min(map(len, by_set.values())))
        ]
        row |= {
            "mean": statistics.mean(per_seed),
            "spread": max(per_seed) - min(per_seed),
            "seeds": len(per_seed),
        }
        row["seconds"] = statistics.mean(c["seconds"] for cells in by_set.values() for c in cells)
        rows.append(row)
    rows.sort(key=lambda row: -row["mean"])
    show(
        "mean AUROC",
        [{key: row[key] for key in ("method", "mean", "spread", "seeds", "seconds")} for row in rows],
    )
    own = [c for cells in found.get("vae-anomaly", {}).values() for c in cells]
    scores = sorted({key for c in own for key in c if key.startswith("auroc_")})
    return {
        "methods": rows,
        "our_scores": {key: statistics.mean(c[key] for c in own) for key in scores},
        "false_alarms": {
            str(rate): {
                "share": sum(c[f"alarms_{rate}"] for c in own) / max(1, sum(c["normal"] for c in own)),
                "inside": sum(c[f"inside_{rate}"] for c in own),
                "of": len(own),
            }
            for rate in RATES
        },
    }


def mixed(options: argparse.Namespace) -> dict[str, Any]:
    """Anomalies mixed into the training rows of the sets of ADBench: for reporting."""
    sets = ((name, *load_set(options.data_root, name)) for name in (SETS[:2] if options.quick else SETS))
    return contamination(options, sets, chosen(CONTAMINATED, options), seeds_of(options))


def mixed_development(options: argparse.Namespace) -> dict[str, Any]:
    """The same on the development sets: what the default of ``trim`` was chosen by."""
    # One digit of three, and no images: every cell is a fit.
    sets = (found for found in development_sets() if "digits" not in found[0] or found[0] == "digits, 1")
    return contamination(options, sets, chosen(CONTAMINATED, options), seeds_of(options))


def everything(options: argparse.Namespace) -> dict[str, Any]:
    """Trained on every row, unlabelled."""
    sets = SETS[:2] if options.quick else SETS
    return unlabelled(options, sets, chosen(UNLABELLED, options), seeds_of(options))


def false_discoveries(options: argparse.Namespace) -> dict[str, Any]:
    """The realised false discovery rate of every set."""
    return discoveries(options, SETS[:2] if options.quick else SETS, seeds_of(options))


OURS = {f"vae-anomaly, trim {name}": partial(ours, trim=trim) for name, trim in TRIMS.items()}
CONTAMINATED = OURS | {name: METHODS[name] for name in ("PyOD KNN", "PyOD IForest")}
UNLABELLED = (
    {name: OURS[name] for name in ("vae-anomaly, trim none", "vae-anomaly, trim auto")}
    | {"vae-anomaly, cross_fit, trim auto": among_themselves}
    | {name: made for name, made in METHODS.items() if name not in ("vae-anomaly", "IsolationForest")}
)
PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "tables": tables,
    "unlabelled": everything,
    "contamination": mixed,
    "contamination-development": mixed_development,
    "discoveries": false_discoveries,
    "scoring": scoring,
    "fitting": fitting,
}

# Parts whose result is a time: with the threads that a user has.
TIMED = ("scoring", "fitting")

if __name__ == "__main__":
    main()
