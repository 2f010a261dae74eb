"""Batch jobs on one machine: score or impute a file or folder in bounded chunks.

Memory holds one chunk whatever the length of the input. Beyond it grow, by the row: the ids while
they are searched for repeats (8 bytes, up to `serving.identity.EXACT_ID_ROWS` rows), the scores while
they are ranked (24 bytes), and the file names of one folder.

Results appear at once when the job ends, or not at all. They do not depend on the size of a chunk.
A job that was stopped or killed leaves its answers behind; the same job then reads its input again, but
does not ask the model what it has answered. While it runs the answers take about the disk space of the
output once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serving.claim import Claim
from serving.formats import Chunk, ReadOptions, Source, describe, open_source
from serving.imputed import Filled, check_imputed_out, open_imputed
from serving.interrupts import undisturbed
from serving.journal import Journal
from serving.models import Imputer, Scorer, Sealed
from serving.writers import RejectWriter, TableWriter, output_schema, ranks, read_column, replace_columns
from vae_anomaly.exceptions import ConfigError, DataError
from vae_anomaly.schema import Samples, Schema

Progress = Callable[[int, int | None], None]

PARQUET = (".parquet", ".pq")
NOTHING_OBSERVED = "nothing observed"


@dataclass(frozen=True)
class JobSummary:
    """What a job did.

    Attributes
    ----------
    rows : int
        Rows answered.
    rejected : int
        Rows set aside; more than none is exit code 3.
    out : Path
    rejected_out : Path, optional
        Where the rows set aside are listed.
    unobserved : int
        Rows with nothing observed: they have no score, and are imputed from the prior.
    outliers : int
        Rows called outliers.
    clipped : int
        Cells outside the model's range.
    unseen : int
        Cells with a category that training did not have; they count as missing.
    resumed : int
        Rows whose answers were taken over from an earlier run of the same job.
    """

    rows: int
    rejected: int
    out: Path
    rejected_out: Path | None = None
    unobserved: int = 0
    outliers: int = 0
    clipped: int = 0
    unseen: int = 0
    resumed: int = 0


class _Tally:
    """Adds up a job as its chunks pass."""

    def __init__(
        self, rejects: RejectWriter, strict: bool, total: int | None, progress: Progress | None
    ) -> None:
        self._rejects, self._strict, self._total, self._progress = rejects, strict, total, progress
        self.rows = self.unobserved = self.outliers = self.clipped = self.unseen = 0

    def admit(self, chunk: Chunk) -> None:
        """Set the rejects of a chunk aside, or stop at the first."""
        if chunk.rejects and self._strict:
            raise DataError(
                f"{describe(chunk.rejects[0])}; strict stops at the first row that cannot be read"
            )
        self._rejects.write(chunk.rejects)

    def judge(self, verdicts: pa.Table) -> None:
        """Count outliers and clipped cells."""
        self.outliers += pc.sum(verdicts["is_outlier"]).as_py() or 0
        self.clipped += pc.sum(verdicts["clipped"]).as_py() or 0

    def done(self, chunk: Chunk) -> None:
        """Count a chunk whose answers are written."""
        self.rows += len(chunk.rows)
        self.unobserved += int(_unobserved(chunk).sum())
        self.unseen += 0 if chunk.unseen is None else int(chunk.unseen.sum())
        if self._progress is not None:
            self._progress(chunk.start + chunk.size, self._total)

    def summary(self, out: Path, resumed: int) -> JobSummary:
        """The sums."""
        rejected_out = self._rejects.final if self._rejects.count else None
        return JobSummary(
            rows=self.rows,
            rejected=self._rejects.count,
            out=out,
            rejected_out=rejected_out,
            unobserved=self.unobserved,
            outliers=self.outliers,
            clipped=self.clipped,
            unseen=self.unseen,
            resumed=resumed,
        )


def _run(
    claim: Claim,
    opened: Source,
    options: ReadOptions,
    progress: Progress | None,
    answer: Callable[[Chunk, _Tally], None],
) -> _Tally:
    """Pass every chunk through ``answer``, its rejects set aside; an interrupt waits for the chunk's end."""
    with RejectWriter(claim, opened.id_type) as rejects:
        tally = _Tally(rejects, options.strict, opened.rows, progress)
        for chunk in opened.chunks():
            with undisturbed():
                tally.admit(chunk)
                answer(chunk, tally)
                tally.done(chunk)
    return tally


def _journal(claim: Claim, bundle: Sealed, **settings: object) -> Journal:
    """The answers of this job so far; ``settings`` are those that an answer depends on."""
    job = {"bundle": bundle.digest, "provider": bundle.provider, **settings}
    return Journal(claim.keepsake(), job, claim.out)


