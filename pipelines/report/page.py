"""One self-contained HTML file, with the numbers as `report.json` beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pipelines.report import drawn
from pipelines.report.blocks import Block, Grid, Model
from pipelines.report.results import Evaluation
from pipelines.report.sections import comparison, model_page
from pipelines.report.words import jsonable, printable
from vae_anomaly.exceptions import DataError

MAX_BYTES = 5_000_000
REPORT_FORMAT = 1
# Longest side of a thumbnail: the first that lets the page fit is taken.
SIDES = (96, 64, 48, 32, 24, 16)


def write_report(
    evaluations: Evaluation | Sequence[Evaluation],
    out_folder: Path | str,
    thumbnails: bool = True,
    *,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write `report.html` and `report.json` into a folder.

    Parameters
    ----------
    evaluations : Evaluation or sequence of Evaluation
        Several bundles share one page, their latent scatters side by side.
    out_folder : path
        Created when absent.
    thumbnails : bool
        False leaves out whatever shows single samples, in both files: for private data.
    max_bytes : int
        The page is at most this large: thumbnails shrink, then go, then the plots go.

    Returns
    -------
    Path
        Of the HTML file.

    Raises
    ------
    DataError
        If the folder cannot be written, or not even the tables fit into ``max_bytes``.
    """
    several = [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)
    if not several:
        raise DataError("a report needs at least one evaluation, got none")
    numbers = {
        "format": REPORT_FORMAT,
        "thumbnails": thumbnails,
        "models": [_shared(evaluation.summary, thumbnails) for evaluation in several],
    }
    page = _fitting_page(several, thumbnails, max_bytes)
    folder = Path(out_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "report.json", json.dumps(jsonable(numbers), indent=1, allow_nan=False) + "\n")
        _replace(folder / "report.html", page)
    except OSError as error:
        reason = f"{error.strerror}; choose another folder or free some space"
        raise DataError(f"cannot write the report to {folder}: {reason}") from error
    return folder / "report.html"


def _shared(summary: dict[str, Any], thumbnails: bool) -> dict[str, Any]:
    """The summary, for private data without samples and without the extremes of columns."""
    if thumbnails:
        return summary
    schema = dict(summary["schema"])
    if "columns" in schema:
        schema["columns"] = [
            {key: value for key, value in column.items() if key not in ("low", "high")}
            for column in schema["columns"]
        ]
    return {**{key: value for key, value in summary.items() if key != "samples"}, "schema": schema}


def _replace(path: Path, text: str) -> None:
    """Write under another name first: a reader never sees half a file."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _fitting_page(evaluations: list[Evaluation], thumbnails: bool, max_bytes: int) -> str:
    plots = [drawn.plots_of(evaluation) for evaluation in evaluations]
    names = [printable(evaluation.summary["name"], 60) for evaluation in evaluations]
    scatters = [replace(found["latent"][0], title=name) for found, name in zip(plots, names, strict=True)]
    beside = Grid(scatters) if len(evaluations) > 1 else None
    left_out = "" if thumbnails else "Pictures of single samples were left out on request."
    for side in SIDES if thumbnails else ():
        page = _page(evaluations, plots, beside, side, left_out)
        if len(page.encode()) <= max_bytes:
            return page
    too_large = f"left out to keep this file below {max_bytes:,} bytes."
    page = _page(evaluations, plots, beside, None, left_out or f"Pictures of samples were {too_large}")
    if len(page.encode()) <= max_bytes:
        return page
    page = _page(evaluations, [{} for _ in plots], None, None, f"All pictures were {too_large}")
    if len(page.encode()) > max_bytes:
        raise DataError(
            f"the report takes {len(page.encode()):,} bytes without any picture, the limit is {max_bytes:,}; "
            "raise the limit or evaluate fewer bundles at once"
        )
    return page


def _page(
    evaluations: list[Evaluation],
    plots: list[drawn.PlotsBySection],
    beside: Grid | None,
    side: int | None,
    left_out: str,
) -> str:
    models = [
        model_page(evaluation, drawings, side, f"m{i + 1}-")
        for i, (evaluation, drawings) in enumerate(zip(evaluations, plots, strict=True))
    ]
    together: list[Block] = []
    if len(models) > 1:
        together = [comparison([evaluation.summary for evaluation in evaluations])]
        together += [beside] if beside else []
    return render(models, together, left_out)


def render(models: list[Model], together: list[Block], left_out: str) -> str:
    """Fill the template; everything but our own SVG is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("pipelines.report").joinpath("template.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(models=models, together=together, left_out=left_out)
