"""Arrow IPC streams in and out: what is claimed is checked before anything is unpacked."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from serving.filling import fill_table
from serving.service.engine import Engine
from serving.service.json_rows import check_columns
from serving.service.problems import Problem
from serving.service.replies import NOTHING_OBSERVED
from serving.service.samples import Asked
from serving.tables import to_model
from vae_anomaly.batches import Feeds
from vae_anomaly.columns import Column
from vae_anomaly.schema import Array, ImageSchema, Mask, Schema, TableSchema

IMAGE, OBSERVED = "image", "observed"
HINT = "write it with pyarrow.ipc.new_stream, without compression"

# Numbers of Arrow's own description of its messages, format/Message.fbs.
HEADER_TYPE, HEADER = 1, 2
DICTIONARY_BATCH, RECORD_BATCH = 2, 3
BATCH_LENGTH, BATCH_COMPRESSION, DICTIONARY_DATA = 0, 3, 1

CheckSize = Callable[[int], None]


def read_table(
    data: bytes, schema: Schema, check_size: CheckSize
) -> tuple[Array, Mask | None, pa.Table | None, Mask | None]:
    """Samples of a stream.

    Parameters
    ----------
    data : bytes
    schema : Schema
        A table is read by column name; images from the column ``image``, lists of C * H * W
        numbers, and ``observed``, lists of as many booleans.
    check_size : callable
        Refuses too many rows.

    Returns
    -------
    values : ndarray, shape (B, D)
        NaN where a table's cell is null.
    observed : bool ndarray, shape (B, D), or None
    table : Table, or None
        As it came, for tables.
    unseen : bool ndarray, shape (B, D), or None
        Where a category was not in training.

    Raises
    ------
    Problem
        400 for a damaged stream, 413, 415 if compressed, 422 if it does not fit.
    """
    try:
        check_size(sum(_lengths(data)))
        with pa.ipc.open_stream(pa.BufferReader(data)) as reader:
            _check_types(reader.schema, schema)
            table = reader.read_all()
        table.validate(full=True)
    except Problem:
        raise
    except Exception as error:  # a parser of foreign bytes may raise anything
        raise Problem(400, "bad_arrow", "the body is not a whole Arrow IPC stream", hint=HINT) from error
    if isinstance(schema, ImageSchema):
        return *_images(table, schema), None, None
    read = [
        to_model(table[n], column) for n, column in zip(_names(table, schema), schema.columns, strict=True)
    ]
    values, unseen = (np.column_stack(part) for part in zip(*read, strict=True))
    return values, None, table, unseen if schema.has_categories else None


def _names(table: pa.Table, schema: TableSchema) -> list[str]:
    """The stream's columns in model order."""
    names = table.schema.names
    return [names[place] for place in schema.order(names)]


def _lengths(data: bytes) -> Iterator[int]:
    """Rows of every batch as announced, nothing unpacked yet."""
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(data))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if message.type in ("record batch", "dictionary"):
            yield _announced(message.metadata.to_pybytes(), message.type == "record batch")


def _announced(metadata: bytes, counts: bool) -> int:
    header = _child(metadata, struct.unpack_from("<I", metadata)[0], HEADER)
    batch = header if counts else _child(metadata, header, DICTIONARY_DATA)
    if _slot(metadata, batch, BATCH_COMPRESSION):
        raise Problem(415, "compressed_body", "the stream's buffers are compressed", hint=HINT)
    place = _slot(metadata, batch, BATCH_LENGTH)
    length = struct.unpack_from("<q", metadata, batch + place)[0] if place else 0
    if length < 0:
        raise ValueError("a negative number of rows")
    return int(length) if counts else 0


def _slot(data: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table lies, relative to the table; 0 if it is left out."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    at = 4 + 2 * number
    return int(struct.unpack_from("<H", data, vtable + at)[0]) if at < size else 0


def _child(data: bytes, table: int, number: int) -> int:
    place = table + _slot(data, table, number)
    return int(place + struct.unpack_from("<I", data, place)[0])


def _check_types(found: pa.Schema, schema: Schema) -> None:
    if isinstance(schema, TableSchema):
        check_columns(found.names, schema)
        for place, column in zip(schema.order(found.names), schema.columns, strict=True):
            if not _fits(found.types[place], column):
                expected = "categories as text" if column.named else "a column of numbers"
                raise _wrong_type(found.names[place], f"expected {expected}")
        return
    if (
        IMAGE not in found.names
        or set(found.names) - {IMAGE, OBSERVED}
        or len(set(found.names)) < len(found.names)
    ):
        raise Problem(
            422,
            "bad_columns",
            "the stream's columns are not 'image' and, if wanted, 'observed'",
            hint=f"send lists of {schema.elements} numbers",
        )
    for name, kind in zip(found.names, found.types, strict=True):
        stored = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        if not pa.types.is_fixed_size_list(stored) or stored.list_size != schema.elements:
            raise _wrong_type(name, f"expected fixed-size lists of {schema.elements} values")
        if not (_is_number(stored.value_type) if name == IMAGE else pa.types.is_boolean(stored.value_type)):
            raise _wrong_type(name, "expected numbers" if name == IMAGE else "expected booleans")


def _fits(kind: pa.DataType, column: Column) -> bool:
    if pa.types.is_null(kind):
        return True
    if not column.named:
        return _is_number(kind)
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(plain) or pa.types.is_large_string(plain))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _wrong_type(name: str, expected: str) -> Problem:
    return Problem(422, "bad_cell", "a column has a type that does not fit", hint=expected, field=name)


