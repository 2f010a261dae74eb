"""One verified bundle, answering many requests at once; and which version answers now.

What the app does with a request::

    with models.current() as engine:                        # this version to the end of the request
        samples = engine.schema.read(x, observed)           # SchemaError where it does not fit
        rate = engine.bundle.rate(alpha)                    # CalibrationError, ConfigError
        out = await engine.run("score", samples.values, samples.observed, deadline=deadline)

`Engine.run` takes what `schema.read` gave and answers with the very bits of `Bundle.verdicts`, `explain`,
`impute`, `encode` and `decode`, whatever other requests run beside it. Pixels that the cast to uint8
clipped are not in its ``clipped``: add ``schema.clipped_by_cast(x, samples.observed)``.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from serving.service.microbatch import Limits, MicroBatcher, Rows, Watch
from serving.service.refusals import Overloaded
from vae_anomaly.answers import read_latents
from vae_anomaly.batches import PAD_TO, Feeds
from vae_anomaly.bound import fixed_sizes
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.filling import fill
from vae_anomaly.noise import row_ids
from vae_anomaly.runtime import CUDA, Bundle
from vae_anomaly.schema import Array, ImageSchema, Mask, Samples, Schema

ENTRIES = ("score", "explain", "impute", "encode", "decode")
# What onnxruntime and CUDA say when memory runs out.
OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "cuda_error_out_of_memory", "bfcarena")


class Engine:
    """One version of a model.

    Parameters
    ----------
    bundle : Bundle
        Verified by `load_bundle`.
    name, version : str
        As responses name them.
    workers : int, optional
        Batches run at once on the CPU, all processors by default. On CUDA one thread owns the session.
    limits : Limits, optional
    watch : Watch, optional
        Told what waits and runs.

    Attributes
    ----------
    entries : tuple of str
        What it answers: all of `ENTRIES`, for an autoencoder without "impute".
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        version: str,
        *,
        workers: int | None = None,
        limits: Limits | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.bundle, self.name, self.version = bundle, name, version
        self.entries = tuple(entry for entry in ENTRIES if entry != "impute" or bundle.kind == "vae")
        self.leases = 0
        self.retired = self.closed = False
        on_cuda = bundle.provider == CUDA
        self.workers = 1 if on_cuda else workers or os.cpu_count() or 1
        self._batcher = MicroBatcher(self._compute, self.workers, limits or Limits(), watch)

    @property
    def digest(self) -> str:
        """The identity of the bundle."""
        return self.bundle.digest

    @property
    def provider(self) -> str:
        """Where it runs, such as ``CPUExecutionProvider``."""
        return self.bundle.provider

    @property
    def calibration(self) -> Array:
        """Calibration scores of the score that decides, ascending, shape (n,)."""
        return self.bundle.calibration["score_score"]

    @property
    def schema(self) -> Schema:
        """What a sample is."""
        return self.bundle.schema

    @property
    def dtype(self) -> str:
        """Of samples as the graphs take them."""
        return self.schema.dtype if isinstance(self.schema, ImageSchema) else "float64"

    async def run(
        self,
        entry: str,
        values: Array,
        observed: Mask | None = None,
        *,
        deadline: float | None = None,
        draws: int | None = None,
        seed: int = 0,
        ids: Sequence[object] | None = None,
        k: int | None = None,
    ) -> Feeds:
        """Answer one request.

        Parameters
        ----------
        entry : {"score", "explain", "impute", "encode", "decode"}
        values : ndarray, shape (n, *sample shape); (n, L) for decode
            As `schema.read` gave it; latents of any real dtype.
        observed : bool ndarray, of the same shape
            Not for decode.
        deadline : float, optional
            On `time.monotonic`'s clock.
        draws, seed, ids, k
            Of impute, as `Bundle.impute` takes them.

        Returns
        -------
        dict of ndarray
            score: ``score``, ``p_value``, ``score_<name>`` (NaN where nothing is observed), ``clipped``,
            shape (n,). explain: ``contributions``, ``reconstruction`` (n, *sample shape), ``recon`` (n,).
            impute: ``mean``, ``std`` (n, *sample shape), ``ess``, ``flags`` (n,), ``draws``
            (M, n, *sample shape) if asked for. encode: ``mean`` (n, L), and of a VAE ``log_variance``.
            decode: ``reconstruction`` (n, *sample shape).

        Raises
        ------
        Overloaded
            If too much waits already.
        Expired
            If the deadline passes first.
        SchemaError, ConfigError, UnsupportedError
            As the methods of `Bundle` raise them.
        """
        rows, how = self._read(entry, values, observed, draws, seed, ids, k)
        out = await self._batcher.ask(entry, rows, how, deadline)
        if "draws" in out:
            out["draws"] = np.moveaxis(out["draws"], 1, 0)
        return out

    def _read(
        self,
        entry: str,
        values: Array,
        observed: Mask | None,
        draws: int | None,
        seed: int,
        ids: Sequence[object] | None,
        k: int | None,
    ) -> tuple[Rows, Hashable]:
        """The rows of a request, and what requests must share to run together."""
        if entry not in ENTRIES:
            raise ConfigError(f"unknown entry point {entry!r}; choose {', '.join(ENTRIES)}")
        if entry == "decode":
            return (read_latents(values, self.bundle.latent_size),), None
        present = np.ones(values.shape, np.bool_) if observed is None else observed
        if entry != "impute":
            return (values, present), None
        k = self.bundle.check_imputing(draws, k)
        if not draws:
            return (values, present), (None, 0, k)
        keys = np.array(row_ids(None, len(values), ids), np.uint64)
        return (values, present, keys), (draws, seed, k)

    def _compute(self, entry: str, how: Any, rows: Rows) -> Feeds:
        """Run a batch; once more in halves where the memory of the device did not suffice."""
        try:
            return self._run(entry, how, rows)
        except Exception as error:  # onnxruntime raises several unrelated classes here
            if not _out_of_memory(error):
                raise
        half = len(rows[0]) // 2
        cuts = ([part[:half] for part in rows], [part[half:] for part in rows])
        try:
            found = [self._run(entry, how, tuple(cut)) for cut in cuts]
        except Exception as error:
            if _out_of_memory(error):
                raise Overloaded(
                    "the device has no memory left; send fewer rows at once, or later", 1
                ) from error
            raise
        return {name: np.concatenate([out[name] for out in found]) for name in found[0]}

    def _run(self, entry: str, how: Any, rows: Rows) -> Feeds:
        bundle = self.bundle
        if entry == "decode":
            return {"reconstruction": bundle.decoded(rows[0])}
        samples = Samples(rows[0], rows[1])
        if entry == "score":
            return bundle.judged(samples)
        if entry == "explain":
            return bundle.explained(samples)
        if entry == "encode":
            return bundle.encoded(samples)
        draws, seed, k = how
        out = bundle.imputed(samples, rows[2].tolist() if draws else [], draws, seed, k)
        return {"mean": fill(bundle.schema, samples.values, samples.observed, out.pop("mean_raw")), **out}

    def warm(self) -> None:
        """Run every entry point, so that the first request finds all set up. Not on the event loop."""
        sizes = fixed_sizes(self.bundle.batch_size) if self.provider == CUDA else (PAD_TO,)
        for entry in self.entries:
            shape = (self.bundle.latent_size,) if entry == "decode" else self.schema.shape
            for size in sizes[:1] if entry == "impute" else sizes:
                values = np.zeros((size, *shape), np.float32 if entry == "decode" else self.dtype)
                rows, how = self._read(entry, values, None, None, 0, None, None)
                self._run(entry, how, rows)

    def close(self) -> None:
        """Let what runs end, and take nothing more."""
        self.closed = True
        self._batcher.close()


def _out_of_memory(error: Exception) -> bool:
    """Whether onnxruntime says so; it has no class of its own for it."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(word in said for word in OUT_OF_MEMORY)


class Models:
    """Which engine answers now. Used from the event loop's thread alone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def current(self) -> Iterator[Engine]:
        """Lease the engine that answers now: it stays open until the block ends, even when replaced."""
        engine = self._engine
        engine.leases += 1
        try:
            yield engine
        finally:
            engine.leases -= 1
            _close_idle(engine)

    def swap(self, engine: Engine) -> None:
        """Let another version answer whatever comes from now on; the old one ends with its last lease."""
        old, self._engine = self._engine, engine
        old.retired = True
        _close_idle(old)

    def close(self) -> None:
        """End the engine with its last lease."""
        self._engine.retired = True
        _close_idle(self._engine)


def _close_idle(engine: Engine) -> None:
    if engine.retired and not engine.leases and not engine.closed:
        engine.close()
