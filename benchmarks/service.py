"""The HTTP service under load: throughput, latency, batching, reload, overload, slow clients, drain, soak.

``python -m benchmarks.service --data-root DIR`` measures all parts; the models are MNIST's, briefly trained,
with the default scores. Load comes from a process of its own on the same machine; what it takes is in the
results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import mnist, resilience
from benchmarks.harness import comparison, interleave, parser, show, write
from benchmarks.load import Load, request
from benchmarks.served import Served, mlflows, ours
from vae_anomaly.assembly import Parts
from vae_anomaly.export import export_bundle
from vae_anomaly.fitting import Settings, fit_model, recommended_model
from vae_anomaly.networks import ModelConfig
from vae_anomaly.runtime import load_bundle
from vae_anomaly.schema import Array, Samples, infer_schema
from vae_anomaly.training import TrainingConfig

PARTS = ("binary", "singles", "batching", "latency", "start", *resilience.PARTS)
CONNECTIONS = 32
ROWS = 256
DISTINCT = 64  # requests that take turns


class Bench:
    """Bundles, images and a folder for what the parts share."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.folder, self.quick, self.rounds = folder, options.quick, options.rounds
        self.seconds = 1.0 if options.quick else options.seconds
        self.train = mnist.images(options.data_root, True, 1000 if self.quick else 4000)
        self.test = mnist.images(options.data_root, False, 2048)
        self._bundles: dict[str, Path] = {}

    def bundle(self, name: str) -> Path:
        """The bundle of a network after one epoch: its speed does not depend on what it has learnt."""
        if name not in self._bundles:
            conv = name.startswith("conv")
            network = recommended_model(infer_schema(self.train)) if conv else mnist.NETWORK
            self._bundles[name] = made(network, self.train, self.folder / name, int(name[-1] == "2"))
        return self._bundles[name]

    def json_single(self) -> list[str]:
        """One image a request, as numbers in JSON."""
        return [request(infer_path(), json_tensor(self.test[i : i + 1])) for i in range(DISTINCT)]

    def binary(self, rows: int, count: int = 8) -> list[str]:
        """Images of a request as bytes."""
        cuts = [self.test[i * rows : (i + 1) * rows] for i in range(min(count, len(self.test) // rows))]
        return [binary_request(cut) for cut in cuts]

    def load(self, server: Served, requests: list[str], **how: Any) -> dict[str, Any]:
        """Load for the usual time, with the server's own share of a core."""
        load = Load(server.port, requests, **{"connections": CONNECTIONS, "seconds": self.seconds, **how})
        before = server.cpu_seconds()
        found = load.run(self.folder)
        found["server_cpu"] = (server.cpu_seconds() - before) / found["seconds"]
        del found["answers"]
        return found


def made(network: ModelConfig, train: Array, folder: Path, seed: int) -> Path:
    """A model after one epoch, exported with the default scores."""
    samples = infer_schema(train).read(train)
    cuts = np.split(np.arange(len(train)), [-700, -500])
    parts = Parts(*(Samples(samples.values[rows], samples.observed[rows]) for rows in cuts))
    settings = Settings(network, training=TrainingConfig(epochs=1))
    fit = fit_model(infer_schema(train), parts, settings, device="cpu", seed=seed)
    export_bundle(fit.fitted, folder)
    return folder


def infer_path() -> str:
    """Of the score, whose model is called `m` by setting."""
    return "/v2/models/m/infer"


def json_tensor(images: Array) -> bytes:
    """A request of the Open Inference Protocol, in JSON."""
    tensor = {"name": "x", "shape": images.shape, "datatype": "UINT8", "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def binary_request(images: Array) -> str:
    """The same with its tensors, in and out, as bytes behind the JSON."""
    tensor = {"name": "x", "shape": images.shape, "datatype": "UINT8"}
    size = {"binary_data_size": images.nbytes}
    head = json.dumps(
        {"inputs": [{**tensor, "parameters": size}], "parameters": {"binary_data_output": True}}
    ).encode()
    return request(
        infer_path(),
        head + images.tobytes(),
        "application/octet-stream",
        Inference_Header_Content_Length=str(len(head)),
    )


def binary(bench: Bench) -> dict[str, Any]:
    """256 rows a request against the same calls in this process."""
    folder = bench.bundle("mlp")
    direct = load_bundle(folder, device="cpu", threads=1, batch_size=ROWS)
    cuts = [bench.test[i : i + ROWS] for i in range(0, len(bench.test), ROWS)]
    rates: dict[str, list[float]] = {"direct": [], "http": []}
    last: dict[str, Any] = {}
    with ours(str(folder), bench.folder, model_name="m") as server:
        requests = bench.binary(ROWS)

        def in_process() -> None:
            started, rows = time.perf_counter(), 0
            while time.perf_counter() < started + bench.seconds:
                for cut in cuts:
                    direct.verdicts(cut)
                    rows += len(cut)
            rates["direct"].append(rows / (time.perf_counter() - started))

        def over_http() -> None:
            last.update(bench.load(server, requests, connections=4))
            rates["http"].append(last["per_second"] * ROWS)

        interleave({"direct": in_process, "http": over_http}, bench.rounds)
    share = comparison(rates["http"], rates["direct"])
    return {"share": share, "rows_per_second": rates, "last": last}


def singles(bench: Bench) -> dict[str, Any]:
    """One row a request at 32 connections, against MLflow's server of the same model."""
    folder = bench.bundle("mlp")
    theirs = [
        request("/invocations", json.dumps({"inputs": bench.test[i : i + 1].tolist()}).encode())
        for i in range(DISTINCT)
    ]
    with (
        ours(str(folder), bench.folder, model_name="m") as server,
        mlflows(folder, bench.folder) as peer,
    ):
        return contest(
            bench,
            {
                "ours": lambda: bench.load(server, bench.json_single()),
                "binary": lambda: bench.load(server, bench.binary(1, DISTINCT)),
                "mlflow": lambda: bench.load(peer, theirs),
            },
            ("ours", "mlflow"),
        )


def batching(bench: Bench) -> dict[str, Any]:
    """With and without micro-batching."""
    found = {}
    for name in ("conv", "mlp"):
        folder, settings = str(bench.bundle(name)), {"model_name": "m"}
        with (
            ours(folder, bench.folder, **settings) as server,
            ours(folder, bench.folder, batch_rows=1, **settings) as alone,
        ):
            requests = bench.binary(1, DISTINCT)
            loads = {
                "together": partial(bench.load, server, requests),
                "alone": partial(bench.load, alone, requests),
            }
            found[name] = contest(bench, loads, ("together", "alone"))
    return found


def contest(
    bench: Bench, loads: dict[str, Callable[[], dict[str, Any]]], pair: tuple[str, str]
) -> dict[str, Any]:
    """Requests per second of contenders in turn, and the first against the second."""
    rates: dict[str, list[float]] = {name: [] for name in loads}
    last: dict[str, dict[str, Any]] = {}

    def one(name: str) -> None:
        last[name] = loads[name]()
        wrong = set(last[name]["statuses"]) - {"200"}
        if wrong:
            raise SystemExit(f"{name} answered {last[name]['statuses']}")
        rates[name].append(last[name]["per_second"])

    for load in loads.values():  # to warm up
        load()
    interleave({name: partial(one, name) for name in loads}, bench.rounds)
    times = comparison(rates[pair[0]], rates[pair[1]])
    return {"times": times, "requests_per_second": rates, "last": last}


def latency(bench: Bench) -> dict[str, Any]:
    """Percentiles at half of the highest rate, requests coming at random."""
    with ours(str(bench.bundle("mlp")), bench.folder, model_name="m") as server:
        requests = bench.json_single()
        bench.load(server, requests)
        most = bench.load(server, requests)["per_second"]
        runs = [bench.load(server, requests, rate=most / 2) for _ in range(bench.rounds)]
    p99 = sorted(run["p99_ms"] for run in runs)
    return {"highest_rate": most, "p99_ms": p99[len(p99) // 2], "runs": runs}


def start(bench: Bench) -> dict[str, Any]:
    """Seconds from the command to ready, of the bundle that ships with the package."""
    seconds = []
    for _ in range(1 if bench.quick else 5):
        with ours(None, bench.folder) as server:
            seconds.append(server.ready_seconds)
    return {"seconds": sorted(seconds)[len(seconds) // 2], "runs": seconds}


def main() -> None:
    """Measure the parts asked for and write service.json."""
    made_parser = parser(__doc__)
    made_parser.add_argument(
        "--only", choices=PARTS, action="append", help="a part; the others keep what they have"
    )
    made_parser.add_argument("--rounds", type=int, default=5, help="of contenders in turn")
    made_parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    options = made_parser.parse_args()
    if options.quick:
        options.rounds = 1
    own = {"binary": binary, "singles": singles, "batching": batching, "latency": latency, "start": start}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for part in options.only or PARTS:
            measure = own.get(part) or getattr(resilience, part)
            found = measure(bench)
            show(part, [flat(found)])
            write("service", {part: found}, options)


def flat(found: dict[str, Any]) -> dict[str, object]:
    """Plain values of a section, for the terminal."""
    plain = {key: value for key, value in found.items() if isinstance(value, int | float | str)}
    ratios = {key: found[key]["median"] for key in ("times", "share") if key in found}
    nested = {
        key: value["times"]["median"]
        for key, value in found.items()
        if "times" in str(value) and isinstance(value, dict) and "times" in value
    }
    return plain | ratios | nested


if __name__ == "__main__":
    main()
