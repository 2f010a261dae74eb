"""Rows of a table as JSON objects by column name: null is missing, others are numbers or categories."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serving.service.problems import Problem, shortened
from vae_anomaly.columns import Column
from vae_anomaly.exceptions import SchemaError
from vae_anomaly.schema import Mask, TableSchema

NUMBERS: set[type] = {float, int, type(None)}
NAMES: set[type] = {str, type(None)}
HINT = 'send {"rows": [{"<column>": 1.5, ...}, ...]}; null is a missing value'
SHOWN_OF_NAME = 60


def read_rows(rows: Any, schema: TableSchema) -> tuple[npt.NDArray[np.float64], Mask | None]:
    """Cells as the model takes them, columns in its order.

    Returns
    -------
    values : float64 ndarray, shape (B, D)
        NaN where missing, or where a category was not in training.
    unseen : bool ndarray, shape (B, D), or None
        Where a category was not in training; None where no column has categories.

    Raises
    ------
    Problem
        422 naming the row and the column at fault.
    """
    if not isinstance(rows, list):
        raise Problem(422, "bad_sample", "rows is not a list", hint=HINT, field="rows")
    cells_of = _getter(schema.names)
    plain = not schema.has_categories
    table = []
    for i, row in enumerate(rows):
        if type(row) is not dict:
            raise Problem(422, "bad_sample", f"row {i} is not an object", hint=HINT, row=i)
        try:
            cells = cells_of(row)
        except KeyError:
            raise _wrong_columns(row, schema, i) from None
        if len(row) != len(cells):
            raise _wrong_columns(row, schema, i)
        if plain and not set(map(type, cells)) <= NUMBERS:
            raise _wrong_cell(cells, schema.columns, i)
        table.append(cells)
    if plain or not table:
        # None becomes NaN on the way.
        return np.array(table, dtype=np.float64).reshape(len(rows), schema.elements), None
    return _coded(table, schema)


def _coded(table: list[tuple[Any, ...]], schema: TableSchema) -> tuple[npt.NDArray[np.float64], Mask]:
    parts = []
    for column, cells in zip(schema.columns, zip(*table, strict=True), strict=True):
        if not set(map(type, cells)) <= _allowed(column):
            row = next(i for i, cell in enumerate(cells) if type(cell) not in _allowed(column))
            raise _wrong_cell((cells[row],), (column,), row)
        parts.append(column.read(pd.Series(cells, dtype=object)))
    values, unseen = zip(*parts, strict=True)
    return np.column_stack(values), np.column_stack(unseen)


def _allowed(column: Column) -> set[type]:
    if column.named:
        return NAMES
    return NUMBERS | {bool} if column.categories or column.kind == "binary" else NUMBERS


def check_columns(names: Iterable[str], schema: TableSchema, row: int | None = None) -> None:
    """Refuse other columns than the model's, without showing long names in full.

    Raises
    ------
    Problem
        422 naming at most five columns.
    """
    known = set(schema.names)
    cut = [name if name in known else shortened(name, SHOWN_OF_NAME) for name in names]
    try:
        schema.order(cut)
    except SchemaError as error:
        detail, _, hint = str(error).partition("; ")
        raise Problem(422, "bad_columns", detail, hint=hint.replace("NaN", "null"), row=row) from error


def _getter(names: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    only = names[0]
    return lambda row: (row[only],)


def _wrong_columns(row: dict[str, Any], schema: TableSchema, i: int) -> Problem:
    try:
        check_columns(row, schema, i)
    except Problem as problem:
        return problem
    # The names are fit, but not of this model: a table trained without names, and another number of them.
    return Problem(
        422,
        "bad_columns",
        f"row {i} does not have the model's columns",
        hint=f"they are {', '.join(schema.names[:5])}, ...",
        row=i,
    )


def _wrong_cell(cells: tuple[Any, ...], columns: tuple[Column, ...], i: int) -> Problem:
    place = next(j for j, cell in enumerate(cells) if type(cell) not in _allowed(columns[j]))
    kinds = {str: "text", bool: "true or false", list: "a list", dict: "an object"}
    wanted = "text" if columns[place].named else "a number"
    return Problem(
        422,
        "bad_cell",
        f"row {i} holds {kinds.get(type(cells[place]), 'a number')} in place of {wanted}",
        hint=f"send {wanted}, or null for a missing value",
        field=columns[place].name,
        row=i,
    )
