"""Progress of training: a bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Epoch = dict[str, float]


def epoch_line(figures: Epoch, epochs: int) -> str:
    """One epoch in words."""
    return (
        f"epoch {figures['epoch']:.0f}/{epochs}  loss {figures['loss']:.2f}  validation {figures['val_loss']:.2f}  "
        f"kl {figures['kl']:.2f}  active {figures['active_units']:.0f}  {figures['samples_per_second']:,.0f} rows/s"
    )


@contextmanager
def training_progress(console: Console, epochs: int | None) -> Iterator[Callable[[Epoch], None]]:
    """A callback for `Trainer`; ``epochs`` is None where the data decide."""
    if not console.is_terminal:
        yield lambda figures: console.print(_quiet_line(figures, epochs), highlight=False, soft_wrap=True)
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.2f}  validation {task.fields[validation]:.2f}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=epochs, loss=float("nan"), validation=float("nan"))

        def advance(figures: Epoch) -> None:
            progress.update(
                task, completed=figures["epoch"], loss=figures["loss"], validation=figures["val_loss"]
            )

        yield advance


def _quiet_line(figures: Epoch, epochs: int | None) -> str:
    line = epoch_line(figures, epochs or 0)
    return line if epochs else line.replace("/0 ", " ", 1)


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
