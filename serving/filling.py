"""Imputed values put into the caller's own cells: observed ones keep their bits, columns their type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vae_anomaly.columns import Column
from vae_anomaly.exceptions import SchemaError
from vae_anomaly.filling import cast_array, cast_decimals
from vae_anomaly.schema import Array, Mask

Floats = npt.NDArray[np.float64]


def fill_array(values: Array, imputed: Array, observed: Mask) -> Array:
    """``values`` where observed, else ``imputed`` in the dtype of ``values``; shapes broadcast."""
    return np.where(observed, values, cast_array(imputed, values.dtype)).astype(values.dtype, copy=False)


def filled_type(kind: pa.DataType, column: Column | None = None) -> pa.DataType:
    """The type of a column once it is filled: its own, but plain for dictionaries of numbers.

    A column without any value gets text where the model knows names, else numbers.
    """
    named = column is not None and column.named
    if pa.types.is_dictionary(kind):
        return kind if column is not None and column.categories else filled_type(kind.value_type)
    return (pa.string() if named else pa.float64()) if pa.types.is_null(kind) else kind


def fill_column(column: pa.ChunkedArray, imputed: Floats, observed: Mask) -> pa.ChunkedArray:
    """A numeric column with its gaps filled, in the type that `filled_type` tells."""
    kind = filled_type(column.type)
    return pc.if_else(pa.array(observed), column.cast(kind), _typed(imputed, kind))


def fill_categories(
    column: pa.ChunkedArray, imputed: Floats, observed: Mask, known: Column
) -> pa.ChunkedArray:
    """A column of categories with its gaps filled by name, in the type that `filled_type` tells."""
    kind = filled_type(column.type, known)
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    labels = known.label(np.where(observed, np.nan, imputed)).astype(object)
    if known.named:
        labels = labels.map(str, na_action="ignore")
    names = pa.array(labels, pa.string() if known.named else plain, from_pandas=True).cast(plain)
    filled = pc.if_else(pa.array(observed), column.cast(plain), names)
    if kind == plain:
        return filled
    # The column's own dictionary first: the order of its categories may mean something.
    parts = column.unify_dictionaries().chunks
    own = parts[0].dictionary if parts else pa.array([], plain)
    every = pc.unique(pa.chunked_array([own, *filled.chunks])).drop_null()
    indices = pc.index_in(filled.combine_chunks(), value_set=every).cast(kind.index_type)
    return pa.chunked_array([pa.DictionaryArray.from_arrays(indices, every, ordered=kind.ordered)])


def _typed(imputed: Floats, kind: pa.DataType) -> pa.Array:
    if pa.types.is_decimal(kind):
        return cast_decimals(imputed, kind)
    return pa.array(cast_array(imputed, np.dtype(kind.to_pandas_dtype())), kind)


def fill_table(
    table: pa.Table,
    features: Sequence[str],
    columns: Sequence[Column],
    imputed: Floats,
    observed: Mask,
    spread: Floats | None = None,
) -> pa.Table:
    """All columns of ``table``, the ``features`` among them filled.

    Parameters
    ----------
    table : Table of pyarrow, B rows
    features : sequence of str
        Columns of the model's inputs, in the order of the arrays below.
    columns : sequence of Column
        What the model knows of them.
    imputed, spread : float64 ndarray, shape (B, D)
        With ``spread`` a column ``<name>__std`` follows for each feature.
    observed : bool ndarray, shape (B, D)
    """
    place = {name: i for i, name in enumerate(features)}
    filled = {}
    for name in table.column_names:
        filled[name] = table[name]
        if (i := place.get(name)) is not None:
            filled[name] = _filled(table[name], imputed[:, i], observed[:, i], columns[i])
    if spread is not None:
        inputs = [name for name in table.column_names if name in place]
        filled |= {std_name(name): pa.chunked_array([spread[:, place[name]]]) for name in inputs}
    return pa.table(filled)


def _filled(cells: pa.ChunkedArray, imputed: Floats, observed: Mask, column: Column) -> pa.ChunkedArray:
    kind = cells.type.value_type if pa.types.is_dictionary(cells.type) else cells.type
    if column.categories and (column.named or pa.types.is_dictionary(cells.type)):
        return fill_categories(cells, imputed, observed, column)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):  # booleans of a CSV
        truths = pa.array(np.where(imputed >= 0.5, "True", "False"), kind)
        return pc.if_else(pa.array(observed), cells.cast(kind), truths)
    return fill_column(cells, imputed, observed)


def filled_schema(
    columns: pa.Schema, features: Sequence[str], known: Sequence[Column], with_std: bool
) -> pa.Schema:
    """Names and types of what `fill_table` returns.

    Raises
    ------
    SchemaError
        If a column's type cannot hold the names that belong there.
    """
    kinds = dict(zip(features, known, strict=True))
    for name, column in kinds.items():
        _require_names(columns.field(name), column)
    inputs = [name for name in columns.names if name in kinds]
    fields = [(f.name, filled_type(f.type, kinds[f.name]) if f.name in kinds else f.type) for f in columns]
    return pa.schema(fields + [(std_name(name), pa.float64()) for name in inputs if with_std])


def _require_names(field: pa.Field, column: Column) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if not column.named or pa.types.is_null(kind):
        return
    for code, category in enumerate(column.categories):
        try:
            held = pa.array([str(category)]).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            held = pa.nulls(1)  # no value is no category: refused below
        if column.read(held.to_pandas().astype(object))[0] != code:
            raise SchemaError(
                f"column {field.name!r} has type {kind}, which cannot hold its category {category!r}; "
                "convert the column to text"
            )


def std_name(name: str) -> str:
    """What the spread of a column or image is called."""
    return f"{name}__std"
