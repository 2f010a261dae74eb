"""Every picture of one evaluation: plots drawn once, samples at whatever size the page has room for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.report import canvas, figures, model_figures, pictures
from pipelines.report.blocks import Bar, Block, Card, Cards, Picture, Strips
from pipelines.report.metrics import Array, Floats
from pipelines.report.results import Evaluation, GalleryItem, ShownRows
from pipelines.report.words import number, printable
from vae_anomaly.schema import ImageSchema

DENSITIES = 12
# Rows of a table that are shown of each kind: they fill two lines of three.
TABLE_CARDS = 6
# Scores named under a sample: the strangest of them.
STRANGEST = 3
RANKED = "Below the p-value: the share of calibration samples that each score ranks below this one."
PATTERNS = {
    "random": "30 % of the pixels hidden at random",
    "block": "one block of half the height and width hidden",
    "lower half": "lower half hidden",
}

Plot = canvas.Plot
PlotsBySection = dict[str, list[Plot]]


def plots_of(evaluation: Evaluation) -> PlotsBySection:
    """The plots of one evaluation, by section of the page."""
    with canvas.style():
        return {
            "detection": _detection(evaluation),
            "calibration": _calibration(evaluation),
            "imputation": _columns(evaluation),
            "latent": [_latent(evaluation)],
            "density": _densities(evaluation),
            "imputed": _imputed(evaluation),
            "training": model_figures.curves(evaluation.summary["history"]),
        }


def _latent(evaluation: Evaluation) -> Plot:
    latent = evaluation.latent
    groups = None if latent.groups is None else [printable(group, 40) for group in latent.groups]
    return model_figures.latent_scatter(replace(latent, groups=groups), "Where the test rows lie")


def _detection(evaluation: Evaluation) -> list[Plot]:
    summary, scores, labels = evaluation.summary, evaluation.scores, evaluation.labels
    histogram = figures.score_histogram(
        evaluation.calibration, scores, labels, summary["threshold"], printable(summary["default_score"], 40)
    )
    ranks = summary["scores"]["score"]
    if labels is None or ranks["auroc"] is None:
        return [histogram]
    scored = ~np.isnan(scores)
    known, values = labels[scored], scores[scored]
    return [
        histogram,
        figures.roc(known, values, ranks["auroc"]),
        figures.precision_recall(known, values, ranks["average_precision"]),
    ]


def _calibration(evaluation: Evaluation) -> list[Plot]:
    labels, p = evaluation.labels, evaluation.p_values
    p = p if labels is None else p[~labels]
    if not np.isfinite(p).any() or not len(evaluation.calibration):
        return []
    tops = (1.0, 0.1) if len(evaluation.calibration) >= 50 else (1.0,)
    return [figures.p_value_plot(p, len(evaluation.calibration), labels is not None, top) for top in tops]


def _columns(evaluation: Evaluation) -> list[Plot]:
    schema, patterns = evaluation.schema, evaluation.summary["imputation"].get("patterns", {})
    if isinstance(schema, ImageSchema) or "random" not in patterns:
        return []
    names = tuple(printable(name, 60) for name in schema.names)
    bars = model_figures.column_bars(patterns["random"]["columns"], names)
    return [bars] if bars else []


def _densities(evaluation: Evaluation) -> list[Plot]:
    schema, data, drawn = evaluation.schema, evaluation.reference, evaluation.prior
    if isinstance(schema, ImageSchema) or data is None or drawn is None:
        return []
    named = [(i, printable(name, 60)) for i, name in enumerate(schema.names)]
    known = [(i, name) for i, name in named if np.isfinite(data[:, i]).sum() > 1]
    return [
        model_figures.density(data[:, i], np.asarray(drawn[:, i], np.float64), name)
        for i, name in known[:DENSITIES]
    ]


def _imputed(evaluation: Evaluation) -> list[Plot]:
    """Columns of a table: known values against one draw of the hidden ones."""
    schema, cells = evaluation.schema, evaluation.hidden_cells
    if isinstance(schema, ImageSchema) or cells is None:
        return []
    both = [(i, cells.seen[:, i], cells.drawn[:, i]) for i in range(schema.elements)]
    known = [
        (i, seen, drawn[~np.isnan(drawn)])
        for i, seen, drawn in both
        if np.isfinite(seen).sum() > 1 and np.isfinite(drawn).sum() > 1
    ]
    return [
        model_figures.density(seen, drawn, printable(schema.names[i], 60))
        for i, seen, drawn in known[:DENSITIES]
    ]


def sample_blocks(evaluation: Evaluation, side: int) -> list[Block]:
    """Most and least anomalous samples."""
    if isinstance(evaluation.schema, ImageSchema):
        shown = [*evaluation.most.contributions, *evaluation.least.contributions]
        top = pictures.robust_top(np.stack(shown)) if shown else 1.0
        cards = [
            _image_cards(rows, evaluation.schema, top, side) for rows in (evaluation.most, evaluation.least)
        ]
        how = (
            "Each shows the sample, its reconstruction, and where the reconstruction fails: "
            f"brighter = more unexpected, one scale for all. {RANKED}"
        )
    else:
        cards = [_table_cards(rows) for rows in (evaluation.most, evaluation.least)]
        how = (
            "Columns by their contribution to the reconstruction score, beside what the model expected and "
            f"the range in which 95 % of such values should lie. {RANKED}"
        )
    return [
        Cards("Most anomalous", cards[0], how),
        Cards("Least anomalous", cards[1], "The same for the samples that the model finds most ordinary."),
    ]


def _facts(entry: dict[str, Any]) -> str:
    group = f" · class {printable(entry['class'], 40)}" if entry["class"] is not None else ""
    return f"score {number(entry['score'])} · p {number(entry['p_value'])}{group}"


def _ranks(entry: dict[str, Any]) -> str:
    known = [(rank, name) for name, rank in entry["ranks"].items() if rank is not None]
    return " · ".join(
        f"{printable(name, 60)} {rank:.1%}" for rank, name in sorted(known)[: -STRANGEST - 1 : -1]
    )


def _image_cards(rows: ShownRows, schema: ImageSchema, top: float, side: int) -> list[Card]:
    originals = pictures.masked(pictures.pixels(rows.samples.values, schema), ~rows.samples.observed)
    rebuilt = pictures.pixels(rows.reconstruction, schema)
    heats = pictures.heat(rows.contributions, top)
    return [
        Card(
            name=printable(entry["id"], 60),
            facts=_facts(entry),
            ranks=_ranks(entry),
            anomaly=entry["anomaly"],
            picture=pictures.sheet(np.stack(panels), 3, side),
            alt=f"sample {printable(entry['id'], 60)}, its reconstruction and its heatmap, {_facts(entry)}",
        )
        for entry, *panels in zip(rows.described, originals, rebuilt, heats, strict=True)
    ]


def _table_cards(rows: ShownRows) -> list[Card]:
    return [
        Card(
            name=printable(entry["id"], 60),
            facts=_facts(entry),
            ranks=_ranks(entry),
            anomaly=entry["anomaly"],
            columns=tuple(_bars(entry["columns"])),
        )
        for entry in rows.described[:TABLE_CARDS]
    ]


def _bars(columns: list[dict[str, Any]]) -> list[Bar]:
    largest = max((column["contribution"] or 0.0 for column in columns), default=0.0)
    return [
        Bar(
            printable(column["name"], 60),
            _told(column["value"]),
            _told(column["expected"]),
            "" if column["low"] is None else f"{number(column['low'])} to {number(column['high'])}",
            number(column["contribution"]),
            round(100 * max(column["contribution"] or 0.0, 0.0) / largest) if largest > 0 else 0,
        )
        for column in columns
    ]


def _told(cell: float | str | None) -> str:
    return printable(cell, 60) if isinstance(cell, str) else number(cell)


def gallery(evaluation: Evaluation, side: int) -> dict[str, Strips]:
    """Hidden pixels and what the model puts there, by pattern."""
    schema = evaluation.schema
    if not isinstance(schema, ImageSchema) or not evaluation.gallery:
        return {}
    spread = np.concatenate([item.std[item.hidden].ravel() for item in evaluation.gallery])
    top = float(np.quantile(spread, 0.98)) * schema.channels if spread.size else 1.0
    return {item.pattern: _gallery(item, schema, top, side) for item in evaluation.gallery}


def _gallery(item: GalleryItem, schema: ImageSchema, top: float, side: int) -> Strips:
    original = pictures.pixels(item.samples.values, schema)
    unseen = item.hidden | ~item.samples.observed
    rows = (
        ("original", original),
        ("given", pictures.masked(original, unseen)),
        ("imputed", pictures.pixels(item.mean, schema)),
        ("uncertainty", pictures.heat(_as_float(item.std), top)),
    )
    pattern = PATTERNS[item.pattern]
    return Strips(
        title=pattern[0].upper() + pattern[1:],
        rows=[_strip(word, images, side, f"{word} images, {pattern}") for word, images in rows],
        caption="Teal pixels are hidden from the model, given ones are never changed. Uncertainty: the "
        "brighter, the wider the spread of what the model thinks possible there.",
    )


def _strip(word: str, images: pictures.Pixels, side: int, alt: str) -> tuple[str, str, str]:
    return (word, pictures.sheet(images, len(images), side), alt)


def _as_float(values: Array) -> Floats:
    return np.asarray(values, dtype=np.float64)


def generated(evaluation: Evaluation, side: int) -> list[Picture]:
    """A walk through latent space, samples from the prior, and random samples rebuilt."""
    schema = evaluation.schema
    if not isinstance(schema, ImageSchema):
        return []
    found = [
        _traversal(evaluation, schema, side),
        _prior(evaluation, schema, side),
        _rebuilt(evaluation, schema, side),
    ]
    return [picture for picture in found if picture is not None]


def _traversal(evaluation: Evaluation, schema: ImageSchema, side: int) -> Picture | None:
    if (walk := evaluation.traversal) is None:
        return None
    return Picture(
        "Latent traversal",
        pictures.sheet(pictures.pixels(walk.images, schema), walk.columns, side),
        f"{len(walk.images)} decoded images over two latent dimensions",
        walk.caption,
    )


def _prior(evaluation: Evaluation, schema: ImageSchema, side: int) -> Picture | None:
    if evaluation.prior is None:
        return None
    return Picture(
        "Samples from the prior",
        pictures.sheet(pictures.pixels(evaluation.prior, schema), 8, side),
        f"{len(evaluation.prior)} images that the model draws from its prior",
        "Drawn from noise alone: they should look like the data without copying it.",
    )


def _rebuilt(evaluation: Evaluation, schema: ImageSchema, side: int) -> Picture | None:
    """Rows of eight originals, each above the row of their reconstructions."""
    if (shown := evaluation.random) is None:
        return None
    originals = pictures.masked(pictures.pixels(shown.samples.values, schema), ~shown.samples.observed)
    rebuilt = pictures.pixels(shown.reconstruction, schema)
    starts = range(0, len(originals), 8)
    # Reconstructions would slip into a row that is not full: leave it out, unless it is all there is.
    full = [i for i in starts if i + 8 <= len(originals)] or [0]
    tiles = np.concatenate([part[i : i + 8] for i in full for part in (originals, rebuilt)])
    return Picture(
        "Reconstructions",
        pictures.sheet(tiles, min(8, len(originals)), side),
        f"{len(tiles) // 2} random test samples, each row above the row of their reconstructions",
        "Random test samples, each row above its reconstructions: what is lost between them does not fit "
        "through the latent code.",
    )
