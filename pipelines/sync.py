"""Copy a run from the local tracking store to a server: for runs whose server was away."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import Any

from pipelines.config import near_miss
from pipelines.mlflow_store import PATIENCE, Store, read_signature
from pipelines.tracking import SERVER_RUN_TAG, SERVER_TAG
from vae_anomaly.exceptions import ConfigError, TrackingError
from vae_anomaly.mlflow_access import (
    BUNDLE_FOLDER,
    answering,
    default_tracking_uri,
    local_tracking_uri,
    mlflow_session,
    redact,
)

log = logging.getLogger(__name__)

SYNCED_TAG = "tracking.synced_to"


def sync(run_id: str, uri: str | None = None, root: str | Path = "mlruns") -> str:
    """Copy parameters, tags, metrics, artifacts and the registered bundle of a run.

    Parameters
    ----------
    run_id : str
        In the local store.
    uri : str, optional
        Of the server; default MLFLOW_TRACKING_URI.
    root : path
        Holds the local store.

    Returns
    -------
    str
        The run's id on the server. Aliases are not moved there: promoting is another decision.

    Raises
    ------
    ConfigError
        If no server is named, the local store has no such run, or it was copied before.
    TrackingError
        If either store cannot be used; a half-copied run is marked FAILED.
    """
    local, remote = local_tracking_uri(root), uri or default_tracking_uri(root)
    if local == remote:
        raise ConfigError("no server to copy to; set MLFLOW_TRACKING_URI or give --to")
    if not Path(local.removeprefix("sqlite:///")).exists():
        raise TrackingError(f"no tracking store below {root}; name its folder by --root")
    with mlflow_session(**PATIENCE):
        with answering(local):
            source = Store(local, "")
            if (run := source.found(run_id)) is None:
                hint = near_miss(run_id, source.recent())
                raise ConfigError(f"no run {run_id!r} in the store below {root}; {hint}")
            experiment = source.client.get_experiment(run.info.experiment_id).name
        if (copied := run.data.tags.get(SYNCED_TAG)) is not None:
            raise ConfigError(f"run {run_id} was copied before, to {copied}; nothing is left to do")
        with answering(remote):
            target = Store(remote, experiment)
            _copy(source, run, target)
        with answering(local):
            source.client.set_tag(run_id, SYNCED_TAG, f"{redact(remote)} as {target.run_id}")
    return str(target.run_id)


def _copy(source: Store, run: Any, target: Store) -> None:
    own = {key: value for key, value in run.data.tags.items() if key != "mlflow.runName"}
    target.start(run.info.run_name, run.data.params, own, run.info.start_time)
    try:
        _copy_content(source, run, target)
    except BaseException:
        with contextlib.suppress(Exception):
            target.end("FAILED", run.info.end_time)
        raise
    target.end(run.info.status, run.info.end_time)
    if run.data.tags.get(SERVER_TAG) == redact(target.uri):
        _close(target, run.data.tags[SERVER_RUN_TAG])


def _copy_content(source: Store, run: Any, target: Store) -> None:
    for name in run.data.metrics:
        history = source.client.get_metric_history(run.info.run_id, name)
        target.metrics([(name, point.value, point.timestamp, point.step) for point in history])
    with tempfile.TemporaryDirectory() as scratch:
        if source.client.list_artifacts(run.info.run_id):
            target.artifacts(Path(source.client.download_artifacts(run.info.run_id, "", scratch)), "")
    for output in run.outputs.model_outputs if run.outputs else []:
        with tempfile.TemporaryDirectory() as scratch:
            name, digest, files = source.model_files(output.model_id, Path(scratch))
            target.bundle(files / BUNDLE_FOLDER, name, digest, read_signature(files / "MLmodel"), None)


def _close(target: Store, interrupted: str) -> None:
    """End the run that broke off when the server went away; the copy takes its place."""
    if interrupted == "none":
        return
    try:
        with answering(target.uri):
            target.client.set_tag(interrupted, "tracking.continued_in", str(target.run_id))
            target.client.set_terminated(interrupted, "KILLED")
    except TrackingError as error:  # the copy is complete, and that is what was asked for
        log.warning("%s; run %s there stays open", error, interrupted)
