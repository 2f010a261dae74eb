"""5,000 hostile requests to a running service: never a 5xx but 503 with Retry-After, alive, little memory.

schemathesis makes requests from the service's own OpenAPI document, good ones and bad ones; valid bodies of
every format are mutated byte by byte; heads of requests are mutated and sent over bare sockets. Each
kind gets a third of the requests. Memory is resident memory after the fuzz less that after 200
ordinary requests.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import harness

WARM_UP = 200
TIMEOUT = 20.0
# What parsers trip over, put into bodies and heads.
TOKENS = (
    b"NaN", b"1e999", b"-1", b"null", b"\x00", b"\xff\xfe", b"\r\n", b"\r\n\r\n", b"[" * 64, b"{" * 64, b'"',
    b"9" * 400, b"\\ud800", b"%00", b"%ff", b"../../etc/passwd", b"\xf0\x9f\x98\x80", b"A" * 5000,
    b"Infinity", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00",
    b"transfer-encoding: chunked\r\n", b"content-length: -1\r\n",
    b"expect: 100-continue\r\n", b"host: a\r\n", b"upgrade: websocket\r\nconnection: upgrade\r\n",
)  # fmt: skip
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "negative_data_rejection",
)


def main() -> None:
    """Run all and write the figures."""
    made = harness.parser(__doc__, data=False)
    made.add_argument("--bundle", type=Path, help="of a table; a small one is fitted by default")
    made.add_argument("--requests", type=int, default=5000)
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args()
    count = 150 if options.quick else options.requests
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or fitted_bundle(Path(folder))
        found = fuzz(bundle, count, options.seed)
    harness.show("fuzz", [{"figure": key, "value": str(value)} for key, value in found.items()])
    harness.write("fuzz", {"fuzz": found}, options)
    if found["server_errors"] or not found["alive"]:
        sys.exit(1)


def fitted_bundle(folder: Path) -> Path:
    """A model of the thirteen columns of scikit-learn's wines."""
    from sklearn.datasets import load_wine

    from vae_anomaly import VAEDetector

    x = load_wine(as_frame=True).data
    VAEDetector(random_state=0, device="cpu").fit(x).export(folder / "bundle")
    return folder / "bundle"