def _images(table: pa.Table, schema: ImageSchema) -> tuple[Array, Mask]:
    pixels, present = _flat(table[IMAGE], schema)
    if OBSERVED in table.schema.names:
        observed, said = _flat(table[OBSERVED], schema)
        present &= observed.astype(np.bool_) | ~said
    return pixels, present


def _flat(column: pa.ChunkedArray, schema: ImageSchema) -> tuple[Array, Mask]:
    """Values, 0 where null, and where they are not null, both (B, D)."""
    parts, masks = [np.empty((0, schema.elements))], [np.empty((0, schema.elements), np.bool_)]
    for chunk in column.chunks:
        stored = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        if stored.null_count:
            raise Problem(422, "bad_cell", "a whole image is null", hint="leave the row out", field=IMAGE)
        flat = stored.flatten()
        masks.append(flat.is_valid().to_numpy(zero_copy_only=False).reshape(len(chunk), -1))
        parts.append(flat.fill_null(0).to_numpy(zero_copy_only=False).reshape(len(chunk), -1))
    # Without the empty first part, whose float64 would widen all others.
    return np.concatenate(parts[1:] or parts), np.concatenate(masks)


def write(entry: str, asked: Asked, out: Feeds, engine: Engine, more: dict[str, Any]) -> bytes:
    """Answers as an Arrow IPC stream; its metadata names the version of the model."""
    columns = {"id": pa.array(list(map(str, asked.options.ids)))} if asked.options.ids is not None else {}
    columns |= {
        "score": lambda: _scored(asked, out, more),
        "explain": lambda: _explained(out, engine.schema),
        "impute": lambda: _imputed(asked, out, engine.schema),
    }[entry]()
    metadata = {
        "model_name": engine.name,
        "model_version": engine.version,
        "model_digest": engine.digest,
        "provider": engine.provider,
    }
    table = pa.Table.from_arrays(list(columns.values()), list(columns)).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _scored(asked: Asked, out: Feeds, more: dict[str, Any]) -> dict[str, pa.Array]:
    empty = np.isnan(out["p_value"])
    reasons = pa.array([NOTHING_OBSERVED if is_empty else None for is_empty in empty.tolist()], pa.string())
    return {
        "score": pa.array(out["score"], mask=empty),
        "p_value": pa.array(out["p_value"], mask=empty),
        "is_outlier": pa.array(out["p_value"] <= more["alpha"], mask=empty),
        **{f"score_{name}": pa.array(out[f"score_{name}"], mask=empty) for name in more["scores"]},
        "clipped": pa.array(out["clipped"]),
        **({} if asked.unseen is None else {"unseen": pa.array(asked.unseen.sum(axis=1))}),
        "reason": reasons,
    }


def _explained(out: Feeds, schema: Schema) -> dict[str, pa.Array]:
    contributions, expected = out["contributions"], out["reconstruction"]
    if isinstance(schema, ImageSchema):
        cells = {"contributions": _lists(contributions, schema), "expected": _lists(expected, schema)}
    else:
        cells = {name: pa.array(contributions[:, j]) for j, name in enumerate(schema.names)}
        cells |= {f"{name}__expected": _as_table(expected, schema)[name] for name in schema.names}
    return {"recon": pa.array(out["recon"]), **cells}


def _imputed(asked: Asked, out: Feeds, schema: Schema) -> dict[str, pa.Array]:
    trust = {
        "ess": pa.array(out["ess"]),
        "flag": pa.array([flag or None for flag in out["flags"]], pa.string()),
    }
    drawn = out.get("draws")
    if isinstance(schema, ImageSchema):
        found = {IMAGE: _lists(out["mean"], schema), "std": _lists(out["std"], schema)}
        if drawn is not None:
            found |= {f"draw_{m}": _lists(draw, schema) for m, draw in enumerate(drawn)}
        return {**found, **trust}
    table = asked.original if isinstance(asked.original, pa.Table) else _as_table(out["mean"], schema)
    names = _names(table, schema)
    filled = fill_table(table, names, schema.columns, out["mean"], asked.own, out["std"])
    found = {name: filled[name] for name in filled.column_names}
    for m, draw in enumerate(() if drawn is None else drawn):
        frame = _as_table(draw, schema)
        found |= {
            f"{name}__draw_{m}": frame[column] for name, column in zip(names, schema.names, strict=True)
        }
    return {**found, **trust}


def _as_table(values: Array, schema: TableSchema) -> pa.Table:
    """Rows in the model's numbers as columns of the client's kinds."""
    return pa.Table.from_pandas(schema.frame(values), preserve_index=False)


def _lists(values: Array, schema: ImageSchema) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), schema.elements)
