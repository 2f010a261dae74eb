"""Training: losses and time beside a public notebook's loop, time to its loss, bfloat16 against float32.

``python -m benchmarks.training --data-root DIR`` measures all three parts. With ``--tune`` only the
schedule runs, once, its losses per epoch are printed and nothing is recorded.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch

from benchmarks import mnist
from benchmarks.harness import Times, comparison, interleave, parser, show, spread, worker, write
from vae_anomaly.devices import gains_from_bfloat16
from vae_anomaly.encoding import fit_encoding
from vae_anomaly.fitting import recommended_model
from vae_anomaly.networks import ModelConfig
from vae_anomaly.objectives import ObjectiveConfig
from vae_anomaly.schema import Samples, infer_schema
from vae_anomaly.training import Trainer, TrainingConfig
from vae_anomaly.vae import make_likelihood, make_model

PARTS = ("notebook", "precision")
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def main() -> None:
    """Measure the parts asked for and write training.json."""
    made = parser(__doc__)
    made.add_argument("--only", choices=PARTS, help="one part; the others keep what they have")
    made.add_argument("--seeds", type=int, default=3, help="pairs of runs, each with its own seed")
    made.add_argument("--rounds", type=int, default=5, help="of the two precisions")
    made.add_argument("--tune", action="store_true", help="run the schedule once and print it")
    made.add_argument("--target", type=float, default=108.3, help="test loss to reach, with --tune")
    made.add_argument("--limit", type=int, help="training images (none: all 60,000)")
    made.add_argument("--seed", type=int, default=0, help="of the first pair")
    mnist.add_schedule_options(made)
    options = made.parse_args()
    if options.quick:
        options.limit, options.seeds, options.rounds = options.limit or 1280, 1, 1
    if options.tune:
        tune(options)
        return
    payload: dict[str, dict[str, Any]] = {}
    if options.only in (None, "notebook"):
        payload |= beside_the_notebook(options)
    if options.only in (None, "precision"):
        payload["precision"] = precision(options)
    write("training", payload, options)


def tune(options: argparse.Namespace) -> None:
    """One run of the schedule, epoch by epoch."""
    found = run("schedule", options, options.seed)
    show(
        f"schedule, seed {options.seed}",
        [{"epoch": i + 1, **epoch} for i, epoch in enumerate(found["epochs"])],
    )
    print(f"test loss <= {options.target}: {seconds_to(found, options.target)} s")


def run(contender: str, options: argparse.Namespace, seed: int) -> Any:
    """One run of a contender in its own process."""
    arguments: list[object] = ["--data-root", options.data_root, "--seed", seed]
    if options.limit is not None:
        arguments += ["--limit", options.limit]
    if options.quick:
        arguments += ["--short", 1]
    if contender == "schedule":
        for name in (
            "batch_size",
            "learning_rate",
            "epochs",
            "rise",
            "clip_norm",
            "weight_decay",
            "precision",
        ):
            if (value := getattr(options, name)) is not None:
                arguments += [f"--{name.replace('_', '-')}", value]
    return worker("benchmarks.mnist", contender, *arguments)


def beside_the_notebook(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Runs of the notebook's loop, of our recipe and of our schedule, interleaved, one seed each."""
    runs: dict[str, list[Any]] = {name: [] for name in mnist.CONTENDERS}
    seeds = [options.seed + i for i in range(options.seeds)]
    for i, seed in enumerate(seeds):
        for name in mnist.CONTENDERS if i % 2 == 0 else mnist.CONTENDERS[::-1]:
            found = run(name, options, seed)
            runs[name].append(found)
            print(
                f"seed {seed} {name}: train {found['train_loss']:.2f}, test {found['test_loss']:.2f}, "
                f"{found['seconds']:.2f} s"
            )
    recipe = {
        "notebook": losses_of(runs["notebook"]),
        "ours": losses_of(runs["recipe"]),
        "settings": asdict(mnist.RECIPE),
        "seeds": seeds,
        "times_faster": comparison(seconds(runs["notebook"]), seconds(runs["recipe"])),
    }
    reached = to_target(runs["notebook"], runs["schedule"])
    settings = asdict(mnist.schedule(options, options.limit or 60_000))
    print_losses(recipe, reached)
    return {"recipe": recipe, "schedule": {**reached, "settings": settings, "seeds": seeds}}


