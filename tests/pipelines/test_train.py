"""From a recipe to a registered bundle, whatever comes in between."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from tiny_runs import NOVEL, Tracked, tiny_digits

from pipelines import train as train_module
from pipelines.data import load
from pipelines.recipe import load_recipe
from pipelines.splits import split
from pipelines.train import TrainingRun, first_difference, run_folder, samples_of, train
from serving.claim import Claim
from vae_anomaly.assembly import Fitted
from vae_anomaly.exceptions import ConfigError, DataError, DeviceError, DivergedError
from vae_anomaly.imputer_fitting import fit_imputer, imputer_parts, past_epochs
from vae_anomaly.mlflow_access import local_tracking_uri
from vae_anomaly.runtime import load_bundle
from vae_anomaly.training import Callback

PER_EPOCH = {
    "loss",
    "reconstruction",
    "kl",
    "val_loss",
    "active_units",
    "learning_rate",
    "samples_per_second",
    "seconds",
}
# What the clock says is never the same twice.
TIMED = {"samples_per_second", "seconds"}


def client(root: Path) -> MlflowClient:
    uri = local_tracking_uri(root)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def runs(root: Path) -> list[Any]:
    where = client(root)
    found = where.search_runs([where.get_experiment_by_name("vae-anomaly").experiment_id])
    return sorted(found, key=lambda run: run.info.start_time)


def logged(root: Path, run_id: str, name: str) -> dict[int, float]:
    return {point.step: point.value for point in client(root).get_metric_history(run_id, name)}


def test_a_run_leaves_its_bundle_and_its_figures(tracked: Tracked) -> None:
    run, root = tracked.run, tracked.root
    folder = root / "work" / "digits" / "1"
    assert run.bundle == folder / "bundle"
    assert json.loads((folder / "run.json").read_text()) == json.loads(json.dumps(run.to_dict()))
    assert sorted(path.name for path in folder.iterdir()) == [
        "bundle",
        "checkpoints",
        "run.json",
        "settings.json",
    ]
    assert sorted(run.rows) == ["calibration", "test", "train", "validation"]
    assert sum(run.rows.values()) == 400
    assert run.tracking_uri == local_tracking_uri(root)
    assert run.registered == "models:/digits/1"
    # 64 pixels and their mask to 8, two heads of 2; back to 8 and 64, and one learned sigma.
    assert run.parameters == (128 * 8 + 8) + 2 * (8 * 2 + 2) + (2 * 8 + 8) + (8 * 64 + 64) + 1


def test_the_bundle_says_where_it_comes_from(tracked: Tracked) -> None:
    bundle = load_bundle(tracked.run.bundle, device="cpu", threads=1)
    assert bundle.digest == tracked.run.digest
    provenance, dataset = bundle.manifest.provenance, load(tracked.recipe.data)
    assert provenance["run_id"] == tracked.run.run_id
    assert provenance["data_fingerprint"] == dataset.fingerprint
    assert provenance["seed"] == 0
    assert provenance["data"]["novel"] == [NOVEL]
    assert provenance["data"]["limit"] == 400
    counts = {name: provenance[f"rows_{name}"] for name in ("train", "calibration", "test")}
    assert counts == {name: tracked.run.rows[name] for name in counts}
    assert [epoch["epoch"] for epoch in provenance["history"]] == [1, 2, 3]
    assert provenance["history"][-1] == pytest.approx(tracked.run.last, rel=1e-5)
    assert set(provenance["history"][0]) == PER_EPOCH | {"epoch"}


def test_the_place_of_the_data_stays_on_this_machine(tmp_path: Path, exported: list[Fitted]) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(60, 3)))
    data = {"source": "rows.npy", "data_root": str(tmp_path)}
    recipe = load_recipe("table", ["training.epochs=1"], {"data": data})
    train(recipe, out=tmp_path / "run", device="cpu", track=False)
    provenance = exported[0].manifest.provenance
    assert (provenance["data"]["source"], provenance["data"]["data_root"]) == ("rows.npy", None)
    noted = (tmp_path / "run" / "settings.json").read_text()
    assert str(tmp_path) not in json.dumps(provenance) + noted


def test_mlflow_holds_settings_and_every_epoch(tracked: Tracked) -> None:
    run_id = str(tracked.run.run_id)
    run = client(tracked.root).get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits")
    wanted = {
        "seed": "0",
        "data.source": "digits",
        "data.novel": "[8]",
        "data.fractions.train": "0.6",
        "model.network": "mlp",
        "model.latent_size": "2",
        "objective.beta": "1.0",
        "training.epochs": "3",
        "training.random_mask": "0.5",
        "export.false_alarm_rate": "0.05",
    }
    assert {key: run.data.params.get(key) for key in wanted} == wanted
    assert run.data.tags["data.fingerprint"] == load(tracked.recipe.data).fingerprint
    assert set(run.data.metrics) == PER_EPOCH
    history = load_bundle(tracked.run.bundle, device="cpu", threads=1).manifest.provenance["history"]
    for name in PER_EPOCH:
        values = logged(tracked.root, run_id, name)
        assert sorted(values) == [1, 2, 3]
        assert [values[step] for step in (1, 2, 3)] == pytest.approx(
            [epoch[name] for epoch in history], rel=1e-5
        )


def test_the_registered_version_is_the_bundle(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    version = client(tracked.root).get_model_version_by_alias("digits", "champion")
    assert (str(version.version), version.tags) == ("1", {"bundle_digest": tracked.run.digest})
    assert version.run_id == tracked.run.run_id
    monkeypatch.chdir(tracked.root.parent)
    for source in ("models:/digits@champion", f"runs:/{tracked.run.run_id}"):
        assert load_bundle(source, device="cpu", threads=1).digest == tracked.run.digest


class Interrupt:
    """A Ctrl-C while an epoch is reported, before its checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, figures: dict[str, float]) -> None:
        if figures["epoch"] == self.epoch:
            raise KeyboardInterrupt


