"""From what a user calls a model to a bundle on this disk: a folder, ``runs:/...`` or ``models:/...``.

Bundles fetched from MLflow are kept in the user's cache under the sha256 of their manifest, so that
one is copied once and a pinned version is still found while the tracking server is away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_anomaly.exceptions import BundleError, TrackingError
from vae_anomaly.mlflow_access import (
    BUNDLE_FOLDER,
    DIGEST_TAG,
    answering,
    cache_folder,
    default_tracking_uri,
    mlflow_client,
    mlflow_session,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
HELP = "give a folder, runs:/<run id>, models:/<name>@<alias> or models:/<name>/<version>"
TIMEOUT = 10  # seconds a request to the registry may take

MODEL = re.compile(r"models:/+(?P<name>[^/@'\"]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
RUN = re.compile(r"runs:/+(?P<run_id>[\w-]+)(?:/(?P<name>(?!bundle/?$)[^/]+))?(?:/bundle)?/?")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Located:
    """A bundle on this disk, not yet verified.

    Attributes
    ----------
    path : Path
    digest : str or None
        sha256 of the manifest as the registry holds it, for `load_bundle` to compare.
    name, version : str or None
        Of the registered model, where there is one.
    """

    path: Path
    digest: str | None = None
    name: str | None = None
    version: str | None = None


def locate(source: str | Path, *, tracking_uri: str | None = None) -> Located:
    """Find a bundle, fetching it into the cache where need be.

    Parameters
    ----------
    source : str or Path
        A folder, ``runs:/<run id>``, ``models:/<name>@<alias>`` or ``models:/<name>/<version>``.
    tracking_uri : str, optional
        Default: MLFLOW_TRACKING_URI, else ``mlruns/mlflow.db`` below the working directory.

    Raises
    ------
    BundleError
        If there is no such folder, model, alias, version or run; what exists is named.
    TrackingError
        If the tracking store does not answer and the cache cannot either.
    MissingPackageError
        If mlflow is needed and not installed.
    """
    text = str(source)
    if not text.startswith(("models:", "runs:")):
        if not Path(source).is_dir():
            raise BundleError(f"no bundle folder at {text!r}; {HELP}")
        return Located(Path(source))
    if (name := MODEL.fullmatch(text) or RUN.fullmatch(text)) is None:
        raise BundleError(f"cannot read {text!r}; {HELP}")
    uri = tracking_uri or default_tracking_uri()
    parts = name.groupdict()
    pin = _pin_file(uri, text) if parts.get("version") else None
    try:
        with mlflow_session(timeout=TIMEOUT):
            client = _client(uri, text)
            with answering(uri):
                found = (_logged if "run_id" in parts else _registered)(client, **parts)
            located = Located(_cached(found, uri, text), found.digest, found.name, found.version)
    except TrackingError as error:
        if pin is None or (pinned := _pinned(pin)) is None:
            raise
        log.warning("%s; using the copy of %s in the cache", error, text)
        return pinned
    if pin is not None:
        _write(pin, located)
    return located


def stands_for(source: str, *, tracking_uri: str | None = None) -> tuple[str, str | None]:
    """The version that ``models:/<name>@<alias>`` names now, and its digest; nothing is fetched.

    Raises
    ------
    BundleError, TrackingError, MissingPackageError
        As `locate`.
    """
    if (name := MODEL.fullmatch(source)) is None:
        raise BundleError(f"cannot read {source!r}; give models:/<name>@<alias>")
    uri = tracking_uri or default_tracking_uri()
    with mlflow_session(timeout=TIMEOUT):
        client = _client(uri, source)
        with answering(uri):
            found = _registered(client, **name.groupdict())
    return str(found.version), found.digest


@dataclass(frozen=True)
class _Found:
    """Where MLflow keeps a bundle."""

    location: str
    digest: str | None
    name: str | None
    version: str | None


def _client(uri: str, source: str) -> MlflowClient:
    # Opening a SQLite store that is not there would create an empty one.
    store = uri.removeprefix("sqlite:///")
    if store != uri and not Path(store).exists():
        raise BundleError(
            f"no tracking store at {store} to look up {source!r}; set MLFLOW_TRACKING_URI, "
            "or work in the folder where the model was trained"
        )
    return mlflow_client(uri)


def _registered(client: MlflowClient, name: str, alias: str | None, version: str | None) -> _Found:
    model = _get(client.get_registered_model, name)
    if model is None:
        known = [other.name for other in client.search_registered_models()]
        raise BundleError(f"no registered model {name!r}; {_hint(name, known)}")
    if alias is not None:
        if alias not in model.aliases:
            raise BundleError(f"model {name!r} has no alias {alias!r}; {_hint(alias, model.aliases)}")
        version = str(model.aliases[alias])
    found = _get(client.get_model_version, name, version)
    if found is None:
        known = sorted(
            (str(other.version) for other in client.search_model_versions(f"name='{name}'")), key=int
        )
        raise BundleError(f"model {name!r} has no version {version!r}; known: {', '.join(known) or 'none'}")
    location = client.get_model_version_download_uri(name, str(version))
    return _Found(location, _digest_tag(found.tags, f"{name}/{version}"), name, str(version))


def _logged(client: MlflowClient, run_id: str, name: str | None) -> _Found:
    run = _get(client.get_run, run_id)
    if run is None:
        raise BundleError(f"no run {run_id!r} in the tracking store; {HELP}")
    outputs = run.outputs.model_outputs if run.outputs else []
    models = {str(model.name): model for model in (client.get_logged_model(o.model_id) for o in outputs)}
    if not models or (name is not None and name not in models):
        wanted = f"model {name!r}" if name else "model"
        raise BundleError(f"run {run_id!r} logged no {wanted}; {_hint(name or '', models)}")
    model = models[name] if name else list(models.values())[-1]
    return _Found(model.artifact_location, _digest_tag(model.tags, str(model.name)), str(model.name), None)


def _get(call: Any, *arguments: Any) -> Any:
    """The answer, or None where the store says that there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return call(*arguments)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _hint(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


def _digest_tag(tags: Mapping[str, str], model: str) -> str | None:
    digest = tags.get(DIGEST_TAG)
    # It becomes a folder's name below: whoever writes tags must not choose where that lies.
    if digest is not None and not DIGEST.fullmatch(digest):
        raise BundleError(f"the tag {DIGEST_TAG} of model {model} is no sha256; register the model again")
    return digest


def _cached(found: _Found, uri: str, source: str) -> Path:
    """The folder in the cache, fetched unless its manifest is there and is the one sealed."""
    bundles = cache_folder() / "bundles"
    if found.digest is not None and _digest(bundles / found.digest) == found.digest:
        return bundles / found.digest
    bundles.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bundles, prefix=".fetch-") as scratch:
        fetched = _fetch(found, uri, source, Path(scratch))
        target = bundles / str(_digest(fetched))
        if _digest(target) != target.name:
            shutil.rmtree(target, ignore_errors=True)
            _publish(fetched, target)
    return target


