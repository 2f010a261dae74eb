"""What docs/benchmarks.md says of detection beyond the first table: contamination, false discoveries."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

NOTES = """- **Trained on everything**: all rows of a set train, anomalies too, and the model then ranks
  them. No method sees a label or is told the share of anomalies.
- **Anomalies mixed in**: half of the normal rows train, with so many anomalies that these are the share
  named, or half of all where a set has too few: what a column really holds, mean over sets, stands in
  brackets. Judged are the other normal rows and the other half of the anomalies, the same at every share.
- **False discovery rate**: one fit on half of the normal rows; the other half is split 200 times at random,
  one part calibrates and the other is judged together with all anomalies by Benjamini and Hochberg.
"""


def more_detection(found: dict[str, Any]) -> str:
    """Tables of those parts that were measured."""
    parts = []
    if "unlabelled" in found:
        section = found["unlabelled"]
        header = ("method", "mean", "spread over seeds", "seeds", *section["sets"])
        rows = [
            (
                row["method"],
                f"{row['mean']:.3f}",
                f"{row['spread']:.3f}",
                str(row["seeds"]),
                *(f"{row[name]:.3f}" for name in section["sets"]),
            )
            for row in section["methods"]
        ]
        parts += ["### Trained on everything, unlabelled\n", _table(header, rows), _measured(section)]
    for key, title in (
        ("contamination", "Anomalies mixed into the training rows"),
        ("contamination-development", "The same on development sets"),
    ):
        if key in found:
            section = found[key]
            shares = [str(share) for share in section["shares"]]
            rows = [(row["method"], *(f"{row[share]:.3f}" for share in shares)) for row in section["rows"]]
            told = f"Mean AUROC over {', '.join(section['sets'])}; {len(section['seeds'])} seed(s).\n"
            header = ("method", *(f"{float(share):.0%} ({_reached(section, share):.1%})" for share in shares))
            parts += [f"### {title}\n", told, _table(header, rows), _measured(section)]
    if "discoveries" in found:
        section = found["discoveries"]
        header = ("set", "false discovery rate", "power", "calibration rows", "judged", "fewest reportable")
        rows = [
            (
                row["set"],
                f"{row['fdr']:.3f} ± {row['error']:.3f}",
                f"{row['power']:.3f}",
                *(str(row[name]) for name in ("calibration", "judged", "fewest")),
            )
            for row in section["rows"]
        ]
        asked = f"Asked: at most {section['level']:g}; mean over sets {section['mean']:.4f}, "
        told = f"{asked}{section['resamplings']} resamplings each, {len(section['seeds'])} seeds.\n"
        parts += ["### Realised false discovery rate\n", _table(header, rows), told, _measured(section)]
    return "\n".join(parts)


def _reached(section: dict[str, Any], share: str) -> float:
    """Share of anomalies among the training rows, mean over sets."""
    return statistics.mean(found[share] for found in section["reached"].values())


def _measured(section: dict[str, Any]) -> str:
    return f"Measured by `{section['measured']['command']}` on {section['measured']['date']}.\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
