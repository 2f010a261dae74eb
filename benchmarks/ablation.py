"""What the default score is chosen by: every score, every combination and rule, and K, on development data.

``python -m benchmarks.ablation --work WORK [--part images]`` keeps each cell (set, seed) below WORK and goes
on from there. Nothing of it is a set that figures are reported on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from benchmarks.cells import cell, few_judged, half_of_normals
from benchmarks.development import development_sets
from benchmarks.harness import parsed, parser, show, write
from benchmarks.pictures import large_picture_sets, picture_sets
from vae_anomaly import VAEDetector
from vae_anomaly.assembly import ExportConfig
from vae_anomaly.fitting import Settings
from vae_anomaly.scores import Combined, noise_bank, possible_scores
from vae_anomaly.scores.quantiles import NormalScore

Columns = npt.NDArray[np.float64]

SEEDS = (0, 1, 2)
DRAWS = (1, 8, 64)
AT_MOST = 4
SHOWN = 12
# How normal scores, shape (scores, rows), become one number.
RULES: dict[str, Callable[[Columns], Columns]] = {
    "mean": lambda columns: columns.mean(axis=0),
    "soft maximum": lambda columns: np.logaddexp.reduce(columns, axis=0),
    "Fisher": lambda columns: -norm.logsf(columns.clip(-30, 1e4)).sum(axis=0),
}
# Ahead on pictures: shown for every part.
RIVAL = "latent_knn+lpath|soft maximum"
LARGE = "large-images"
PARTS = {"tables": development_sets, "images": picture_sets, LARGE: large_picture_sets}
# What no default of large sets can be: they double the work, or gained nothing on small ones.
LEFT_OUT = {LARGE: ("conditional", "typicality", "background_ratio")}


def main() -> None:
    """Measure a part and write ablation.json."""
    made = parser(__doc__, data=False)
    made.add_argument("--work", type=Path, required=True, help="folder of finished cells")
    made.add_argument("--part", choices=PARTS, default="tables")
    made.add_argument("--seed", type=int, action="append", help="repeatable; three where left out")
    made.add_argument("--set", dest="sets", action="append", help="repeatable; all where left out")
    options = parsed(made)
    torch.set_num_threads(1)
    seeds = options.seed or list(SEEDS[: 1 if options.quick else None])
    excluded = ("combined", *LEFT_OUT.get(options.part, ()))
    scores = tuple(name for name in possible_scores(True) if name not in excluded)
    cells, used = [], []
    for name, x, anomalous in PARTS[options.part]():
        if (options.sets and name not in options.sets) or (options.quick and used):
            continue
        used.append(name)
        for seed in seeds:
            split = half_of_normals(x, anomalous, seed)
            if options.part == LARGE:
                split = few_judged(split, seed)
            cells.append(
                cell(options.work / options.part, f"{name}-{seed}", partial(judged, split, seed, scores))
            )
    write("ablation", {options.part: {**summary(cells, used), "sets": used, "seeds": seeds}}, options)


def judged(split: Any, seed: int, names: tuple[str, ...]) -> dict[str, Any]:
    """AUROC of every combination of the scores named under every rule, and of the bounds by K."""
    settings = Settings(export=ExportConfig(scores=names, default_score="neg_elbo"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = VAEDetector(random_state=seed, settings=settings).fit(split.train)
    frame, held = detector.scores(split.test), detector.answers_.calibration
    normal = {name: normalised(held[f"score_{name}"], frame[name].to_numpy(np.float64)) for name in names}
    found = {}
    for count in range(1, AT_MOST + 1):
        for chosen in combinations(names, count):
            columns = np.stack([normal[name] for name in chosen])
            for rule in RULES if count > 1 else ("mean",):
                found[f"{'+'.join(chosen)}|{rule}"] = auroc(split.labels, RULES[rule](columns))
    graph = detector.fitted_.score_graph
    for draws in DRAWS:
        graph.noise = noise_bank(draws, graph.noise.shape[1], seed).to(graph.noise)
        frame = detector.scores(split.test)
        for name in ("neg_elbo", "iw_nll"):
            found[f"K={draws}|{name}"] = auroc(split.labels, frame[name].to_numpy(np.float64))
    return found


def normalised(held: Columns, values: Columns) -> Columns:
    """Normal scores of values among held-out ones."""
    table = NormalScore(torch.tensor(held))
    return table(torch.from_numpy(values)).numpy().astype(np.float64)


def auroc(labels: npt.NDArray[np.bool_], values: Columns) -> float:
    """Area under the curve."""
    return float(roc_auc_score(labels, values))


def summary(cells: list[dict[str, float]], sets: list[str]) -> dict[str, Any]:
    """Means over sets, best first; the default's components under every rule, single scores, K.

    Cells are in the order of the sets, one per seed. Errors are over sets: seeds of one are not independent.
    """
    by_set = {
        key: np.array([held[key] for held in cells]).reshape(len(sets), -1).mean(axis=1) for key in cells[0]
    }
    draws = {key: float(values.mean()) for key, values in by_set.items() if key.startswith("K=")}
    ranked = sorted(by_set.keys() - draws.keys(), key=lambda key: (-by_set[key].mean(), key))
    default = [key for key in ranked if set(key.partition("|")[0].split("+")) == set(Combined.reads)]
    single = [key for key in ranked if "+" not in key]
    best, rows = by_set[ranked[0]], []
    for key in dict.fromkeys([*ranked[:SHOWN], *default, RIVAL, *single]):
        scores, _, rule = key.partition("|")
        behind = best - by_set[key]
        rows.append(
            {
                "scores": scores.replace("+", " + "),
                "rule": rule if "+" in scores else "",
                "mean": float(by_set[key].mean()),
                "worst": float(by_set[key].min()),
                "behind": float(behind.mean()),
                "error": float(behind.std(ddof=1) / np.sqrt(len(sets))) if len(sets) > 1 else 0.0,
                "chosen": key in default and rule == "soft maximum",
                "by_set": dict(zip(sets, by_set[key].tolist(), strict=True)),
            }
        )
    show("AUROC on the development sets", [{k: v for k, v in row.items() if k != "by_set"} for row in rows])
    show("AUROC by K", [draws])
    return {"rows": rows, "draws": draws}


if __name__ == "__main__":
    main()
