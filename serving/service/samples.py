"""From the bytes of a request to samples of a model, by media type."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.arrays import read_header
from serving.service import strict_json
from serving.service.json_rows import read_rows
from serving.service.options import FOR_ENTRY, Options, read_options
from serving.service.problems import Problem
from serving.service.sent_pictures import PICTURES_HINT, read_picture, read_pictures
from serving.service.settings import Settings
from vae_anomaly.batches import Feeds
from vae_anomaly.exceptions import SchemaError
from vae_anomaly.schema import Array, ImageSchema, Mask, Samples, Schema, TableSchema

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
NPY = "application/x-npy"
PICTURES = ("image/png", "image/jpeg")
MEDIA = (JSON, ARROW, NPY, *PICTURES)


@dataclass(frozen=True)
class Asked:
    """One request, read.

    Attributes
    ----------
    samples : Samples
    options : Options
    clipped_by_cast : int64 ndarray, shape (B,), or 0
        Pixels that left no trace for the graph to count.
    original : list of dict, Table of pyarrow, or None
        Rows of a table as the client sent them, to return observed cells unchanged.
    unseen : bool ndarray, shape (B, D), or None
        Cells with a category that was not in training: they count as missing, and yet are the client's own.
    """

    samples: Samples
    options: Options
    clipped_by_cast: Any = 0
    original: Any = None
    unseen: Mask | None = None

    @property
    def rows(self) -> int:
        """B."""
        return len(self.samples.values)

    @property
    def own(self) -> Mask:
        """Cells that the client gave a value, understood or not."""
        return self.samples.observed if self.unseen is None else self.samples.observed | self.unseen

    def counted(self, out: Feeds) -> Feeds:
        """The answer to a score with every clipped cell in ``clipped``."""
        return {**out, "clipped": np.asarray(out["clipped"] + self.clipped_by_cast, np.int64)}


@dataclass(frozen=True)
class Question:
    """What is needed to read a request."""

    entry: str
    media: str
    body: bytes
    query: dict[str, Any]
    schema: Schema
    settings: Settings

    def options(self, members: dict[str, Any] | None = None) -> Options:
        """The options, from query string and body."""
        known = FOR_ENTRY[self.entry]
        return read_options(known, {**(members or {})}, f"/v1/{self.entry}", self.query)

    def check_size(self, rows: int) -> None:
        """Refuse what is too much for one request.

        Raises
        ------
        Problem
            413.
        """
        check_size(rows, rows * self.schema.elements, self.settings)


def json_bounds(settings: Settings) -> strict_json.Bounds:
    """What a JSON body may hold."""
    return strict_json.Bounds(settings.max_json_depth, settings.max_cells, settings.max_rows)


def check_size(rows: int, cells: int, settings: Settings) -> None:
    """Refuse too many rows or cells.

    Raises
    ------
    Problem
        413.
    """
    hint = "send fewer rows at once, or use the batch job"
    if rows > settings.max_rows:
        raise Problem(413, "too_many_rows", f"{rows} rows; at most {settings.max_rows} at once", hint=hint)
    if cells > settings.max_cells:
        raise Problem(
            413, "too_many_cells", f"{cells} cells; at most {settings.max_cells} at once", hint=hint
        )


def read(question: Question) -> Asked:
    """Samples and options of a request.

    Raises
    ------
    Problem, SchemaError, ConfigError
        Saying what does not fit.
    """
    asked = READERS[question.media](question)
    ids = asked.options.ids
    if ids is not None and len(ids) != asked.rows:
        detail = f"{len(ids)} ids for {asked.rows} rows"
        raise Problem(422, "bad_option", detail, hint="give one id a row", field="ids")
    return asked


def read_samples(schema: Schema, x: Any, observed: Any = None) -> tuple[Samples, Any]:
    """Samples, and the pixels per row that the cast to the model's dtype clipped.

    Raises
    ------
    Problem
        422, naming the row and column of the first infinite cell.
    SchemaError
        If they do not fit otherwise.
    """
    try:
        samples = schema.read(x, observed)
    except SchemaError as error:
        raise _located(error, schema, x) from error
    clipped = schema.clipped_by_cast(x, samples.observed) if isinstance(schema, ImageSchema) else 0
    return samples, clipped


def check_seen(unseen: Mask | None, schema: Schema, options: Options) -> None:
    """Refuse a category that was not in training, if asked to.

    Raises
    ------
    Problem
        422 naming the first.
    """
    if not options.strict or unseen is None or not unseen.any():
        return
    row, place = np.argwhere(unseen)[0].tolist()
    name = schema.names[place] if isinstance(schema, TableSchema) else ""
    raise Problem(
        422,
        "unseen_category",
        f"row {row} holds a category that was not in training",
        hint="GET /v1/model names the categories; without strict it counts as missing",
        field=name,
        row=row,
    )


def _located(error: SchemaError, schema: Schema, x: Any) -> Exception:
    values = np.asarray(x)
    if values.dtype.kind != "f" or values.ndim < 2 or not (infinite := np.isinf(values)).any():
        return error
    place = np.argwhere(infinite)[0].tolist()
    name = schema.names[place[1]] if isinstance(schema, TableSchema) else f"pixel {place[1:]}"
    return Problem(
        422,
        "infinite",
        f"row {place[0]} holds an infinite value",
        hint="send a finite number, or NaN for a missing value",
        field=name,
        row=place[0],
    )


def _read_json(question: Question) -> Asked:
    value = strict_json.parse(question.body, json_bounds(question.settings))
    name = "rows" if isinstance(question.schema, TableSchema) else "images"
    if not isinstance(value, dict) or name not in value:
        raise Problem(
            422,
            "bad_sample",
            f"the JSON is not an object with the member {name!r}",
            hint=EXAMPLES[name],
            field=name,
        )
    options = question.options({key: part for key, part in value.items() if key != name})
    sent = value[name]
    if isinstance(sent, list):
        question.check_size(len(sent))
    if isinstance(question.schema, TableSchema):
        values, unseen = read_rows(sent, question.schema)
        check_seen(unseen, question.schema, options)
        samples, clipped = read_samples(question.schema, values)
        return Asked(samples, options, clipped, sent, unseen)
    return Asked(read_pictures(sent, question.schema, options, question.settings.max_cells), options)


EXAMPLES = {
    "rows": 'send {"rows": [{"<column>": 1.5, ...}, ...]}; null is a missing value',
    "images": PICTURES_HINT,
}


def _read_npy(question: Question) -> Asked:
    options = question.options()
    x = read_npy(question.body)
    question.check_size(len(x))
    samples, clipped = read_samples(question.schema, x)
    unseen = unseen_numbers(question.schema, x)
    check_seen(unseen, question.schema, options)
    return Asked(samples, options, clipped, unseen=unseen)


def unseen_numbers(schema: Schema, x: Any) -> Mask | None:
    """Where an array holds the number of no category; None where no column has categories."""
    return schema.unseen(x) if isinstance(schema, TableSchema) and schema.has_categories else None


def read_npy(data: bytes) -> Array:
    """The array of a .npy file; nothing is set aside that the file does not hold.

    Raises
    ------
    Problem
        400 for a damaged file, 422 for Python objects or a single number.
    """
    file = io.BytesIO(data)
    try:
        shape, by_column, dtype = read_header(file)
    except Exception as error:  # the parser of a foreign header may raise anything
        raise _bad_npy("the body is not a .npy file") from error
    if dtype.hasobject or not shape:
        detail = "the array holds Python objects" if dtype.hasobject else "the array is a single number"
        raise Problem(422, "bad_sample", detail, hint="send numbers in rows")
    size = dtype.itemsize * int(np.prod([int(n) for n in shape], dtype=object))
    if min(shape) < 0 or size != len(data) - file.tell() or not dtype.itemsize:
        raise _bad_npy(f"the header speaks of {size} bytes, {len(data) - file.tell()} follow")
    values = np.frombuffer(data, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if by_column else "C")


def _bad_npy(detail: str) -> Problem:
    return Problem(400, "bad_npy", detail, hint="write the body with numpy.save, without pickled objects")


def _read_picture(question: Question) -> Asked:
    schema, options = question.schema, question.options()
    if not isinstance(schema, ImageSchema):
        raise Problem(
            415,
            "unsupported_media_type",
            "the model reads rows of a table, not pictures",
            hint=f"send {JSON}, {ARROW} or {NPY}",
            field="content-type",
        )
    values, observed = read_picture(question.body, schema, options, question.settings.max_cells)
    return Asked(schema.read(values[None], observed[None]), options)


def _read_arrow(question: Question) -> Asked:
    from serving.service.arrow_bodies import read_table

    options = question.options()
    x, observed, table, unseen = read_table(question.body, question.schema, question.check_size)
    check_seen(unseen, question.schema, options)
    samples, clipped = read_samples(question.schema, x, observed)
    return Asked(samples, options, clipped, table, unseen)


READERS: dict[str, Callable[[Question], Asked]] = {
    JSON: _read_json,
    ARROW: _read_arrow,
    NPY: _read_npy,
    **dict.fromkeys(PICTURES, _read_picture),
}
