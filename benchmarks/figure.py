"""One figure of docs/benchmarks.md, and how its values are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Cell = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Figure:
    """A line of the table of figures.

    Attributes
    ----------
    title, target : str
    file, section : str
        Where its values are.
    measured : callable
        A section to text; a key or value that is missing there is not measured.
    """

    title: str
    target: str
    file: str
    section: str
    measured: Cell


def number(value: float) -> str:
    """Four digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def with_spread(values: dict[str, Any]) -> str:
    """Mean and deviation over seeds."""
    return f"{values['mean']:.2f} ± {values['std']:.2f} ({len(values['values'])} seeds)"


def times_faster(values: dict[str, Any]) -> str:
    """A ratio with its range over pairs."""
    return f"{values['median']:.2f} times ({values['least']:.2f} to {values['most']:.2f})"
