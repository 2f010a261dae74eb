"""Plots of the model itself: its training, its latent space, its imputations column by column."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from pipelines.report.canvas import (
    ANOMALY,
    CALIBRATION,
    NORMAL,
    THIRD,
    VARIABLES,
    WIDTH,
    Plot,
    inline,
    new_axes,
    thin,
)
from pipelines.report.metrics import Array, Floats
from pipelines.report.results import LatentMap

# Mid-tones that can be told apart on light and dark; the scatter is a bitmap and cannot follow the page.
GROUPS = (
    "#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#76b7b2",
    "#9c755f", "#d4a017", "#ff9da7", "#8a8f98", "#5b6ee1",
)  # fmt: skip
GROUP_ANOMALY = "#d62f4b"
BARS = 20


def curves(history: list[dict[str, float | None]]) -> list[Plot]:
    """Loss, reconstruction, KL and active units against the epoch, each where the history has it."""
    panels = [_curve(history, title) for title in CURVES]
    return [panel for panel in panels if panel is not None]


# Words of a history key that put it in a panel, most telling first: "validation_kl" is a KL.
CURVES = {
    "Loss": ("loss", "bound", "elbo"),
    "Reconstruction": ("reconstruction", "recon"),
    "KL divergence": ("kl",),
    "Active units": ("active",),
}
LINES = {"training": NORMAL, "validation": ANOMALY}
CURVE_TEXTS = {
    "Loss": "Both lines should fall and flatten together; a validation line that turns up means overfitting.",
    "Reconstruction": "How badly the decoder explains its input (nats per row); lower is better.",
    "KL divergence": "Information that the latent code carries (nats per row); near 0 the code is ignored.",
    "Active units": "Latent dimensions that carry information; the others have collapsed to the prior.",
}


def _panel_of(key: str) -> str | None:
    words = re.split(r"[^a-z]+", key.lower())
    for title in ("Active units", "KL divergence", "Reconstruction", "Loss"):
        if any(word in words for word in CURVES[title]):
            return title
    return None


def _curve(history: list[dict[str, float | None]], title: str) -> Plot | None:
    keys = [key for key in dict.fromkeys(k for epoch in history for k in epoch) if _panel_of(key) == title]
    values = {key: np.array([_number(epoch.get(key)) for epoch in history]) for key in keys}
    # The last of each: a history holds at most one training and one validation figure per panel.
    lines = {_line_name(key): thin(line) for key, line in values.items() if np.isfinite(line).any()}
    if not lines:
        return None
    epochs = thin(np.array([_number(epoch.get("epoch", i + 1)) for i, epoch in enumerate(history)]))
    figure, axes = new_axes(height=2.0)
    for name, line in lines.items():
        axes.plot(epochs, line, color=LINES[name], marker="o" if len(line) == 1 else None)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ends = "; ".join(f"{name} ends at {line[-1]:.4g}" for name, line in lines.items())
    legend = tuple((name, VARIABLES[LINES[name]], "line") for name in lines)
    return Plot(title, inline(figure), f"{title} per epoch: {ends}", CURVE_TEXTS[title], legend)


def _line_name(key: str) -> str:
    return "validation" if "val" in key.lower() else "training"


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def latent_scatter(latent: LatentMap, title: str) -> Plot:
    """Latent means of test rows, coloured by class, anomalies as crosses."""
    points = latent.points
    names, colours = _group_colours(latent)
    anomalies = np.zeros(len(points), np.bool_) if latent.anomalies is None else latent.anomalies
    figure, axes = new_axes(height=3.6)
    size = 9 if len(points) > 800 else 16
    x, y = points.T
    normal = ~anomalies
    dots: dict[str, Any] = {
        "s": size,
        "c": colours[normal],
        "alpha": 0.75,
        "linewidths": 0,
        "rasterized": True,
    }
    axes.scatter(x[normal], y[normal], **dots)
    crosses: dict[str, Any] = {"s": 1.6 * size, "c": GROUP_ANOMALY, "marker": "x", "linewidths": 0.9}
    axes.scatter(x[anomalies], y[anomalies], rasterized=True, **crosses)
    axes.set(xlabel=latent.axes[0], ylabel=latent.axes[1])
    axes.margins(0.04)
    legend = [(name, colour, "dot") for name, colour in names.items()]
    legend += [("anomaly", GROUP_ANOMALY, "cross")] if anomalies.any() else []
    count = f"{len(points)} test rows, {int(anomalies.sum())} of them anomalies"
    return Plot(
        title,
        inline(figure),
        f"Scatter of latent means of {count}",
        "Every mark is a test row where the encoder puts it; what lies apart, the model tells apart.",
        tuple(legend),
    )


def _group_colours(latent: LatentMap) -> tuple[dict[str, str], Array]:
    """The nine largest groups get a colour each and the rest share one; anomalies have their own mark."""
    if latent.groups is None:
        return ({} if latent.anomalies is None else {"normal": GROUPS[0]}), np.full(
            len(latent.points), GROUPS[0]
        )
    anomalous = latent.anomalies if latent.anomalies is not None else np.zeros(len(latent.groups), np.bool_)
    normal = [group for group, anomaly in zip(latent.groups, anomalous, strict=True) if not anomaly]
    names, counts = np.unique(np.array(normal, dtype=object).astype(str), return_counts=True)
    room = len(GROUPS) if len(names) <= len(GROUPS) else len(GROUPS) - 1
    kept = sorted(names[np.argsort(-counts, kind="stable")[:room]].tolist(), key=_natural)
    chosen = dict(zip(kept, GROUPS, strict=False))
    others = {"other": GROUPS[-1]} if len(names) > len(kept) else {}
    return {**chosen, **others}, np.array([chosen.get(group, GROUPS[-1]) for group in latent.groups])


def _natural(name: str) -> tuple[int, float, str]:
    return (0, float(name), name) if name.isdecimal() else (1, 0.0, name)


def column_bars(columns: dict[str, list[float | None]], names: tuple[str, ...]) -> Plot | None:
    """Normalised imputation error of each column: the model as bars, the others as marks."""
    model = np.array([_number(value) for value in columns["model"]])
    order = np.argsort(-np.nan_to_num(model, nan=-1.0), kind="stable")[:BARS]
    order = order[np.isfinite(model[order])][::-1]
    if not len(order):
        return None
    places = np.arange(len(order))
    figure, axes = new_axes(WIDTH, 0.6 + 0.19 * len(order))
    axes.barh(places, model[order], color=NORMAL, alpha=0.55, height=0.62)
    legend = [("this model", VARIABLES[NORMAL], "fill")]
    for method, colour in {"mean": CALIBRATION, "median": THIRD, "knn": ANOMALY}.items():
        if method in columns:
            values = np.array([_number(columns[method][i]) for i in order])
            axes.plot(values, places, "|", color=colour, markersize=7.5, markeredgewidth=2)
            legend.append((METHODS[method], VARIABLES[colour], "tick"))
    axes.set_yticks(places, [_short(names[i]) for i in order])
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="error / standard deviation of the column", ylim=(-0.7, len(order) - 0.3))
    worst = f"largest for {names[order[-1]]}: {model[order[-1]]:.3g}"
    title = "Error per column" if len(names) <= BARS else f"The {BARS} columns with the largest error"
    return Plot(
        title,
        inline(figure),
        f"Normalised imputation error of {len(order)} columns, {worst}",
        "Shorter is better; near 1 the column cannot be told from the others and its mean does as well.",
        tuple(legend),
    )


METHODS = {
    "model": "this model",
    "mean": "mean fill",
    "median": "median fill",
    "knn": "nearest neighbours",
    "regression": "iterated regressions",
}


def _short(name: str, at_most: int = 22) -> str:
    return name if len(name) <= at_most else name[: at_most - 1] + "…"


def density(data: Floats, drawn: Floats, name: str) -> Plot:
    """One column: the data against draws from the model."""
    seen = data[~np.isnan(data)]
    low, high = np.quantile(np.concatenate([seen, drawn]), (0.005, 0.995))
    edges = np.linspace(low, high if high > low else low + 1.0, 31)
    figure, axes = new_axes(2.6, 1.7)
    for values, colour, filled in ((seen, CALIBRATION, True), (drawn, ANOMALY, False)):
        share = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(len(values), 1)
        axes.stairs(share, edges, color=colour, fill=filled, alpha=0.45 if filled else 1, linewidth=1.3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_yticks([])
    means = f"mean {np.mean(seen):.4g} in the data, {np.mean(drawn):.4g} in the draws"
    return Plot(_short(name, 40), inline(figure), f"Histogram of {name}: {means}", "")
