"""What a page is made of: plain records that the template knows how to set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from pipelines.report.canvas import Mark, Plot


@dataclass(frozen=True)
class Small:
    """Many small plots in one card, with one legend and one sentence."""

    plots: list[Plot]
    legend: tuple[Mark, ...]
    caption: str
    type: ClassVar[str] = "small"


@dataclass(frozen=True)
class Table:
    """Figures in rows; the first column is text, the others are ready to print.

    ``best`` holds (row, column) of the cells to set bold; ``prose`` sets the cells as text, left.
    """

    caption: str
    headers: list[str]
    rows: list[list[str]]
    note: str = ""
    prose: bool = False
    best: frozenset[tuple[int, int]] = frozenset()
    type: ClassVar[str] = "table"


@dataclass(frozen=True)
class Strips:
    """Rows of pictures under each other, each with its word at the left: (word, address, alt text)."""

    title: str
    rows: list[tuple[str, str, str]]
    caption: str
    type: ClassVar[str] = "strips"


class Bar(NamedTuple):
    """One column of a sample; ``length`` of its bar in percent of the sample's largest."""

    name: str
    value: str
    expected: str
    between: str
    contribution: str
    length: int


@dataclass(frozen=True)
class Card:
    """One sample: how it is called, what is known of it, how each score ranks it, its picture or columns."""

    name: str
    facts: str
    ranks: str
    anomaly: bool | None
    picture: str = ""
    alt: str = ""
    columns: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Cards:
    """Samples side by side."""

    title: str
    cards: list[Card]
    caption: str
    type: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Picture:
    """One picture with its words."""

    title: str
    address: str
    alt: str
    caption: str
    type: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Note:
    """A sentence: in place of what cannot be shown, or (quiet) about what is above it."""

    text: str
    quiet: bool = False
    type: ClassVar[str] = "note"


Cell = Plot | Picture | Table | Strips | Small


@dataclass(frozen=True)
class Grid:
    """Cards side by side where there is room; ``layout`` is "two", "three" or "lead" (a wide one first)."""

    cells: Sequence[Cell]
    layout: str = "two"
    type: ClassVar[str] = "grid"


Block = Grid | Table | Cards | Note


@dataclass(frozen=True)
class Section:
    """A headed part of the page; without blocks it is left out."""

    slug: str
    title: str
    blocks: list[Block]


@dataclass(frozen=True)
class Tile:
    """A headline figure; ``tone`` is "", "good" or "bad"."""

    label: str
    value: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class Model:
    """One bundle's part of the page."""

    name: str
    kind: str
    digest: str
    described: str
    tiles: list[Tile]
    warnings: list[str]
    sections: list[Section]
