"""Runs arrive complete, wherever they have to go."""

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from pipelines.mlflow_store import signature_of
from pipelines.sync import sync
from pipelines.tracking import Tracker
from vae_anomaly.exceptions import ConfigError, TrackingError
from vae_anomaly.mlflow_access import local_tracking_uri, mlflow_session, redact

DIGEST = "ab" * 32


@pytest.fixture
def root(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return new_root(tmp_path / "mlruns", empty_store)


def new_root(folder: Path, empty_store: Path) -> Path:
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


def client(root: Path) -> MlflowClient:
    uri = local_tracking_uri(root)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "made" / "a bundle"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "score.onnx").write_bytes(bytes(range(256)))
    return folder


@pytest.fixture
def charts(tmp_path: Path) -> Path:
    folder = tmp_path / "charts"
    folder.mkdir()
    (folder / "loss.txt").write_text("falls")
    return folder


def whole_run(tracker: Tracker, charts: Path, bundle: Path) -> str | None:
    tracker.start("digits", {"name": "d", "training": {"epochs": 3, "seed": None}}, {"fingerprint": "f0"})
    for step in range(3):
        tracker.log_metrics({"loss": 10.0 - step, "kl": float(step)}, step)
    tracker.set_tags({"active_units": 4})
    tracker.log_artifacts(charts, "charts")
    version = tracker.log_bundle(bundle, "digits", DIGEST, np.zeros((2, 1, 8, 8), np.uint8), alias="champion")
    tracker.log_metrics({"loss": 6.5}, 3)
    return version


def assert_whole(where: MlflowClient, run_id: str | None, charts: Path, bundle: Path) -> Any:
    assert run_id is not None
    run = where.get_run(run_id)
    assert run.info.run_name == "digits"
    assert run.data.params == {"name": "d", "training.epochs": "3", "training.seed": "None"}
    assert run.data.tags.items() >= {"fingerprint": "f0", "active_units": "4"}.items()
    for name, values in {"loss": [10.0, 9.0, 8.0, 6.5], "kl": [0.0, 1.0, 2.0]}.items():
        history = sorted(where.get_metric_history(run_id, name), key=lambda point: point.step)
        assert [point.value for point in history] == values
        assert [point.step for point in history] == list(range(len(values)))
    assert Path(where.download_artifacts(run_id, "charts/loss.txt")).read_text() == "falls"
    model = where.get_logged_model(run.outputs.model_outputs[0].model_id)
    files = Path(model.artifact_location.removeprefix("file://"))
    assert sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file()) == [
        "MLmodel",
        "bundle/manifest.json",
        "bundle/score.onnx",
    ]
    assert (files / "bundle/score.onnx").read_bytes() == (bundle / "score.onnx").read_bytes()
    return run


def test_a_run_goes_below_mlruns_by_default(
    root: Path, charts: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    with Tracker() as tracker:
        version = whole_run(tracker, charts, bundle)
    assert (version, tracker.fell_back) == ("1", False)
    run = assert_whole(client(root), tracker.run_id, charts, bundle)
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith((root / "artifacts").as_uri())
    assert not (root.parent / "mlflow.db").exists()


def test_the_bundle_is_registered_with_alias_digest_and_signature(
    root: Path, charts: Path, bundle: Path
) -> None:
    with Tracker(root=root) as tracker:
        whole_run(tracker, charts, bundle)
        second = tracker.log_bundle(bundle, "digits", "cd" * 32, np.zeros((1, 1, 8, 8), np.uint8))
    assert second == "2"
    registered = client(root).get_registered_model("digits")
    assert registered.aliases == {"champion": 1}
    first = client(root).get_model_version("digits", "1")
    assert first.tags == {"bundle_digest": DIGEST}
    assert client(root).get_model_version("digits", "2").tags == {"bundle_digest": "cd" * 32}
    assert first.run_id == tracker.run_id
    described = mlflow.models.Model.load(first.source.removeprefix("file://"))
    assert described.signature.inputs.to_dict() == [
        {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": (-1, 1, 8, 8)}}
    ]


def test_mlflow_serves_the_bundle_as_a_function(
    root: Path, charts: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    class Fake:
        def __init__(self, path: str) -> None:
            self.path = Path(path)

        def verdicts(self, x: pd.DataFrame, false_alarm_rate: float | None) -> pd.DataFrame:
            assert (self.path.name, false_alarm_rate) == ("bundle", None)
            return pd.DataFrame({"score": x["b"] - x["a"]})

    monkeypatch.setattr("vae_anomaly.runtime.load_bundle", Fake)
    samples = pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan]})
    verdicts = pd.DataFrame({"score": [1.0], "is_outlier": pd.array([None], dtype="boolean")})
    with Tracker(root=root) as tracker:
        tracker.start("t", {})
        tracker.log_bundle(bundle, "t", DIGEST, samples, verdicts=verdicts)
    model = mlflow.pyfunc.load_model(client(root).get_model_version("t", "1").source)
    assert [(c.name, c.type.name) for c in model.metadata.signature.inputs] == [
        ("a", "double"),
        ("b", "double"),
    ]
    assert model.metadata.signature.outputs.input_names() == ["score", "is_outlier"]
    assert all(column.required for column in model.metadata.signature.inputs)
    assert model.predict(samples.astype(float))["score"].iloc[0] == -0.5


