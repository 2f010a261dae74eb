"""A lean load generator: prebuilt requests over keep-alive connections, in a process of its own.

``python -m benchmarks.load SPEC.json`` prints one JSON object. Of every answer it looks at the status and the
length, nothing more, so that it takes little of a machine that it shares with the server; its own share is
in the result.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import json
import random
import re
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
LOST = 0  # in place of a status: the connection ended before the answer


@dataclass(frozen=True)
class Load:
    """What to send, and how hard.

    Attributes
    ----------
    port : int
    requests : list of str
        Whole requests, base64; sent in turn.
    connections : int
    seconds : float
        New requests are sent for so long.
    rate : float, optional
        Requests per second in all, at random times; without it every connection sends as soon as it has
        an answer.
    total : int, optional
        Stop after so many.
    keep : bool
        Return the answers too.
    patience : float
        Seconds until a request counts as lost.
    """

    port: int
    requests: list[str]
    connections: int = 32
    seconds: float = 5.0
    rate: float | None = None
    total: int | None = None
    keep: bool = False
    patience: float = 40.0

    def run(self, folder: Path) -> dict[str, Any]:
        """Run it in a process of its own."""
        return finish(self.start(folder))

    def start(self, folder: Path) -> Any:
        """Begin in a process of its own; `finish` waits for what it found."""
        import subprocess

        spec = folder / f"load-{time.monotonic_ns()}.json"
        spec.write_text(json.dumps(asdict(self)))
        return subprocess.Popen([sys.executable, "-m", "benchmarks.load", str(spec)])


def finish(process: Any) -> dict[str, Any]:
    """What a load that was begun found."""
    if process.wait():
        raise SystemExit(f"the load generator failed with exit code {process.returncode}")
    found: dict[str, Any] = json.loads(_results(Path(process.args[-1])).read_text())
    return found


def _results(spec: Path) -> Path:
    # Not a pipe: it would hold up a long load until somebody reads.
    return spec.with_suffix(".found")


def request(path: str, body: bytes, media: str = "application/json", **headers: str) -> str:
    """A whole request, as `Load` takes it."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\n{more}"
    return base64.b64encode(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body).decode()


@dataclass
class Found:
    """What has come back."""

    latencies: list[float] = field(default_factory=list)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    answers: list[tuple[int, int, str]] = field(default_factory=list)
    without_retry: int = 0
    sent: int = 0


class Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, load: Load, wire: list[bytes], found: Found, ends: float) -> None:
        self.load, self.wire, self.found, self.ends = load, wire, found, ends
        self.transport: asyncio.Transport | None = None
        self.received = bytearray()
        self.done = asyncio.get_running_loop().create_future()
        self.began = time.perf_counter()
        self.which = -1
        self.needed = 0

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self.transport = transport
        self.next()

    def next(self) -> None:
        """Send the next request now, or when it is due."""
        loop, load = asyncio.get_running_loop(), self.load
        now = time.perf_counter()
        due = now
        if load.rate is not None:
            # From when it was due, not from when it could be sent: waiting for the last answer counts.
            due = self.began + random.expovariate(load.rate / load.connections)
        if due >= self.ends or (load.total is not None and self.found.sent >= load.total):
            self.finish()
        elif due > now:
            loop.call_later(due - now, self.send, due)
        else:
            self.send(due)

    def send(self, due: float) -> None:
        """Send now what was due then."""
        if self.transport is None or self.transport.is_closing():
            return
        self.which = self.found.sent % len(self.wire)
        self.found.sent += 1
        self.began = due
        self.transport.write(self.wire[self.which])

    def data_received(self, data: bytes) -> None:
        """Gather an answer until it is whole."""
        received = self.received
        received += data
        if not self.needed:
            head = received.find(b"\r\n\r\n")
            if head < 0:
                return
            length = LENGTH.search(received, 0, head)
            self.needed = head + 4 + (int(length[1]) if length else 0)
        if len(received) >= self.needed:
            self.answered(time.perf_counter())

    def answered(self, now: float) -> None:
        """Count an answer and go on."""
        status = int(self.received[9:12])
        self.found.latencies.append(now - self.began)
        self.found.statuses[status] += 1
        if status in (429, 503) and not RETRY.search(self.received):
            self.found.without_retry += 1
        if self.load.keep:
            body = bytes(self.received[self.received.find(b"\r\n\r\n") + 4 :])
            self.found.answers.append((self.which, status, body.decode()))
        self.received.clear()
        self.needed, self.which = 0, -1
        self.next()

    def finish(self) -> None:
        """Send nothing more."""
        if self.transport is not None:
            self.transport.close()
        if not self.done.done():
            self.done.set_result(True)

    def connection_lost(self, error: Exception | None) -> None:
        """Count what was under way as lost."""
        if self.which >= 0:
            self.found.statuses[LOST] += 1
            self.which = -1
        if not self.done.done():
            self.done.set_result(False)


async def drive(load: Load) -> dict[str, Any]:
    """All connections; one that is lost is opened anew while time is left."""
    loop, found = asyncio.get_running_loop(), Found()
    wire = [base64.b64decode(text) for text in load.requests]
    started = time.perf_counter()
    ends = started + load.seconds

    async def connection() -> None:
        while time.perf_counter() < ends and (load.total is None or found.sent < load.total):
            try:
                _, made = await loop.create_connection(
                    lambda: Connection(load, wire, found, ends), "127.0.0.1", load.port
                )
            except OSError:
                found.statuses[LOST] += load.total is None
                await asyncio.sleep(0.05)
                continue
            try:
                if await asyncio.wait_for(made.done, max(ends - time.perf_counter(), 0) + load.patience):
                    return
            except TimeoutError:
                made.finish()

    await asyncio.gather(*(connection() for _ in range(load.connections)))
    took = time.perf_counter() - started
    return summary(found, took)


def summary(found: Found, took: float) -> dict[str, Any]:
    """Rates, percentiles in milliseconds, and what the generator itself took."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    ordered = sorted(found.latencies)
    good = sum(count for status, count in found.statuses.items() if status == 200)

    def percentile(share: float) -> float | None:
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None

    return {
        "seconds": took,
        "sent": found.sent,
        "statuses": {str(status): count for status, count in sorted(found.statuses.items())},
        "per_second": good / took,
        "mean_ms": 1000 * statistics.fmean(ordered) if ordered else None,
        "p50_ms": percentile(0.5),
        "p99_ms": percentile(0.99),
        "max_ms": percentile(1.0),
        "without_retry_after": found.without_retry,
        "generator_cpu": (usage.ru_utime + usage.ru_stime) / took,
        "answers": found.answers,
    }


def main() -> None:
    """Run the spec named on the command line."""
    import uvloop

    spec = Path(sys.argv[1])
    load = Load(**json.loads(spec.read_text()))
    _results(spec).write_text(json.dumps(uvloop.run(drive(load))))


if __name__ == "__main__":
    main()
