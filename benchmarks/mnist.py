"""One training run on MNIST in a process of its own; the last line of its output is JSON.

``python -m benchmarks.mnist notebook|recipe|schedule ...``; `benchmarks.training` starts it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision import datasets

from benchmarks import notebook
from benchmarks.harness import Stopwatch
from vae_anomaly.encoding import ImageEncoding
from vae_anomaly.fitting import recommended_training
from vae_anomaly.networks import ModelConfig
from vae_anomaly.objectives import ObjectiveConfig, losses
from vae_anomaly.schema import Samples, infer_schema
from vae_anomaly.training import Data, Epoch, Trainer, TrainingConfig
from vae_anomaly.vae import Autoencoder, make_model

Array = npt.NDArray[np.uint8]
CONTENDERS = ("notebook", "recipe", "schedule")
NETWORK = ModelConfig(network="mlp", hidden=(400,), latent_size=20, likelihood="bernoulli", mask_input=False)
RECIPE = TrainingConfig(
    epochs=5, batch_size=128, learning_rate=1e-3, schedule="constant", optimizer="adam", clip_norm=0.0
)
# Rows of the training set that the trainer watches: it wants some, the benchmark measures elsewhere.
WATCHED = 512


def images(data_root: Path, train: bool, limit: int | None = None) -> Array:
    """MNIST as stored, uint8 (n, 1, 28, 28)."""
    found = datasets.MNIST(str(data_root), train=train, download=False).data.numpy()
    return np.ascontiguousarray(found[:limit, None])


def schedule(options: argparse.Namespace, rows: int) -> TrainingConfig:
    """The recommended settings for images; masks are off, the network here does not see them."""
    recommended = recommended_training(infer_schema(np.zeros((1, 1, 28, 28), np.uint8)), rows)
    given = {
        name: value
        for name in (
            "batch_size",
            "learning_rate",
            "epochs",
            "rise",
            "clip_norm",
            "weight_decay",
            "precision",
        )
        if (value := getattr(options, name)) is not None
    }
    return replace(recommended, random_mask=0.0, **given)


def train(config: TrainingConfig, options: argparse.Namespace, test: Array) -> dict[str, Any]:
    """Losses per row and seconds after every epoch, from reading the files; evaluation left out."""
    watch = Stopwatch()
    values = images(options.data_root, True, options.limit)
    schema = infer_schema(values)
    samples = schema.read(values)
    model = make_model(schema.shape, NETWORK, torch.Generator().manual_seed(options.seed))
    encoding = ImageEncoding(schema)  # type: ignore[arg-type]
    epochs: list[dict[str, float]] = []

    def note(figures: Epoch) -> None:
        seconds = watch.seconds
        with watch.paused():
            loss = test_loss(model, encoding, schema.read(test), options.seed)
        epochs.append({"train_loss": figures["loss"], "test_loss": loss, "seconds": seconds})

    trainer = Trainer(
        model, encoding, ObjectiveConfig(), config, options.seed, options.device, callbacks=[note]
    )
    trainer.fit(samples, Samples(samples.values[:WATCHED], samples.observed[:WATCHED]))
    return {**epochs[-1], "epochs": epochs}


@torch.no_grad()
def test_loss(model: Autoencoder, encoding: ImageEncoding, samples: Samples, seed: int) -> float:
    """Negative ELBO, one draw per row, mean over test images; float32 whatever the training's precision."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    mixed, model.mixed_precision = model.mixed_precision, False
    data, total = Data.of(samples, device), 0.0
    for rows in torch.arange(len(data), device=device).split(1000):
        encoded = encoding(*data.batch(rows))
        noise = torch.randn(1, len(rows), model.latent_size, generator=generator, device=device)
        part = losses(model, encoded.x, encoded.observed, noise, ObjectiveConfig())
        total += float(part.loss) * len(rows)
    model.mixed_precision = mixed
    return total / len(data)


def add_schedule_options(parser: argparse.ArgumentParser) -> None:
    """Settings of the schedule; what is not given is as recommended."""
    group = parser.add_argument_group("schedule", "in place of the recommended settings for images")
    for name, kind in (
        ("batch-size", int),
        ("learning-rate", float),
        ("epochs", int),
        ("rise", float),
        ("clip-norm", float),
        ("weight-decay", float),
        ("precision", str),
    ):
        group.add_argument(f"--{name}", type=kind, default=None, help="as recommended if left out")


def main() -> None:
    """Run one contender and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--short", type=int, help="epochs of the two fixed recipes")
    parser.add_argument("--device", default="cpu")
    add_schedule_options(parser)
    options = parser.parse_args()
    test = images(options.data_root, False, options.limit)
    torch.zeros(2, requires_grad=True).sum().backward()  # starts its threads
    if options.contender == "notebook":
        flat = torch.from_numpy(test).flatten(1) / 255
        found = notebook.train(options.data_root, options.seed, options.short or 5, options.limit, flat)
    elif options.contender == "recipe":
        found = train(replace(RECIPE, epochs=options.short or RECIPE.epochs), options, test)
    else:
        found = train(schedule(options, options.limit or 60_000), options, test)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
