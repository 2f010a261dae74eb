"""The figures that docs/benchmarks.md shows, and where in the files of results each of them is."""

from __future__ import annotations

from typing import Any

from benchmarks.figure import Cell, Figure, number, times_faster, with_spread
from benchmarks.service_figures import GPU_FIGURES, SERVICE_FIGURES


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


def worst_of(values: dict[str, Any], state: str) -> str:
    """Recipes beyond the tolerance by name and output, and the largest of all others."""
    found = {name: states[state] for name, states in values["recipes"].items()}
    beyond = [
        f"{name} {held['largest']:.2g} ({held['in']})" for name, held in found.items() if held["largest"] > 1
    ]
    within = [held["largest"] for held in found.values() if held["largest"] <= 1]
    return "; ".join([f"{len(within)} of {len(found)} recipes at most {max(within, default=0):.2g}", *beyond])


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
        "parity over every recipe, logits from -200 to 200 (1 = the tolerance of bundle.md)",
        "≤ 1",
        "runtime",
        "parity",
        lambda v: f"{worst_of(v, 'spread')}; as trained {worst_of(v, 'plain')}",
    ),
    Figure(
        "the same with the last layer stretched",
        "",
        "runtime",
        "parity",
        lambda v: worst_of(v, "stretched"),
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
    *(
        Figure(
            f"seconds of `make {name}`, its environment being there",
            target,
            "commands",
            name,
            lambda v: number(v["seconds"]),
        )
        for name, target in (("demo", "< 90"), ("quick", "< 120"), ("test", "≤ 600"))
    ),
    Figure(
        "imputing 10,000 x 30, K = 50, against `IterativeImputer.transform`",
        "at most 2 times as long",
        "imputation_speed",
        "few",
        lambda v: f"{times_faster(v['times_slower'])}, {number(v['seconds']['vae-anomaly'])} s",
    ),
    Figure(
        "the same, K = 1,000, against missForest",
        "20 times faster",
        "imputation_speed",
        "many",
        lambda v: (
            f"{number(v['times_faster'])} times, {number(v['seconds']['vae-anomaly'])} s, "
            f"{v['peer_rounds']} rounds of missForest {number(v['seconds']['missForest'])} s"
        ),
    ),
    Figure(
        "observed cells changed by imputation",
        "0",
        "imputation_speed",
        "few",
        lambda v: str(v["observed_cells_changed"]),
    ),
    Figure(
        "scoring the default at K = 1, 784 columns, against PyOD's VAE of equal width",
        "5 times its rows per second",
        "detection",
        "scoring",
        lambda v: times_faster(v["times_faster"]),
    ),
    Figure(
        "seconds of `fit` with defaults",
        "180 and 10; the largest about 300, by the work rule",
        "detection",
        "fitting",
        lambda v: "; ".join(f"{row['data']}: {row['seconds']:.1f}" for row in v["rows"]),
    ),
    *SERVICE_FIGURES,
    *GPU_FIGURES,
)