def losses_of(runs: list[Any]) -> dict[str, Any]:
    """Spread of the last epoch's losses and of the times over seeds."""
    keys = ("train_loss", "test_loss", "seconds")
    return {key: spread([found[key] for found in runs]) for key in keys}


def seconds(runs: list[Any]) -> list[float]:
    return [found["seconds"] for found in runs]


def seconds_to(found: Any, target: float) -> float | None:
    """Seconds of training until the test loss of an epoch was at most the target."""
    return next((epoch["seconds"] for epoch in found["epochs"] if epoch["test_loss"] <= target), None)


def to_target(notebook: list[Any], ours: list[Any]) -> dict[str, Any]:
    """Time until the notebook's own test loss of the same pair, against its time; null if never."""
    times = [seconds_to(b, a["test_loss"]) for a, b in zip(notebook, ours, strict=True)]
    pairs = [(a["seconds"], time) for a, time in zip(notebook, times, strict=True) if time is not None]
    return {
        "targets": [found["test_loss"] for found in notebook],
        "notebook_seconds": seconds(notebook),
        "seconds_to_target": times,
        "runs": ours,
        "reached": len(pairs),
        "times_faster": comparison(*zip(*pairs, strict=True)) if len(pairs) == len(times) else None,
    }


def print_losses(recipe: dict[str, Any], reached: dict[str, Any]) -> None:
    """The two results that the design names targets for."""
    show(
        "mnist-mlp beside the notebook's loop",
        [
            {
                "side": side,
                **{key: recipe[side][key]["mean"] for key in ("train_loss", "test_loss", "seconds")},
            }
            for side in ("notebook", "ours")
        ],
    )
    print(f"times faster: {recipe['times_faster']['median']:.2f} (median of pairs)")
    faster = reached["times_faster"]
    print(f"schedule to the notebook's loss: {reached['seconds_to_target']} s", end="; ")
    print(f"{faster['median']:.2f} times faster" if faster else "not reached in every run")


def precision(options: argparse.Namespace) -> dict[str, Any]:
    """Samples per second of float32 and bfloat16 training on this CPU, MLP and convolutional."""
    rows = {"mlp": options.limit or 12_800, "conv": options.limit or 2_560}
    values = mnist.images(options.data_root, True, max(rows.values()))
    networks = {"mlp": mnist.NETWORK, "conv": recommended_model(infer_schema(values))}
    found: dict[str, Any] = {"bfloat16_is_chosen": gains_from_bfloat16(torch.device("cpu")), "rows": rows}
    for name, network in networks.items():
        times = time_precisions(network, values[: rows[name]], options.rounds)
        found[name] = {
            "samples_per_second": {
                key: rows[name] / statistics.median(taken) for key, taken in times.items()
            },
            "times_faster": comparison(times["float32"], times["bfloat16"]),
        }
    show("samples per second", [{"network": name, **found[name]["samples_per_second"]} for name in networks])
    return found


def time_precisions(network: ModelConfig, values: np.ndarray, rounds: int) -> Times:
    """Seconds of one epoch in each precision, interleaved, after one epoch to warm up."""
    contenders: dict[str, Callable[[], object]] = {
        name: epoch_of(network, values, name) for name in PRECISIONS
    }
    for contender in contenders.values():
        contender()
    return interleave(contenders, rounds)


def epoch_of(network: ModelConfig, values: np.ndarray, name: Precision) -> Callable[[], object]:
    """A call that trains one epoch."""
    schema = infer_schema(values)
    samples = schema.read(values)
    encoding = fit_encoding(schema, samples, make_likelihood(network).output_range)
    model = make_model(schema.shape, network, torch.Generator().manual_seed(0))
    config = TrainingConfig(epochs=1, batch_size=128, schedule="constant", precision=name)
    trainer = Trainer(model, encoding, ObjectiveConfig(), config, device="cpu")
    few = Samples(samples.values[:32], samples.observed[:32])
    return lambda: trainer.fit(samples, few)


if __name__ == "__main__":
    main()
