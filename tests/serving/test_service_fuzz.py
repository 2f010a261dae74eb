"""The fuzz and the hostile bundles of the benchmarks, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_hostile_requests_never_end_in_a_server_error(table_folder: Path) -> None:
    from benchmarks.fuzz_service import fuzz

    found = fuzz(table_folder, 300, seed=1)
    assert found["total"] >= 300
    assert (found["server_errors"], found["failed_checks"], found["alive"]) == (0, 0, True)
    assert found["memory_mb"] < 50


def test_hostile_bundles_are_refused(table_folder: Path, tmp_path: Path) -> None:
    from benchmarks.hostile_bundles import hostile_graphs, mutated_bundles

    for found in (mutated_bundles(table_folder, 60, 1, tmp_path), hostile_graphs(table_folder, tmp_path)):
        assert (found["accepted"], found["crashes"], found["opened_outside"]) == (0, 0, 0), found
