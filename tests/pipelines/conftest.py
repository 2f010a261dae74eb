"""One tiny run, trained once, that most tests of this room look at."""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_runs import Done, Shell, Tracked, tiny_digits

from pipelines.train import train
from vae_anomaly.assembly import Fitted
from vae_anomaly.mlflow_access import local_tracking_uri, mlflow_client, mlflow_session


@pytest.fixture(scope="session", autouse=True)
def own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No cache and no tracking server of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with nothing in it: making its tables takes seconds, copying it none."""
    root = tmp_path_factory.mktemp("empty")
    with mlflow_session(timeout=5):
        mlflow_client(local_tracking_uri(root)).search_experiments()
    return root / "mlflow.db"


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Tracked:
    """Tiny digits: trained, tracked, registered as digits@champion. Copy what is to be changed."""
    root = tmp_path_factory.mktemp("tracked") / "mlruns"
    root.mkdir()
    shutil.copy(empty_store, root)
    recipe = tiny_digits()
    return Tracked(train(recipe, root=root, device="cpu", alias="champion"), recipe, root)


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of an autoencoder of the same digits."""
    recipe = tiny_digits("model.kind=autoencoder", "training.epochs=2", name="plain")
    out = tmp_path_factory.mktemp("autoencoder") / "run"
    return train(recipe, out=out, device="cpu", track=False).bundle


@pytest.fixture
def root(tmp_path: Path, empty_store: Path) -> Path:
    """A folder ``mlruns`` with an empty tracking store."""
    folder = tmp_path / "mlruns"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    return folder


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str]) -> Shell:
    """Run a command line in this process, all of `main` included; what it changes is put back."""
    from pipelines.cli import main

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        with _signals_and_logs_put_back(), pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        return Done(int(left.value.code or 0), *capfd.readouterr())

    return call


@contextmanager
def _signals_and_logs_put_back() -> Iterator[None]:
    from pipelines.console import OWN_PACKAGES

    loggers = [logging.getLogger(name) for name in (None, *OWN_PACKAGES)]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    handler = signal.getsignal(signal.SIGTERM)
    loggers[0].handlers.clear()  # pytest's own: with them the command line would not add its own
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers


@pytest.fixture
def exported(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> list[Fitted]:
    """The export, which takes long, only copies a bundle here; what it was asked to export is kept."""
    from pipelines import train as train_module

    asked: list[Fitted] = []

    def copy(fitted: Fitted, folder: Path) -> str:
        asked.append(fitted)
        shutil.copytree(tracked.run.bundle, folder)
        return tracked.run.digest

    monkeypatch.setattr(train_module, "export_bundle", copy)
    return asked
