"""The benchmark for CUDA machines: without one it says so; its plumbing runs on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_without_cuda_it_says_so_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--results", str(tmp_path)])
    gpu.main()
    assert capsys.readouterr().out == "nothing measured: torch sees no CUDA device\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_its_plumbing_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--quick", "--results", str(tmp_path)])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    models = found["runtime"]["models"]
    assert [(m["model"], m["input"]) for m in models] == [
        (kind, dtype) for kind in ("mlp", "conv") for dtype in ("uint8", "float32")
    ]
    assert all(m["parity"] <= 1 and m["provider"] == "CPUExecutionProvider" for m in models)
    assert all(rate > 0 for m in models for rate in m["rows_per_second"].values())
    assert len(found["training"]["models"]) == 4
