"""An evaluation in words and tables, set as sections of a page."""

from __future__ import annotations

from typing import Any

from pipelines.report import canvas, drawn
from pipelines.report.blocks import Block, Cell, Grid, Model, Note, Section, Small, Table, Tile
from pipelines.report.model_figures import METHODS
from pipelines.report.results import Evaluation
from pipelines.report.words import count, flattened, number, percent, printable
from vae_anomaly.schema import ImageSchema

PROVENANCE_ROWS = 60
WARNINGS = 20
SCORES = 20
KINDS = {"vae": "variational autoencoder", "autoencoder": "autoencoder"}
RANKS = {"auroc": "AUROC", "average_precision": "average precision", "precision_at_n": "precision at n"}
# Error measures and whether more of them is better.
ERRORS = {"rmse": "RMSE", "mae": "MAE", "nrmse": "RMSE / scale", "nmae": "MAE / scale", "psnr": "PSNR (dB)"}
PATTERNS = {
    "random": "30 % hidden at random",
    "by others": "30 % hidden by the values of other columns",
    "by themselves": "30 % hidden by their own values, high ones first",
    "block": "One block hidden",
    "lower half": "Lower half hidden",
}
POOLED = 20


def model_page(evaluation: Evaluation, plots: drawn.PlotsBySection, side: int | None, prefix: str) -> Model:
    """One bundle's part of the page.

    Parameters
    ----------
    evaluation : Evaluation
    plots : dict
        From `drawn.plots_of`; empty to leave plots out.
    side : int or None
        Longest side of a thumbnail in pixels; None leaves out whatever shows single samples.
    prefix : str
        Keeps the anchors of several bundles on one page apart.
    """
    summary = evaluation.summary
    curves = plots.get("training", [])
    parts: dict[str, list[Block]] = {
        "Detection": [Grid([*plots.get("detection", []), _score_table(summary)])],
        "False alarms": [Grid([*plots.get("calibration", []), _alarm_table(summary)], "three")],
        "Samples": [] if side is None else drawn.sample_blocks(evaluation, side),
        "Imputation": _imputation(evaluation, plots, side),
        "Latent space": _latent(evaluation, plots, side),
        "Training": [Grid(curves)] if curves else [],
        "Provenance": [_provenance(summary)],
    }
    return Model(
        name=printable(summary["name"]),
        kind=KINDS.get(summary["kind"], printable(summary["kind"], 40)),
        digest=printable(summary["digest"], 80),
        described=_described(evaluation),
        tiles=tiles(summary),
        warnings=[printable(text, 500) for text in summary["warnings"][:WARNINGS]],
        sections=[
            Section(f"{prefix}{title.lower().replace(' ', '-')}", title, blocks)
            for title, blocks in parts.items()
            if blocks
        ],
    )


def _described(evaluation: Evaluation) -> str:
    schema, rows = evaluation.schema, evaluation.summary["rows"]
    if isinstance(schema, ImageSchema):
        what = f"{schema.width}x{schema.height} images, {count(schema.channels, 'channel')}"
    else:
        what = count(schema.elements, "column")
    size = count(evaluation.summary["latent_size"], "latent dimension")
    known = ""
    if rows["anomalies"] is not None:
        known = f", {count(rows['anomalies'], 'anomaly', 'anomalies')} among them"
    return f"{what}, {size}; judged on {count(rows['test'], 'test row')}{known}."


def tiles(summary: dict[str, Any]) -> list[Tile]:
    """The headline figures."""
    ranks, rows = summary["scores"]["score"], summary["rows"]
    asked, caught = percent(summary["asked_false_alarm_rate"]), summary["detection_rate"]
    why = "no labels" if rows["anomalies"] is None else "labels of one class only"
    if ranks["auroc"] is not None:
        why = f"score {printable(summary['default_score'], 40)}; 0.5 is a coin flip, 1 is perfect"
    found = f"at a promised false alarm rate of {asked}" if caught is not None else "no anomaly is known"
    return [
        Tile("AUROC", number(ranks["auroc"]), why),
        _alarm_tile(summary, asked),
        Tile("Anomalies caught", percent(caught), found),
        _imputation_tile(summary["imputation"]),
    ]


def _alarm_tile(summary: dict[str, Any], asked: str) -> Tile:
    alarms = summary["false_alarms"]
    if alarms is None:
        flagged = f"{summary['flagged']:,} of {count(summary['rows']['test'], 'row')} flagged at {asked}"
        return Tile("False alarms", "n/a", f"no row is known to be normal; {flagged}")
    low, high = alarms["low"] / alarms["rows"], alarms["high"] / alarms["rows"]
    note = f"promised {asked}; {percent(low)} to {percent(high)} is plausible"
    return Tile("False alarms", percent(alarms["rate"]), note, "good" if alarms["inside"] else "bad")


