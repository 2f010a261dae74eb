"""Skewed columns: what `kinds`, robust scaling and a Student-t change on a made-up log-normal table.

Six columns exp(2 a) of correlated normals a; anomalies have the same columns, each shuffled by itself.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from benchmarks.harness import parser, show, write
from vae_anomaly import VAEDetector
from vae_anomaly.assembly import ExportConfig
from vae_anomaly.fitting import Settings, recommended_model
from vae_anomaly.schema import infer_schema
from vae_anomaly.training import TrainingConfig

COLUMNS, SIGMA, NOISE = 6, 2.0, 0.4
TRAINING, TESTED, HIDDEN = 1000, 1000, 0.3
SEEDS = (0, 1, 2)
DRAWS = 20
# Treatment: what differs from the recommended model, and the kind of every column.
TREATMENTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "as it is": ({}, None),
    "scaling robust": ({"scaling": "robust"}, None),
    "likelihood student-t": ({"likelihood": "student-t"}, None),
    "both": ({"scaling": "robust", "likelihood": "student-t"}, None),
    "kinds positive": ({}, "positive"),
}

Rows = npt.NDArray[np.float64]


def log_normal_rows(count: int, seed: int) -> Rows:
    """exp(2 a), a of unit variance from two factors that are the same for every seed."""
    loadings = np.random.default_rng(7).normal(size=(2, COLUMNS))
    loadings /= np.sqrt((loadings**2).sum(axis=0) / (1 - NOISE**2))
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(count, 2)) @ loadings + NOISE * rng.normal(size=(count, COLUMNS))
    return np.asarray(np.exp(SIGMA * a))


def shuffled(rows: Rows, seed: int) -> Rows:
    """Every column in another order: the same values, no relation among them."""
    return np.asarray(np.random.default_rng(seed).permuted(rows, axis=0))


def skewed(epochs: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Means over seeds, one line per treatment."""
    rows = []
    for name, (changes, kind) in TREATMENTS.items():
        found = [_figures(changes, kind, epochs, seed) for seed in seeds]
        rows.append({"treatment": name, **{k: statistics.mean(one[k] for one in found) for k in found[0]}})
        print(rows[-1], flush=True)
    show("skewed columns", rows)
    return {"rows": rows, "seeds": list(seeds), "epochs": epochs, "training rows": TRAINING}


def _figures(changes: dict[str, Any], kind: str | None, epochs: int, seed: int) -> dict[str, float]:
    train, test = log_normal_rows(TRAINING, seed), log_normal_rows(TESTED, seed + 100)
    model = replace(recommended_model(infer_schema(train)), **changes)
    training = TrainingConfig(epochs=epochs, batch_size=64, learning_rate=3e-3, random_mask=0.5)
    settings = Settings(model=model, training=training, export=ExportConfig())
    kinds = None if kind is None else dict.fromkeys(range(COLUMNS), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = VAEDetector(settings=settings, kinds=kinds, device="cpu", random_state=seed).fit(train)
    both = np.vstack([test, shuffled(test, seed)])
    scores = detector.scores(both)["score"].to_numpy()
    hidden = np.random.default_rng(seed).random(test.shape) < HIDDEN
    filled = detector.answers_.impute(np.where(hidden, np.nan, test), draws=DRAWS, seed=seed)
    drawn, truth = filled.draws[:, hidden], test[hidden]
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    middle = np.median(drawn, axis=0)
    return {
        "AUROC": float(roc_auc_score(np.arange(len(both)) >= len(test), scores)),
        "relative error of the median draw": float(np.median(np.abs(middle - truth) / truth)),
        "coverage of 90 %": float(((low <= truth) & (truth <= high)).mean()),
        "imputed total over true total": float(filled.mean[hidden].sum() / truth.sum()),
        "draws not above 0": float((drawn <= 0).mean()),
    }


def table(results: dict[str, Any]) -> str:
    """What docs/tables.md says of it."""
    found = results["treatments"]
    heads = [name for name in found["rows"][0] if name != "treatment"]
    lines = [
        f"Six made-up columns exp(2 a), a normal and correlated; {found['training rows']:,} training rows, "
        f"{found['epochs']} epochs, means of {len(found['seeds'])} seeds",
        "(`python -m benchmarks.skewed`). Anomalies are rows of shuffled columns; 30 % of the cells of "
        "other rows are hidden and imputed.",
        "",
        "| | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
        *(
            f"| {row['treatment']} | " + " | ".join(f"{row[h]:.2f}" for h in heads) + " |"
            for row in found["rows"]
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    options: argparse.Namespace = parser(__doc__, data=False).parse_args()
    found = skewed(2 if options.quick else 100, SEEDS[:1] if options.quick else SEEDS)
    write("skewed", {"treatments": found}, options)


if __name__ == "__main__":
    main()