def assert_same_model(one: Fitted, other: Fitted, x: Any) -> None:
    first, second = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert one.answers().scores(x).equals(other.answers().scores(x))


def assert_same_data(one: Fitted, other: Fitted) -> None:
    assert one.manifest.provenance["data_fingerprint"] == other.manifest.provenance["data_fingerprint"]


def untimed(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in epoch.items() if key not in TIMED} for epoch in history]


def test_an_interrupted_run_resumes_to_the_same_model(
    root: Path, exported: list[Fitted], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_digits("training.epochs=5", "training.patience=4")
    train(recipe, root=root, device="cpu", track=False)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING, "pipelines"):
        train(recipe, root=root, device="cpu", callbacks=[Interrupt(4)])
    folder = root / "work" / "digits" / "2"
    assert f"stopped; the same command with --resume goes on from {folder}" in caplog.messages
    assert not (folder / "bundle").exists()
    epochs: list[float] = []
    resumed = train(
        recipe, root=root, device="cpu", resume=True, callbacks=[lambda f: epochs.append(f["epoch"])]
    )
    assert epochs == [4, 5]
    assert resumed.bundle == folder / "bundle"
    whole, again = exported
    assert_same_data(whole, again)
    assert_same_model(whole, again, load(recipe.data).values[:20])
    histories = [fitted.manifest.provenance["history"] for fitted in (whole, again)]
    assert untimed(histories[0]) == untimed(histories[1])
    first, second = runs(root)
    assert (first.info.status, second.info.status) == ("KILLED", "FINISHED")
    # The run that went on shows the epochs before it, too.
    losses = logged(root, second.info.run_id, "loss")
    assert [losses[step] for step in range(1, 6)] == pytest.approx(
        [epoch["loss"] for epoch in histories[0]], rel=1e-5
    )


@pytest.fixture
def gappy_table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((140, 1)) @ rng.standard_normal((1, 4)) + 0.2 * rng.standard_normal((140, 4))
    rows[rng.random(rows.shape) < 0.2] = np.nan
    np.save(tmp_path / "gaps.npy", rows)
    return tmp_path / "gaps.npy"


def test_an_imputer_trains_as_the_estimator_does(
    gappy_table: Path, tmp_path: Path, exported: list[Fitted]
) -> None:
    changes = ("training.epochs=6", "model.hidden=[8]", "export.imputation_draws=20")
    recipe = load_recipe("default-imputer", changes, {"data": {"source": str(gappy_table)}})
    epochs: list[float] = []
    run = train(
        recipe,
        out=tmp_path / "whole",
        device="cpu",
        track=False,
        callbacks=[lambda figures: epochs.append(figures["epoch"])],
        on_start=lambda _: pytest.fail("nobody knows how many epochs there will be"),
    )
    assert run.rows == {"train": 112, "validation": 0, "calibration": 14, "test": 14}
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) > 6
    dataset = load(recipe.data)
    splits = split(dataset, recipe.data, recipe.seed)
    shown, calibration = (samples_of(dataset, part) for part in (splits.train, splits.calibration))
    parts = imputer_parts(shown, recipe.seed, calibration)
    expected = fit_imputer(dataset.schema, parts, recipe.settings(dataset.schema, shown), device="cpu")
    assert_same_model(exported[0], expected.fitted, dataset.values[:20])
    assert untimed(exported[0].manifest.provenance["history"]) == untimed(
        [{key: float(f"{value:.6g}") for key, value in epoch.items()} for epoch in expected.history]
    )


