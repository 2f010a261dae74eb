"""What every plot is drawn on: inline SVG that takes its colours and its font from the page, light or dark.

Every plot is drawn with stand-in colours which `inline` turns into CSS variables, so that one
drawing suits both colour schemes. Legends are left to the page: text outside a picture wraps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import StringIO
from typing import Any, ClassVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.report.metrics import Floats

# Drawn colour -> the page's variable. Any six digits that no one would draw with will do.
INK, GRID, ALARM = "#010203", "#010204", "#010205"
CALIBRATION, NORMAL, ANOMALY, THIRD = "#010206", "#010207", "#010208", "#010209"
VARIABLES = {
    INK: "var(--plot-ink)",
    GRID: "var(--plot-grid)",
    ALARM: "var(--plot-alarm)",
    CALIBRATION: "var(--plot-calibration)",
    NORMAL: "var(--plot-normal)",
    ANOMALY: "var(--plot-anomaly)",
    THIRD: "var(--plot-third)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vae-anomaly",
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "figure.facecolor": "none",
    "lines.linewidth": 1.6,
}
WIDTH, HEIGHT = 3.9, 2.5
CURVE_POINTS = 300


# Text, CSS colour and shape ("line", "dash", "fill", "dot", "tick" or "cross").
Mark = tuple[str, str, str]


@dataclass(frozen=True)
class Plot:
    """One picture with its words.

    Attributes
    ----------
    title : str
    svg : str
        Inline SVG without outside references.
    alt : str
        What a reader who cannot see it needs to know.
    caption : str
        How to read it, one sentence.
    legend : tuple of Mark
    """

    title: str
    svg: str
    alt: str
    caption: str
    legend: tuple[Mark, ...] = ()
    type: ClassVar[str] = "plot"


def new_axes(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty plot of that size in inches; the page scales it to the room there is."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def inline(figure: Figure) -> str:
    """The figure as SVG to stand inside HTML: no prologue, no names that could clash, page colours."""
    text = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # No background of its own: the card behind the plot shows through.
    figure.savefig(text, format="svg", dpi=180, transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # Its own style sheet would speak for the whole page, which says the same for every svg.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<defs>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(
        r' id="(?:figure|axes|patch|text|line2d|xtick|ytick|matplotlib\.axis|\w+Collection)_\d+"', "", svg
    )
    svg = re.sub(r"(font: [\d.]+px) [^;\"]+", r"\1 var(--sans)", svg)
    for drawn, variable in VARIABLES.items():
        svg = svg.replace(drawn, variable)
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)


def thin(values: Floats) -> Floats:
    """At most `CURVE_POINTS` of the values, both ends included."""
    if len(values) <= CURVE_POINTS:
        return values
    kept: Floats = values[np.linspace(0, len(values) - 1, CURVE_POINTS).round().astype(int)]
    return kept


def style() -> Any:
    """Context in which plots are drawn; puts matplotlib's settings back afterwards."""
    return matplotlib.rc_context(STYLE)
