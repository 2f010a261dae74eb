"""Training rows that are not all normal: anomalies mixed in at known shares, and whole unlabelled sets.

``--part contamination`` of `benchmarks.detection` compares settings of ``trim`` at known shares of
anomalies among the training rows; ``--part unlabelled`` trains on every row and ranks those same rows.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cells import Detector, Rows, Split, cell, found_cells, judged, load_set
from benchmarks.harness import show

Trim = float | str | None

SHARES = (0.0, 0.01, 0.05, 0.1)
TRIMS: dict[str, Trim] = {"none": None, "0.1": 0.1, "auto": "auto"}


def with_anomalies(x: Rows, anomalous: npt.NDArray[np.bool_], share: float, seed: int) -> Split:
    """Half of the normal rows train, with so many anomalies that they are a share of the training rows.

    At most half of the anomalies are mixed in; the rest is judged with the other normal rows.
    """
    rng = np.random.default_rng(seed)
    normal, strange = (rng.permutation(np.flatnonzero(part)) for part in (~anomalous, anomalous))
    train, rest = np.split(normal, [len(normal) // 2])
    mixed = anomalies_to_mix(len(train), len(strange), share)
    # The rows judged are the same at every share.
    test = np.concatenate([rest, strange[len(strange) // 2 :]])
    return Split(x[np.concatenate([train, strange[:mixed]])], x[test], anomalous[test])


def anomalies_to_mix(train: int, strange: int, share: float) -> int:
    """How many of the anomalies join so many normal rows."""
    return min(round(share / (1 - share) * train), strange // 2)


def whole(x: Rows, anomalous: npt.NDArray[np.bool_]) -> Split:
    """Every row trains, and every row is judged."""
    return Split(x, x, anomalous)


def contamination(
    options: argparse.Namespace,
    sets: Iterator[tuple[str, Rows, npt.NDArray[np.bool_]]],
    methods: dict[str, Detector],
    seeds: tuple[int, ...],
) -> dict[str, Any]:
    """Mean AUROC by share of anomalies among the training rows, for each setting and peer."""
    names = []
    reached: dict[str, dict[str, float]] = {}
    for name, x, anomalous in sets:
        names.append(name)
        train, strange = int((~anomalous).sum()) // 2, int(anomalous.sum())
        found = {share: anomalies_to_mix(train, strange, share) for share in SHARES}
        reached[name] = {str(share): count / (train + count) for share, count in found.items()}
        for seed in seeds:
            for share in SHARES:
                split = with_anomalies(x, anomalous, share, seed)
                for method, run in methods.items():
                    key = f"mixed-{name}-{seed}-{share}-{method}"
                    cell(options.work, key, partial(judged, run, split, seed))
    rows = [_mixed_row(options.work, names, seeds, method) for method in methods]
    show("AUROC by share of anomalies among the training rows", rows)
    return {"rows": rows, "sets": names, "seeds": list(seeds), "shares": list(SHARES), "reached": reached}


def _mixed_row(work: Path, names: list[str], seeds: tuple[int, ...], method: str) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method}
    for share in SHARES:
        keys = [f"mixed-{name}-{seed}-{share}-{method}" for name in names for seed in seeds]
        row[str(share)] = statistics.mean(found["auroc_score"] for found in found_cells(work, keys))
    return row


def unlabelled(
    options: argparse.Namespace, sets: tuple[str, ...], methods: dict[str, Detector], seeds: tuple[int, ...]
) -> dict[str, Any]:
    """Mean AUROC of methods that trained on the very rows they rank."""
    for seed in seeds:
        for name in sets:
            split = whole(*load_set(options.data_root, name))
            for method, run in methods.items():
                cell(options.work, f"whole-{name}-{seed}-{method}", partial(judged, run, split, seed))
    rows = []
    for method in methods:
        by_set = {
            name: [
                found["auroc_score"]
                for found in found_cells(options.work, [f"whole-{name}-{seed}-{method}" for seed in seeds])
            ]
            for name in sets
        }
        per_seed = [statistics.mean(values) for values in zip(*by_set.values(), strict=True)]
        rows.append(
            {
                "method": method,
                "mean": statistics.mean(per_seed),
                "spread": max(per_seed) - min(per_seed),
                "seeds": len(per_seed),
                **{name: statistics.mean(values) for name, values in by_set.items()},
            }
        )
    rows.sort(key=lambda row: -row["mean"])
    show("AUROC, trained on everything", [dict(list(row.items())[:4]) for row in rows])
    return {"methods": rows, "sets": list(sets)}
