"""docs/benchmarks.md says what the files of results say, and what was missed."""

from __future__ import annotations

import pytest

from benchmarks.harness import RESULTS
from benchmarks.missed import REASONS, Target, best_peer, missed_targets
from benchmarks.report import PAGE, page, read
from benchmarks.skewed import table


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text() == page(read(RESULTS))


def test_the_table_of_skewed_columns_is_what_the_results_say() -> None:
    assert table(read(RESULTS)["skewed"]) in (PAGE.parent / "tables.md").read_text()


def of_two(most: bool) -> Target:
    return Target("a figure", lambda r: float(r["file"]["found"]), lambda r: 2.0, most)


@pytest.mark.parametrize(
    ("found", "most", "told"),
    [
        (1.5, False, "a figure 1.5 (asked: 2)"),
        (2.0, False, None),
        (2.0, True, None),
        (2.5, True, "a figure 2.5 (asked: 2)"),
    ],
)
def test_a_target_is_missed_beyond_its_bound(found: float, most: bool, told: str | None) -> None:
    assert of_two(most).missed({"file": {"found": found}}) == told


def test_what_was_not_measured_is_not_called_missed() -> None:
    assert of_two(False).missed({}) is None
    assert missed_targets({}) == ""


def test_every_target_finds_its_figures() -> None:
    results = read(RESULTS)
    for target in (target for reason in REASONS for target in reason.targets):
        assert target.measured(results) > 0
        assert target.asked(results) > 0


def test_the_best_peer_is_the_one_with_the_least_error() -> None:
    methods = {"vae-anomaly": {"mse": 0.1}, "near": {"mse": 0.2}, "far": {"mse": 0.5}}
    results = {"imputation": {"images": {"figure": "mse", "sets": {"a": methods}}}}
    assert best_peer("images", "a", 0.5)(results) == 0.1
