"""docs/benchmarks.md, written from the files of results and from nothing else.

``python -m benchmarks.report`` writes the page; ``--check`` only says whether it is up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation_page import ablation_tables
from benchmarks.detection_page import NOTES as DETECTION_NOTES
from benchmarks.detection_page import more_detection
from benchmarks.figure import Figure, number
from benchmarks.figures import FIGURES
from benchmarks.harness import RESULTS
from benchmarks.images_page import NOTES as IMAGE_NOTES
from benchmarks.images_page import image_tables
from benchmarks.imputation_page import NOTES as IMPUTATION_NOTES
from benchmarks.imputation_page import imputation_tables
from benchmarks.missed import missed_targets

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MISSING = "not measured"
PIXELS = 32 * 32  # of Fashion-MNIST, padded
# What a row of the detection table holds beside the sets.
METHOD_FIGURES = ("method", "mean", "spread", "seeds", "seconds")
INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks.report` from `benchmarks/results/*.json`: change the measurement, not
this page. Times are compared in pairs of interleaved runs on one machine, and the ratio is the median of
the pairs; their range is in brackets. What reads *not measured* has not been measured.
"""
NOTES = """## What is compared

- **The notebook's loop** is a re-implementation (`benchmarks/notebook.py`) of what public notebooks do:
  784-400-20 with ReLU, binary cross-entropy plus KL, Adam at 1e-3, batches of 128, a shuffling `DataLoader`
  over torchvision's MNIST with `ToTensor`, 5 epochs. Every run has a fresh process. Times run from reading
  the files to the last step, without evaluation and without imports, on both sides.
- **Test loss** is the negative ELBO with one draw per row, mean over the 10,000 test images.
- **The schedule of the image recipe** is `recommended_training` on that same network and loss. Its time
  ends with the first epoch after which the test loss is at most the notebook's own after 5 epochs, in the
  same pair.
- **Scoring** is all five scores with one draw, batches of 1,024, 10,000 test images in memory. torch runs
  the very modules that were exported, in inference mode with its default threads.
- **Parity** is the largest difference between torch and onnxruntime, where 1 is the tolerance. The logits
  are moved apart by fixed offsets from -200 to 200. *Stretched* scales the decoder's last layer until they
  reach 200, and the rounding of float32 with them: a worst case that is not promised.
- **The service** runs beside its load generator on the same cores; the share of a core that each took is in
  `service.json`. Models are MNIST's after one epoch, with the default scores. A request to the runtime in
  process is `Bundle.verdicts` of the same 256 rows in one thread. Latency counts from when a request was due.
  Hostile requests and hostile bundles have commands of their own, the rest is one run.
- **Detection on tables**: ten sets of ADBench; a random half of the normal rows trains, the other half and
  all anomalies are judged (the semi-supervised protocol of DTE). Every method gets its own defaults; peers
  get standardised columns and at most 10,000 training rows. Intervals of false alarms are Beta-Binomial,
  99 % corrected for the number of sets. Seconds are fit and scoring on a busy machine: orders of magnitude.
"""


