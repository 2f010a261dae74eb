"""The section on the choice of the default score of docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

Section = dict[str, Any]


def ablation_tables(sections: dict[str, Section]) -> str:
    """Combinations, rules and K, for tables and images as far as they have been measured."""
    parts = ["## Choice of the default score\n"]
    for name in ("tables", "images", "large-images"):
        if name in sections:
            parts += _part(name, sections[name])
    if "bank" in sections:
        parts += _bank(sections["bank"])
    return "\n".join(parts if len(parts) > 1 else [*parts, "not measured\n"])


def _bank(section: Section) -> list[str]:
    sizes = [str(size) for size in section["sizes"]]
    lines = [["set", "score", *(f"{int(size):,}" for size in sizes)], ["---"] * (2 + len(sizes))]
    for row in section["rows"]:
        lines.append([row["set"], f"`{row['figure']}`", *(f"{row[size]:.3f}" for size in sizes)])
    measured = section["measured"]
    return [
        f"AUROC by rows in the bank of `latent_knn` (all there are, where those are fewer) on large sets, "
        f"{section['neighbours']} neighbours:\n",
        "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n",
        f"Measured by `{measured['command']}` on {measured['date']}; seed {section['seed']}.\n",
    ]


def _by_set(rows: list[dict[str, Any]], sets: list[str]) -> list[str]:
    """AUROC of the best and of the default on every set, where both were kept."""
    best, default = rows[0], next(row for row in rows if row["chosen"])
    if best is default or "by_set" not in best:
        return []
    figures = [f"{name}: {default['by_set'][name]:.3f} and {best['by_set'][name]:.3f}" for name in sets]
    return [f"Set by set, the default and the best: {'; '.join(figures)}.\n"]


def _part(name: str, section: Section) -> list[str]:
    lines = [["scores", "rule", "mean AUROC", "worst", "behind the best"], ["---"] * 5]
    for row in section["rows"]:
        scores = f"**{row['scores']}**" if row["chosen"] else row["scores"]
        behind = f"{row['behind']:.4f} ± {row['error']:.4f}"
        lines.append([scores, row["rule"], f"{row['mean']:.3f}", f"{row['worst']:.3f}", behind])
    by_set = _by_set(section["rows"], section["sets"])
    draws = [f"{key.replace('|', ' `')}` {value:.4f}" for key, value in section["draws"].items()]
    measured, seeds = section["measured"], ", ".join(map(str, section["seeds"]))
    return [
        f"Development {name.replace('-', ' ')} ({'; '.join(section['sets'])}); bold: the default.\n",
        "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n",
        *by_set,
        f"By number of draws: {', '.join(draws)}.\n",
        f"Measured by `{measured['command']}` on {measured['date']}; seeds {seeds}.\n",
    ]
