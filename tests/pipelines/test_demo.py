"""The main job in one go, in a folder where the user has folders of our names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_runs import Done, Tracked

import pipelines
from pipelines.demo import DemoResult, _model
from pipelines.train import TrainingRun
from vae_anomaly.mlflow_access import local_tracking_uri
from vae_anomaly.runtime import load_bundle

SCRIPT = Path(sys.executable).with_name("vae-anomaly")
HOME = Path(pipelines.__file__).parents[1]
NUMBER = r"\d+\.\d+"
# Whoever asks another host for something finds nobody.
NOBODY = "http://127.0.0.1:9"
OFFLINE = {"http_proxy": NOBODY, "https_proxy": NOBODY, "all_proxy": NOBODY, "no_proxy": ""}


def installed(*arguments: str, folder: Path, **environment: str) -> Done:
    """The command as a user has it: what lies in the working folder is no part of the path."""
    command = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-P", "-m", "pipelines.cli"]
    own = {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=os.environ | own, capture_output=True, text=True, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty but for packages called like ours, which stop whoever imports them."""
    home = tmp_path_factory.mktemp("a user's folder")
    for name in ("serving", "pipelines"):
        (home / name).mkdir()
        (home / name / "__init__.py").write_text("raise SystemExit('this is the user\\'s own')\n")
    return home


@pytest.fixture(scope="module")
def demo(folder: Path) -> Done:
    return installed("demo", "--epochs", "2", "--root", "my runs", folder=folder, **OFFLINE)


@pytest.fixture(scope="module")
def work(folder: Path) -> Path:
    return folder / "my runs" / "work" / "demo" / "1"


def test_the_three_figures_are_numbers(demo: Done, work: Path) -> None:
    assert demo.code == 0, demo.err
    lines = demo.out.splitlines()
    assert re.fullmatch(rf"AUROC on digit 8, never seen in training: {NUMBER}", lines[1])
    assert re.fullmatch(rf"false alarms on normal digits, 5 % asked: {NUMBER} %", lines[2])
    assert re.fullmatch(
        rf"imputation error on hidden pixels \(normalised RMSE\): {NUMBER}; mean fill {NUMBER}, "
        rf"nearest neighbours {NUMBER}",
        lines[3],
    )
    metrics = json.loads((work / "metrics.json").read_text())
    assert lines[1].endswith(f" {metrics['auroc']:.3f}")
    assert lines[2].endswith(f" {100 * metrics['false_alarm_rate']:.1f} %")
    assert lines[3].endswith(f" {metrics['imputation_nrmse_knn']:.3f}")


def test_progress_goes_to_stderr_one_line_each(demo: Done) -> None:
    lines = demo.err.splitlines()
    assert [line for line in lines if not line.startswith("epoch ")] == [
        "training on digits without the 8",
        "loading models:/digits@champion, scoring and imputing the test images as batch jobs",
        "judging the bundle and writing the report",
    ]
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["1/2", "2/2"]


def test_every_place_it_names_is_there(demo: Done, folder: Path, work: Path) -> None:
    named = dict(re.findall(r"^  (\w+) +(.+)$", demo.out, re.MULTILINE))
    for what in ("report", "predictions", "imputations", "bundle"):
        assert (folder / named[what]).exists()
    assert named["tracking"] == local_tracking_uri(folder / "my runs")
    assert named["registered"] == "models:/digits/1, alias @champion"
    images, filled = np.load(work / "test-images.npy"), np.load(work / "imputed.npy")
    observed = np.load(work / "observed.npy")
    assert observed.mean() == pytest.approx(0.5, abs=0.02)
    assert np.array_equal(images[observed], filled[observed])
    assert (images[~observed] != filled[~observed]).any()
    scores = pd.read_parquet(work / "scores.parquet")
    assert len(scores) == len(images)
    assert sorted(scores["rank"])[0] == 1
    digest = load_bundle(work / "bundle", device="cpu", threads=1).digest
    assert json.loads((work / "report" / "report.json").read_text())["models"][0]["digest"] == digest


def test_the_next_command_runs(demo: Done, folder: Path) -> None:
    command = demo.out.split("next:\n  ")[1].splitlines()[0]
    assert command == (
        "vae-anomaly score models:/digits@champion 'my runs/work/demo/1/test-images.npy' --rank "
        "--out my-scores.parquet --root 'my runs'"
    )
    done = installed(
        *("score", "models:/digits@champion", "my runs/work/demo/1/test-images.npy", "--rank"),
        *("--out", "my-scores.parquet", "--root", "my runs"),
        folder=folder,
    )
    assert done.code == 0, done.err
    batch = pd.read_parquet(folder / "my runs" / "work" / "demo" / "1" / "scores.parquet")
    assert pd.read_parquet(folder / "my-scores.parquet").equals(batch)


def result(**changes: Any) -> DemoResult:
    run = TrainingRun(Path("b"), "d", "r", "sqlite:///x", "models:/digits/7", 1, {}, 1.0, {})
    fields = {"run": run, "metrics": {}, "folder": Path("mlruns/1"), "root": Path("mlruns"), "model": "b"}
    return DemoResult(**{**fields, **changes})


def test_the_usual_root_is_not_repeated() -> None:
    assert result().next_commands()[0].endswith("--out my-scores.parquet")
    assert result(root=Path("a b")).next_commands()[0].endswith("--out my-scores.parquet --root 'a b'")


def test_the_folder_stands_in_while_the_server_is_away(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _model(tracked.run, tracked.root) == "models:/digits@champion"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert _model(tracked.run, tracked.root) == str(tracked.run.bundle)