def main() -> None:
    """Write the page, or check it."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--results", type=Path, default=RESULTS)
    made.add_argument("--out", type=Path, default=PAGE)
    made.add_argument("--check", action="store_true", help="exit with 1 if the page is not up to date")
    options = made.parse_args()
    text = page(read(options.results))
    if options.check:
        sys.exit(0 if options.out.exists() and options.out.read_text() == text else 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(f"written: {options.out}")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Files of results by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def page(results: dict[str, dict[str, Any]]) -> str:
    """The whole document."""
    parts = [
        INTRODUCTION,
        figures_table(results),
        missed_targets(results),
        recipes_table(results.get("recipes", {})),
    ]
    parts += [detection_tables(results), more_detection(results.get("detection", {}))]
    parts += [image_tables(results.get("images", {})), ablation_tables(results.get("ablation", {}))]
    parts.append(imputation_tables(results.get("imputation", {})))
    parts.append(NOTES + DETECTION_NOTES + IMAGE_NOTES + IMPUTATION_NOTES)
    return "\n".join([*parts, setups_list(results)]).rstrip() + "\n"


def figures_table(results: dict[str, dict[str, Any]]) -> str:
    """What the design names targets for."""
    rows = []
    for figure in FIGURES:
        section = results.get(figure.file, {}).get(figure.section)
        cells = [figure.title, figure.target, MISSING, "", "", ""]
        if section is not None:
            cells[2:] = [cell(figure, section), *how(section, results)]
        rows.append(cells)
    return "## Figures\n\n" + table(("figure", "target", "measured", "command", "date", "setup"), rows)


def recipes_table(recipes: dict[str, Any]) -> str:
    """Every recipe once."""
    losses = ("training loss", "validation loss")
    header = ("recipe", "parameters", "rows", "epochs", "seconds", *losses, "AUROC", "date")
    rows = [
        (
            name,
            f"{found['parameters']:,}",
            f"{found['rows']['train']:,}",
            str(found["epochs"]),
            number(found["seconds"]),
            f"{found['last']['loss']:.2f}",
            f"{found['best_val_loss']:.2f}",
            "" if found["auroc"] is None else f"{found['auroc']:.3f}",
            date(found),
        )
        for name, found in sorted(recipes.items())
    ]
    commands = sorted({found["measured"]["command"].partition(" --only")[0] for found in recipes.values()})
    told = f"\nLosses in nats per row. Measured by `{'`, `'.join(commands)}`.\n" if commands else ""
    if (found := recipes.get("fashion-autoencoder")) is not None:
        means = [loss / PIXELS for loss in (found["last"]["loss"], found["best_val_loss"])]
        told += (
            f"\nBinary cross-entropy of `fashion-autoencoder` per pixel of 32x32: {means[0]:.4f} in "
            f"training, {means[1]:.4f} in validation; a public notebook has .242 after as many epochs.\n"
        )
    return "## Recipes\n\n" + (table(header, rows) + told if rows else f"{MISSING}\n")


def detection_tables(results: dict[str, dict[str, Any]]) -> str:
    """Our default beside its peers, its false alarms, and the ablation it was chosen by."""
    found, parts = results.get("detection", {}), ["## Detection on tables\n"]
    if "tables" in found:
        section = found["tables"]
        sets = [name for name in section["methods"][0] if name not in METHOD_FIGURES]
        header = ("method", "mean", "spread over seeds", "seeds", *sets, "seconds")
        rows = [
            (
                row["method"],
                f"{row['mean']:.3f}",
                f"{row['spread']:.3f}",
                str(row["seeds"]),
                *(f"{row[name]:.3f}" for name in sets),
                f"{row['seconds']:.3g}",
            )
            for row in section["methods"]
        ]
        alarms = "; ".join(
            f"{rate}: {held['share']:.4f}, inside the interval in {held['inside']} of {held['of']} cells"
            for rate, held in section["false_alarms"].items()
        )
        scores = ", ".join(
            f"`{name.removeprefix('auroc_')}` {value:.3f}" for name, value in section["our_scores"].items()
        )
        parts.append(table(header, rows))
        parts.append(
            f"AUROC of our scores alone, mean: {scores}.\n\nFalse alarms asked and found: {alarms}.\n"
        )
        parts.append(measured_by(section))
    return "\n".join(parts if len(parts) > 1 else [*parts, f"{MISSING}\n"])


def measured_by(section: dict[str, Any]) -> str:
    """Command and date in a sentence."""
    return f"Measured by `{section['measured']['command']}` on {date(section)}.\n"


def how(section: dict[str, Any], results: dict[str, dict[str, Any]]) -> list[str]:
    """Command, date and setup of a section."""
    number_of_setup = setups(results).index(setup(section)) + 1
    return [f"`{section['measured']['command']}`", date(section), str(number_of_setup)]


def date(section: dict[str, Any]) -> str:
    """Of the measurement; a quick run is no measurement and says so."""
    measured = section["measured"]
    return f"{measured['date']} (quick run, no measurement)" if measured["quick"] else measured["date"]


def setup(section: dict[str, Any]) -> str:
    """Machine and versions in one sentence."""
    machine, versions = section["measured"]["machine"], section["measured"]["versions"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    parts = [
        machine["cpu"],
        f"{machine['cores']} cores",
        f"{machine['memory_gib']} GiB",
        gpus,
        machine["system"],
    ]
    return f"{', '.join(parts)}; OMP_NUM_THREADS {machine['threads']}; {packages}"


def setups(results: dict[str, dict[str, Any]]) -> list[str]:
    """Distinct setups, in a fixed order."""
    return sorted({setup(section) for file in results.values() for section in file.values()})


def setups_list(results: dict[str, dict[str, Any]]) -> str:
    """What the numbers in the last column mean."""
    lines = [f"{i}. {text}" for i, text in enumerate(setups(results), start=1)]
    return "## Setups\n\n" + ("\n".join(lines) if lines else MISSING) + "\n"


def cell(figure: Figure, section: dict[str, Any]) -> str:
    """The text of a figure, or that it is missing."""
    try:
        return figure.measured(section)
    except (KeyError, TypeError):
        return MISSING


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
