"""A finished cell is taken for what measured it, and for nothing else; a peer made faster stays itself."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import pinvh

from benchmarks.cells import cell, found_cells
from benchmarks.harness import parsed, parser
from benchmarks.images import OURS, cell_name, pseudo_inverse


def test_a_finished_cell_is_measured_once(tmp_path: Path) -> None:
    assert cell(tmp_path, "a", lambda: {"auroc": 0.5, "seconds": 9.0}) == {"auroc": 0.5, "seconds": 9.0}
    assert cell(tmp_path, "a", lambda: pytest.fail("measured again"), ["auroc"])["auroc"] == 0.5


def test_a_cell_that_lacks_a_figure_is_measured_again_and_keeps_the_others(tmp_path: Path) -> None:
    cell(tmp_path, "a", lambda: {"auroc": 0.5, "seconds": 9.0})
    # A training that is kept costs nothing the second time.
    found = cell(tmp_path, "a", lambda: {"auroc": 0.5, "beside": 0.75, "seconds": 0.1}, ["beside"])
    assert found == {"auroc": 0.5, "beside": 0.75, "seconds": 9.0}
    assert found_cells(tmp_path, ["a", "b"]) == [found]


@pytest.mark.parametrize(
    ("words", "folder"), [([], "work"), (["--quick"], "work/quick")], ids=["whole", "quick"]
)
def test_a_quick_run_keeps_its_cells_apart(
    words: list[str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = parser("A benchmark.", data=False)
    made.add_argument("--work", type=Path, required=True)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--work", "work", *words])
    assert parsed(made).work == Path(folder)


def test_other_epochs_are_another_cell_of_ours_alone() -> None:
    assert cell_name("digits-one-3", 0, OURS, 0) == f"digits-one-3-0-{OURS}"
    assert cell_name("digits-one-3", 0, OURS, 7) == f"digits-one-3-0-{OURS}-7"
    assert cell_name("digits-one-3", 0, "LOF", 7) == "digits-one-3-0-LOF"


@pytest.mark.parametrize("rows", [20, 300], ids=["fewer rows than columns", "more"])
def test_the_pseudo_inverse_is_that_of_scipy(rows: int) -> None:
    values = np.random.default_rng(0).normal(size=(rows, 50)) * np.geomspace(1, 100, 50)
    values[:, 7] = 3.0
    covariance = np.cov(values, rowvar=False)
    np.testing.assert_allclose(pseudo_inverse(covariance), pinvh(covariance), atol=1e-12)