def score_file(
    bundle: Scorer,
    source: str | Path,
    out: str | Path,
    options: ReadOptions | None = None,
    *,
    false_alarm_rate: float | None = None,
    fdr: float | None = None,
    rank: bool = False,
    progress: Progress | None = None,
) -> JobSummary:
    """Score every row of a file or folder into a Parquet file.

    Columns: the id, the kept columns, ``score`` (larger = more anomalous), ``p_value``,
    ``is_outlier``, one ``score_<name>`` per score, ``rank`` on request (1 = most anomalous, ties
    share the best), ``note`` ("nothing observed" where a row has no score, else null).

    Parameters
    ----------
    bundle : Bundle
    source, out : str or Path
    options : ReadOptions, optional
    false_alarm_rate : float, optional
        In place of the bundle's own.
    fdr : float, optional
        In its place a false discovery rate over all rows of the job; takes a second pass over the output.
    rank : bool
        Takes a second pass over the output.
    progress : callable, optional
        Called after each chunk with the rows read and their number, if known.

    Raises
    ------
    SchemaError, DataError, ConfigError
        As `serving.formats.open_source`; or the output cannot be written.
    CalibrationError
        If too few rows were held out for the rate.
    """
    options, source, out = options or ReadOptions(), Path(source), Path(out)
    check_scores_out(source, out)
    with Claim(out) as claim:
        final = claim.temporary(out)
        opened = open_source(source, bundle.schema, options)
        bundle.verdicts(*_no_rows(bundle.schema), false_alarm_rate)
        if fdr is not None:
            _check_fdr(bundle, false_alarm_rate, fdr)
        schema = _score_schema(opened, options, bundle.score_names, rank)
        again = rank or fdr is not None
        unranked = claim.scratch() if again else final
        journal = _journal(claim, bundle, verb="score", rate=false_alarm_rate)
        with journal, TableWriter(unranked, schema, out) as writer:

            def answer(chunk: Chunk, tally: _Tally) -> None:
                if len(chunk.rows):
                    verdicts = journal.answer(chunk, lambda: _verdicts(bundle, chunk, false_alarm_rate))
                    tally.judge(verdicts)
                    writer.write(_score_table(verdicts, chunk, schema))

            tally = _run(claim, opened, options, progress, answer)
        if fdr is not None:
            p_values = read_column(unranked, "p_value")
            reported = bundle.discoveries(p_values, fdr)
            tally.outliers = int(reported.sum())
        if again:
            columns = {"rank": ranks(read_column(unranked, "score"))} if rank else {}
            if fdr is not None:
                columns["is_outlier"] = pa.array(reported, mask=np.isnan(p_values))
            replace_columns(unranked, final, out, columns)
    return tally.summary(out, journal.resumed)


def read_all(source: str | Path, schema: Schema, options: ReadOptions) -> Samples:
    """Every row of a file or folder at once, as a model takes them; the first that cannot be read stops it.

    Raises
    ------
    SchemaError, DataError, ConfigError
        As `serving.formats.open_source`.
    """
    found: list[Samples] = []
    for chunk in open_source(source, schema, options).chunks():
        if chunk.rejects:
            raise DataError(f"{describe(chunk.rejects[0])}; leave that row out")
        found.append(schema.read(chunk.values, chunk.observed))
    if not found:
        raise DataError(f"{source} holds no rows; name a file with some")
    values, observed = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Samples(values, observed)


def check_scores_out(source: Path, out: Path) -> None:
    """Refuse what is no place for scores, before anything is read."""
    if out.suffix.lower() not in PARQUET:
        raise ConfigError(f"scores are written as Parquet, got {out.name!r}; name the output scores.parquet")
    if out.is_dir():
        raise DataError(f"{out} is a folder; name a file")
    if os.path.realpath(out) == os.path.realpath(source):
        raise ConfigError(f"{out} is the input; name another output")


def _check_fdr(bundle: Scorer, false_alarm_rate: float | None, fdr: float) -> None:
    if false_alarm_rate is not None:
        raise ConfigError(f"got a false alarm rate of {false_alarm_rate} and an fdr of {fdr}; name one")
    bundle.discoveries([], fdr)


def _no_rows(schema: Schema) -> tuple[Any, None]:
    """A sample of length 0, to have a bundle check its settings before the first row."""
    return np.empty((0, *schema.shape), dtype=getattr(schema, "dtype", "float64")), None


def _score_schema(opened: Source, options: ReadOptions, names: Sequence[str], rank: bool) -> pa.Schema:
    """Columns of the output.

    Raises
    ------
    SchemaError
        If an id or kept column has the name of one that the job writes.
    """
    kept = [
        opened.columns.field(name) for name in dict.fromkeys(options.keep_columns) if name != opened.id_column
    ]
    fields = [pa.field(opened.id_name, opened.id_type), *kept, pa.field("score", pa.float64())]
    fields += [pa.field("p_value", pa.float64()), pa.field("is_outlier", pa.bool_())]
    fields += [pa.field(f"score_{name}", pa.float64()) for name in names]
    fields += [pa.field("rank", pa.int64())] * rank + [pa.field("note", pa.string())]
    return output_schema([field.remove_metadata() for field in fields])


