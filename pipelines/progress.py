"""Progress of training: a bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipelines.console import plain

Epoch = dict[str, float]


def epoch_line(figures: Epoch, epochs: int | None) -> str:
    """One epoch in words; ``epochs`` is None where their number is not known."""
    of = f"/{epochs}" if epochs else ""
    validation = f"validation {figures['val_loss']:.2f}  " if "val_loss" in figures else ""
    return (
        f"epoch {figures['epoch']:.0f}{of}  loss {figures['loss']:.2f}  "
        f"{validation}kl {figures['kl']:.2f}  "
        f"active {figures['active_units']:.0f}  {figures['samples_per_second']:,.0f} rows/s"
    )


@dataclass
class Lines:
    """One line per epoch."""

    console: Console
    epochs: int | None = None

    def expect(self, epochs: int) -> None:
        """Hear how many epochs there will be."""
        self.epochs = epochs

    def __call__(self, figures: Epoch) -> None:
        """Print an epoch."""
        plain(self.console, epoch_line(figures, self.epochs))


@dataclass
class Bar:
    """A bar that moves on with each epoch."""

    progress: Progress
    task: TaskID

    def expect(self, epochs: int) -> None:
        """Hear how many epochs there will be."""
        self.progress.update(self.task, total=epochs)

    def __call__(self, figures: Epoch) -> None:
        """Move on."""
        validation = figures.get("val_loss", math.nan)
        self.progress.update(
            self.task, completed=figures["epoch"], loss=figures["loss"], validation=validation
        )


@contextmanager
def training_progress(console: Console) -> Iterator[Lines | Bar]:
    """A callback for training: a bar with the time left on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.2f}  validation {task.fields[validation]:.2f}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, progress.add_task("training", total=None, loss=math.nan, validation=math.nan))


@contextmanager
def rows_progress(console: Console, what: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """A callback for batch jobs: rows done, and how many there are if known."""
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed:,.0f} rows"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
