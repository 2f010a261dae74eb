"""The service on a real socket, in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from serving.service.engine import Engine, Models
from serving.service.metrics import Metrics
from serving.service.server import listeners, run
from serving.service.settings import Settings
from vae_anomaly.runtime import Bundle

TIMEOUT = 20.0
JSON = {"content-type": "application/json"}


@dataclass
class Live:
    """A running service."""

    settings: Settings
    models: Models
    metrics: Metrics
    port: int
    ops_port: int | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=TIMEOUT, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.request("GET", path, **arguments)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """Bytes as they are; anything else as JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if not isinstance(body, bytes):
            body, named = json.dumps(body).encode(), JSON | named
        return self.request("POST", path, content=body, headers=named)

    def raw(self, *parts: bytes, end: bool = False) -> httpx.Response | None:
        """Send bytes as they are and read until the server closes; None if it says nothing."""
        with self.connect() as connection:
            for part in parts:
                try:
                    connection.sendall(part)
                except OSError:  # refused half-way
                    break
            if end:
                connection.shutdown(socket.SHUT_WR)
            return answer_of(read_all(connection))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def answer_of(data: bytes) -> httpx.Response | None:
    """The first response in a stream of bytes."""
    if not data:
        return None
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = [tuple(line.split(b": ", 1)) for line in lines]
    length = int(dict(headers).get(b"content-length", len(body)))
    return httpx.Response(int(first.split()[1]), headers=headers, content=body[:length])  # type: ignore[arg-type]


def head(method: str, path: str, *lines: str) -> bytes:
    """The head of a request; each line after the Host is given whole."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *lines, "", ""]).encode("latin-1")


@contextmanager
def live(bundle: Bundle, name: str = "sensors", **given: Any) -> Iterator[Live]:
    """Start it, wait until it listens, stop it in the end."""
    settings = Settings(port=0, **given)
    metrics = Metrics()
    engine = Engine(bundle, name, "7", workers=1, watch=metrics)
    metrics.serving(engine.name, engine.version, engine.provider, engine.calibration)
    models = Models(engine)
    sockets = listeners(settings)
    ports = [place.getsockname()[1] for place in sockets]
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(run(models, settings, metrics, sockets, stop),)
    )
    thread.start()
    try:
        yield Live(settings, models, metrics, ports[0], ports[1] if len(ports) > 1 else None)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        loop.close()
