"""Every way of naming a model ends at the same bundle, or in a sentence that says what exists."""

import hashlib
import re
import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput

from vae_anomaly.exceptions import BundleError, MissingPackageError, TrackingError
from vae_anomaly.locate import Located, locate
from vae_anomaly.mlflow_access import cache_folder, local_tracking_uri, mlflow_session

FILES = {"manifest.json": b'{"made": "for this test"}', "score.onnx": bytes(range(256))}
DIGEST = hashlib.sha256(FILES["manifest.json"]).hexdigest()


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with model `digits`, versions 1 (alias champion) and 2 (no bundle), one run and one stray."""
    root = tmp_path_factory.mktemp("registry") / "mlruns"
    root.mkdir()
    with mlflow_session(timeout=5):
        client = open_store(root)
        experiment = client.create_experiment("e", artifact_location=(root / "artifacts").as_uri())
    run = client.create_run(experiment, run_name="r").info.run_id
    client.create_registered_model("digits")
    for name, files in (("digits", FILES), ("other", {"model.pkl": b""})):
        model = client.create_logged_model(
            experiment, name, source_run_id=run, tags={"bundle_digest": DIGEST}
        )
        client.log_outputs(run, [LoggedModelOutput(model.model_id, 0)])
        folder = root.parent / name / "bundle"
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        client.log_model_artifacts(model.model_id, str(folder if name == "other" else folder.parent))
        tags = {"bundle_digest": DIGEST} if name == "digits" else {}
        client.create_model_version("digits", model.artifact_location, run, tags=tags)
    client.set_registered_model_alias("digits", "champion", "1")
    (root / "run").write_text(run)
    return root


def open_store(root: Path) -> MlflowClient:
    uri = local_tracking_uri(root)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture
def here(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work beside the store's folder `mlruns`, with a cache of one's own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(registry.parent)
    return registry


def assert_bundle(found: Path) -> None:
    assert {path.name: path.read_bytes() for path in found.iterdir()} == FILES
    assert found == cache_folder() / "bundles" / DIGEST


@pytest.mark.parametrize("source", ["models:/digits@champion", "models:/digits/1"])
def test_registered_models(here: Path, source: str) -> None:
    found = locate(source)
    assert found == Located(found.path, DIGEST, "digits", "1")
    assert_bundle(found.path)


@pytest.mark.parametrize("tail", ["/digits", "/digits/bundle", "/digits/"])
def test_runs(here: Path, tail: str) -> None:
    found = locate(f"runs:/{(here / 'run').read_text()}{tail}")
    assert found == Located(found.path, DIGEST, "digits", None)
    assert_bundle(found.path)


def test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    assert locate(tmp_path) == locate(str(tmp_path)) == Located(tmp_path)


def test_the_environment_names_the_store(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_tracking_uri(here))
    assert_bundle(locate("models:/digits@champion").path)


def test_a_cached_bundle_is_not_fetched_again(here: Path) -> None:
    path = locate("models:/digits/1").path
    (path / "mark").touch()
    assert (locate("models:/digits@champion").path / "mark").exists()


def test_a_cached_manifest_that_changed_is_fetched_again(here: Path) -> None:
    path = locate("models:/digits/1").path
    (path / "manifest.json").write_text("{}")
    assert_bundle(locate("models:/digits/1").path)


def test_a_pinned_version_is_found_without_its_store(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = locate("models:/digits/1")
    locate("models:/digits@champion")
    monkeypatch.setattr(MlflowClient, "get_registered_model", refuse)
    assert locate("models:/digits/1") == first
    assert caplog.messages[-1].endswith("; using the copy of models:/digits/1 in the cache")
    with pytest.raises(TrackingError, match=r"cannot be used: connection refused$"):
        locate("models:/digits@champion")  # where an alias points is only known to the store
    shutil.rmtree(first.path)
    with pytest.raises(TrackingError, match=r"cannot be used: connection refused$"):
        locate("models:/digits/1")


def refuse(*_: object) -> None:
    raise ConnectionError("connection refused")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("models:/digits@champoin", "model 'digits' has no alias 'champoin'; did you mean 'champion'?"),
        ("models:/digits@best", "model 'digits' has no alias 'best'; known: champion"),
        ("models:/digits/7", "model 'digits' has no version '7'; known: 1, 2"),
        ("models:/digitz@champion", "no registered model 'digitz'; did you mean 'digits'?"),
        ("models:/digits/2", "'models:/digits/2' holds no bundle/; it is not a model of vae-anomaly"),
        ("models:/digits", "cannot read 'models:/digits'; give a folder, runs:/<run id>, "
         "models:/<name>@<alias> or models:/<name>/<version>"),
        ("models:/digits/latest", "cannot read 'models:/digits/latest'; give a folder, runs:/<run id>, "
         "models:/<name>@<alias> or models:/<name>/<version>"),
        ("runs:/0123", "no run '0123' in the tracking store; give a folder, runs:/<run id>, "
         "models:/<name>@<alias> or models:/<name>/<version>"),
        ("nowhere", "no bundle folder at 'nowhere'; give a folder, runs:/<run id>, "
         "models:/<name>@<alias> or models:/<name>/<version>"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_said(here: Path, source: str, message: str) -> None:
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        locate(source)


def test_a_run_without_that_model_names_its_models(here: Path) -> None:
    run = (here / "run").read_text()
    with pytest.raises(BundleError, match=f"^run '{run}' logged no model 'digit'; did you mean 'digits'\\?$"):
        locate(f"runs:/{run}/digit")


def test_a_missing_store_is_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BundleError, match=r"^no tracking store at .*mlruns/mlflow\.db to look up 'models:/d@c'; "
    ):
        locate("models:/d@c")
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_said_without_credentials(here: Path) -> None:
    with pytest.raises(
        TrackingError, match=r"^the tracking store at http://127\.0\.0\.1:9 cannot be used: New"
    ):
        locate("models:/digits@champion", tracking_uri="http://me:secret@127.0.0.1:9")


def test_mlflow_missing_names_the_extra(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingPackageError, match=r"install it with: pip install 'vae-anomaly\[train\]'$"):
        locate("models:/digits@champion")


def test_a_tag_cannot_choose_where_the_cache_lies(here: Path) -> None:
    client = open_store(here)
    client.set_model_version_tag("digits", "2", "bundle_digest", "../../etc")
    with pytest.raises(BundleError, match=r"^the tag bundle_digest of model digits/2 is no sha256; register"):
        locate("models:/digits/2")
    client.delete_model_version_tag("digits", "2", "bundle_digest")
