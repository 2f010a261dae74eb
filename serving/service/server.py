"""Runs the app: sockets, ports, signals, and the way from a model's name to a service that is ready."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from serving.service.app import Readiness, make_app, make_ops_app
from serving.service.engine import Models
from serving.service.logs import log_as_json
from serving.service.metrics import Metrics
from serving.service.microbatch import Limits
from serving.service.protocol import BoundedProtocol
from serving.service.reload import Follower, Source
from serving.service.settings import Settings
from vae_anomaly.exceptions import ConfigError

log = logging.getLogger(__name__)

BACKLOG = 2048


class PortServer(uvicorn.Server):
    """uvicorn on one port; the signals belong to the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def serve(source: str, settings: Settings, tracking_uri: str | None = None) -> None:
    """Answer until the process is told to stop.

    Parameters
    ----------
    source : str
        A bundle folder, ``runs:/...`` or ``models:/...``.
    settings : Settings
    tracking_uri : str, optional

    Raises
    ------
    ConfigError
        If a port cannot be had.
    BundleError, DeviceError, TrackingError
        If the model cannot be served.
    """
    log_as_json(settings.log_level)
    metrics = Metrics()
    origin = origin_of(source, settings, metrics, tracking_uri)
    sockets = listeners(settings)
    engine = origin.open()
    metrics.serving(engine.name, engine.version, engine.provider, engine.calibration)
    models = Models(engine)
    follower = Follower(origin, models, metrics) if origin.moves and settings.reload_every else None
    facts = {"digest": engine.digest, "provider": engine.provider, "port": sockets[0].getsockname()[1]}
    log.info("serving %s, version %s", engine.name, engine.version, extra={"facts": facts})
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        loop, stop = runner.get_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(stop.set))
        runner.run(run(models, settings, metrics, sockets, stop, follower))


async def run(
    models: Models,
    settings: Settings,
    metrics: Metrics,
    sockets: list[socket.socket],
    stop: asyncio.Event,
    follower: Follower | None = None,
) -> None:
    """Serve on open sockets, the main port's first, until told to stop; then finish what was admitted."""
    readiness = Readiness()
    main = port_server(make_app(models, settings, metrics, readiness), settings)
    others = [port_server(make_ops_app(settings, metrics, readiness), settings)] if len(sockets) > 1 else []
    following = asyncio.create_task(follower.follow(settings.reload_every)) if follower else None
    serving = [
        asyncio.create_task(server.serve([place]))
        for server, place in zip([main, *others], sockets, strict=True)
    ]
    await stop.wait()
    log.info("stopping: requests that were admitted are answered")
    readiness.ready = False
    if following is not None:
        following.cancel()
    for server, task in zip([main, *others], serving, strict=True):  # probes answer to the last
        server.should_exit = True
        await task


def port_server(app: ASGIApp, settings: Settings) -> PortServer:
    """uvicorn, with our bounds on every connection."""
    protocol = partial(BoundedProtocol, settings)
    return PortServer(
        uvicorn.Config(
            app,
            http=cast(Any, protocol),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=cast(int, settings.keep_alive),
            timeout_graceful_shutdown=cast(int, settings.drain_deadline),
        )
    )


def listeners(settings: Settings) -> list[socket.socket]:
    """Open sockets of the main port and, if set, of the port for probes.

    Raises
    ------
    ConfigError
        If one cannot be had.
    """
    places = [(settings.host, settings.port)]
    if settings.ops_port is not None:
        places.append((settings.ops_host, settings.ops_port))
    return [_listener(host, port) for host, port in places]


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --port"
        ) from error


def origin_of(source: str, settings: Settings, metrics: Metrics, tracking_uri: str | None = None) -> Source:
    """Where versions come from, as the settings say."""
    limits = Limits(settings.batch_rows, settings.batch_wait, settings.queue_rows, settings.queue_bytes)
    return Source(
        source,
        tracking_uri=tracking_uri,
        name=settings.model_name,
        device=settings.device,
        tf32=settings.tf32,
        workers=settings.workers,
        limits=limits,
        metrics=metrics,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:  # there is none for Windows
        return None
    return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)
