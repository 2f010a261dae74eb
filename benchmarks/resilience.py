"""What the service does when reloaded, overloaded, starved, stopped and kept busy: parts of `service`."""

from __future__ import annotations

import collections
import json
import os
import shutil
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.load import Load, finish
from benchmarks.served import Served, ours
from vae_anomaly.runtime import load_bundle

if TYPE_CHECKING:
    from benchmarks.service import Bench

PARTS = ("reload", "overload", "slow_clients", "sigterm", "soak")
FLIPS = 20
REQUESTS = 5000
SLOW_CLIENTS = 50
SOAK_GROWTH_MB = 20.0


def reload(bench: Bench) -> dict[str, Any]:
    """Version flips under load; every answer must equal the version that it names."""
    from mlflow import MlflowClient

    from vae_anomaly.mlflow_access import local_tracking_uri, mlflow_session

    flips, total = (2, 200) if bench.quick else (FLIPS, REQUESTS)
    root = bench.folder / "mlruns"
    root.mkdir(exist_ok=True)
    uri = local_tracking_uri(root)
    folders = {"1": bench.bundle("mlp"), "2": bench.bundle("mlp2")}
    with mlflow_session(timeout=10):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = client.create_experiment("e", artifact_location=(root / "artifacts").as_uri())
        client.create_registered_model("m")
        for folder in folders.values():
            bundle = load_bundle(folder, device="cpu")
            draft = bench.folder / f"draft-{folder.name}" / "bundle"
            shutil.copytree(folder, draft)
            model = client.create_logged_model(experiment, folder.name)
            client.log_model_artifacts(model.model_id, str(draft.parent))
            client.create_model_version("m", model.artifact_location, tags={"bundle_digest": bundle.digest})
        client.set_registered_model_alias("m", "champion", "1")
    os.environ |= {"MLFLOW_TRACKING_URI": uri, "XDG_CACHE_HOME": str(bench.folder / "cache")}
    requests = bench.json_single()
    with ours("models:/m@champion", bench.folder, reload_every=0.1) as server:
        rate = 100.0 if bench.quick else 150.0
        load = Load(server.port, requests, 8, 600.0, rate=rate, total=total, keep=True).start(bench.folder)
        seen, seconds = "1", []
        while len(seconds) < flips and load.poll() is None:
            begun, wanted = time.perf_counter(), "2" if seen == "1" else "1"
            with mlflow_session(timeout=10):
                client.set_registered_model_alias("m", "champion", wanted)
            while seen != wanted and load.poll() is None:
                time.sleep(0.02)
                seen = json.loads(server.get("/v1/model")[1])["version"]
            seconds.append(time.perf_counter() - begun)
        found = finish(load)
    wrong, versions = _wrong_answers(bench, found["answers"], folders)
    return {
        "flips": len(seconds),
        "requests": found["sent"],
        "failed": found["sent"] - found["statuses"].get("200", 0),
        "unlike_their_version": wrong,
        "answers_by_version": versions,
        "seconds_per_flip": float(np.median(seconds)),
        "p99_ms": found["p99_ms"],
    }


