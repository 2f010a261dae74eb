"""The runtime, the batch job and training on a CUDA GPU, against what the machine itself can do.

``python -m benchmarks.gpu`` needs nothing but a CUDA machine: models are trained here on made-up images. It
prints tables and writes gpu.json; without CUDA it says so and ends. Rates are those of whole calls, numpy in
and out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import parser, show, write
from serving.batch import score_file
from vae_anomaly.assembly import Fitted, Parts, TorchBackend
from vae_anomaly.exceptions import DeviceError
from vae_anomaly.export import export_bundle
from vae_anomaly.fitting import Fit, Settings, fit_model, recommended_model
from vae_anomaly.networks import ModelConfig
from vae_anomaly.runtime import Bundle, choose_provider, load_bundle
from vae_anomaly.schema import Array, Samples, infer_schema
from vae_anomaly.selftest import disagreements
from vae_anomaly.training import TrainingConfig

BATCHES = (16, 64, 256, 1024, 4096)
SIDE = 28
MLP = ModelConfig(network="mlp", hidden=(400,), latent_size=20, likelihood="bernoulli")
TARGET = 0.5
MIB = 2**20


def main() -> None:
    """Measure on the device asked for."""
    made = parser(__doc__, data=False)
    made.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu tries the plumbing only")
    made.add_argument("--seconds", type=float, default=1.0, help="of each rate")
    made.add_argument("--rows", type=int, default=200_000, help="of the batch job")
    options = made.parse_args()
    if options.quick:
        options.seconds, options.rows = 0.02, 600
    if options.device == "cuda" and (problem := no_cuda()):
        sys.stdout.write(f"nothing measured: {problem}\n")
        return
    limits = machine_limits(options)
    show("limits of this machine", [limits])
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            one_model(kind, dtype, Path(folder), limits, options)
            for kind in ("mlp", "conv")
            for dtype in ("uint8", "float32")
        ]
    payload: dict[str, dict[str, Any]] = {"limits": limits, "runtime": {"models": runs}}
    payload["training"] = {"models": training(options)}
    show("training", payload["training"]["models"])
    write("gpu", payload, options)


def no_cuda() -> str | None:
    """Why CUDA cannot be measured here."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        images = pictures(800, "uint8")
        with tempfile.TemporaryDirectory() as folder:
            export_bundle(fitted(MLP, images, "cpu").fitted, Path(folder) / "b")
            choose_provider((Path(folder) / "b" / "encode.onnx").read_bytes(), "cuda")
    except DeviceError as error:
        return str(error)
    return None


