"""The section on imputation of docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

TITLES = {
    "breast": "Breast cancer, half of the cells hidden (seed 1234): MSE on hidden cells (to beat: .280)",
    "mcar": "Half of the cells hidden at random: MSE on hidden cells, 1 for the columns' means",
    "mnar": "not-MIWAE's masks, high values of half of the columns hidden: RMSE "
    "(to beat: red 1.08, white 1.04, breast .74)",
    "images": "Hidden pixels of 28x28 images: MSE on hidden pixels",
    "coverage": "Coverage of 95 % intervals, mean width in brackets (to reach: .93, .90, .85)",
    "gaussian": "Gaussian data of rank 3 with noise, 20,000 x 10, 30 % hidden: MSE (within 2 % of exact)",
    "development": "What training was chosen by, half of the cells of development tables hidden: MSE on "
    "hidden cells, 1 for the columns' means",
}
NOTES = """- **Imputation**: every method fills the same gaps; columns are standardised by their complete
  moments, as the papers have it, and pixels lie in [0, 1]. Tables are filled where they were fitted; images
  are fitted on complete training images and filled on 500 test images. Peers get their own defaults:
  missForest is `IterativeImputer` over random forests of 100 trees with sqrt(d) columns a split and 6
  rounds; miceforest has 5 data sets and 5 rounds; on images `IterativeImputer` regresses on the 100
  nearest pixels of 2,000 images and `KNNImputer` has 10,000 images; forests on 784 pixels do not finish.
  MIWAE is our own reading of the paper (`benchmarks/miwae.py`): 128 units, code 10, K = 20, Student's t,
  16,000 steps of 64 rows, 1,000 draws to fill; on images a Bernoulli decoder, 256 units, code 50, 6,000
  steps; on not-MIWAE's masks not-MIWAE with the sign of its process known, 30,000 steps of 16 rows.
  It stays behind what its authors print, on breast (.2867) and on not-MIWAE's masks, so that their figures
  are the targets there. A method with fewer seeds takes minutes per cell.
  Intervals are quantiles of 50 draws.
"""
# As many as asked for: fewer are said.
SEEDS = 3
Section = dict[str, Any]


def imputation_tables(sections: dict[str, Section]) -> str:
    """One table per part that has been measured."""
    parts = ["## Imputation\n"]
    for name, title in TITLES.items():
        if name in sections:
            parts += [f"{title}.\n", _table(sections[name])]
    return "\n".join(parts if len(parts) > 1 else [*parts, "not measured\n"])


def _table(section: Section) -> str:
    methods = list(dict.fromkeys(method for found in section["sets"].values() for method in found))
    methods.sort(key=lambda method: method != "vae-anomaly")
    lines = [["set", *methods], ["---"] * (1 + len(methods))]
    for name, found in section["sets"].items():
        best = _best(found, section["figure"])
        cells = [_cell(found.get(method), section["figure"], method == best) for method in methods]
        lines.append([name, *cells])
    measured = section["measured"]
    told = f"\nMeasured by `{measured['command']}` on {measured['date']}.\n"
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n" + told


def _best(found: dict[str, Section], figure: str) -> str | None:
    """The smallest error; coverage has no best."""
    rivals = {method: values[figure] for method, values in found.items() if method != "exact"}
    return None if figure == "coverage" else min(rivals, key=lambda method: rivals[method])


def _cell(values: Section | None, figure: str, best: bool) -> str:
    if values is None:
        return ""
    seeds = "" if values["seeds"] == SEEDS else f" ({values['seeds']} seed{'s' * (values['seeds'] > 1)})"
    if figure == "coverage":
        return f"{values['coverage']:.3f} ({values['width']:.2f}){seeds}"
    spread = (f" ± {values[f'{figure}_std']:.4f}" if values["seeds"] > 1 else "") + seeds
    return f"**{values[figure]:.4f}**{spread}" if best else f"{values[figure]:.4f}{spread}"
