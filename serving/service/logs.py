"""Logs as JSON, one object a line."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from serving.service.strict_json import written


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, and the facts that came along."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return written(line, default=str).decode()


def log_as_json(level: str) -> None:
    """Send every log record to stderr as JSON."""
    # No line tells of threads and processes; to ask for them takes as long as the rest of a record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for package in ("serving", "vae_anomaly"):
        logging.getLogger(package).setLevel(level.upper())
    # uvicorn would log what a client sends as a warning of its own, line by line.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