def test_the_signature_of_a_table_has_numbers_and_text() -> None:
    samples = pd.DataFrame({"n": [np.nan], "city": ["rome"], "size": pd.Categorical(["s"])})
    inputs = signature_of(samples, None).inputs
    assert [(c.name, c.type.name, c.required) for c in inputs] == [
        ("n", "double", True),
        ("city", "string", True),
        ("size", "string", True),
    ]


def test_the_environment_names_the_store(
    root: Path, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new_root(tmp_path / "other", empty_store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_tracking_uri(other))
    with Tracker(root=root) as tracker:
        tracker.start("r", {})
    assert tracker.run_id is not None
    assert client(other).get_run(tracker.run_id).info.run_name == "r"


def test_an_unreachable_server_loses_nothing(
    root: Path, closed_port: str, charts: Path, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    with Tracker(closed_port.replace("//", "//me:secret@"), root=root) as tracker:
        version = whole_run(tracker, charts, bundle)
    assert time.monotonic() - began < 10
    assert (version, tracker.fell_back, tracker.uri) == ("1", True, local_tracking_uri(root))
    run = assert_whole(client(root), tracker.run_id, charts, bundle)
    assert run.data.tags["tracking.server"] == closed_port
    assert run.data.tags["tracking.server_run"] == "none"
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith(f"the tracking store at {closed_port} cannot be used: ")
    assert said.endswith(f"copy it there with: vae-anomaly sync {tracker.run_id} --root {root}")
    assert "secret" not in said


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Addresses whose stores refuse metrics from now on."""
    down: set[str] = set()
    log_batch = MlflowClient.log_batch

    def maybe(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        if self.tracking_uri in down:
            raise ConnectionError("connection reset")
        return log_batch(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", maybe)
    return down


def test_a_failure_midway_moves_the_whole_run(
    root: Path, tmp_path: Path, empty_store: Path, charts: Path, bundle: Path, failing: set[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server = new_root(tmp_path / "server", empty_store)
    with Tracker(local_tracking_uri(server), root=root) as tracker:
        gone = shutil.copytree(charts, tmp_path / "gone")
        version = whole_run(tracker, charts, bundle)
        tracker.log_artifacts(gone, "gone")
        shutil.rmtree(gone)
        server_run = tracker.run_id
        failing.add(local_tracking_uri(server))
        tracker.log_metrics({"kl": 2.5}, 3)
        assert version == "1"
    where = client(root)
    assert tracker.run_id is not None
    assert tracker.run_id != server_run
    assert [m.value for m in where.get_metric_history(tracker.run_id, "kl")] == [0.0, 1.0, 2.0, 2.5]
    assert [m.value for m in where.get_metric_history(tracker.run_id, "loss")] == [10.0, 9.0, 8.0, 6.5]
    run = where.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["tracking.server_run"] == server_run
    assert where.get_model_version("digits", "1").tags == {"bundle_digest": DIGEST}
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said[0] == f"{gone} no longer exists: it is on the server only, as 'gone'"
    assert len(said) == 2


def test_a_local_store_that_stumbles_gets_everything_later(
    root: Path, failing: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker(root=root) as tracker:
        tracker.start("r", {})
        failing.add(local_tracking_uri(root))
        for step in range(3):
            tracker.log_metrics({"loss": float(step)}, step)
        failing.clear()
        tracker.log_metrics({"loss": 3.0}, 3)
    assert tracker.run_id is not None
    assert [m.value for m in client(root).get_metric_history(tracker.run_id, "loss")] == [0.0, 1.0, 2.0, 3.0]
    assert [record.getMessage() for record in caplog.records] == [
        f"the tracking store at {local_tracking_uri(root)} cannot be used: connection reset; "
        "what is logged is kept and tried again"
    ]


def test_a_local_store_that_stays_broken_says_so_at_the_end(root: Path, failing: set[str]) -> None:
    tracker = Tracker(root=root)
    tracker.start("r", {})
    failing.add(local_tracking_uri(root))
    tracker.log_metrics({"loss": 1.0}, 0)
    with pytest.raises(TrackingError, match=r"cannot be used: connection reset$"):
        tracker.end()


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
    ids=["error", "ctrl-c"],
)
def test_a_broken_run_is_closed(root: Path, error: BaseException, status: str) -> None:
    tracker = Tracker(root=root)
    tracker.start("r", {})
    with pytest.raises(type(error)), tracker:
        raise error
    assert tracker.run_id is not None
    assert client(root).get_run(tracker.run_id).info.status == status


def test_diverging_values_are_kept(root: Path) -> None:
    with Tracker(root=root) as tracker:
        tracker.start("r", {f"p{i}": i for i in range(250)} | {"long": "x" * 9000})
        tracker.log_metrics({"loss": float("nan"), "kl": float("inf")}, 0)
    assert tracker.run_id is not None
    run = client(root).get_run(tracker.run_id)
    assert len(run.data.params) == 251
    assert run.data.params["p249"] == "249"
    assert np.isnan(run.data.metrics["loss"])


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@b", "it's", ""])
def test_names_that_cannot_be_addressed_are_refused(root: Path, bundle: Path, name: str) -> None:
    tracker = Tracker(root=root)
    tracker.start("r", {})
    with pytest.raises(ConfigError, match=r"^a model cannot be called "):
        tracker.log_bundle(bundle, name, DIGEST, np.zeros((1, 2)))


def test_the_process_is_left_as_it_was(root: Path, closed_port: str) -> None:
    before = dict(os.environ), logging.getLogger("mlflow").level, mlflow.get_tracking_uri()
    with Tracker(closed_port, root=root) as tracker:
        tracker.start("r", {})
    assert (dict(os.environ), logging.getLogger("mlflow").level, mlflow.get_tracking_uri()) == before


def test_the_users_patience_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with mlflow_session(timeout=5, retries=0):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_importing_brings_neither_mlflow_nor_torch() -> None:
    code = (
        "import sys, pipelines.sync, pipelines.splits, vae_anomaly.locate, vae_anomaly.mlflow_model;"
        "print([name for name in ('mlflow', 'torch', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def fallen_back(root: Path, closed_port: str, charts: Path, bundle: Path) -> Tracker:
    with Tracker(closed_port, root=root) as tracker:
        whole_run(tracker, charts, bundle)
    return tracker


def test_sync_copies_the_run_once(
    fallen_back: Tracker, root: Path, tmp_path: Path, empty_store: Path, charts: Path, bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server = new_root(tmp_path / "server", empty_store)
    assert fallen_back.run_id is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_tracking_uri(server))
    copied = sync(fallen_back.run_id, root=root)
    run = assert_whole(client(server), copied, charts, bundle)
    local = client(root).get_run(fallen_back.run_id)
    assert (run.info.start_time, run.info.status) == (local.info.start_time, "FINISHED")
    version = client(server).get_model_version("digits", "1")
    assert version.tags == {"bundle_digest": DIGEST}
    described = mlflow.models.Model.load(version.source.removeprefix("file://"))
    assert described.signature.inputs.to_dict()[0]["type"] == "tensor"
    assert client(server).get_registered_model("digits").aliases == {}
    with pytest.raises(
        ConfigError, match=f"^run {fallen_back.run_id} was copied before, to sqlite:.* as {copied};"
    ):
        sync(fallen_back.run_id, root=root)


def test_sync_closes_the_run_that_broke_off(
    root: Path, tmp_path: Path, empty_store: Path, failing: set[str]
) -> None:
    server = local_tracking_uri(new_root(tmp_path / "server", empty_store))
    with Tracker(server, root=root) as tracker:
        tracker.start("r", {})
        broken = tracker.run_id
        failing.add(server)
        tracker.log_metrics({"loss": 1.0}, 0)
    failing.clear()
    assert broken is not None
    assert tracker.run_id is not None
    copied = sync(tracker.run_id, server, root)
    run = client(tmp_path / "server").get_run(broken)
    assert (run.info.status, run.data.tags["tracking.continued_in"]) == ("KILLED", copied)


def test_sync_of_an_unknown_run_names_the_near_miss(fallen_back: Tracker, root: Path, tmp_path: Path) -> None:
    assert fallen_back.run_id is not None
    server, wrong = f"sqlite:///{tmp_path}/server.db", "0" + fallen_back.run_id[1:-1]
    said = f"no run {wrong!r} in the store below {root}; did you mean {fallen_back.run_id!r}?"
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        sync(wrong, server, root)


def test_sync_needs_a_server(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no server to copy to; set MLFLOW_TRACKING_URI or give --to$"):
        sync("x", root=root)
    with pytest.raises(
        TrackingError, match=r"^no tracking store below .*nowhere; name its folder by --root$"
    ):
        sync("x", "http://127.0.0.1:9", root / "nowhere")


def test_credentials_stay_out_of_sight() -> None:
    assert (
        redact("failed for http://me:secret@host/x and https://u@h")
        == "failed for http://host/x and https://h"
    )
