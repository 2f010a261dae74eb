"""How many training rows `latent_knn` should keep: its AUROC and the default's by size of the bank.

``python -m benchmarks.bank --work WORK`` keeps each cell (set) below WORK and goes on from there. The sets
are the development ones that are made up, larger: none of them is one that figures are reported on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import NearestNeighbors

from benchmarks.ablation import Columns, auroc, normalised
from benchmarks.cells import Split, cell, few_judged, half_of_normals
from benchmarks.development import synthetic_sets
from benchmarks.harness import parsed, parser, show, write
from benchmarks.pictures import LETTERS, MANY_COPIES, MANY_LETTERS, warped_digits, warped_letters
from vae_anomaly import VAEDetector
from vae_anomaly.fitting import split_parts
from vae_anomaly.schema import infer_schema
from vae_anomaly.scores import Combined
from vae_anomaly.scores.latent import NEIGHBOURS

SIZES = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 40_000)
TABLE_ROWS = 120_000
SEED = 0


def main() -> None:
    """Measure every set and write the section `bank` of ablation.json."""
    made = parser(__doc__, data=False)
    made.add_argument("--work", type=Path, required=True, help="folder of finished cells")
    options = parsed(made)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, x, anomalous in large_sets():
        if options.quick and rows:
            break
        split = few_judged(half_of_normals(x, anomalous, SEED), SEED)
        found = cell(options.work, f"bank, {name}", partial(by_size, split))
        rows += [
            {"set": name, "figure": figure, **{str(size): found[f"{figure}|{size}"] for size in SIZES}}
            for figure in ("latent_knn", "combined")
        ]
    show("AUROC by rows of the bank", rows)
    write(
        "ablation", {"bank": {"rows": rows, "sizes": SIZES, "neighbours": NEIGHBOURS, "seed": SEED}}, options
    )


def large_sets() -> Iterator[tuple[str, Any, npt.NDArray[np.bool_]]]:
    """Name, rows and which of them are anomalies."""
    yield from synthetic_sets(TABLE_ROWS, TABLE_ROWS)
    digits, digit = warped_digits(MANY_COPIES)
    for novel in (1, 9):
        yield f"warped digits, {novel}", digits, digit == novel
    letters, letter = warped_letters(MANY_LETTERS)
    for novel in (1, 4):
        yield f"letters, {LETTERS[novel]}", letters, letter == novel


def by_size(split: Split) -> dict[str, float]:
    """AUROC of the neighbours and of the default combination, per size of the bank."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = VAEDetector(random_state=SEED).fit(split.train)
    schema, answers = infer_schema(split.train), detector.answers_
    # The rows that the weights were fitted on, and those that calibrate.
    parts = split_parts(schema.read(split.train), detector.fitted_.manifest.provenance["seed"])
    bank, held, judged = (
        answers.run("encode", samples)["mean"]
        for samples in (parts.train, parts.calibration, schema.read(split.test))
    )
    frame = detector.scores(split.test)
    others = [
        normalised(answers.calibration[f"score_{name}"], frame[name].to_numpy(np.float64))
        for name in Combined.reads
        if name != "latent_knn"
    ]
    order, found = np.random.default_rng(SEED).permutation(len(bank)), {}
    for size in SIZES:
        distances = partial(mean_distance, bank[order[:size]])
        near = normalised(distances(held), distances(judged))
        found[f"latent_knn|{size}"] = auroc(split.labels, near)
        both = np.logaddexp.reduce(np.stack([near, *others]), axis=0)
        found[f"combined|{size}"] = auroc(split.labels, both)
    return found


def mean_distance(bank: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> Columns:
    """Mean distance of rows to their nearest of the bank."""
    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(bank)
    distances: Columns = near.kneighbors(rows)[0].mean(axis=1)
    return distances


if __name__ == "__main__":
    main()
