"""Manners for talking to MLflow: which store, how long to wait, how quietly, where copies are kept.

mlflow itself is imported only inside the functions.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vae_anomaly.exceptions import MissingPackageError, TrackingError, VaeAnomalyError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "bundle_digest"
BUNDLE_FOLDER = "bundle"


def default_tracking_uri(root: str | Path = "mlruns") -> str:
    """MLFLOW_TRACKING_URI, else the SQLite store ``mlflow.db`` below ``root``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri(root)


def local_tracking_uri(root: str | Path = "mlruns") -> str:
    """The SQLite store ``mlflow.db`` below ``root``."""
    return f"sqlite:///{(Path(root) / 'mlflow.db').resolve().as_posix()}"


def cache_folder() -> Path:
    """Where downloads are kept: ``vae-anomaly`` below XDG_CACHE_HOME or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vae-anomaly"


def redact(uri: str) -> str:
    """The address without user name and password.

    Examples
    --------
    >>> redact("https://me:secret@host:5000/x")
    'https://host:5000/x'
    """
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


@contextmanager
def mlflow_session(*, timeout: int, retries: int = 1) -> Iterator[None]:
    """Talk to MLflow quietly and with bounded patience; everything is put back afterwards.

    Parameters
    ----------
    timeout : int
        Seconds per request. What the user set in the environment wins.
    retries : int
        Of a request that failed.
    """
    wanted = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        # Looked at while mlflow is imported, which sets up its own logging.
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    added = {key: value for key, value in wanted.items() if key not in os.environ}
    levels = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "urllib3": logging.ERROR}
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = {logger: logger.level for logger in loggers}
    os.environ.update(added)
    try:
        for logger, level in loggers.items():
            logger.setLevel(max(level, logger.level))
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
        for key in added:
            os.environ.pop(key, None)


def mlflow_client(uri: str) -> MlflowClient:
    """A client of one store, whatever MLflow's own process-wide address is.

    Raises
    ------
    MissingPackageError
        If mlflow is not installed.
    TrackingError
        If the store cannot be opened.
    """
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise MissingPackageError(
            f"the tracking store needs {error.name}; install it with: pip install 'vae-anomaly[train]'"
        ) from error
    with answering(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn every failure of a store, its network or its disk into a TrackingError."""
    try:
        yield
    except VaeAnomalyError:
        raise
    except Exception as error:  # mlflow, requests, sqlalchemy and the operating system each raise their own
        # Of requests' account of its attempts only the last line says why.
        reason = " ".join(redact(str(error)).split()).rpartition("(Caused by ")[2]
        reason = reason.replace('"))', '")').partition(" [SQL: ")[0]
        raise TrackingError(f"the tracking store at {redact(uri)} cannot be used: {reason}") from error
