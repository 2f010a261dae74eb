"""Plots of scores and p-values: how well anomalies stand out, and whether promises hold."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from pipelines.report.canvas import (
    ALARM,
    ANOMALY,
    CALIBRATION,
    INK,
    NORMAL,
    VARIABLES,
    Plot,
    inline,
    new_axes,
    thin,
)
from pipelines.report.metrics import INTERVAL_LEVEL, Bools, Floats
from pipelines.report.words import percent
from vae_anomaly.calibration import false_alarm_interval


def score_histogram(
    calibration: Floats, scores: Floats, labels: Bools | None, threshold: float | None, score: str
) -> Plot:
    """Scores of calibration rows, test rows and anomalies, with the threshold."""
    scored = ~np.isnan(scores)
    known = np.zeros(len(scores), np.bool_) if labels is None else labels
    test = "test rows" if labels is None else "normal test rows"
    groups = {
        "calibration rows": (calibration, CALIBRATION),
        test: (scores[scored & ~known], NORMAL),
        "anomalies": (scores[scored & known], ANOMALY),
    }
    groups = {name: group for name, group in groups.items() if group[0].size}
    edges, logarithmic = _bins([values for values, _ in groups.values()], threshold)
    figure, axes = new_axes()
    for name, (values, colour) in groups.items():
        share = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
        filled = name != "calibration rows"
        if filled:
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.4)
        axes.stairs(share, edges, color=colour, linewidth=1.1 if filled else 1.6, zorder=2 if filled else 3)
    if threshold is not None:
        axes.axvline(threshold, color=ALARM, linestyle=(0, (4, 2)), linewidth=1.3)
    if logarithmic:
        axes.set_xscale("log")
        # The usual formatter writes mathematics, which is off so that foreign text stays as it is.
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{score}, larger = more anomalous")
    axes.set_ylabel("share of the group")
    medians = ", ".join(f"{name} {np.median(values):.4g}" for name, (values, _) in groups.items())
    marks = [
        (name, VARIABLES[colour], "line" if name == "calibration rows" else "fill")
        for name, (_, colour) in groups.items()
    ]
    limit = [("alarm threshold", VARIABLES[ALARM], "dash")] if threshold is not None else []
    return Plot(
        "Scores",
        inline(figure),
        f"Histogram of the score; medians: {medians}",
        "Normal test rows should lie over the calibration outline and anomalies to the right of the dashed "
        "threshold; the outer bars also hold everything beyond them.",
        tuple(marks + limit),
    )


def _bins(groups: list[Floats], threshold: float | None) -> tuple[Floats, bool]:
    """About 45 bins over the bulk of every group; logarithmic when the groups lie decades apart."""
    marks = [q for values in groups for q in np.quantile(values, (0.002, 0.98))]
    low, high = min(marks), max([*marks, *([] if threshold is None else [threshold])])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    if low > 0 and high / low > 50:
        return np.geomspace(low, high * 1.1, 46), True
    return np.linspace(low, high + (high - low) * 0.03, 46), False


def roc(labels: Bools, scores: Floats, area: float) -> Plot:
    """Anomalies caught against normal rows alarmed, over all thresholds."""
    wrong, caught, _ = roc_curve(labels, scores)
    figure, axes = new_axes()
    axes.plot([0, 1], [0, 1], color=INK, linestyle=(0, (2, 3)), linewidth=0.9, alpha=0.6)
    axes.plot(thin(wrong), thin(caught), color=ANOMALY)
    axes.fill_between(thin(wrong), thin(caught), color=ANOMALY, alpha=0.1, linewidth=0)
    _unit_square(axes, "false alarm rate", "anomalies caught")
    return Plot(
        "ROC",
        inline(figure),
        f"Receiver operating characteristic, area {area:.3f}",
        "The closer to the upper left corner the better; the dotted diagonal is a coin flip.",
    )


def precision_recall(labels: Bools, scores: Floats, area: float) -> Plot:
    """Share of alarms that are right against anomalies caught, over all thresholds."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    base = float(labels.mean())
    figure, axes = new_axes()
    axes.axhline(base, color=INK, linestyle=(0, (2, 3)), linewidth=0.9, alpha=0.6)
    axes.plot(thin(recall), thin(precision), color=ANOMALY, drawstyle="steps-post")
    _unit_square(axes, "anomalies caught (recall)", "alarms that are right (precision)")
    return Plot(
        "Precision and recall",
        inline(figure),
        f"Precision against recall, average precision {area:.3f}, base rate {base:.3f}",
        "The closer to the upper right corner the better; the dotted line is the base rate, "
        f"{percent(base)} anomalies.",
    )


def _unit_square(axes: Axes, across: str, up: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03), xlabel=across, ylabel=up)


def p_value_plot(p_values: Floats, calibration_rows: int, labelled: bool, top: float = 1.0) -> Plot:
    """Share of normal rows with a p-value of at most x, which should be x, with a 99 % band."""
    p = np.sort(p_values[~np.isnan(p_values)])
    ranks = np.unique(np.linspace(1, max(1, int(top * (calibration_rows + 1))), 60).astype(int))
    ranks = ranks[ranks <= calibration_rows]
    asked = ranks / (calibration_rows + 1)
    # Half a rank up keeps floor(alpha (n + 1)) at the rank whatever the rounding.
    band = np.array(
        [
            false_alarm_interval(calibration_rows, len(p), (k + 0.5) / (calibration_rows + 1), INTERVAL_LEVEL)
            for k in ranks
        ]
    )
    real = np.searchsorted(p, asked * (1 + 1e-12), side="right") / len(p)
    # Drawn smaller than the rest, for it stands in a row of three.
    figure, axes = new_axes(3.1, 2.3)
    axes.fill_between(asked, *(band.T / len(p)), color=CALIBRATION, alpha=0.25, linewidth=0)
    axes.plot([0, top], [0, top], color=INK, linestyle=(0, (2, 3)), linewidth=0.9, alpha=0.7)
    axes.plot(asked, real, color=NORMAL)
    axes.set(xlim=(0, top), ylim=(0, None), xlabel="p-value at most", ylabel="share of rows")
    who = "normal test rows" if labelled else "test rows (not known to be normal)"
    inside = float(np.mean((real >= band[:, 0] / len(p)) & (real <= band[:, 1] / len(p))))
    return Plot(
        "p-values" if top == 1 else f"p-values up to {top:g}",
        inline(figure),
        f"Share of {who} per p-value; {inside:.0%} of the line lies inside the 99 % band",
        "On the diagonal the p-values are honest: a share of x gets p ≤ x. Above it there are more alarms "
        "than promised; the band is where a correct detector stays 99 % of the time at each point.",
        ((who, VARIABLES[NORMAL], "line"), ("99 % band", VARIABLES[CALIBRATION], "fill")),
    )
