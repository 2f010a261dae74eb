"""Why rows of a file or folder scored as they did: ranked columns of a table, heatmaps of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serving.batch import JobSummary, Progress
from serving.chunks import Chunk, ReadOptions, Source, describe
from serving.claim import Claim, writing
from serving.formats import open_source
from serving.models import Explainer
from serving.writers import TableWriter, output_schema, write_picture
from vae_anomaly.exceptions import ConfigError, DataError
from vae_anomaly.explanation import Explanation, ranked_columns
from vae_anomaly.schema import Array, Samples, TableSchema

CELLS = ["value", "expected"]
RANKED = ("value", "expected", "low", "high", "contribution", "share")


def explain_file(
    bundle: Explainer,
    source: str | Path,
    out: str | Path,
    options: ReadOptions | None = None,
    *,
    top: int = 5,
    everything: bool = False,
    progress: Progress | None = None,
) -> JobSummary:
    """Explain the outliers of a file or folder, or every row.

    ======================  ======================================================================
    input                   output
    ======================  ======================================================================
    table                   Parquet, up to ``top`` lines per row, the largest contribution first: the id,
                            ``reason`` (which score decided, and how strange each is), ``p_value``,
                            ``place``, ``column``, ``value``, ``expected``, ``low``, ``high``,
                            ``contribution`` in nats, ``share`` of `recon`; ``value`` and ``expected``
                            are text where the table has categories or booleans
    images                  folder of PNG, the relative name of the image or the number of the row;
                            white is the pixel that contributes most in that image
    ======================  ======================================================================

    Raises
    ------
    SchemaError, DataError, ConfigError
        As `serving.formats.open_source`; the first row that cannot be read stops the job, and so does an
        image whose heatmap would take the place of another's.
    """
    options, out = options or ReadOptions(), Path(out)
    if top < 1:
        raise ConfigError(f"top is {top}; expected 1 or more")
    rows = outliers = 0
    with Claim(out) as claim:
        opened = open_source(Path(source), bundle.schema, options)
        schema = bundle.schema
        writer = _Columns(claim, opened, schema, top) if isinstance(schema, TableSchema) else _Heatmaps(claim)
        for chunk in opened.chunks():
            if chunk.rejects:
                raise DataError(f"{describe(chunk.rejects[0])}; leave that row out")
            found = bundle.explain(chunk.values, chunk.observed)
            strange = np.asarray(found.p_value <= bundle.false_alarm_rate)
            writer.write(bundle, chunk, found, np.ones_like(strange) if everything else strange)
            rows, outliers = rows + len(chunk.rows), outliers + int(strange.sum())
            if progress is not None:
                progress(chunk.start + chunk.size, opened.rows)
        writer.close()
    return JobSummary(rows=rows, rejected=0, out=out, outliers=outliers)


class _Columns:
    """One line per column shown."""

    def __init__(self, claim: Claim, source: Source, schema: TableSchema, top: int) -> None:
        fields = [pa.field(source.id_name, source.id_type), pa.field("reason", pa.string())]
        fields += [pa.field("p_value", pa.float64()), pa.field("place", pa.int64())]
        self._text = any(column.categories or column.truths for column in schema.columns)
        kinds = {name: pa.string() if self._text and name in CELLS else pa.float64() for name in RANKED}
        fields += [pa.field("column", pa.string()), *(pa.field(*kind) for kind in kinds.items())]
        self._schema, self._top = output_schema([field.remove_metadata() for field in fields]), top
        self._writer = TableWriter(claim.temporary(claim.out), self._schema, claim.out)

    def write(
        self, bundle: Explainer, chunk: Chunk, found: Explanation, wanted: npt.NDArray[np.bool_]
    ) -> None:
        """Append the lines of the rows wanted."""
        samples = bundle.schema.read(chunk.values, chunk.observed)
        rows = np.flatnonzero(wanted)
        few = Samples(samples.values[rows], samples.observed[rows])
        lines = ranked_columns(_some(found, rows), few, bundle.schema, self._top, rows.tolist())
        if self._text:
            lines[CELLS] = lines[CELLS].map(str)
        place = pa.array(lines["row"], pa.int64())
        reasons = found.reasons()
        columns = {
            self._schema.names[0]: chunk.ids.take(place),
            "reason": pa.array([reasons[row] for row in lines["row"]], pa.string()),
            "p_value": pa.array(found.p_value[lines["row"].to_numpy(dtype=np.int64)]),
        }
        shown = {name: pa.array(lines[name], self._schema.field(name).type) for name in lines.columns[1:]}
        self._writer.write(pa.table({**columns, **shown}))

    def close(self) -> None:
        """All lines are there."""
        self._writer.__exit__(None)


class _Heatmaps:
    """One grey PNG per image."""

    def __init__(self, claim: Claim) -> None:
        self._out, self._folder = claim.out, claim.temporary(claim.out)
        with writing(claim.out):
            self._folder.mkdir()

    def write(
        self, bundle: Explainer, chunk: Chunk, found: Explanation, wanted: npt.NDArray[np.bool_]
    ) -> None:
        """Write the heatmaps of the images wanted."""
        names = chunk.paths or [f"{row}" for row in chunk.rows.tolist()]
        for place in np.flatnonzero(wanted).tolist():
            heat = _white_at_most(found.heatmaps[place])[None]
            write_picture(heat, self._folder, names[place], "", self._out)

    def close(self) -> None:
        """Nothing is left to write."""


def _white_at_most(heat: Array) -> npt.NDArray[np.uint8]:
    largest = float(heat.max())
    return np.rint(heat * (255 / largest if largest > 0 else 0.0)).astype(np.uint8)


def _some(found: Explanation, rows: npt.NDArray[np.int64]) -> Explanation:
    parts: list[Any] = [part[rows] if isinstance(part, np.ndarray) else part for part in found]
    return Explanation(*parts)