@pytest.mark.parametrize("epoch", [3, 7, 9], ids=["in the first", "before the last", "in the last"])
def test_an_interrupted_imputer_resumes_to_the_same_model(
    epoch: int, gappy_table: Path, tmp_path: Path, exported: list[Fitted]
) -> None:
    # The likeliest epoch is a late one: two trainings.
    changes = ("training.epochs=6", "model.hidden=[8]", "export.imputation_draws=20")
    recipe = load_recipe("default-imputer", changes, {"data": {"source": str(gappy_table)}})
    halted = tmp_path / "halted"
    epochs: list[float] = []

    def run(out: Path, *callbacks: Callback, resume: bool = False) -> None:
        train(recipe, out=out, device="cpu", track=False, resume=resume, callbacks=callbacks)

    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(halted, Interrupt(epoch))
    with pytest.raises(ConfigError, match=r"holds an unfinished run; give --resume, or choose another --out"):
        run(halted)
    before = [figures["epoch"] for figures in past_epochs(halted / "checkpoints")]
    run(halted, lambda figures: epochs.append(figures["epoch"]), resume=True)
    whole, again = exported
    assert_same_data(whole, again)
    assert_same_model(whole, again, load(recipe.data).values[:20])
    histories = [fitted.manifest.provenance["history"] for fitted in (whole, again)]
    assert untimed(histories[0]) == untimed(histories[1])
    assert (before, epochs) == (list(range(1, epoch)), list(range(epoch, len(histories[0]) + 1)))


def test_a_search_that_was_interrupted_goes_on_in_the_training_where_it_stopped(
    tmp_path: Path, exported: list[Fitted]
) -> None:
    """Noise is learnt by heart at this rate: half, a quarter and more are trained."""
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(200, 4)))
    changes = ["training.epochs=16", "training.learning_rate=0.05", "training.random_mask=0.0"]
    data = {"source": str(tmp_path / "noise.npy")}
    recipe = load_recipe("default-imputer", [*changes, "export.imputation_draws=20"], {"data": data})

    def run(name: str, *callbacks: Callback, resume: bool = False) -> None:
        train(recipe, out=tmp_path / name, device="cpu", track=False, resume=resume, callbacks=callbacks)

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("halted", Interrupt(20))
    folders = sorted(path.name for path in (tmp_path / "halted" / "checkpoints").iterdir())
    assert folders == ["1", "2"]
    run("halted", resume=True)
    whole, again = exported
    assert_same_model(whole, again, load(recipe.data).values[:20])
    first, second = (fitted.manifest.provenance["history"] for fitted in (whole, again))
    assert untimed(first) == untimed(second)
    assert len(first) >= 16 + 8 + 4


def test_a_bundle_that_was_never_registered_is_made_again(
    root: Path, exported: list[Fitted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device", "mlflow.db")

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_register", refuse)
        with pytest.raises(OSError, match="No space left"):
            train(tiny_digits(), root=root, device="cpu")
    assert (root / "work" / "digits" / "1" / "bundle").exists()
    assert train(tiny_digits(), root=root, device="cpu", resume=True).registered == "models:/digits/1"
    assert [run.info.status for run in runs(root)] == ["FAILED", "FINISHED"]
    assert_same_data(*exported)
    assert_same_model(exported[0], exported[1], load(tiny_digits().data).values[:20])


def test_a_folder_is_no_place_for_two_runs(tracked: Tracked, tmp_path: Path, exported: list[Fitted]) -> None:
    finished = tracked.run.bundle.parent
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"holds a finished run; leave out --resume, or choose another"):
            train(tracked.recipe, out=finished, device="cpu", track=False, resume=resume)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_digits(), out=out, device="cpu", track=False, callbacks=[Interrupt(2)])
    with pytest.raises(
        ConfigError, match=r"holds an unfinished run; give --resume, or choose another --out$"
    ):
        train(tiny_digits(), out=out, device="cpu", track=False)
    changed = tiny_digits("training.learning_rate=0.5")
    with pytest.raises(ConfigError, match=r"was begun with another training.learning_rate; resume with what"):
        train(changed, out=out, device="cpu", track=False, resume=True)
    with Claim(out), pytest.raises(DataError, match=rf"^job \d+, started .*, is writing {out}; wait for it"):
        train(tiny_digits(), out=out, device="cpu", track=False, resume=True)
    assert exported == []