def fuzz(bundle: Path, count: int, seed: int) -> dict[str, Any]:
    """Send ``count`` hostile requests to a fresh service.

    Returns
    -------
    dict
        ``requests`` by kind, ``statuses`` by number, ``server_errors`` (5xx that are not 503 with
        Retry-After), ``alive``, ``memory_mb`` gained.
    """
    rng = np.random.default_rng(seed)
    with running(bundle) as service:
        samples = valid_requests(service)
        for i in range(WARM_UP):
            service.send(*samples[i % len(samples)])
        before = service.resident_mb()
        tally = Tally()
        mutate_bodies(service, samples, count // 3, rng, tally)
        mutate_heads(service, samples, count // 3, rng, tally)
        from_document(service, count - 2 * (count // 3), seed, tally)
        return {
            "requests": dict(tally.requests),
            "total": sum(tally.requests.values()),
            "statuses": dict(sorted(tally.statuses.items())),
            "server_errors": tally.server_errors,
            "failed_checks": tally.failed_checks,
            "longest_s": tally.longest,
            "alive": service.is_alive(),
            "memory_mb": service.resident_mb() - before,
        }


class Tally:
    """What came back."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.server_errors = self.failed_checks = 0
        self.longest = 0.0

    def add(self, kind: str, status: int | None, headers: str, seconds: float) -> None:
        """Count one answer; a status of None is a connection closed without one."""
        self.requests[kind] += 1
        self.statuses[str(status) if status else "closed"] += 1
        told_to_return = status == 503 and "retry-after" in headers.lower()
        self.server_errors += status is not None and status >= 500 and not told_to_return
        self.longest = max(self.longest, seconds)


class Service:
    """A running ``vae-anomaly serve``."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def send(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int | None, str, bytes]:
        """Status, headers as text, and body of one POST."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            try:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                return answer.status, str(answer.headers), answer.read()
            except (ConnectionError, http.client.HTTPException):
                return None, "", b""

    def get(self, path: str) -> bytes:
        """The body of one GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read()

    def send_raw(self, data: bytes) -> bytes:
        """What comes back for bytes as they are."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT) as connection:
            parts = []
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    parts.append(part)
            return b"".join(parts)

    def is_alive(self) -> bool:
        """Whether it still answers."""
        return self.process.poll() is None and json.loads(self.get("/livez")) == {"status": "live"}

    def resident_mb(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) / 1024


@contextlib.contextmanager
def running(bundle: Path) -> Iterator[Service]:
    """Start the service in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(bundle), "--port", str(port)]
    environment = os.environ | {
        "VAE_ANOMALY_DEVICE": "cpu",
        "VAE_ANOMALY_LOG_LEVEL": "error",
        "VAE_ANOMALY_RECEIVE_DEADLINE": "2",
    }
    process = subprocess.Popen(command, env=environment)
    service = Service(process, port)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                if service.is_alive():
                    break
            time.sleep(0.2)
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def valid_requests(service: Service) -> list[tuple[str, bytes, dict[str, str]]]:
    """One good request for every path and format."""
    columns = json.loads(service.get("/v1/model"))["schema"]["columns"]
    name = json.loads(service.get("/v1/model"))["name"]
    row = {column["name"]: (column["low"] + column["high"]) / 2 for column in columns}
    gap = row | {columns[0]["name"]: None}
    x = np.array([list(row.values())] * 3)
    table, array = io.BytesIO(), io.BytesIO()
    sent = pa.Table.from_pylist([row, gap])
    with pa.ipc.new_stream(table, sent.schema) as writer:
        writer.write_table(sent)
    np.save(array, x)
    item = {"name": "x", "shape": list(x.shape), "datatype": "FP64"}
    head = json.dumps({"inputs": [item | {"parameters": {"binary_data_size": x.nbytes}}]}).encode()
    as_json = {"content-type": "application/json"}
    found = [
        (f"/v1/{e}", json.dumps({"rows": [row, gap]}).encode(), as_json)
        for e in ("score", "explain", "impute")
    ]
    found += [
        ("/v1/score", table.getvalue(), {"content-type": "application/vnd.apache.arrow.stream"}),
        ("/v1/impute", table.getvalue(), {"content-type": "application/vnd.apache.arrow.stream"}),
        ("/v1/score", array.getvalue(), {"content-type": "application/x-npy"}),
        (
            f"/v2/models/{name}/infer",
            json.dumps({"inputs": [item | {"data": x.ravel().tolist()}]}).encode(),
            as_json,
        ),
        (
            f"/v2/models/{name}-impute/infer",
            head + x.tobytes(),
            {"inference-header-content-length": str(len(head))},
        ),
    ]
    for path, body, headers in found:
        status, _, text = service.send(path, body, headers)
        if status != 200:
            raise SystemExit(f"{path} answered {status} to a good request: {text[:300]!r}")
    return found


def mutate_bodies(
    service: Service, samples: list[Any], count: int, rng: np.random.Generator, tally: Tally
) -> None:
    """Good heads, bad bodies."""
    for i in range(count):
        path, body, headers = samples[i % len(samples)]
        started = time.perf_counter()
        status, head, _ = service.send(path, mutated(body, rng), headers)
        tally.add("bodies", status, head, time.perf_counter() - started)


def mutate_heads(
    service: Service, samples: list[Any], count: int, rng: np.random.Generator, tally: Tally
) -> None:
    """Bad heads over bare sockets."""
    for i in range(count):
        path, body, headers = samples[i % len(samples)]
        lines = [
            f"POST {path} HTTP/1.1",
            "host: localhost",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        started = time.perf_counter()
        answer = service.send_raw(mutated(head, rng) + body)
        status = int(answer[9:12]) if answer[:9] == b"HTTP/1.1 " else None
        tally.add("heads", status, answer.decode("latin-1"), time.perf_counter() - started)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: a byte flipped, a part cut out, repeated or replaced, a token put in."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(changed) + 1))
        size = int(rng.integers(1, 40))
        kind = int(rng.integers(0, 6))
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del changed[at : at + size]
        elif kind == 2:
            changed[at:at] = changed[at : at + size] * int(rng.integers(1, 20))
        elif kind == 3:
            changed[at : at + size] = rng.bytes(size)
        elif kind == 4:
            del changed[at:]
        else:
            changed[at:at] = TOKENS[int(rng.integers(0, len(TOKENS)))]
    return bytes(changed)


def from_document(service: Service, count: int, seed: int, tally: Tally) -> None:
    """Let schemathesis ask, until it has asked often enough."""
    url = f"http://127.0.0.1:{service.port}/openapi.json"
    asked, round_ = 0, 0
    while asked < count:
        with tempfile.TemporaryDirectory() as folder:
            generated, failed = _schemathesis(
                url, seed + round_, max(10, (count - asked) // 17), Path(folder)
            )
        asked, round_ = asked + generated, round_ + 1
        tally.failed_checks += failed
        if generated == 0:
            raise SystemExit("schemathesis made no requests")
    tally.requests["document"] += asked


def _schemathesis(url: str, seed: int, examples: int, folder: Path) -> tuple[int, int]:
    """Requests made, and how many failed a check; a server error among them shows in the output."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", url, "--no-color", "--continue-on-failure", "--phases", "coverage,fuzzing"),
        *("--checks", ",".join(CHECKS), "--seed", str(seed), "-n", str(examples), "--warnings", "off"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    generated = re.search(r"([\d,]+) generated", done.stdout)
    failures = re.search(r"([\d,]+)(?: unique)? fail", done.stdout)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-1000:])
    failed = int(failures[1].replace(",", "")) if failures and done.returncode else int(done.returncode != 0)
    return int(generated[1].replace(",", "")) if generated else 0, failed


if __name__ == "__main__":
    main()