def _wrong_answers(bench: Bench, answers: list[Any], folders: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """Answers that are not the bits of the version that they name."""
    expected = {v: load_bundle(folder, device="cpu").scores(bench.test) for v, folder in folders.items()}
    versions: collections.Counter[str] = collections.Counter()
    wrong = 0
    for which, status, body in answers:
        if status != 200:
            continue
        told = json.loads(body)
        score = next(out["data"][0] for out in told["outputs"] if out["name"] == "score")
        versions[told["model_version"]] += 1
        wrong += score != expected[told["model_version"]]["score"].iloc[which]
    return int(wrong), dict(versions)


def overload(bench: Bench) -> dict[str, Any]:
    """Ten times as many rows as it can score, for ten seconds; then as before."""
    seconds = 2.0 if bench.quick else 10.0
    with ours(str(bench.bundle("conv")), bench.folder, model_name="m") as server:
        heavy, light = bench.binary(256), bench.binary(1, 64)
        bench.load(server, heavy, connections=4)
        capacity = bench.load(server, heavy, connections=4)["per_second"]
        before = bench.load(server, light, connections=4, rate=20.0)
        found = bench.load(server, heavy, connections=400, seconds=seconds, rate=10 * capacity)
        time.sleep(5)
        after = bench.load(server, light, connections=4, rate=20.0)
    return {
        "capacity_rows_per_second": capacity * 256,
        "offered_rows_per_second": found["sent"] / seconds * 256,
        "statuses": found["statuses"],
        "without_retry_after": found["without_retry_after"],
        "slowest_seconds": found["max_ms"] / 1000,
        "p99_ms_before": before["p99_ms"],
        "p99_ms_after": after["p99_ms"],
        "statuses_after": after["statuses"],
    }


def slow_clients(bench: Bench) -> dict[str, Any]:
    """Clients that say nothing, half a request, or a byte a second; others beside them."""
    deadline = 1.0 if bench.quick else 10.0
    closed: list[float] = []
    with ours(None, bench.folder, model_name="m", receive_deadline=deadline) as server:
        threads = [
            threading.Thread(target=_crawl, args=(server, kind, deadline, closed))
            for i in range(SLOW_CLIENTS)
            for kind in [("silent", "partial", "trickling")[i % 3]]
        ]
        before = _probes(server, 1.0)
        for thread in threads:
            thread.start()
        during = _probes(server, deadline)
        for thread in threads:
            thread.join()
    return {
        "clients": SLOW_CLIENTS,
        "closed": len(closed),
        "deadline_seconds": deadline,
        "slowest_closed_seconds": max(closed, default=0.0),
        "others_failed": during["failed"],
        "others_p99_ms": during["p99_ms"],
        "others_p99_ms_before": before["p99_ms"],
    }


def _probes(server: Served, seconds: float) -> dict[str, Any]:
    took, failed, ends = [], 0, time.perf_counter() + seconds
    while time.perf_counter() < ends:
        begun = time.perf_counter()
        failed += server.get("/v1/model")[0] != 200
        took.append(time.perf_counter() - begun)
        time.sleep(0.01)
    return {"failed": failed, "p99_ms": 1000 * float(np.quantile(took, 0.99))}


def _crawl(server: Served, kind: str, deadline: float, closed: list[float]) -> None:
    begun = time.perf_counter()
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", server.port), timeout=2 * deadline + 5) as wire:
        if kind == "partial":
            wire.sendall(head[:40])
        elif kind == "trickling":
            wire.sendall(head)
        wire.settimeout(0.5 if kind == "trickling" else 2 * deadline + 5)
        while time.perf_counter() - begun < 2 * deadline + 5:
            try:
                if kind == "trickling":
                    wire.sendall(b" ")
                if not wire.recv(4096):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            return
    closed.append(time.perf_counter() - begun)


def sigterm(bench: Bench) -> dict[str, Any]:
    """Stopped in the middle of a load: what it logs as answered must have reached the client."""
    runs = 2 if bench.quick else 10
    lost, exits, codes, answered = 0, [], [], 0
    for _ in range(runs):
        with ours(str(bench.bundle("mlp")), bench.folder, model_name="m") as server:
            load = Load(server.port, bench.json_single(), 16, 3.0).start(bench.folder)
            time.sleep(1.5)
            begun = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            codes.append(server.process.wait(60))
            exits.append(time.perf_counter() - begun)
            found = finish(load)
            admitted = [line for line in server.logged() if str(line.get("route")).endswith("/infer")]
        lost += len(admitted) - sum(n for status, n in found["statuses"].items() if status != "0")
        answered += len(admitted)
    return {
        "runs": runs,
        "admitted": answered,
        "lost": lost,
        "slowest_exit_seconds": max(exits),
        "exit_codes": sorted(set(codes)),
    }


def soak(bench: Bench) -> dict[str, Any]:
    """Memory over a minute at 80 % load; the same with a leak of 4 kB a request planted in the server."""
    sound, leaking = (_soaked(bench, module) for module in ("pipelines.cli", "benchmarks.leaky"))
    return {
        "growth_mb": sound["growth_mb"],
        "requests": sound["requests"],
        "planted_growth_mb": leaking["growth_mb"],
        "planted_leak_is_caught": leaking["growth_mb"] > SOAK_GROWTH_MB,
        "sound": sound,
        "leaking": leaking,
    }


def _soaked(bench: Bench, module: str) -> dict[str, Any]:
    seconds = 3.0 if bench.quick else 60.0
    settings = {"model_name": "m"}
    with ours(str(bench.bundle("mlp")), bench.folder, module, **settings) as server:
        requests = bench.json_single()
        most = bench.load(server, requests)["per_second"]
        bench.load(server, requests, rate=0.8 * most, seconds=seconds / 6)
        before = server.memory_mb()
        found = bench.load(server, requests, rate=0.8 * most, seconds=seconds)
        after = server.memory_mb()
    return {
        "growth_mb": after - before,
        "memory_mb": after,
        "requests": found["sent"],
        "statuses": found["statuses"],
        "rate": 0.8 * most,
    }
