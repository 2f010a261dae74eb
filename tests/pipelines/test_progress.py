"""What is shown while something runs."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from pipelines.progress import epoch_line, rows_progress, training_progress

FIGURES = {
    "epoch": 3.0,
    "loss": 12.3456,
    "val_loss": -1.005,
    "kl": 2.5,
    "active_units": 7.0,
    "samples_per_second": 12345.6,
}


def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def shown(console: Console) -> list[str]:
    """Lines without colours and cursor movements."""
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    return [line for line in re.split(r"[\r\n]+", text) if line]


@pytest.mark.parametrize(("epochs", "start"), [(20, "epoch 3/20  loss"), (None, "epoch 3  loss")])
def test_an_epoch_is_one_line(epochs: int | None, start: str) -> None:
    line = epoch_line(FIGURES, epochs)
    assert line == start + " 12.35  validation -1.00  kl 2.50  active 7  12,346 rows/s"


def test_without_a_terminal_epochs_are_unbroken_lines() -> None:
    console = quiet()
    with training_progress(console) as progress:
        progress(FIGURES)
        progress.expect(20)
        progress(FIGURES)
    assert shown(console) == [epoch_line(FIGURES, None), epoch_line(FIGURES, 20)]


def test_a_terminal_shows_a_bar_with_losses_and_the_total() -> None:
    console = terminal()
    with training_progress(console) as progress:
        progress.expect(20)
        progress(FIGURES)
    last = shown(console)[-1]
    for part in ("3/20", "loss 12.35", "validation -1.00"):
        assert part in last


def test_a_bar_waits_for_its_first_loss() -> None:
    console = terminal()
    with training_progress(console):
        pass
    assert "0/?" in shown(console)[-1]


def test_rows_are_counted_on_a_terminal_only() -> None:
    with rows_progress(quiet(), "scoring") as nothing:
        assert nothing is None
    console = terminal()
    with rows_progress(console, "scoring") as progress:
        assert progress is not None
        calls: list[Any] = [(1000, None), (2000, 4000)]
        for done, total in calls:
            progress(done, total)
    assert "2,000 rows" in shown(console)[-1]
