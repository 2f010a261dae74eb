"""What the default score is chosen by: every score, every combination and rule, and K, on development data.

``python -m benchmarks.ablation --work WORK [--part images]`` keeps each cell (set, seed) below WORK and goes
on from there. Nothing of it is a set that figures are reported on.
"""

from __future__ import annotations

import statistics
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

from benchmarks.cells import cell, half_of_normals
from benchmarks.development import development_sets
from benchmarks.harness import parsed, parser, show, write
from benchmarks.pictures import picture_sets
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
PARTS = {"tables": development_sets, "images": picture_sets}


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
    cells, used = [], []
    for name, x, anomalous in PARTS[options.part]():
        if (options.sets and name not in options.sets) or (options.quick and used):
            continue
        used.append(name)
        for seed in seeds:
            split = half_of_normals(x, anomalous, seed)
            cells.append(cell(options.work, f"{name}-{seed}", partial(judged, split, seed)))
    write("ablation", {options.part: {**summary(cells), "sets": used, "seeds": seeds}}, options)


def judged(split: Any, seed: int) -> dict[str, Any]:
    """AUROC of every combination under every rule, and of the bounds by K."""
    names = tuple(name for name in possible_scores(True) if name != "combined")
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


def summary(cells: list[dict[str, float]]) -> dict[str, Any]:
    """Means over cells, best first; the default's components under every rule, single scores, K."""
    means = {key: statistics.mean(held[key] for held in cells) for key in cells[0]}
    combined = {key: value for key, value in means.items() if not key.startswith("K=")}
    ranked = sorted(combined, key=lambda key: -combined[key])
    default = [key for key in ranked if set(key.partition("|")[0].split("+")) == set(Combined.reads)]
    single = [key for key in ranked if "+" not in key]
    best = np.array([held[ranked[0]] for held in cells])
    rows = []
    for key in dict.fromkeys([*ranked[:SHOWN], *default, *single]):
        chosen, _, rule = key.partition("|")
        values = np.array([held[key] for held in cells])
        rows.append(
            {
                "scores": chosen.replace("+", " + "),
                "rule": rule if "+" in chosen else "",
                "mean": combined[key],
                "worst": float(values.min()),
                "behind": float((best - values).mean()),
                "error": float((best - values).std(ddof=1) / np.sqrt(len(values)))
                if len(values) > 1
                else 0.0,
                "chosen": key in default and rule == "soft maximum",
            }
        )
    show("AUROC on the development sets", rows)
    draws = {key: value for key, value in means.items() if key.startswith("K=")}
    show("AUROC by K", [draws])
    return {"rows": rows, "draws": draws}


if __name__ == "__main__":
    main()
