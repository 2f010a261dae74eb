"""Time to impute 10,000 rows of 30 columns through onnxruntime, beside scikit-learn's imputers.

``python -m benchmarks.imputation_speed`` writes imputation_speed.json. The model is trained for two
epochs: how long it takes to answer does not depend on its weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

from benchmarks.harness import comparison, interleave, parser, show, write
from benchmarks.imputation_methods import FOREST, FOREST_ROUNDS
from vae_anomaly import VAEImputer, load_bundle
from vae_anomaly.fitting import Settings
from vae_anomaly.imputer_fitting import imputer_settings
from vae_anomaly.runtime import Bundle
from vae_anomaly.schema import infer_schema

Rows = npt.NDArray[np.float64]
ROWS, COLUMNS, RANK, HIDDEN_SHARE = 10_000, 30, 6, 0.3
FEW, MANY = 50, 1000
OURS, PEER = "vae-anomaly", "IterativeImputer"


def main() -> None:
    """Measure and write the parts that were asked for."""
    made = parser(__doc__, data=False)
    made.add_argument("--rounds", type=int, default=7, help="pairs of runs with K = 50")
    made.add_argument("--only", choices=("few", "many"), help="one of the parts")
    options = made.parse_args()
    gappy = table(400 if options.quick else ROWS)
    with tempfile.TemporaryDirectory() as folder:
        schema = infer_schema(gappy)
        settings = imputer_settings(schema, schema.read(gappy))
        bundle = exported(gappy, settings, Path(folder) / "bundle")
        payload: dict[str, dict[str, Any]] = {}
        if options.only != "many":
            payload["few"] = few_draws(gappy, bundle, options)
        if options.only != "few":
            payload["many"] = many_draws(gappy, bundle, options)
    write("imputation_speed", payload, options)
    show("imputation", lines(payload))


def table(rows: int) -> Rows:
    """Six factors in thirty columns with noise, 30 % of the cells missing at random."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(rows, RANK)) @ rng.normal(size=(RANK, COLUMNS))
    values += 0.5 * rng.normal(size=values.shape)
    values[rng.random(values.shape) < HIDDEN_SHARE] = np.nan
    return values


def exported(gappy: Rows, settings: Settings, folder: Path) -> Bundle:
    """A bundle of an imputer that trained for two epochs."""
    training = replace(settings.training, epochs=2) if settings.training else None
    imputer = VAEImputer(settings=replace(settings, training=training), device="cpu", random_state=0)
    imputer.fit(gappy).export(folder)
    return load_bundle(folder, device="cpu")


def few_draws(gappy: Rows, bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    """K = 50 beside `IterativeImputer.transform` with its defaults, in pairs."""
    peer = fitted(IterativeImputer(random_state=0), gappy)
    contenders = {PEER: lambda: peer.transform(gappy), OURS: lambda: bundle.impute(gappy, k=FEW)}
    for run in contenders.values():
        run()
    times = interleave(contenders, 2 if options.quick else options.rounds)
    return {
        "seconds": {name: statistics.median(found) for name, found in times.items()},
        "processor_seconds": {name: processor_seconds(run) for name, run in contenders.items()},
        "times_slower": comparison(times[OURS], times[PEER]),
        "hidden": list(bundle.manifest.architecture["hidden"]),
        "observed_cells_changed": changed(gappy, bundle, FEW),
        "peer_rounds": peer.n_iter_,
        "rows": len(gappy),
    }


def many_draws(gappy: Rows, bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    """K = 1,000 beside missForest on all cores, which fills only what it is fitted to."""
    forest = RandomForestRegressor(**FOREST | {"n_estimators": 5 if options.quick else 100, "n_jobs": -1})
    peer = IterativeImputer(forest, max_iter=1 if options.quick else FOREST_ROUNDS, random_state=0)
    theirs = seconds(lambda: fitted(peer, gappy))
    ours = min(seconds(lambda: bundle.impute(gappy, k=MANY)) for _ in range(2))
    return {
        "seconds": {"missForest": theirs, OURS: ours},
        "times_faster": theirs / ours,
        "observed_cells_changed": changed(gappy, bundle, MANY),
        "peer_rounds": peer.n_iter_,
        "rows": len(gappy),
    }


def fitted(imputer: Any, gappy: Rows) -> Any:
    with warnings.catch_warnings():
        # Its rounds are limited on purpose.
        warnings.simplefilter("ignore")
        return imputer.fit(gappy)


def changed(gappy: Rows, bundle: Bundle, k: int) -> int:
    """Observed cells whose bits are others after imputation."""
    seen = ~np.isnan(gappy)
    filled = bundle.impute(gappy, k=k).mean
    return int((filled.view(np.uint64)[seen] != gappy.view(np.uint64)[seen]).sum())


def seconds(run: Any) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def processor_seconds(run: Any) -> float:
    """Of all threads together: what a busy neighbour leaves as it is."""
    started = time.process_time()
    run()
    return time.process_time() - started


def lines(payload: dict[str, dict[str, Any]]) -> list[dict[str, object]]:
    return [
        {"part": part, "who": name, "seconds": value}
        for part, found in payload.items()
        for name, value in found["seconds"].items()
    ]


if __name__ == "__main__":
    main()
