"""The section on detection in images of docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

TITLES = {
    "MNIST novel": "MNIST, one digit novel, nine normal: mean AUROC (to beat: .93)",
    "Fashion-MNIST novel": "Fashion-MNIST, one class novel, nine normal: mean AUROC (to beat: .76)",
    "MNIST one": "MNIST, one digit normal: mean AUROC (to beat: .980)",
    "Fashion-MNIST one": "Fashion-MNIST, one class normal: mean AUROC (to beat: .940)",
    "Fashion-MNIST other": "Trained on Fashion-MNIST: AUROC against MNIST and flips (to beat: .99, .70, .90)",
    "MNIST other": "Trained on MNIST: AUROC against Fashion-MNIST (to beat: .99) and flips",
}
NOTES = """- **Detection on images**: four fifths of the normal images are given to `fit`, which trains on
  70 % of them and holds the rest out; of the last fifth, as of the anomalies, at most 5,000 are judged. Where
  classes are novel or normal, train and test images are merged first. Peers get their own defaults and
  5,000 training images, flat and standardised. A class that has not been run is not in the mean: *classes*
  says how many are; in brackets the spread over seeds, largest less least. Intervals of false alarms are
  Beta-Binomial, 99 % each, so that one in a hundred lies outside by chance. MCD finds its pseudo-inverses in
  the range of each covariance (`benchmarks/images.py`): the same AUROC to the last digit where both were run,
  in two fifths of the time. Seconds do not compare: the machine ran other things beside, PyOD's VAE,
  AutoEncoder, LUNAR and MCD ran on the Intel one below, the others on the AMD, and seed 0 of ours is without
  training where a class is novel or the data set is another one.
"""
Section = dict[str, Any]


def image_tables(sections: dict[str, Section]) -> str:
    """One table per protocol that has been measured."""
    parts = ["## Detection on images\n"]
    for name, title in TITLES.items():
        if name in sections:
            parts += [f"{title}.\n", _table(sections[name]), _told(sections[name])]
    return "\n".join(parts if len(parts) > 1 else [*parts, "not measured\n"])


def _table(section: Section) -> str:
    kinds = list(section["rows"][0]["auroc"])
    lines = [["method", *kinds, "classes", "seeds", "seconds"], ["---"] * (4 + len(kinds))]
    for row in section["rows"]:
        spread = row.get("spread", {})
        found = [f"{row['auroc'][k]:.3f}" + (f" ({spread[k]:.3f})" if k in spread else "") for k in kinds]
        seeds = f"{row['cells'] / row['tasks']:.3g}"
        classes = f"{row['tasks']} of {section['of']}"
        lines.append([row["method"], *found, classes, seeds, f"{row['seconds']:.3g}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _told(section: Section) -> str:
    """Our scores one by one, classes, false alarms, and how it was measured."""
    told, own = [], next((row for row in section["rows"] if row["method"] == "vae-anomaly"), None)
    if own is not None:
        scores: dict[str, list[str]] = {}
        for key, value in own["scores"].items():
            kind, _, name = key.partition("|")
            scores.setdefault(kind, []).append(f"`{name}` {value:.3f}")
        told += [f"Our scores alone ({kind}): {', '.join(found)}.\n" for kind, found in scores.items()]
        classes = [f"{name.rpartition('-')[2]}: {value:.3f}" for name, value in own["by_task"].items()]
        told += [f"By class: {', '.join(classes)}.\n"] if len(classes) > 1 else []
        alarms = [
            f"{rate}: {held['share']:.4f}, inside the interval in {held['inside']} of {own['cells']} cells"
            for rate, held in own["false_alarms"].items()
        ]
        told.append(f"False alarms asked and found: {'; '.join(alarms)}.\n")
    measured, epochs = section["measured"], section["epochs"]
    less = f", {epochs} epochs in place of the recommended number" if epochs else ""
    seeds = ", ".join(map(str, section["seeds"]))
    told.append(f"Measured by `{measured['command']}` on {measured['date']}; seeds {seeds}{less}.\n")
    return "\n".join(told)
