"""Rows of a table as JSON objects by column name: null is missing, any other value is a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.service.problems import Problem, shortened
from vae_anomaly.exceptions import SchemaError
from vae_anomaly.schema import TableSchema

NUMBERS = {float, int, type(None)}
HINT = 'send {"rows": [{"<column>": 1.5, ...}, ...]}; null is a missing value'
SHOWN_OF_NAME = 60


def read_rows(rows: Any, schema: TableSchema) -> npt.NDArray[np.float64]:
    """Cells in model order, NaN where missing, shape (B, D).

    Raises
    ------
    Problem
        422 naming the row and the column at fault.
    """
    if not isinstance(rows, list):
        raise Problem(422, "bad_sample", "rows is not a list", hint=HINT, field="rows")
    cells_of = _getter(schema.names)
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
        if not set(map(type, cells)) <= NUMBERS:
            raise _wrong_cell(cells, schema, i)
        table.append(cells)
    # None becomes NaN on the way.
    return np.array(table, dtype=np.float64).reshape(len(rows), schema.elements)


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


def _wrong_cell(cells: tuple[Any, ...], schema: TableSchema, i: int) -> Problem:
    place = next(j for j, cell in enumerate(cells) if type(cell) not in NUMBERS)
    kind = {str: "text", bool: "true or false", list: "a list", dict: "an object"}[type(cells[place])]
    return Problem(
        422,
        "bad_cell",
        f"row {i} holds {kind} in place of a number",
        hint="send a number, or null for a missing value",
        field=schema.names[place],
        row=i,
    )