def _imputation_tile(imputation: dict[str, Any]) -> Tile:
    if "patterns" not in imputation:
        return Tile("Imputation error", "n/a", printable(imputation["reason"], 160))
    methods = imputation["patterns"]["random"]["methods"]
    others = [
        f"{METHODS[method]} {number(methods[method]['nrmse'])}" for method in methods if method != "model"
    ]
    return Tile(
        "Imputation error", number(methods["model"]["nrmse"]), "; ".join(["30 % hidden at random", *others])
    )


def _score_table(summary: dict[str, Any]) -> Table:
    default = summary["default_score"]
    named = {
        f"{printable(default, 60)} (default)"
        if name == "score"
        else printable(name.removeprefix("score_"), 60): ranks
        for name, ranks in summary["scores"].items()
        if name != f"score_{default}"
    }
    rows = [[name, *(number(ranks[key]) for key in RANKS)] for name, ranks in list(named.items())[:SCORES]]
    note = (
        "Precision at n: the share of anomalies among the n highest scores, n being the number of anomalies. "
    )
    note += "n/a: there are no labels, or of one class only."
    return Table("Every score", ["score", *RANKS.values()], rows, note)


def _alarm_table(summary: dict[str, Any]) -> Table:
    alarms, rows = summary["false_alarms"], summary["rows"]
    lines = [
        ["promised rate", percent(summary["asked_false_alarm_rate"])],
        ["threshold of the score", number(summary["threshold"])],
        ["calibration rows", f"{rows['calibration']:,}"],
        ["test rows flagged", f"{summary['flagged']:,} of {rows['test']:,}"],
        ["nothing observed", count(rows["unscored"], "row")],
    ]
    if rows["clipped"] is not None:
        lines.append(["clipped to the trained range", count(rows["clipped"], "row")])
    if alarms is None:
        return Table("At the threshold", ["figure", "value"], lines)
    lines += [
        ["normal rows flagged", f"{alarms['alarms']:,} of {alarms['rows']:,} ({percent(alarms['rate'])})"],
        ["plausible for a correct detector", f"{alarms['low']:,} to {alarms['high']:,}"],
    ]
    note = "Plausible: what 99 % of calibration sets of this size give if normal test rows are like the "
    note += "calibration rows (Beta-Binomial)."
    return Table("At the threshold", ["figure", "value"], lines, note)


def _imputation(evaluation: Evaluation, plots: drawn.PlotsBySection, side: int | None) -> list[Block]:
    result = evaluation.summary["imputation"]
    if "patterns" not in result:
        return [Note(f"Not available: {printable(result['reason'], 300)}.")]
    image = isinstance(evaluation.schema, ImageSchema)
    tables = {name: _error_table(name, pattern, image) for name, pattern in result["patterns"].items()}
    gallery = {} if side is None else drawn.gallery(evaluation, side)
    if gallery:
        blocks: list[Block] = [Grid([gallery[name], table], "lead") for name, table in tables.items()]
    else:
        blocks = [Grid([*tables.values(), *plots.get("imputation", [])], "three" if image else "two")]
    # A table of five columns is cut in half of the page.
    blocks.append(_honesty_table(result["patterns"]))
    if pooled := _pooled(evaluation, plots):
        blocks.append(Grid(pooled))
    return [*blocks, Note(_imputation_note(result, image), quiet=True)]


def _error_table(name: str, pattern: dict[str, Any], image: bool) -> Table:
    keys = ("rmse", "mae", "nrmse", "psnr") if image else ("nrmse", "nmae")
    methods = list(pattern["methods"].values())
    rows = [[METHODS[method], *(number(v[key]) for key in keys)] for method, v in pattern["methods"].items()]
    best = frozenset((_best(methods, key), i + 1) for i, key in enumerate(keys) if methods[0]["cells"])
    note = f"{count(pattern['cells'], 'hidden cell')}; the best of each column is bold."
    return Table(PATTERNS[name], ["filled by", *(ERRORS[key] for key in keys)], rows, note, best=best)


