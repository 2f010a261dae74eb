"""docs/benchmarks.md, written from the files of results and from nothing else.

``python -m benchmarks.report`` writes the page; ``--check`` only says whether it is up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MISSING = "not measured"
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
- **The schedule of the image recipe** is `recommended_training` on that same network and loss. Its time ends with
  the first epoch after which the test loss is at most the notebook's own after 5 epochs, in the same pair.
- **Scoring** is all five scores with one draw, batches of 1,024, 10,000 test images in memory. torch runs the very
  modules that were exported, in inference mode with its default threads.
- **Parity** is the largest difference between torch and onnxruntime, where 1 is the tolerance. *Spread* moves the decoder's
  outputs apart, from -200 to 200. *Stretched* scales its last layer until they reach 200, and the rounding of
  float32 with them: a worst case that no tolerance is promised for.
"""

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


def until(values: dict[str, Any]) -> str:
    """The ratio to the target, or in how many runs it was reached."""
    if values["times_faster"]:
        return times_faster(values["times_faster"])
    return f"reached in {values['reached']} of {len(values['seeds'])} runs"


def same_bits(values: dict[str, Any]) -> str:
    """Both networks in one cell."""
    return "; ".join(
        f"{name}: {'identical' if values[name]['identical'] else 'differing'}, {values[name]['rows']:,} rows"
        for name in ("mlp", "conv")
    )


def two(values: dict[str, Any], cell: Cell) -> str:
    """The same cell for the MLP and for the convolutional model."""
    return "; ".join(f"{name} {cell(values[name])}" for name in ("mlp", "conv"))


FIGURES = (
    Figure(
        "`mnist-mlp`: training loss of epoch 5, nats",
        "≤ 110.1",
        "training",
        "recipe",
        lambda v: with_spread(v["ours"]["train_loss"]),
    ),
    Figure(
        "`mnist-mlp`: test loss, nats",
        "≤ 108.6",
        "training",
        "recipe",
        lambda v: with_spread(v["ours"]["test_loss"]),
    ),
    Figure(
        "the notebook's own losses beside it: training; test",
        "",
        "training",
        "recipe",
        lambda v: f"{with_spread(v['notebook']['train_loss'])}; {with_spread(v['notebook']['test_loss'])}",
    ),
    Figure(
        "`mnist-mlp` against the notebook's loop, time",
        "2 times faster, try for 4",
        "training",
        "recipe",
        lambda v: times_faster(v["times_faster"]),
    ),
    Figure(
        "seconds of the notebook; of `mnist-mlp`",
        "",
        "training",
        "recipe",
        lambda v: f"{number(v['notebook']['seconds']['mean'])}; {number(v['ours']['seconds']['mean'])}",
    ),
    Figure(
        "schedule of the image recipe, time to the notebook's test loss",
        "4 times faster, try for 10",
        "training",
        "schedule",
        until,
    ),
    Figure(
        "bfloat16 against float32, training on this CPU",
        "",
        "training",
        "precision",
        lambda v: two(v, lambda part: times_faster(part["times_faster"])),
    ),
    Figure(
        "bfloat16 training, rows per second",
        "",
        "training",
        "precision",
        lambda v: two(v, lambda part: number(part["samples_per_second"]["bfloat16"])),
    ),
    Figure(
        "onnxruntime against torch, five scores",
        "2 times faster",
        "runtime",
        "scoring",
        lambda v: two(v, lambda part: times_faster(part["times_faster"]["torch"])),
    ),
    Figure(
        "the same with torch recording gradients",
        "",
        "runtime",
        "scoring",
        lambda v: two(v, lambda part: times_faster(part["times_faster"]["torch_with_autograd"])),
    ),
    Figure(
        "rows scored per second by onnxruntime",
        "",
        "runtime",
        "scoring",
        lambda v: two(v, lambda part: number(part["rows_per_second"]["onnxruntime"])),
    ),
    Figure(
        "parity over every recipe, logits from -200 to 200 (1 = the tolerance)",
        "≤ 1",
        "runtime",
        "parity",
        lambda v: (
            f"{v['largest']['spread']:.2g} ({v['tried']} recipes); as trained {v['largest']['plain']:.2g}"
        ),
    ),
    Figure(
        "the same with the last layer stretched",
        "",
        "runtime",
        "parity",
        lambda v: f"{v['largest']['stretched']:.2g}",
    ),
    Figure(
        "a row's bits across 1, 7, 64, 1,000 rows per call, batch sizes, order, threads, processes",
        "identical",
        "runtime",
        "identity",
        same_bits,
    ),
    Figure(
        "torch loaded by `import serving`, `import vae_anomaly.runtime`",
        "no",
        "runtime",
        "imports",
        lambda v: "yes" if v["any_loads_torch"] else "no",
    ),
    Figure(
        "seconds of `import vae_anomaly.runtime`",
        "",
        "runtime",
        "imports",
        lambda v: number(v["seconds"]["import vae_anomaly.runtime"]),
    ),
)


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
    parts = [INTRODUCTION, figures_table(results), recipes_table(results.get("recipes", {})), NOTES]
    return "\n".join([*parts, setups_list(results)]).rstrip() + "\n"


def figures_table(results: dict[str, dict[str, Any]]) -> str:
    """What the design names targets for."""
    rows = []
    for figure in FIGURES:
        section = results.get(figure.file, {}).get(figure.section)
        cells = [figure.title, figure.target, MISSING, "", "", ""]
        if section is not None:
            cells[2:] = [cell(figure.measured, section), *how(section, results)]
        rows.append(cells)
    return "## Figures\n\n" + table(("figure", "target", "measured", "command", "date", "setup"), rows)


def recipes_table(recipes: dict[str, Any]) -> str:
    """Every recipe once."""
    header = (
        "recipe",
        "parameters",
        "rows",
        "epochs",
        "seconds",
        "training loss",
        "validation loss",
        "AUROC",
        "date",
    )
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
    return "## Recipes\n\n" + (table(header, rows) + told if rows else f"{MISSING}\n")


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
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {gpus}, {machine['system']}; "
        f"OMP_NUM_THREADS {machine['threads']}; {packages}"
    )


def setups(results: dict[str, dict[str, Any]]) -> list[str]:
    """Distinct setups, in a fixed order."""
    return sorted({setup(section) for file in results.values() for section in file.values()})


def setups_list(results: dict[str, dict[str, Any]]) -> str:
    """What the numbers in the last column mean."""
    lines = [f"{i}. {text}" for i, text in enumerate(setups(results), start=1)]
    return "## Setups\n\n" + ("\n".join(lines) if lines else MISSING) + "\n"


def cell(measured: Cell, section: dict[str, Any]) -> str:
    """The text of a figure, or that it is missing."""
    try:
        return measured(section)
    except (KeyError, TypeError):
        return MISSING


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
