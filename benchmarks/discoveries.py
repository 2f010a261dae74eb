"""Realised false discovery rate: Benjamini-Hochberg on conformal p-values over resampled calibration sets."""

from __future__ import annotations

import argparse
import statistics
import warnings
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cells import Rows, cell, half_of_normals, load_set
from benchmarks.harness import show
from vae_anomaly import VAEDetector
from vae_anomaly.calibration import benjamini_hochberg, fewest_discoveries, p_values

LEVEL = 0.1
RESAMPLINGS = 200


def discoveries(options: argparse.Namespace, sets: tuple[str, ...], seeds: tuple[int, ...]) -> dict[str, Any]:
    """One fit per set and seed; then held-out normals calibrate and are judged, by turns."""
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for name in sets:
            run = partial(_resampled, *load_set(options.data_root, name), seed)
            found.setdefault(name, []).append(cell(options.work, f"fdr-{name}-{seed}", run))
    rows = [
        {
            "set": name,
            **{key: statistics.mean(one[key] for one in cells) for key in ("fdr", "error", "power")},
            "calibration": cells[0]["calibration"],
            "judged": cells[0]["judged"],
            "fewest": cells[0]["fewest"],
        }
        for name, cells in found.items()
    ]
    show(f"false discovery rate at q = {LEVEL}", rows)
    mean = statistics.mean(row["fdr"] for row in rows)
    return {"rows": rows, "mean": mean, "level": LEVEL, "resamplings": RESAMPLINGS, "seeds": list(seeds)}


def _resampled(x: Rows, anomalous: Any, seed: int) -> dict[str, Any]:
    """Mean false discovery proportion and power; scores are computed once, since nothing is refitted."""
    split = half_of_normals(x, anomalous, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = VAEDetector(random_state=seed).fit(split.train)
    scores = detector.scores(split.test)["score"].to_numpy()
    normal, strange = scores[~split.labels], scores[split.labels]
    rng = np.random.default_rng(seed)
    false_shares, powers = [], []
    for _ in range(RESAMPLINGS):
        held, fresh = np.array_split(rng.permutation(normal), 2)
        p = p_values(np.sort(held), np.concatenate([fresh, strange]))
        reported = benjamini_hochberg(p, LEVEL)
        wrong = int(reported[: len(fresh)].sum())
        false_shares.append(wrong / max(1, int(reported.sum())))
        powers.append(float(reported[len(fresh) :].mean()))
    judged = len(fresh) + len(strange)
    return {
        "fdr": statistics.mean(false_shares),
        "error": statistics.stdev(false_shares) / RESAMPLINGS**0.5,
        "power": statistics.mean(powers),
        "calibration": len(held),
        "judged": judged,
        "fewest": fewest_discoveries(len(held), judged, LEVEL),
    }
