"""An alias moves: what is sound takes over, what is not changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from test_metrics_text import read

from serving.service.engine import Engine, Models
from serving.service.metrics import Metrics
from serving.service.reload import Follower, Pin, Source
from vae_anomaly.exceptions import BundleError, TrackingError
from vae_anomaly.locate import stands_for
from vae_anomaly.mlflow_access import local_tracking_uri, mlflow_session
from vae_anomaly.runtime import Bundle


def digest_of(folder: Path) -> str:
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def registry(
    table_folder: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, MlflowClient]:
    """Model `m`: 1 a table, 2 images, 3 tampered with, 4 not what its tag says, 5 without a tag."""
    root = tmp_path_factory.mktemp("reload") / "mlruns"
    root.mkdir()
    uri = local_tracking_uri(root)
    with mlflow_session(timeout=5):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = client.create_experiment("e", artifact_location=(root / "artifacts").as_uri())
        client.create_registered_model("m")
        for number, bundle in enumerate(
            [table_folder, image_folder, table_folder, image_folder, table_folder]
        ):
            folder = root.parent / f"v{number + 1}" / "bundle"
            shutil.copytree(bundle, folder)
            tag = digest_of(folder)
            if number == 2:
                with (folder / "score.onnx").open("ab") as file:
                    file.write(b"\0")
                (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes() + b"\n")
                tag = digest_of(folder)
            if number == 3:
                tag = "0" * 64
            model = client.create_logged_model(experiment, f"m{number}")
            client.log_model_artifacts(model.model_id, str(folder.parent))
            tags = {"bundle_digest": tag} if number != 4 else {}
            client.create_model_version("m", model.artifact_location, tags=tags)
    return uri, client


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_alias_is_followed_and_bad_versions_disturb_nothing(registry: tuple[str, MlflowClient]) -> None:
    uri, client = registry
    metrics = Metrics()
    source = Source("models:/m@champion", tracking_uri=uri, device="cpu", metrics=metrics)
    client.set_registered_model_alias("m", "champion", "1")
    assert source.moves
    first = source.open()
    assert (first.name, first.version, first.schema.kind) == ("m", "1", "table")

    async def story() -> list[tuple[str, str]]:
        models = Models(first)
        follower = Follower(source, models, metrics)
        seen = []
        for version in ("1", "2", "3", "3", "4", "5", "1"):
            client.set_registered_model_alias("m", "champion", version)
            result = await follower.look()
            with models.current() as engine:
                out = await engine.run("score", np.zeros((1, *engine.schema.shape)).astype(engine.dtype))
                assert np.isfinite(out["score"]).all()
                seen.append((result, engine.version))
        return seen

    expected = [("same", "1"), ("swapped", "2"), ("refused", "2"), ("same", "2")]
    expected += [("refused", "2"), ("refused", "2"), ("swapped", "1")]
    assert asyncio.run(story()) == expected
    found = read(metrics)
    assert (found["reloads_total", "swapped"], found["reloads_total", "refused"]) == (2, 3)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("4", r"bundle .* has the digest [0-9a-f]{64}, expected 0{64}; fetch the bundle again"),
        ("5", r"version 5 of model 'm' has no tag bundle_digest to compare with; register the model again"),
    ],
    ids=["other digest", "no digest"],
)
def test_a_bad_version_is_refused_at_the_start(
    registry: tuple[str, MlflowClient], version: str, message: str
) -> None:
    with pytest.raises(BundleError, match=f"^{message}$"):
        Source(f"models:/m/{version}", tracking_uri=registry[0], device="cpu").open()


def test_what_an_alias_stands_for(registry: tuple[str, MlflowClient], table_folder: Path) -> None:
    uri, client = registry
    client.set_registered_model_alias("m", "now", "1")
    assert stands_for("models:/m@now", tracking_uri=uri) == ("1", digest_of(table_folder))
    with pytest.raises(BundleError, match=re.escape("cannot read 'folder'; give models:/<name>@<alias>")):
        stands_for("folder", tracking_uri=uri)


def test_a_folder_is_named_by_its_digest_and_never_moves(table_folder: Path) -> None:
    source = Source(str(table_folder), name="mine", device="cpu", workers=3)
    engine = source.open()
    assert (engine.name, engine.version) == ("mine", digest_of(table_folder)[:12])
    assert (engine.workers, source.moves, Source("models:/m/1").moves) == (3, False, False)


@dataclass
class Script:
    """An origin that says what it is told to say."""

    pin: Pin
    make: Callable[[], Engine]
    opened: int = 0
    errors: list[Exception] = field(default_factory=list)

    def newest(self) -> Pin:
        return self.pin

    def open(self) -> Engine:
        self.opened += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.make()


def test_a_registry_that_is_away_is_asked_again_and_a_bad_version_is_not(table_bundle: Bundle) -> None:
    metrics = Metrics()
    script = Script(Pin("2", None), lambda: Engine(table_bundle, "m", "2"))
    script.errors = [TrackingError("away"), BundleError("bad")]

    async def story() -> list[str]:
        follower = Follower(script, Models(Engine(table_bundle, "m", "1")), metrics)
        seen = [await follower.look() for _ in range(4)]
        script.pin = Pin("2", table_bundle.digest)
        return [*seen, await follower.look(), await follower.look()]

    assert asyncio.run(story()) == ["unreachable", "refused", "same", "same", "swapped", "same"]
    assert script.opened == 3
    assert read(metrics)["model_info", "m", "CPUExecutionProvider", "2"] == 1


def test_looks_come_at_the_interval_varied_by_a_tenth(
    table_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr("serving.service.reload.asyncio.sleep", sleep)
    numbers = iter([0.0, 0.5, 1.0])

    async def story() -> None:
        origin = Script(Pin("1", None), lambda: Engine(table_bundle, "m", "1"))
        follower = Follower(origin, Models(Engine(table_bundle, "m", "1")), Metrics())
        with pytest.raises(asyncio.CancelledError):
            await follower.follow(30, lambda: next(numbers))

    asyncio.run(story())
    assert slept == pytest.approx([27, 30, 33])
