"""What is known of the rows, as JSON for people."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.service import strict_json
from serving.service.engine import Engine
from serving.service.samples import Asked
from vae_anomaly.batches import Feeds
from vae_anomaly.schema import Array, TableSchema

NOTHING_OBSERVED = "nothing_observed"


def to_json(engine: Engine, results: list[dict[str, Any]], **more: Any) -> bytes:
    """The whole answer; it names one version of the model."""
    model = {
        "name": engine.name,
        "version": engine.version,
        "digest": engine.digest,
        "provider": engine.provider,
    }
    return strict_json.written({"model": model, **more, "results": results})


def scored(asked: Asked, out: Feeds, alpha: float, scores: tuple[str, ...]) -> list[dict[str, Any]]:
    """One object a row: score, p-value, verdict; null with a reason where nothing is observed."""
    p_values = out["p_value"]
    columns = {
        "score": nulled(out["score"]),
        "p_value": nulled(p_values),
        "is_outlier": [None if p != p else p <= alpha for p in p_values.tolist()],
        "clipped": out["clipped"].tolist(),
        **({} if asked.unseen is None else {"unseen": asked.unseen.sum(axis=1).tolist()}),
        "reason": [NOTHING_OBSERVED if p != p else None for p in p_values.tolist()],
    }
    named = rows_of({name: nulled(out[f"score_{name}"]) for name in scores}, asked.rows)
    return [
        {**row, "scores": part}
        for row, part in zip(rows_of(with_ids(asked, columns), asked.rows), named, strict=True)
    ]


def explained(asked: Asked, out: Feeds, engine: Engine) -> list[dict[str, Any]]:
    """One object a row: `recon`, the contribution of every element, and what was expected."""
    columns = {
        "recon": out["recon"].tolist(),
        "contributions": shaped(out["contributions"], engine),
        "expected": labelled(out["reconstruction"], engine),
    }
    return rows_of(with_ids(asked, columns), asked.rows)


def imputed(asked: Asked, out: Feeds, engine: Engine) -> list[dict[str, Any]]:
    """One object a row: every value, the spread of the imputed ones, and how far to trust them."""
    columns = {
        "values": _filled(asked, out, engine),
        "std": _missing_only(asked, out["std"], engine),
        "ess": out["ess"].tolist(),
        "flag": [flag or None for flag in out["flags"].tolist()],
    }
    if "draws" in out:
        drawn = [_missing_only(asked, draw, engine, named=True) for draw in out["draws"]]
        columns["draws"] = [list(row) for row in zip(*drawn, strict=True)]
    return rows_of(with_ids(asked, columns), asked.rows)


def _filled(asked: Asked, out: Feeds, engine: Engine) -> list[Any]:
    filled = labelled(out["mean"], engine)
    if not isinstance(asked.original, list):
        return filled
    # Observed cells exactly as they came: a large whole number would lose digits as a float.
    return [
        {name: mean[name] if value is None else value for name, value in row.items()}
        for row, mean in zip(asked.original, filled, strict=True)
    ]


def _missing_only(asked: Asked, values: Array, engine: Engine, named: bool = False) -> list[Any]:
    if not isinstance(engine.schema, TableSchema):
        return list(values.tolist())
    names, missing = engine.schema.names, np.logical_not(asked.own)
    rows = labelled(values, engine) if named else shaped(values, engine)
    return [
        {names[j]: row[names[j]] for j in np.flatnonzero(absent).tolist()}
        for row, absent in zip(rows, missing, strict=True)
    ]


def shaped(values: Array, engine: Engine) -> list[Any]:
    """Numbers by column name, pixels as nested lists (C, H, W)."""
    if not isinstance(engine.schema, TableSchema):
        return list(values.tolist())
    names = engine.schema.names
    return [dict(zip(names, row, strict=True)) for row in values.tolist()]


def labelled(values: Array, engine: Engine) -> list[Any]:
    """The same in the client's own words: categories by name."""
    schema = engine.schema
    if not isinstance(schema, TableSchema) or not schema.mixed:
        return shaped(values, engine)
    columns = [
        [None if cell != cell else cell for cell in part.tolist()] for _, part in schema.frame(values).items()
    ]
    return [dict(zip(schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def with_ids(asked: Asked, columns: dict[str, Any]) -> dict[str, Any]:
    """The columns, the ids first where they were given."""
    return columns if asked.options.ids is None else {"id": list(asked.options.ids), **columns}


def nulled(values: Array) -> list[float | None]:
    """NaN as null."""
    return [None if value != value else value for value in values.tolist()]


def rows_of(columns: dict[str, list[Any]], count: int) -> list[dict[str, Any]]:
    """Columns as one object a row."""
    if not columns:
        return [{} for _ in range(count)]
    names = tuple(columns)
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
