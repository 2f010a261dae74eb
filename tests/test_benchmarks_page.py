"""docs/benchmarks.md says what the files of results say, and what was missed."""

from __future__ import annotations

import pytest

from benchmarks.harness import RESULTS
from benchmarks.missed import REASONS, Target, missed_targets
from benchmarks.report import PAGE, page, read


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text() == page(read(RESULTS))


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
    results, unmeasured = read(RESULTS), set()
    for target in (target for reason in REASONS for target in reason.targets):
        try:
            target.measured(results), target.asked(results)
        except KeyError:
            unmeasured.add(target.title)
    assert unmeasured <= {"digits, half of the cells hidden, normalised MSE against our MIWAE"}
