"""Running a bundle: onnxruntime beside torch, bits of a row whatever its batch, parity, imports.

``python -m benchmarks.runtime --data-root DIR`` measures all four parts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import mnist
from benchmarks.harness import comparison, interleave, parser, show, write
from benchmarks.parity import parity
from vae_anomaly.answers import Answers
from vae_anomaly.assembly import ExportConfig, Fitted, Parts, TorchBackend
from vae_anomaly.batches import Feeds
from vae_anomaly.export import export_bundle
from vae_anomaly.fitting import Settings, fit_model, recommended_model
from vae_anomaly.networks import ModelConfig
from vae_anomaly.runtime import Bundle, load_bundle
from vae_anomaly.schema import Samples, infer_schema
from vae_anomaly.scores import possible_scores
from vae_anomaly.training import TrainingConfig

FIVE_SCORES = ("neg_elbo", "iw_nll", "recon", "rate", "latent_maha")
PARTS = ("scoring", "identity", "parity", "imports")
BATCH = 1024
ROWS_PER_CALL = (1, 7, 64, 1000)
THREADS = (1, 2, 4)
PROCESSES = 2
GRAPHS = ("score", "explain", "encode")
STATEMENTS = ("pass", "import serving", "import vae_anomaly.runtime", "import serving.batch")


class AutogradBackend(TorchBackend):
    """The very modules in plain eager mode, as they run where nobody thought of turning gradients off."""

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """One forward pass that records its graph."""
        entry = self.graphs[graph]
        out = entry(*(torch.tensor(feeds[name]) for name in entry.inputs))
        return {name: value.detach().numpy() for name, value in zip(entry.outputs, out, strict=True)}


def main() -> None:
    """Measure the parts asked for and write runtime.json."""
    made = parser(__doc__)
    made.add_argument("--only", choices=PARTS, help="one part; the others keep what they have")
    made.add_argument("--rounds", type=int, default=15, help="of the two runtimes")
    made.add_argument("--identity-rows", type=int, default=2000, help="test images compared bit by bit")
    made.add_argument("--parity-rows", type=int, default=320, help="rows of each recipe's data")
    options = made.parse_args()
    if options.quick:
        options.rounds, options.identity_rows, options.parity_rows = 2, 70, 120
    wanted = (options.only,) if options.only else PARTS
    payload: dict[str, dict[str, Any]] = {}
    if {"scoring", "identity"} & set(wanted):
        payload |= on_mnist(options, wanted)
    if "parity" in wanted:
        names = ("digits",) if options.quick else ()
        payload["parity"] = parity_section(options, names)
    if "imports" in wanted:
        payload["imports"] = imports(3 if options.quick else 9)
    write("runtime", payload, options)


def on_mnist(options: argparse.Namespace, wanted: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Scoring speed and bit identity of an MLP and a convolutional model, each briefly trained."""
    train = mnist.images(options.data_root, True, 1000 if options.quick else 8000)
    test = mnist.images(options.data_root, False, 2048 if options.quick else None)
    schema = infer_schema(train)
    found: dict[str, dict[str, Any]] = {part: {} for part in wanted if part in ("scoring", "identity")}
    for name, network in {"mlp": mnist.NETWORK, "conv": recommended_model(schema)}.items():
        for part, measured in found.items():
            scores = FIVE_SCORES if part == "scoring" else possible_scores(True, network.mask_input)
            fitted = briefly(network, schema.read(train), scores)
            with tempfile.TemporaryDirectory() as folder:
                bundle = Path(folder) / "bundle"
                export_bundle(fitted, bundle)
                if part == "scoring":
                    measured[name] = scoring(fitted, bundle, schema.read(test), options.rounds)
                else:
                    measured[name] = identity(bundle, schema.read(test[: options.identity_rows]))
    return found


def briefly(network: ModelConfig, samples: Samples, scores: tuple[str, ...]) -> Fitted:
    """A model after one epoch, with one draw."""
    cuts = np.split(np.arange(len(samples.values)), [-700, -500])
    parts = Parts(*(Samples(samples.values[rows], samples.observed[rows]) for rows in cuts))
    settings = Settings(
        network,
        training=TrainingConfig(epochs=1),
        export=ExportConfig(scores=scores, draws=1),
    )
    return fit_model(infer_schema(samples.values), parts, settings, device="cpu").fitted


