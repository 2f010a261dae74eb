"""Model, scores and imputer -> sealed bundle: ONNX graphs, and the proof that they agree with torch.

Every exported graph is compared with the torch module it came from, on ordinary and extreme
inputs, and nothing is sealed unless they agree within the tolerances of the manifest.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript import opset20 as op

from vae_anomaly.answers import Answers
from vae_anomaly.assembly import Fitted, TorchBackend, calibrate
from vae_anomaly.batches import PAD_TO, Feeds
from vae_anomaly.bundle import seal
from vae_anomaly.card import model_card
from vae_anomaly.exceptions import BundleError, ParityError
from vae_anomaly.graphs import EntryPoint
from vae_anomaly.imputing import fresh_state
from vae_anomaly.runtime import OnnxBackend
from vae_anomaly.schema import ImageSchema, Samples, Schema
from vae_anomaly.selftest import RAW, TESTED, disagreements, p_values_agree
from vae_anomaly.stepping import ALWAYS, fresh_chains

log = logging.getLogger(__name__)

OPSET = 20
PARITY_ROWS = 64
PARITY_DRAWS = 3
TABLE = "p_value.table"
# As large as the samples times the chains, and told by what is kept.
UNKEPT = ("next_", "draws_raw")
PACKAGES = ("numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "torch")
# Inputs of the step graph with an axis of chains.
CHAINED = ("proposal", "element", "log_uniform", "completed", "z", "chain_mean")
# Axes that vary: B rows, M draws or C chains. Every other size is fixed.
ROWS, DRAWS = torch.export.Dim("rows", min=2, max=1 << 20), torch.export.Dim("draws", min=1, max=1 << 12)


def export_bundle(fitted: Fitted, folder: str | Path) -> str:
    """Write a sealed bundle.

    Parameters
    ----------
    fitted : Fitted
    folder : str or Path
        Must not exist, or be empty; appears whole or not at all.

    Returns
    -------
    str
        The digest, sha256 of ``manifest.json``.

    Raises
    ------
    ParityError
        If a graph and its torch module disagree beyond tolerance.
    BundleError
        If the folder is taken.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already; export to a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    device = next(fitted.model.parameters()).device
    move(fitted, torch.device("cpu"))
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    # The graphs' own scores calibrate the bundle; the torch modules keep their own table.
    p_value = fitted.score_graph.p_value
    try:
        digest = _write(replace(fitted, calibration=dict(fitted.calibration)), temporary)
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        fitted.score_graph.p_value = p_value
        move(fitted, device)
    return digest


def move(fitted: Fitted, device: torch.device) -> None:
    """Move every entry point to a device."""
    for graph in fitted.graphs.values():
        graph.to(device)


def _write(fitted: Fitted, folder: Path) -> str:
    feeds = parity_feeds(fitted)
    protos = {name: to_onnx(entry, name, feeds[name][0]) for name, entry in fitted.graphs.items()}
    calibrated = _calibrated(fitted, protos)
    graphs = {name: proto.SerializeToString() for name, proto in calibrated.items()}
    backend = OnnxBackend(graphs, "cpu", threads=1)
    check_parity(fitted, backend, feeds)
    for name, data in graphs.items():
        (folder / f"{name}.onnx").write_bytes(data)
    _save(folder / "calibration.npz", fitted.calibration)
    _save(folder / "golden.npz", golden(fitted, backend))
    versions = {package: found for package in PACKAGES if (found := _version(package))}
    manifest = replace(fitted.manifest, provenance={**fitted.manifest.provenance, "versions": versions})
    (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
    return seal(folder, manifest)


def _save(path: Path, arrays: Feeds) -> None:
    np.savez_compressed(path, allow_pickle=False, **arrays)


def to_onnx(entry: EntryPoint, name: str, feeds: Feeds) -> onnx.ModelProto:
    """One entry point as an ONNX model, its notes and source paths stripped."""
    arguments = tuple(torch.from_numpy(feeds[key]) for key in entry.inputs)
    shapes = tuple(_dynamic(name, key) for key in entry.inputs)
    positional = (*shapes[:2], shapes[2:]) if name in ("impute", "step") else shapes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            entry,
            arguments,
            dynamo=True,
            dynamic_shapes=positional,
            input_names=list(entry.inputs),
            output_names=list(entry.outputs),
            opset_version=OPSET,
            optimize=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.softplus.default: _softplus},
        )
    if program is None:
        raise ParityError(f"torch exported no {name} graph")
    return _stripped(program.model_proto)


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """max(x, 0) + log(1 + exp(-|x|)): half the time of onnxruntime's Softplus, which does not vectorise.

    A product with -1, because its Neg takes three times as long.
    """
    constants: Any = (op.Constant(value_float=value) for value in (-1.0, 1.0))
    minus, one = (op.CastLike(constant, x) for constant in constants)
    return op.Add(op.Relu(x), op.Log(op.Add(one, op.Exp(op.Mul(op.Abs(x), minus)))))