def pictures(rows: int, dtype: str, seed: int = 0) -> Array:
    """Smooth blobs, shape (rows, 1, 28, 28); whole numbers to 255 or floats to 1."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(6, SIDE - 6, (rows, 2, 1, 1))
    y, x = np.mgrid[:SIDE, :SIDE]
    blobs = np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / rng.uniform(10, 60, (rows, 1, 1)))
    noisy = np.clip(blobs + rng.normal(scale=0.02, size=blobs.shape), 0, 1)[:, None]
    return (255 * noisy).astype(np.uint8) if dtype == "uint8" else noisy.astype(np.float32)


def fitted(
    network: ModelConfig, images: Array, device: str, precision: str = "float32", epochs: int = 1
) -> Fit:
    """A model after few epochs."""
    schema = infer_schema(images)
    samples = schema.read(images)
    cuts = np.split(np.arange(len(images)), [-400, -250])
    parts = Parts(*(Samples(samples.values[rows], samples.observed[rows]) for rows in cuts))
    config = TrainingConfig(epochs=epochs, precision=precision)
    return fit_model(schema, parts, Settings(network, training=config), device=device)


def network_of(kind: str, images: Array) -> ModelConfig:
    """The MLP of the MNIST recipes, or what is recommended for images."""
    return MLP if kind == "mlp" else recommended_model(infer_schema(images))


def rate(work: Callable[[], object], seconds: float, sync: Callable[[], object]) -> float:
    """Calls per second, after two to warm up."""
    for _ in range(2):
        work()
    sync()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        work()
        calls += 1
        if calls % 8 == 0:
            sync()
    sync()
    return calls / (time.perf_counter() - started)


def machine_limits(options: argparse.Namespace) -> dict[str, Any]:
    """Copies to and from the device and memory on it in GB/s, float32 products in TFLOP/s."""
    device, side, size = options.device, (256, 4096)[not options.quick], (4, 256)[not options.quick] * MIB
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=device == "cuda")
    there, other = host.to(device), host.to(device)
    a = torch.rand(side, side, device=device)
    torch.backends.cuda.matmul.allow_tf32 = False
    per = {
        "to_device_gb": (lambda: there.copy_(host, non_blocking=True), size / 1e9),
        "from_device_gb": (lambda: host.copy_(there, non_blocking=True), size / 1e9),
        "memory_gb": (lambda: other.copy_(there), 2 * size / 1e9),
        "float32_tflop": (lambda: a @ a, 2 * side**3 / 1e12),
    }
    return {name: rate(work, options.seconds, sync) * amount for name, (work, amount) in per.items()}


def one_model(
    kind: str, dtype: str, folder: Path, limits: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Rows per second of one bundle at several batch sizes, its limits, the batch job, parity."""
    images = pictures(4096 if not options.quick else 900, dtype)
    path = folder / f"{kind}-{dtype}"
    model = fitted(network_of(kind, images), images[:900], "cpu").fitted
    export_bundle(model, path)
    bundle = load_bundle(path, device=options.device, batch_size=max(BATCHES))
    rates = {}
    for size in BATCHES:
        rows = np.resize(images, (size, *images.shape[1:]))
        rates[size] = size * rate(lambda rows=rows: bundle.verdicts(rows), options.seconds, lambda: None)  # type: ignore[misc]
    bound, name = binding_limit(model, images, limits)
    best = max(rates.values())
    found = {
        "model": kind,
        "input": dtype,
        "provider": bundle.provider,
        "rows_per_second": rates,
        "batch_job_rows_per_second": batch_job(bundle, images, folder / f"{kind}-{dtype}.npy", options.rows),
        "binding_limit": name,
        "limit_rows_per_second": bound,
        "share_of_limit": best / bound,
        "reached": best / bound >= TARGET,
        "parity": parity(bundle, path, images[:256]),
    }
    shown = {key: value for key, value in found.items() if not isinstance(value, dict)}
    show(f"{kind}, {dtype}", [shown | {f"rows/s at {size}": value for size, value in rates.items()}])
    return found


def binding_limit(model: Fitted, images: Array, limits: dict[str, Any]) -> tuple[float, str]:
    """The fewest rows per second that copy, memory and compute of this machine allow, and which it is.

    Operations are counted by torch for one row of the score graph; memory is the parameters' and the row's
    own bytes, read once per batch of the largest size.
    """
    from torch.utils.flop_counter import FlopCounterMode

    samples = infer_schema(images).read(images[:16])
    backend = TorchBackend(model.graphs)
    with FlopCounterMode(display=False) as counter:
        backend.run("score", {"x": samples.values, "observed": samples.observed})
    row_bytes = samples.values[0].nbytes + samples.observed[0].nbytes
    weights = sum(part.numel() * part.element_size() for part in model.model.parameters())
    rows = {
        "copy": limits["to_device_gb"] * 1e9 / row_bytes,
        "memory": limits["memory_gb"] * 1e9 / (row_bytes + weights / max(BATCHES)),
        "compute": limits["float32_tflop"] * 1e12 / (counter.get_total_flops() / 16),
    }
    name = min(rows, key=lambda key: rows[key])
    return rows[name], name


def batch_job(bundle: Bundle, images: Array, source: Path, rows: int) -> float:
    """Rows per second of ``vae-anomaly score`` from an .npy to Parquet."""
    np.save(source, np.resize(images, (rows, *images.shape[1:])))
    started = time.perf_counter()
    score_file(bundle, source, source.with_suffix(".parquet"))
    return rows / (time.perf_counter() - started)


def parity(bundle: Bundle, path: Path, images: Array) -> float:
    """Largest difference from the CPU, 1 = the tolerance between torch and onnxruntime on a CPU."""
    samples = bundle.schema.read(images)
    cpu = load_bundle(path, device="cpu")
    expected, actual = cpu.run("score", samples), bundle.run("score", samples)
    return max(disagreements(expected, actual, bundle.manifest).values())


def training(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Samples per second of the last epoch, in both precisions."""
    rows = 800 if options.quick else 50_000
    images, found = pictures(rows, "uint8"), []
    for kind in ("mlp", "conv"):
        for precision in ("float32", "bfloat16"):
            epochs = 2 if options.quick else 4
            fit = fitted(network_of(kind, images), images, options.device, precision, epochs)
            best = max(float(epoch["samples_per_second"]) for epoch in fit.history)
            found.append({"model": kind, "precision": precision, "samples_per_second": best})
    return found


if __name__ == "__main__":
    main()
