"""docs/benchmarks.md from the JSON files of benchmarks/results, and from nothing else.

``python -m benchmarks.report`` writes it; ``--check`` fails when it is not what the results say.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
Results = dict[str, Any]
MISSING = "not measured"

HEAD = """# Benchmarks

Every figure here is quoted from `benchmarks/results/*.json`, which the commands named write;
`python -m benchmarks.report` makes this page from them. The machines are shared and noisy: compare ratios
within a run, not seconds between runs.
"""


def main() -> None:
    """Write or check the page."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--check", action="store_true")
    options = made.parse_args()
    page = render({path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))})
    if options.check and PAGE.read_text() != page:
        raise SystemExit("docs/benchmarks.md is not what the results say; run python -m benchmarks.report")
    PAGE.write_text(page)


def render(results: Results) -> str:
    """The whole page."""
    return "\n".join([HEAD, *targets(results), "", *recipes(results), "", *machines(results), "", *NOTES])


def at(results: Results, *path: str) -> Any:
    """A value by its path, None where something on it is absent."""
    value: Any = results
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def targets(results: Results) -> Iterator[str]:
    """Figures with a target."""
    yield "## Figures with a target\n"
    yield "| figure | to reach | measured | command |"
    yield "|---|---|---|---|"
    for figure, target, say, section in FIGURES:
        found = at(results, *section)
        said = say(found) if found else MISSING
        yield f"| {figure} | {target} | {said} | {_command(found)} |"


def _command(section: Any) -> str:
    command = at(section or {}, "measured", "command")
    return f"`{command}`" if command else ""


def recipes(results: Results) -> Iterator[str]:
    """One line per run of a recipe."""
    yield "## Recipes\n"
    yield RECIPE_NOTE
    columns = ("parameters", "epochs", "seconds", "loss", "best_validation", "auroc", *IMPUTATION)
    titles = (
        "parameters",
        "epochs",
        "seconds",
        "last loss",
        "best validation",
        "AUROC",
        "NRMSE",
        "mean fill",
        "KNN",
    )
    yield "| run | " + " | ".join(titles) + " |"
    yield "|---|" + "---:|" * len(titles)
    for name, found in (results.get("recipes") or {}).items():
        yield f"| {name} | " + " | ".join(_number(found.get(column)) for column in columns) + " |"


IMPUTATION = ("imputation_nrmse", "mean_fill_nrmse", "neighbours_nrmse")
RECIPE_NOTE = (
    "Losses are nats per row, those of different likelihoods do not compare. AUROC is on labelled anomalies "
    "in the test rows where a run has them. NRMSE: 30 % of the cells of normal test rows hidden at random, "
    "error in units of the pixel range or of the column's standard deviation, beside mean fill and "
    "`KNNImputer`. Command: `python -m benchmarks.recipes --data-root DATA --work WORK`.\n"
)


def machines(results: Results) -> Iterator[str]:
    """Where each file was measured."""
    yield "## Machines\n"
    seen: dict[str, list[str]] = {}
    for name, sections in results.items():
        for section, values in sections.items():
            if context := at(values, "measured"):
                seen.setdefault(_machine(context), []).append(f"{name}/{section}")
    for machine, sections in seen.items():
        yield f"- {machine}: {', '.join(sections)}"


def _machine(context: dict[str, Any]) -> str:
    machine, packages = context["machine"], context["versions"]
    named = ", ".join(
        f"{name} {packages[name]}" for name in packages if name in ("python", "torch", "onnxruntime-gpu")
    )
    gpu = ", ".join(machine["gpus"]) or "no GPU"
    cores = f"{machine['cores']} cores {machine['cpu']}"
    return f"{context['date']}, {cores}, {machine['memory_gib']} GiB, {gpu}; {named}"


def _number(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.3g}"
        if abs(value) < 1
        else f"{value:.2f}"
    )


Say = Callable[[Any], str]


def _times(ratio: Any) -> str:
    pairs = len(ratio["pairs"])
    return f"{ratio['median']:.1f} times ({ratio['least']:.1f} to {ratio['most']:.1f} in {pairs} pairs)"


def _spread(value: Any) -> str:
    return f"{value['mean']:.2f} +- {value['std']:.2f}"


def _losses(key: str) -> Say:
    return lambda found: (
        f"{_spread(found['ours'][key])} ({len(found['ours'][key]['values'])} seeds); "
        f"the notebook's loop {_spread(found['notebook'][key])}"
    )


def _schedule(found: Any) -> str:
    if found["times_faster"] is None:
        return f"not reached in {len(found['targets']) - found['reached']} of {len(found['targets'])} runs"
    return _times(found["times_faster"])


def _scoring(found: Any) -> str:
    return "; ".join(f"{name}: {_times(part['times_faster']['torch'])}" for name, part in networks(found))


def _identity(found: Any) -> str:
    return "; ".join(
        f"{name}: {max(part['differing'].values())} of {part['rows']:,} rows differ "
        f"in {len(part['differing'])} settings"
        for name, part in networks(found)
    )


def _parity(found: Any) -> str:
    return (
        f"largest difference {found['largest']:.2f} of its tolerance, over {found['recipes_tried']} recipes"
    )


def _imports(found: Any) -> str:
    loaded = [name for name, torch in found["loads_torch"].items() if torch]
    return (
        f"torch loaded by {', '.join(loaded)}"
        if loaded
        else f"none of {len(found['loads_torch'])} statements loads torch"
    )


def _precision(found: Any) -> str:
    return "; ".join(f"{name}: {_times(part['times_faster'])}" for name, part in networks(found))


def networks(found: Any) -> list[tuple[str, Any]]:
    """The parts of a section that are about one network each."""
    return [(name, found[name]) for name in ("mlp", "conv") if name in found]


FIGURES: list[tuple[str, str, Say, tuple[str, ...]]] = [
    ("`mnist-mlp`: training loss after 5 epochs", "<= 110.1", _losses("train_loss"), ("training", "recipe")),
    ("`mnist-mlp`: test loss after 5 epochs", "<= 108.6", _losses("test_loss"), ("training", "recipe")),
    (
        "time for that recipe against the notebook's own loop",
        "2.0 times faster; try 4",
        lambda found: _times(found["times_faster"]),
        ("training", "recipe"),
    ),
    (
        "schedule of `default-image` on that network: time to the notebook's 5-epoch test loss",
        "4 times faster; try 10",
        _schedule,
        ("training", "schedule"),
    ),
    ("training in bfloat16 against float32, this CPU", "none", _precision, ("training", "precision")),
    (
        "onnxruntime scoring (five scores, K = 1) against torch eager, batch 1,024",
        "2 times faster",
        _scoring,
        ("runtime", "scoring"),
    ),
    (
        "parity torch - onnxruntime over every recipe, logits up to +-200",
        "at most 1",
        _parity,
        ("runtime", "parity"),
    ),
    ("row results across batch sizes, order, workers", "identical bits", _identity, ("runtime", "identity")),
    ("`import serving`, `vae_anomaly.runtime`", "no torch", _imports, ("runtime", "imports")),
]
NOTES = [
    "## Notes",
    "",
    "- No CUDA machine has been at hand yet: nothing here is measured on a GPU.",
]


if __name__ == "__main__":
    main()