def _dynamic(graph: str, name: str) -> dict[int, object]:
    """Which axes of an input vary."""
    if name in ("best", "element", "drawn") or (graph == "step" and name in CHAINED):
        return {0: DRAWS, 1: ROWS}
    if name == "gumbel":
        return {0: DRAWS, 2: ROWS}
    return {1: ROWS} if name == "latent" else {0: ROWS}


def _stripped(proto: onnx.ModelProto) -> onnx.ModelProto:
    del proto.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    del proto.graph.metadata_props[:]
    for item in (
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
    ):
        item.doc_string = ""
        del item.metadata_props[:]
    for function in proto.functions:
        raise ParityError(
            f"the exported graph holds a local function {function.name!r}; report this as a bug"
        )
    return proto


def _calibrated(fitted: Fitted, protos: dict[str, onnx.ModelProto]) -> dict[str, onnx.ModelProto]:
    """Calibrate on the exported graph's own scores, and put that table into the graph."""
    backend = OnnxBackend({name: proto.SerializeToString() for name, proto in protos.items()}, "cpu")
    calibrate(fitted, Answers(fitted.manifest, {}, backend))
    tables = [item for item in protos["score"].graph.initializer if item.name.endswith(TABLE)]
    if len(tables) != 1:
        raise ParityError("the score graph lost its calibration table; report this as a bug")
    table = fitted.score_graph.p_value.table
    tables[0].CopyFrom(numpy_helper.from_array(table.numpy(), tables[0].name))
    return protos


def parity_feeds(fitted: Fitted) -> dict[str, list[Feeds]]:
    """Inputs of every graph: held-out rows with and without gaps, and extreme ones."""
    batches = (
        _ordinary(fitted.calibration_samples, PARITY_ROWS),
        synthetic(fitted.manifest.schema, PAD_TO, seed=1),
    )
    inputs: list[Feeds] = [{"x": batch.values, "observed": batch.observed} for batch in batches]
    return {name: [_feeds(fitted, name, both) for both in inputs] for name in fitted.graphs}


def _feeds(fitted: Fitted, graph: str, both: Feeds) -> Feeds:
    rng = np.random.default_rng(2)
    rows, latent, schema = len(both["x"]), fitted.manifest.latent_size, fitted.manifest.schema
    if graph == "decode":
        return {"z": rng.standard_normal((rows, latent)).astype(np.float32) * 2}
    if graph == "step":
        return _step_feeds(fitted, both, rng)
    if graph != "impute":
        return both
    chunk = int(fitted.manifest.imputation["chunk"])
    bank = fitted.calibration["noise"][:chunk, None, :]
    return {
        **both,
        "latent": np.ascontiguousarray(np.broadcast_to(bank, (chunk, rows, latent))),
        "gumbel": rng.gumbel(size=(PARITY_DRAWS, chunk, rows)).astype(np.float32),
        "element": rng.standard_normal((PARITY_DRAWS, rows, schema.elements)).astype(np.float32),
        **fresh_state(rows, schema.features, PARITY_DRAWS),
    }


def _step_feeds(fitted: Fitted, both: Feeds, rng: np.random.Generator) -> Feeds:
    """Chains under way; every second row accepts its proposal and every other refuses it.

    Near the edge float32 would decide: torch and onnxruntime may differ there.
    """
    rows, latent = len(both["x"]), fitted.manifest.latent_size
    filling = np.zeros((rows, fitted.manifest.schema.features), np.float32)
    feeds = {**both, **fresh_chains(filling, PARITY_DRAWS, latent)}
    for edge in (np.full(rows, ALWAYS), np.where(np.arange(rows) % 2, ALWAYS, -ALWAYS)):
        feeds["proposal"] = rng.standard_normal((PARITY_DRAWS, rows, latent)).astype(np.float32)
        feeds["element"] = np.zeros((PARITY_DRAWS, *both["x"].reshape(rows, -1).shape), np.float32)
        feeds["log_uniform"] = np.ascontiguousarray(np.broadcast_to(edge, (PARITY_DRAWS, rows)))
        before = feeds
        after = TorchBackend(fitted.graphs).run("step", feeds)
        feeds = {**feeds, **{name: after[f"next_{name}"] for name in ("completed", "z")}}
    return before