def _publish(fetched: Path, target: Path) -> None:
    try:
        fetched.rename(target)
    except OSError:  # another process was faster, or the disk is at fault
        if _digest(target) != target.name:
            raise


def _fetch(found: _Found, uri: str, source: str, scratch: Path) -> Path:
    from mlflow.artifacts import download_artifacts, list_artifacts

    with answering(uri):
        listed = list_artifacts(artifact_uri=found.location, tracking_uri=uri)
        if not any(Path(item.path).name == BUNDLE_FOLDER and item.is_dir for item in listed):
            raise BundleError(f"{source!r} holds no {BUNDLE_FOLDER}/; it is not a model of vae-anomaly")
        remote = f"{found.location.rstrip('/')}/{BUNDLE_FOLDER}"
        download_artifacts(artifact_uri=remote, dst_path=str(scratch), tracking_uri=uri)
    if _digest(scratch / BUNDLE_FOLDER) is None:
        raise BundleError(f"{source!r} holds no {BUNDLE_FOLDER}/{MANIFEST}; it is not a model of vae-anomaly")
    return scratch / BUNDLE_FOLDER


def _digest(folder: Path) -> str | None:
    manifest = folder / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None


def _pin_file(uri: str, source: str) -> Path:
    key = hashlib.sha256(f"{uri}\n{source}".encode()).hexdigest()
    return cache_folder() / "pins" / f"{key}.json"


def _pinned(pin: Path) -> Located | None:
    try:
        known = json.loads(pin.read_text())
        path = cache_folder() / "bundles" / known["bundle"]
        located = Located(path, known["digest"], known["name"], known["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return located if _digest(path) == path.name else None


def _write(pin: Path, located: Located) -> None:
    known = {
        "bundle": located.path.name,
        "digest": located.digest,
        "name": located.name,
        "version": located.version,
    }
    pin.parent.mkdir(parents=True, exist_ok=True)
    draft = pin.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(known))
    draft.replace(pin)
