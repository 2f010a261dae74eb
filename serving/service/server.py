"""Runs the app: sockets, logs, and the way from a model's name to a service that is ready."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from serving.service.app import make_app
from serving.service.engine import Models
from serving.service.metrics import Metrics
from serving.service.microbatch import Limits
from serving.service.protocol import BoundedProtocol
from serving.service.reload import Source
from serving.service.settings import Settings

log = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, message, and the facts that came along."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json(level: str) -> None:
    """Send every log record to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("serving", "vae_anomaly", "uvicorn"):
        logging.getLogger(package).setLevel(level.upper())


def config(app: ASGIApp, settings: Settings, host: str, port: int) -> uvicorn.Config:
    """uvicorn, with our bounds on every connection."""
    protocol = partial(BoundedProtocol, settings)
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=cast(Any, protocol),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=cast(int, settings.keep_alive),
    )


def serve(source: str, settings: Settings, tracking_uri: str | None = None) -> None:
    """Answer until the process is told to stop.

    Parameters
    ----------
    source : str
        A bundle folder, ``runs:/...`` or ``models:/...``.
    settings : Settings
    tracking_uri : str, optional
    """
    log_as_json(settings.log_level)
    metrics = Metrics()
    origin = origin_of(source, settings, metrics, tracking_uri)
    engine = origin.open()
    metrics.serving(engine.name, engine.version, engine.provider, engine.calibration)
    facts = {"digest": engine.digest, "provider": engine.provider}
    log.info("serving %s, version %s", engine.name, engine.version, extra={"facts": facts})
    app = make_app(Models(engine), settings, metrics)
    uvicorn.Server(config(app, settings, settings.host, settings.port)).run()


def origin_of(source: str, settings: Settings, metrics: Metrics, tracking_uri: str | None = None) -> Source:
    """Where versions come from, as the settings say."""
    return Source(
        source,
        tracking_uri=tracking_uri,
        name=settings.model_name,
        device=settings.device,
        workers=settings.workers,
        limits=Limits(settings.batch_rows, settings.batch_wait, settings.queue_rows, settings.queue_bytes),
        metrics=metrics,
    )
