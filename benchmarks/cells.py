"""What the detection benchmarks share: splits, methods, and cells that are saved as they finish."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from vae_anomaly.calibration import false_alarm_interval, smallest_rate

Rows = npt.NDArray[np.float64]
Detector = Callable[[Rows, Rows, int], dict[str, Any]]

RATES = (0.05, 0.01)
# Rows of each kind to judge where there are very many.
JUDGED = 3_000
# Intervals are corrected for so many sets.
SETS_JUDGED = 10
# Figures of a finished cell on the terminal.
PRINTED = 20


class Split(NamedTuple):
    """Rows to train on, rows to judge, and which of those are anomalies."""

    train: Rows
    test: Rows
    labels: npt.NDArray[np.bool_]


def load_set(root: Path, name: str) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Rows and labels of a set of ADBench."""
    with np.load(root / "adbench" / f"{name}.npz") as held:
        return held["X"].astype(np.float64), held["y"].astype(np.bool_)


def half_of_normals(x: Rows, anomalous: npt.NDArray[np.bool_], seed: int) -> Split:
    """Train on a random half of the normal rows, judge the other half and all anomalies."""
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(~anomalous))
    train, rest = np.split(normal, [len(normal) // 2])
    test = np.concatenate([rest, np.flatnonzero(anomalous)])
    return Split(x[train], x[test], anomalous[test])


def few_judged(split: Split, seed: int) -> Split:
    """At most so many normal rows and anomalies to judge."""
    rng = np.random.default_rng(seed)
    kept = np.concatenate(
        [rng.permutation(np.flatnonzero(split.labels == value))[:JUDGED] for value in (False, True)]
    )
    return Split(split.train, split.test[kept], split.labels[kept])


def cell(
    work: Path, name: str, run: Callable[[], dict[str, Any]], wanted: Sequence[str] = ()
) -> dict[str, Any]:
    """The figures of a cell, from its file if it is there.

    One that lacks a figure ``wanted`` is measured again; the figures that it has stay.
    """
    path = work / f"{name}.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not known or not known.keys() >= set(wanted):
        work.mkdir(parents=True, exist_ok=True)
        found = run() | known
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(found))
        temporary.replace(path)
        shown = list(found.items())[:PRINTED]
        print(name, {key: round(value, 3) for key, value in shown}, flush=True)
        known = json.loads(path.read_text())
    return known


def found_cells(work: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of those cells that are there."""
    paths = [work / f"{name}.json" for name in names]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def judged(run: Detector, split: Split, seed: int) -> dict[str, Any]:
    """One method on one split."""
    started = time.perf_counter()
    found = run(split.train, split.test, seed)
    seconds = time.perf_counter() - started
    scores = {name: value for name, value in found.items() if not name.startswith("p_")}
    figures = {f"auroc_{name}": float(roc_auc_score(split.labels, value)) for name, value in scores.items()}
    if "p_value" in found:
        normal = found["p_value"][~split.labels]
        for rate in (rate for rate in RATES if rate >= smallest_rate(found["p_rows"])):
            figures[f"alarms_{rate}"] = int((normal <= rate).sum())
            low, high = false_alarm_interval(found["p_rows"], len(normal), rate, level=1 - 0.01 / SETS_JUDGED)
            figures[f"inside_{rate}"] = int(low <= figures[f"alarms_{rate}"] <= high)
        figures["normal"] = len(normal)
    return {**figures, "seconds": seconds}