def test_a_bundle_of_another_origin_is_never_removed(tmp_path: Path) -> None:
    theirs = tmp_path / "bundle" / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"/bundle exists already, and is of no run; "):
            train(tiny_digits(), out=tmp_path, device="cpu", track=False, resume=resume)
    assert theirs.read_text() == "mine"


def test_new_runs_get_new_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^nothing to resume in {tmp_path}/work/m; leave out --resume$"):
        run_folder(tmp_path, "m", resume=True)
    assert [run_folder(tmp_path, "m").name for _ in range(3)] == ["1", "2", "3"]
    (tmp_path / "work" / "m" / "12").mkdir()
    (tmp_path / "work" / "m" / "notes").mkdir()
    assert run_folder(tmp_path, "m", resume=True).name == "12"
    assert run_folder(tmp_path, "m").name == "13"


def test_the_first_difference_is_named() -> None:
    before = {"seed": 0, "model": {"hidden": [8], "kind": "vae"}, "data": {"limit": None}}
    assert first_difference(before, before) is None
    assert first_difference(before | {"model": {"hidden": [9], "kind": "vae"}}, before) == "model.hidden"
    assert first_difference(before | {"data": {"limit": 5}, "seed": 1}, before) == "seed"
    assert first_difference(before, {}) == "seed"


def test_an_unreachable_server_never_loses_a_run(
    root: Path, exported: list[Fitted], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with caplog.at_level(logging.WARNING, "pipelines"):
        run = train(tiny_digits(), root=root, device="cpu", alias="champion")
    assert (run.tracking_uri, run.registered) == (local_tracking_uri(root), "models:/digits/1")
    (kept,) = runs(root)
    assert (kept.info.run_id, kept.info.status) == (run.run_id, "FINISHED")
    assert kept.data.tags["tracking.server"] == server
    assert sorted(logged(root, str(run.run_id), "loss")) == [1, 2, 3]
    (warning,) = caplog.messages
    assert warning.endswith(f"copy it there with: vae-anomaly sync {run.run_id} --root {root}")


def test_a_diverging_run_is_marked_failed(root: Path, exported: list[Fitted]) -> None:
    with pytest.raises(
        DivergedError, match=r"; lower learning_rate \(now 1e\+09\) or clip_norm \(now 100\)$"
    ):
        train(tiny_digits("training.learning_rate=1e9"), root=root, device="cpu")
    assert [run.info.status for run in runs(root)] == ["FAILED"]
    assert exported == []


def test_devices_are_checked_before_data() -> None:
    with pytest.raises(DeviceError, match=r"^unknown device 'tpu'; choose auto, cpu or cuda$"):
        train(load_recipe("table", (), {"data": {"source": "nowhere.csv"}}), device="tpu")


def test_too_few_rows_are_told_before_a_run_is_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((10, 3)))
    recipe = load_recipe("table", (), {"data": {"source": str(tmp_path / "few.npy")}})
    with pytest.raises(DataError, match=r"^few has 10 rows; at least 20 are needed to train and judge a mod"):
        train(recipe, root=tmp_path / "mlruns", device="cpu")
    assert not (tmp_path / "mlruns").exists()


def test_epochs_are_announced(tmp_path: Path, exported: list[Fitted]) -> None:
    said: list[Any] = []
    train(
        tiny_digits("training.epochs=2"),
        out=tmp_path / "run",
        device="cpu",
        track=False,
        on_start=lambda epochs: said.append(f"of {epochs}"),
        callbacks=[lambda figures: said.append(figures["epoch"])],
    )
    assert said == ["of 2", 1.0, 2.0]


def test_same_seed_same_run(tmp_path: Path, exported: list[Fitted]) -> None:
    lasts = [
        train(tiny_digits(f"seed={seed}"), out=tmp_path / str(i), device="cpu", track=False).last
        for i, seed in enumerate((0, 0, 1))
    ]
    assert untimed(lasts[:1]) == untimed(lasts[1:2])
    assert lasts[0]["loss"] != lasts[2]["loss"]


def test_runs_are_dataclasses_that_json_takes() -> None:
    run = TrainingRun(Path("b"), "d", None, None, None, 1, {"train": 2}, 0.5, {"loss": 1.0})
    assert json.loads(json.dumps(run.to_dict()))["bundle"] == "b"
