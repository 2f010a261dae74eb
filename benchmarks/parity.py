"""How far onnxruntime is from torch over the models of all recipes, in units of the tolerance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipelines.config import recipe_names
from pipelines.data import load
from pipelines.recipe import load_recipe
from vae_anomaly.assembly import ExportConfig, Fitted, Parts, TorchBackend, assemble
from vae_anomaly.export import parity_feeds, to_onnx
from vae_anomaly.fitting import Fit, fit_model, split_parts
from vae_anomaly.runtime import OnnxBackend
from vae_anomaly.schema import Schema
from vae_anomaly.scores import possible_scores
from vae_anomaly.selftest import disagreements

# What recipes that leave their data to the user are tried on; the rest name their own.
SOURCES = {
    "table": "adbench/cardio.npz",
    "default-imputer": "adbench/cardio.npz",
    "default-table": "adbench/cardio.npz",
    "rgb64-conv": "cifar10/test",
    "rgb64-autoencoder": "cifar10/test",
}
EPOCHS = 4
LOGITS = 200.0
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class Trained(NamedTuple):
    """A briefly trained model of a recipe, and the rows it saw."""

    schema: Schema
    parts: Parts
    fit: Fit


class Spread(nn.Module):
    """A decoder whose raw outputs are moved apart by fixed offsets from -200 to 200, one per output."""

    def __init__(self, decoder: nn.Module, outputs: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.offsets: Tensor
        self.register_buffer("offsets", torch.linspace(-LOGITS, LOGITS, outputs))

    def forward(self, z: Tensor) -> Tensor:
        """Latents (..., L) to raw parameters (..., P * D)."""
        raw: Tensor = self.decoder(z) + self.offsets
        return raw


def parity(data_root: Path, rows: int, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Largest difference per recipe, in three states of the decoder.

    "plain": as trained. "spread": its logits moved apart, from -200 to 200. "stretched": its last
    layer scaled until logits reach +-200, which scales the rounding of float32 as well.
    """
    found = {}
    for name in names or recipe_names():
        trained = train_briefly(name, data_root, rows)
        model = trained.fit.fitted.model
        states = {"plain": worst(trained.fit.fitted)}
        decoder, elements = model.decoder, trained.schema.elements
        model.decoder = Spread(decoder, elements * model.likelihood.outputs_per_element)
        states["spread"] = worst(reassembled(trained))
        model.decoder = decoder
        stretch_logits(trained)
        states["stretched"] = worst(reassembled(trained))
        found[name] = states
        print(f"{name}: " + ", ".join(f"{key} {state['largest']:.3g}" for key, state in states.items()))
    return found


def train_briefly(name: str, data_root: Path, rows: int) -> Trained:
    """A few epochs of a recipe on a few of its rows, every score exported that the model can have."""
    data: dict[str, Any] = {"limit": rows}
    if name != "digits":
        data |= {"data_root": str(data_root)} | ({"source": SOURCES[name]} if name in SOURCES else {})
    recipe = load_recipe(name, sections={"data": data})
    dataset = load(recipe.data)
    parts = split_parts(dataset.schema.read(dataset.values), seed=0)
    settings = recipe.settings(dataset.schema, parts.train)
    if settings.model is None or settings.training is None:
        raise TypeError("completed settings hold a model and its training")
    settings = replace(
        settings,
        training=replace(settings.training, epochs=EPOCHS, batch_size=32),
        export=ExportConfig(scores=possible_scores(settings.model.kind == "vae", settings.model.mask_input)),
    )
    return Trained(dataset.schema, parts, fit_model(dataset.schema, parts, settings, device="cpu"))


@torch.no_grad()
def stretch_logits(trained: Trained) -> None:
    """Scale the decoder's last layer until its raw outputs reach +-200 on calibration rows."""
    fitted, samples = trained.fit.fitted, trained.parts.calibration
    model = fitted.model
    encoded = fitted.graphs["score"].encoding(
        torch.from_numpy(samples.values), torch.from_numpy(samples.observed)
    )
    last = [layer for layer in model.decoder.modules() if isinstance(layer, LAYERS)][-1]
    raw = model.decode(model.encode(encoded.x, encoded.observed).mean)
    factor = LOGITS / raw.abs().max()
    for tensor in (last.weight, last.bias):
        if tensor is not None:
            tensor *= factor


def reassembled(trained: Trained) -> Fitted:
    """Scores fitted and calibrated again, after the weights have changed."""
    settings, fitted = trained.fit.settings, trained.fit.fitted
    if settings.model is None:
        raise TypeError("completed settings hold a model")
    return assemble(
        fitted.model,
        fitted.graphs["score"].encoding,
        trained.schema,
        settings.model,
        settings.export,
        trained.parts,
    )


def worst(fitted: Fitted) -> dict[str, Any]:
    """Largest difference per ``graph/output`` and in all, in units of its tolerance."""
    feeds, torch_side = parity_feeds(fitted), TorchBackend(fitted.graphs)
    graphs = {
        name: to_onnx(entry, name, feeds[name][0]).SerializeToString()
        for name, entry in fitted.graphs.items()
    }
    backend, found = OnnxBackend(graphs, "cpu", threads=1), dict[str, float]()
    for graph, batches in feeds.items():
        for values in batches:
            both = torch_side.run(graph, values), backend.run(graph, values)
            for name, distance in disagreements(*both, fitted.manifest).items():
                key = f"{graph}/{name}"
                found[key] = max(distance, found.get(key, 0.0))
    where = max(found, key=lambda key: found[key])
    return {
        "largest": min(found[where], 1e30),
        "in": where,
        "outputs": {k: min(v, 1e30) for k, v in found.items()},
    }