def _verdicts(bundle: Scorer, chunk: Chunk, rate: float | None) -> pa.Table:
    frame = bundle.verdicts(chunk.values, chunk.observed, rate)
    return pa.table({name: pa.array(frame[name], from_pandas=True) for name in frame.columns})


def _score_table(verdicts: pa.Table, chunk: Chunk, schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = {name: verdicts[name] for name in verdicts.column_names if name in schema.names}
    columns["note"] = _notes(np.where(_unobserved(chunk), NOTHING_OBSERVED, ""))
    columns["rank"] = pa.nulls(len(chunk.rows), pa.int64())
    kept = [name for name in schema.names[1:] if name not in columns]
    taken = {name: chunk.table[name] for name in kept} if chunk.table is not None else {}
    return pa.table({schema.names[0]: chunk.ids, **taken, **columns})


def _unobserved(chunk: Chunk) -> npt.NDArray[np.bool_]:
    return ~np.asarray(chunk.observed.any(axis=tuple(range(1, chunk.observed.ndim))))


def _notes(texts: npt.NDArray[np.str_]) -> pa.Array:
    return pa.array([text or None for text in texts.tolist()], pa.string())


def impute_file(
    bundle: Imputer,
    source: str | Path,
    out: str | Path,
    options: ReadOptions | None = None,
    *,
    draws: int | None = None,
    seed: int = 0,
    k: int | None = None,
    with_std: bool = False,
    progress: Progress | None = None,
) -> JobSummary:
    """Fill the gaps of a file or folder; observed cells keep their bits.

    ======================  ======================================================================
    input                   output
    ======================  ======================================================================
    table                   Parquet: every column of the input, in its own type (integers rounded);
                            then ``<column>__std`` with ``ess``, the effective sample size of a row,
                            ``row`` and ``draw`` on request, and ``note``
                            ("nothing observed", "low ess" or null)
    .npy, .npz              .npy of the same shape and dtype, rows set aside are NaN;
                            ``<name>__std.npy`` beside it
    folder of images        folder of PNG with the same relative names; ``<name>__std.png`` with
                            white for a standard deviation of half the range
    ======================  ======================================================================

    Parameters
    ----------
    bundle : Bundle
    source, out : str or Path
    options : ReadOptions, optional
    draws : int, optional
        M multiple imputations in place of the mean: a table gets M rows for each of the input's,
        told apart by ``row`` and ``draw``; an array a first axis of length M; an image M files
        ``<name>__draw<m>.png``.
    seed : int
        A row's draws depend on it and on the row's id, else its number in the input.
    k : int, optional
        K, the importance samples, in place of the bundle's own.
    with_std : bool
        Write standard deviations too.
    progress : callable, optional
        Called after each chunk with the rows read and their number, if known.

    Raises
    ------
    SchemaError, DataError, ConfigError
        As `serving.formats.open_source`; or the output cannot be written.
    UnsupportedError
        If the model gives no imputations.
    """
    options, source, out = options or ReadOptions(), Path(source), Path(out)
    if draws is not None and draws < 1:
        raise ConfigError(f"draws is {draws}; expected 1 or more")
    if k is not None and k < 1:
        raise ConfigError(f"k is {k}; expected 1 or more")
    check_imputed_out(source, out)
    options = replace(options, chunk_rows=options.rows_at_once(bundle.schema.elements * (1 + (draws or 0))))
    with Claim(out) as claim:
        opened = open_source(source, bundle.schema, options, everything=True)
        bundle.impute(*_no_rows(bundle.schema))
        journal = _journal(claim, bundle, verb="impute", draws=draws, seed=seed, k=k)
        with journal, open_imputed(claim, opened, draws, with_std) as writer:

            def answer(chunk: Chunk, _: _Tally) -> None:
                if not len(chunk.rows):
                    writer.write(chunk, None)
                    return
                packed = journal.answer(
                    chunk, lambda: _impute_chunk(bundle, chunk, draws, seed, k).packed(chunk.observed)
                )
                writer.write(chunk, Filled.unpacked(packed, chunk.observed, draws or 1))

            tally = _run(claim, opened, options, progress, answer)
    return tally.summary(out, journal.resumed)


def _impute_chunk(bundle: Imputer, chunk: Chunk, draws: int | None, seed: int, k: int | None) -> Filled:
    found = bundle.impute(chunk.values, chunk.observed, draws=draws, seed=seed, ids=chunk.keys, k=k)
    mean, std = np.asarray(found.mean), np.asarray(found.std)
    notes = _notes(np.char.replace(np.asarray(found.flags, dtype=np.str_), "_", " "))
    values = mean[None] if found.draws is None else np.asarray(found.draws)
    return Filled(values, std, np.asarray(found.ess, dtype=np.float64), notes)