def _honesty_table(patterns: dict[str, Any]) -> Table:
    levels = [part["level"] for part in patterns["random"]["draws"]["intervals"]] or [0.95]
    rows = []
    for name, pattern in patterns.items():
        found = pattern["draws"]
        cells = [f"{percent(part['coverage'])} ({number(part['width'])})" for part in found["intervals"]]
        rows.append([PATTERNS[name], *(cells or ["n/a"] * len(levels)), number(found["crps"])])
    draws = patterns["random"]["draws"]["draws"]
    note = (
        f"Share of hidden values between quantiles of {draws} draws, mean width in units of the scale in "
        "brackets: an honest model covers what it promises, by narrow intervals. CRPS is the mean absolute "
        "error of a distribution."
    )
    return Table(
        "Draws", ["hidden", *(f"{100 * level:g} % interval" for level in levels), "CRPS"], rows, note
    )


def _pooled(evaluation: Evaluation, plots: drawn.PlotsBySection) -> list[Cell]:
    """Of tables: column means by Rubin's rules, and densities of known and imputed values."""
    pattern, schema = evaluation.summary["imputation"]["patterns"]["random"]["draws"], evaluation.schema
    if "pooled" not in pattern or isinstance(schema, ImageSchema):
        return []
    rows = [
        [
            printable(name, 40),
            number(found["complete"]),
            f"{number(found['estimate'])} ({number(found['low'])} to {number(found['high'])})",
            percent(found["missing_information"]),
        ]
        for name, found in zip(schema.names, pattern["pooled"], strict=True)
        if found["estimate"] is not None
    ]
    note = f"{count(pattern['rows'], 'row')}, 30 % hidden at random; draws pooled by Rubin's rules."
    headers = ["column", "mean of all", "pooled (95 %)", "information missing"]
    cells: list[Cell] = [Table("Column means from draws", headers, rows[:POOLED], note)]
    if small := plots.get("imputed", []):
        legend = (
            ("known values", canvas.VARIABLES[canvas.CALIBRATION], "fill"),
            ("imputed, one draw", canvas.VARIABLES[canvas.ANOMALY], "line"),
        )
        caption = "Hidden at random, so that both should have the same shape."
        cells.append(Small(small, legend, caption))
    return cells


def _best(methods: list[dict[str, Any]], key: str) -> int:
    """Which method has the smallest error, by nrmse for the logarithm that psnr is of it."""
    return min(range(len(methods)), key=lambda i: methods[i]["nrmse" if key == "psnr" else key])


def _imputation_note(result: dict[str, Any], image: bool) -> str:
    rows = count(result["rows"], "normal test row" if result["known_normal"] else "test row")
    scale = "the range of the pixels" if image else "the column's standard deviation over training rows"
    note = (
        f"Known cells of {rows} are hidden and filled again, the same cells by each method. Scale: {scale}."
    )
    if "statistic_rows" in result:
        note += f" Mean and median over {count(result['statistic_rows'], 'training row')}."
    if "neighbours" in result:
        note += f" Nearest neighbours: scikit-learn's KNNImputer, {result['neighbours']} among "
        note += f"{count(result['neighbour_rows'], 'training row')}."
    return note


def _latent(evaluation: Evaluation, plots: drawn.PlotsBySection, side: int | None) -> list[Block]:
    cells: list[Cell] = [*plots.get("latent", [])]
    if side is not None:
        cells += drawn.generated(evaluation, side)
    if small := plots.get("density", []):
        caption = (
            "Each column against what the decoder expects for 1,000 codes from the prior: the same place and "
        )
        caption += "shape, but narrower, for the decoder leaves out the noise."
        legend = (
            ("test rows", canvas.VARIABLES[canvas.CALIBRATION], "fill"),
            ("drawn from the model", canvas.VARIABLES[canvas.ANOMALY], "line"),
        )
        cells.append(Small(small, legend, caption))
    return [Grid(cells)] if cells else []


def _provenance(summary: dict[str, Any]) -> Table:
    known = {"digest": summary["digest"], "evaluation seed": summary["seed"], **summary["provenance"]}
    rows = [[printable(name, 80), printable(value, 160)] for name, value in flattened(known)]
    note = "" if len(rows) <= PROVENANCE_ROWS else f"{len(rows) - PROVENANCE_ROWS:,} more in report.json."
    return Table("Where it comes from", ["field", "value"], rows[:PROVENANCE_ROWS], note, prose=True)


def comparison(summaries: list[dict[str, Any]]) -> Table:
    """Headline figures of several bundles, one per column."""
    found = [{tile.label: tile.value for tile in tiles(summary)} for summary in summaries]
    ranks = [summary["scores"]["score"] for summary in summaries]
    rows = [[label, *(values[label] for values in found)] for label in found[0]]
    rows.insert(1, ["Average precision", *(number(rank["average_precision"]) for rank in ranks)])
    return Table("Headline figures", ["figure", *(printable(s["name"], 60) for s in summaries)], rows)