def _ordinary(samples: Samples, rows: int) -> Samples:
    """The first held-out rows, repeated if few; every second one with random gaps."""
    index = np.arange(rows) % len(samples.values)
    rng = np.random.default_rng(0)
    observed = samples.observed[index].copy()
    observed[1::2] &= rng.random(observed[1::2].shape) < rng.random((rows // 2, *[1] * (observed.ndim - 1)))
    return Samples(samples.values[index], observed)


def synthetic(schema: Schema, rows: int, seed: int) -> Samples:
    """Made-up samples: noise, constants, far values, gaps; no training row among them."""
    rng = np.random.default_rng(seed)
    if isinstance(schema, ImageSchema):
        values = rng.uniform(schema.low, schema.high, (rows, *schema.shape))
        values[0], values[1] = schema.low, schema.high
        values = np.rint(values) if schema.dtype == "uint8" else values
        values[2] = schema.high if schema.dtype == "uint8" else schema.high + 1e3 * (schema.high - schema.low)
        values = values.astype(schema.dtype)
    else:
        low = np.array([column.low or 0.0 for column in schema.columns])
        high = np.array([column.high or 0.0 for column in schema.columns])
        values = low + (high - low) * rng.uniform(-0.5, 1.5, (rows, schema.elements))
        values[0], values[1], values[2] = low, high, 1e300
        for place, column in enumerate(schema.columns):
            if column.categories:
                values[:, place] = rng.choice(column.numbers, rows)
            elif column.kind == "positive" and low[place] > 0:
                ends = np.log(low[place]), np.log(high[place])
                values[3:, place] = np.exp(ends[0] + (ends[1] - ends[0]) * rng.uniform(-0.5, 1.5, rows - 3))
                values[3, place] = 0.0
    observed = np.ones(values.shape, dtype=np.bool_)
    observed[rows // 2 :] = rng.random(values[rows // 2 :].shape) < 0.6
    observed[-1] = False
    return Samples(np.ascontiguousarray(values), observed)


def check_parity(fitted: Fitted, backend: OnnxBackend, feeds: dict[str, list[Feeds]]) -> dict[str, float]:
    """Compare torch and onnxruntime on the same inputs, output by output.

    Returns
    -------
    dict of float
        Largest difference per ``graph/output``, in units of its tolerance.

    Raises
    ------
    ParityError
        If one exceeds its tolerance, or a value in raw units is not finite.
    """
    worst: dict[str, float] = {}
    for graph, batches in feeds.items():
        for values in batches:
            expected, actual = TorchBackend(fitted.graphs).run(graph, values), backend.run(graph, values)
            for name in RAW:
                if name in actual and not np.isfinite(actual[name]).all():
                    raise ParityError(
                        f"{graph}/{name} holds a value that is not finite; "
                        "the bundle was not written: report this as a bug"
                    )
            for name, found in disagreements(expected, actual, fitted.manifest).items():
                worst[f"{graph}/{name}"] = max(found, worst.get(f"{graph}/{name}", 0.0))
            if graph == "score" and not p_values_agree(actual, fitted.calibration["score_score"]):
                raise ParityError(
                    "the score graph's p-values are not those of its calibration table; "
                    "the bundle was not written: report this as a bug"
                )
    key = max(worst, key=lambda name: worst[name])
    if worst[key] > 1:
        raise ParityError(
            f"{key} differs between torch and onnxruntime by {worst[key]:.3g} times its tolerance; "
            "the bundle was not written: report this as a bug"
        )
    log.info("parity: largest difference %.3g of its tolerance, in %s", worst[key], key)
    return worst


def golden(fitted: Fitted, backend: OnnxBackend) -> Feeds:
    """Synthetic inputs with the graphs' outputs: the self-test that runs on every load."""
    samples = synthetic(fitted.manifest.schema, PAD_TO, seed=3)
    both = {"x": samples.values, "observed": samples.observed}
    kept: Feeds = {}
    for graph in (name for name in TESTED if name in fitted.graphs):
        feeds, out = _feeds(fitted, graph, both), backend.run(graph, _feeds(fitted, graph, both))
        kept |= {f"{graph}/in/{name}": value for name, value in feeds.items()}
        kept |= {f"{graph}/out/{name}": out[name] for name in out if not name.startswith(UNKEPT)}
    return kept


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
