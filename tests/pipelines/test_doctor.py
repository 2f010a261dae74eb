"""The doctor runs something real on every device, and one failing check never hides the next."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_runs import Shell

from pipelines import doctor
from pipelines.doctor import GRAPH, Finding, examine
from vae_anomaly.mlflow_access import local_tracking_uri
from vae_anomaly.runtime import CPU, make_session

ORDER = ["python", "packages", "cpu", "cuda", "torch", "tracking", "disk"]
Usage = namedtuple("Usage", "total used free")


def finding(what: str, root: Path, model: str | None = None) -> Finding:
    return next(found for found in examine(model, root) if found.what == what)


def test_the_built_in_graph_multiplies_and_rectifies() -> None:
    x = np.array([[1, 2], [-3, 1], [0, -1]], np.float32)
    (y,) = make_session(GRAPH, CPU).run(None, {"x": x})
    # relu(x @ [[1, -1], [2, 1]])
    assert y.tolist() == [[5, 1], [0, 4], [0, 0]]


def test_everything_is_examined_in_order(tmp_path: Path) -> None:
    found = examine(None, tmp_path)
    assert list(dict.fromkeys(item.what for item in found)) == ORDER
    said = {item.what: item.said for item in found}
    assert onnxruntime.__version__ in said["packages"]
    assert said["cpu"].startswith("a built-in graph gave the right answer in ")
    assert said["tracking"] == f"{local_tracking_uri(tmp_path)} will be made by the first run"
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_there_is_asked(root: Path) -> None:
    assert finding("tracking", root).said == f"{local_tracking_uri(root)} answers, experiments: 1"


def test_a_store_that_does_not_answer_fails_and_the_disk_is_still_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = {item.what: item for item in examine(None, tmp_path)}
    assert found["tracking"].status == "fail"
    assert found["tracking"].said.startswith("the tracking store at http://127.0.0.1:9 cannot be used: ")
    assert found["disk"].status == "ok"


class WrongSession:
    """A device that returns zeros."""

    def run(self, names: Any, feeds: dict[str, Any]) -> list[Any]:
        return [np.zeros_like(feeds["x"])]


def test_a_wrong_answer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "make_session", lambda graph, provider: WrongSession())
    found = finding("cpu", tmp_path)
    assert found.status == "fail"
    assert found.said.startswith("a built-in graph gave the wrong answer in ")


def test_absent_cuda_is_a_note_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cuda_problem", lambda graph: "libcublas.so.12 is missing")
    found = finding("cuda", tmp_path)
    assert (found.status, found.said) == ("note", "libcublas.so.12 is missing; everything runs on the CPU")


@pytest.mark.parametrize(
    ("free", "status", "said"),
    [(3e9, "ok", "3.0 GB free at {}"), (1e9, "fail", "1.0 GB free at {}; free at least 2 GB")],
)
def test_a_full_disk_fails(
    free: float, status: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10e9, 0, free))
    found = finding("disk", tmp_path / "not" / "there")
    assert (found.status, found.said) == (status, said.format(tmp_path))


def test_a_place_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    said = f"{tmp_path} cannot be written; choose another folder with --root"
    assert finding("disk", tmp_path) == Finding("disk", "fail", said)


def test_two_onnxruntimes_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: "1.0")
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: None)
    found = [item for item in examine(None, tmp_path) if item.what == "packages"]
    assert [item.status for item in found] == ["ok", "fail"]
    assert found[1].said.startswith("onnxruntime and onnxruntime-gpu overwrite each other; ")


def test_a_bundle_is_run_in_place_of_the_graph(table_folder: Path, tmp_path: Path) -> None:
    said = finding("cpu", tmp_path, str(table_folder)).said
    assert said.startswith("the self-test of Bundle('")
    assert "gave the right answer in " in said


def test_findings_as_lines_and_as_json(shell: Shell, tmp_path: Path) -> None:
    done = shell("doctor", "--root", tmp_path, "--json")
    assert (done.code, done.err) == (0, "")
    assert [item["what"] for item in json.loads(done.out)] == ORDER
    lines = shell("doctor", "--root", tmp_path).out.splitlines()
    assert [line[:5].strip() for line in lines] == [item["status"] for item in json.loads(done.out)]


def test_a_failing_check_is_exit_code_1(shell: Shell, tmp_path: Path) -> None:
    done = shell("doctor", tmp_path / "nope", "--root", tmp_path)
    assert done.code == 1
    assert "\nfail  cpu: no bundle folder at '" in done.out
    assert "\nok    disk: " in done.out


def test_a_version_out_of_range_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=99", "pandas>=1", "no-such-package>=1", "onnx<0.1; extra == 'train'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: needs)
    (said,) = (
        item.said for item in examine(None, tmp_path) if item.what == "packages" and item.status == "fail"
    )
    assert said.startswith(f"numpy {np.__version__} is not >=99, onnx ")


def test_builds_of_torchvision_that_do_not_fit_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    found = finding("torchvision", tmp_path)
    assert found.status == "fail"
    assert found.said.startswith("operator torchvision::nms does not exist; install torch and torchvision")