def scoring(fitted: Fitted, folder: Path, test: Samples, rounds: int) -> dict[str, Any]:
    """Seconds for all test images, five scores, one draw, batches of 1,024."""
    bundle = load_bundle(folder, device="cpu", batch_size=BATCH)

    def on_torch(backend: TorchBackend) -> Callable[[], object]:
        answers = Answers(fitted.manifest, fitted.calibration, backend, BATCH)
        return lambda: answers.run("score", test)

    contenders: dict[str, Callable[[], object]] = {
        "onnxruntime": lambda: bundle.run("score", test),
        "torch": on_torch(TorchBackend(fitted.graphs)),
        "torch_with_autograd": on_torch(AutogradBackend(fitted.graphs)),
    }
    interleave(contenders, 2)
    times = interleave(contenders, rounds)
    rows = len(test.values)
    found: dict[str, Any] = {
        "rows": rows,
        "batch": BATCH,
        "scores": list(fitted.manifest.scores),
        "threads": {"onnxruntime": bundle.backend.threads, "torch": torch.get_num_threads()},
        "rows_per_second": {name: rows / statistics.median(taken) for name, taken in times.items()},
        "times_faster": {
            name: comparison(times[name], times["onnxruntime"]) for name in times if name != "onnxruntime"
        },
    }
    show(
        "rows scored per second",
        [{"network": fitted.manifest.architecture["network"], **found["rows_per_second"]}],
    )
    print(f"times faster than torch: {found['times_faster']['torch']['median']:.2f}")
    return found


def identity(folder: Path, test: Samples) -> dict[str, Any]:
    """Rows whose bits differ from those of one run over everything, by what was changed."""
    whole = load_bundle(folder, device="cpu")
    reference = answers_of(whole, test)
    rows = len(test.values)
    order = np.random.default_rng(0).permutation(rows)
    back = np.argsort(order)
    shuffled = answers_of(whole, taken(test, order))
    found: dict[str, int] = {"other order": differing(reference, {k: v[back] for k, v in shuffled.items()})}
    for size in ROWS_PER_CALL:
        slices = [np.arange(i, min(i + size, rows)) for i in range(0, rows, size)]
        parts = [answers_of(whole, taken(test, part)) for part in slices]
        found[f"{size} rows per call"] = differing(reference, joined(parts))
        batched = load_bundle(folder, device="cpu", batch_size=size)
        found[f"batch_size {size}"] = differing(reference, answers_of(batched, test))
    for threads in THREADS:
        bundle = load_bundle(folder, device="cpu", threads=threads, batch_size=64)
        found[f"{threads} threads"] = differing(reference, answers_of(bundle, test))
    found[f"{PROCESSES} processes"] = differing(reference, in_processes(folder, test))
    outputs = sorted(reference)
    print(f"rows that differ, of {rows}: {found}")
    return {"rows": rows, "outputs": outputs, "differing": found, "identical": not any(found.values())}


def answers_of(bundle: Bundle, samples: Samples) -> Feeds:
    """Every output of the graphs that answer without noise from outside."""
    return {
        f"{graph}/{name}": value for graph in GRAPHS for name, value in bundle.run(graph, samples).items()
    }


def in_processes(folder: Path, test: Samples) -> Feeds:
    """The rows divided among fresh processes."""
    parts = np.array_split(np.arange(len(test.values)), PROCESSES)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        return joined(list(pool.map(score_part, [folder] * PROCESSES, [taken(test, part) for part in parts])))


def score_part(folder: Path, samples: Samples) -> Feeds:
    """What one worker process does."""
    return answers_of(load_bundle(folder, device="cpu", threads=1), samples)


def taken(samples: Samples, rows: np.ndarray) -> Samples:
    return Samples(samples.values[rows], samples.observed[rows])


def joined(parts: list[Feeds]) -> Feeds:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def differing(reference: Feeds, other: Feeds) -> int:
    """Rows of which any output has other bits."""
    rows = len(next(iter(reference.values())))
    unequal = np.zeros(rows, dtype=np.bool_)
    for name in reference:
        bits = [
            np.ascontiguousarray(side[name]).reshape(rows, -1).view(np.uint8) for side in (reference, other)
        ]
        unequal |= (bits[0] != bits[1]).any(axis=1)
    return int(unequal.sum())


def parity_section(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Parity of every recipe."""
    recipes = parity(options.data_root, options.parity_rows, names)
    return {
        "rows": options.parity_rows,
        "recipes": recipes,
    }


def imports(rounds: int) -> dict[str, Any]:
    """Seconds of fresh interpreters, and whether torch was loaded in one."""
    loaded = {statement: loads_torch(statement) for statement in STATEMENTS}
    times = interleave({statement: partial(loads_torch, statement) for statement in STATEMENTS}, rounds)
    middle = {statement: statistics.median(taken) for statement, taken in times.items()}
    empty = middle.pop("pass")
    seconds = {statement: value - empty for statement, value in middle.items()}
    show(
        "imports",
        [{"statement": key, "seconds": value, "loads torch": loaded[key]} for key, value in seconds.items()],
    )
    return {
        "seconds": seconds,
        "loads_torch": loaded,
        "any_loads_torch": any(loaded.values()),
        "interpreter_seconds": empty,
    }


def loads_torch(statement: str) -> bool:
    """Whether a fresh interpreter has torch in its modules after a statement."""
    code = f"import sys\n{statement}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


if __name__ == "__main__":
    main()
