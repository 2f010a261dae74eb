"""How fast the default detector scores and fits, beside PyOD's VAE of equal width."""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import comparison, interleave, show
from vae_anomaly import VAEDetector, load_bundle
from vae_anomaly.assembly import ExportConfig
from vae_anomaly.fitting import Settings
from vae_anomaly.training import TrainingConfig

COLUMNS = 784
ROUNDS = 5
# Seconds on two cores; of the largest sizes what the work rule of `vae_anomaly.budget` is meant to keep.
FIT_TARGETS = {
    "20,000 images of 28x28": 180.0,
    "table of 1,000 x 20": 10.0,
    "table of 5,000 x 20": 10.0,
    "table of 600,000 x 20": 300.0,
    "table of 5,000 x 1,500": 300.0,
    "2,000 RGB images of 128x128": 300.0,
}


def scoring(options: argparse.Namespace) -> dict[str, Any]:
    """Rows per second of the exported default at K = 1 and of PyOD's ``decision_function``, in pairs.

    Both are trained for one epoch: the weights have no say in the time.
    """
    from pyod.models import vae

    rng = np.random.default_rng(0)
    train = rng.normal(size=(2000, COLUMNS))
    rows = rng.normal(size=(1000 if options.quick else 10_000, COLUMNS))
    short = TrainingConfig(epochs=1)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        detector = VAEDetector(
            settings=Settings(training=short, export=ExportConfig(draws=1)), random_state=0
        ).fit(train)
        detector.export(Path(folder) / "bundle")
        bundle = load_bundle(Path(folder) / "bundle", device="cpu")
        model = detector.settings_.model
        peer = vae.VAE(
            encoder_neuron_list=list(model.hidden),
            decoder_neuron_list=list(model.hidden[::-1]),
            latent_dim=model.latent_size,
            epoch_num=1,
            verbose=0,
        ).fit(train)
        contenders = {
            "vae-anomaly": lambda: bundle.scores(rows),
            "PyOD VAE": lambda: peer.decision_function(rows),
        }
        interleave(contenders, 1)
        times = interleave(contenders, ROUNDS)
    found = {
        "rows_per_second": {name: len(rows) / float(np.median(spent)) for name, spent in times.items()},
        "times_faster": comparison(times["PyOD VAE"], times["vae-anomaly"]),
        "hidden": list(model.hidden),
        "latent_size": model.latent_size,
        "rows": len(rows),
        "columns": COLUMNS,
    }
    show(
        "rows per second", [{"method": name, "rows": rate} for name, rate in found["rows_per_second"].items()]
    )
    print(f"{found['times_faster']['median']:.2f} times as fast")
    return found


def fitting(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of ``fit`` with defaults, reading not included."""
    rows = []
    for name, target in FIT_TARGETS.items():
        x = _data(options.data_root, name, options.quick)
        started = time.perf_counter()
        detector = VAEDetector(random_state=0).fit(x)
        seconds = time.perf_counter() - started
        training = detector.settings_.training
        rows.append(
            {
                "data": name,
                "seconds": seconds,
                "target": target,
                "epochs": training.epochs,
                "rows_shown": training.epochs * (training.epoch_rows or round(0.7 * len(x))),
            }
        )
    show("fit with defaults", rows)
    return {"rows": rows}


def _data(root: Path, name: str, small: bool) -> np.ndarray:
    """What a name of `FIT_TARGETS` says: pictures of digits or noise, tables of 6 factors and noise."""
    rng = np.random.default_rng(0)
    if name.startswith("20,000"):
        return _digits(root, 500 if small else 20_000)
    if name.startswith("2,000"):
        side, count = (16, 100) if small else (128, 2000)
        return rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    count, columns = (int(part.replace(",", "")) for part in name.removeprefix("table of ").split(" x "))
    count = min(count, 500) if small else count
    factors = rng.normal(size=(count, 6)) @ rng.normal(size=(6, columns))
    return np.asarray(factors + 0.3 * rng.normal(size=(count, columns)))


def _digits(root: Path, count: int) -> np.ndarray:
    from torchvision.datasets import MNIST

    images: np.ndarray = MNIST(root, train=True, download=False).data[:count].numpy()
    return images
