"""Training runs in MLflow, such that none is lost.

Whatever a run logs is also kept in memory, as a journal of calls. When its server fails, the journal
is written again to the local store and the run goes on there; `vae-anomaly sync` copies it back later.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pandas as pd

from pipelines.mlflow_store import FIRST_CONTACT, PATIENCE, Store, signature_of
from serving.interrupts import undisturbed
from vae_anomaly.exceptions import ConfigError, TrackingError
from vae_anomaly.mlflow_access import (
    answering,
    default_tracking_uri,
    local_tracking_uri,
    mlflow_session,
    redact,
)

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

SERVER_TAG = "tracking.server"
SERVER_RUN_TAG = "tracking.server_run"
SYNC_COMMAND = "vae-anomaly sync"

# MLflow's own limits.
LONGEST_PARAM, LONGEST_TAG = 6000, 8000


@dataclass(frozen=True)
class _Entry:
    """A call to a `Store`, kept so that it can be made again elsewhere."""

    method: str
    arguments: tuple[Any, ...]

    @property
    def folder(self) -> Path | None:
        """What the entry needs on this disk."""
        return self.arguments[0] if self.method in ("artifacts", "bundle") else None


class Tracker:
    """One training run; when its server fails, everything so far moves to the local store.

    Parameters
    ----------
    uri : str, optional
        Default: MLFLOW_TRACKING_URI, else the local store.
    experiment : str
    root : Path
        Holds the local store: ``mlflow.db``, and ``artifacts/`` beside it.

    Examples
    --------
    ::

        with Tracker() as tracker:
            tracker.start("digits", {"training": {"epochs": 3}})
            tracker.log_metrics({"loss": 21.5}, step=0)
            version = tracker.log_bundle(folder, "digits", digest, X[:2])
    """

    def __init__(
        self, uri: str | None = None, experiment: str = "vae-anomaly", root: str | Path = "mlruns"
    ) -> None:
        self._root = Path(root)
        self._local_uri = local_tracking_uri(root)
        self._store = Store(uri or default_tracking_uri(root), experiment)
        self._journal: list[_Entry] = []
        self._done = 0
        self._ended = False
        self._complained = False

    @property
    def uri(self) -> str:
        """The store in use now, without credentials."""
        return redact(self._store.uri)

    @property
    def run_id(self) -> str | None:
        """Of the run in the store in use now; None before `start`."""
        return self._store.run_id

    @property
    def fell_back(self) -> bool:
        """True once a server has failed and the local store has taken over."""
        return any(entry.method == "tags" and SERVER_TAG in entry.arguments[0] for entry in self._journal)

    def start(self, run_name: str, params: Mapping[str, Any], tags: Mapping[str, Any] | None = None) -> None:
        """Open the run; nested ``params`` get dotted names."""
        flat = {key: str(value)[:LONGEST_PARAM] for key, value in _flatten(params)}
        source = {"mlflow.source.name": "vae-anomaly", "mlflow.source.type": "LOCAL"}
        self._log("start", run_name, flat, source | _texts(tags or {}), _now())

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Describe the run by what is known only later."""
        self._log("tags", _texts(tags))

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Append one value to each metric's history."""
        when = _now()
        self._log("metrics", [(name, float(value), when, step) for name, value in values.items()])

    def log_artifacts(self, folder: str | Path, name: str) -> None:
        """Copy a folder to the run's artifacts, below ``name``."""
        self._log("artifacts", Path(folder), name)

    def log_bundle(
        self,
        folder: str | Path,
        name: str,
        digest: str,
        signature_example: Any,
        *,
        alias: str | None = None,
        verdicts: pd.DataFrame | None = None,
    ) -> str | None:
        """Log a bundle as the run's model, below ``bundle/``, and register it.

        Parameters
        ----------
        folder : path
            As `seal` left it.
        name : str
            Of the registered model.
        digest : str
            Becomes the tag ``bundle_digest`` of the version, which loading compares.
        signature_example : ndarray or DataFrame
            A few samples, for their names, types and shape; no value is stored.
        alias : str, optional
            Moved to the new version, "champion" for instance.
        verdicts : DataFrame, optional
            What the bundle says about them, for the types of its answers.

        Returns
        -------
        str or None
            The registered version, None where the store could not register it.
        """
        if not re.fullmatch(r"[^/:.%\"'@]+", name):
            raise ConfigError(f"a model cannot be called {name!r}; leave out / : . % @ and quotes")
        signature = signature_of(signature_example, verdicts)
        version: str | None = self._log("bundle", Path(folder), name, digest, signature, alias)
        return version

    def end(self, status: Status = "FINISHED") -> None:
        """Close the run. What a failing store refused before is written now.

        Raises
        ------
        TrackingError
            If the local store still refuses.
        """
        if self._ended or not self._journal:
            return
        self._ended = True
        self._log("end", status, _now())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.end("FINISHED")
            return
        try:
            self.end("FAILED" if issubclass(kind, Exception) else "KILLED")
        except TrackingError as second:  # the first error is the one to hear about
            log.warning("%s", second)

    def _log(self, method: str, *arguments: Any) -> Any:
        self._journal.append(_Entry(method, arguments))
        try:
            return self._write()
        except TrackingError as error:
            if self._store.uri != self._local_uri:
                return self._fall_back(error)
            return self._postpone(error)

    def _write(self) -> Any:
        """Bring the store up to date with the journal; the answer to the last entry."""
        answer = None
        while self._done < len(self._journal):
            entry = self._journal[self._done]
            patience = FIRST_CONTACT if entry.method == "start" else PATIENCE
            with undisturbed(), mlflow_session(**patience), answering(self._store.uri):
                answer = getattr(self._store, entry.method)(*entry.arguments)
            self._done += 1
        return answer

    def _fall_back(self, error: TrackingError) -> Any:
        """Write the whole run again, to the local store, and go on there."""
        server, self._store = self._store, Store(self._local_uri, self._store.experiment)
        gone = [entry for entry in self._journal if entry.folder is not None and not entry.folder.is_dir()]
        for entry in gone:
            log.warning("%s no longer exists: it is on the server only, as %r", *entry.arguments[:2])
        origin = _texts({SERVER_TAG: redact(server.uri), SERVER_RUN_TAG: server.run_id or "none"})
        kept = [entry for entry in self._journal if entry not in gone]
        self._journal, self._done = [kept[0], _Entry("tags", (origin,)), *kept[1:]], 0
        try:
            answer = self._write()
        except TrackingError as second:
            return self._postpone(second)
        log.warning(
            "%s; the run goes on in %s; when the server is back, copy it there with: %s %s --root %s",
            error,
            self.uri,
            SYNC_COMMAND,
            self.run_id,
            self._root,
        )
        return answer

    def _postpone(self, error: TrackingError) -> None:
        """Keep what can wait for the next call; raise where the caller counts on the answer."""
        if self._journal[-1].method not in ("metrics", "tags"):
            raise error
        if not self._complained:
            log.warning("%s; what is logged is kept and tried again", error)
        self._complained = True


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _texts(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value)[:LONGEST_TAG] for key, value in tags.items()}


def _now() -> int:
    return int(time.time() * 1000)


def reach(root: str | Path = "mlruns") -> str:
    """Ask the tracking store for its experiments; says where it is and how many it has.

    Raises
    ------
    TrackingError
        If it does not answer.
    """
    uri = default_tracking_uri(root)
    file = uri.removeprefix("sqlite:///")
    if file != uri and not Path(file).exists():
        return f"{uri} will be made by the first run"
    with mlflow_session(**FIRST_CONTACT), answering(uri):
        found = Store(uri, "vae-anomaly").client.search_experiments()
    return f"{redact(uri)} answers, experiments: {len(found)}"
