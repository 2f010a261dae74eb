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

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from serving.service.refusals import Expired
from vae_anomaly.answers import Feeds, read_latents
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.filling import fill
from vae_anomaly.noise import row_ids
from vae_anomaly.runtime import Bundle
from vae_anomaly.schema import Array, Mask, Samples, Schema

ENTRIES = ("score", "explain", "impute", "encode", "decode")


class Engine:
    """One version of a model.

    Parameters
    ----------
    bundle : Bundle
        Verified by `load_bundle`.
    name, version : str
        As responses name them.

    Attributes
    ----------
    entries : tuple of str
        What it answers: all of `ENTRIES`, for an autoencoder without "impute".
    """

    def __init__(self, bundle: Bundle, name: str, version: str) -> None:
        self.bundle, self.name, self.version = bundle, name, version
        self.entries = tuple(entry for entry in ENTRIES if entry != "impute" or bundle.kind == "vae")
        self.leases = 0

    @property
    def digest(self) -> str:
        """The identity of the bundle."""
        return self.bundle.digest

    @property
    def provider(self) -> str:
        """Where it runs, such as ``CPUExecutionProvider``."""
        return self.bundle.provider

    @property
    def schema(self) -> Schema:
        """What a sample is."""
        return self.bundle.schema

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
        work = _Work(self.bundle, entry, values, observed, draws, seed, ids, k)
        left = None if deadline is None else deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await asyncio.to_thread(work)
        except TimeoutError as error:
            raise Expired("the deadline passed before the answer was there; send less, or later") from error


class _Work:
    """One request, run at once and alone."""

    def __init__(
        self,
        bundle: Bundle,
        entry: str,
        values: Array,
        observed: Mask | None,
        draws: int | None,
        seed: int,
        ids: Any,
        k: int | None,
    ) -> None:
        if entry not in ENTRIES:
            raise ConfigError(f"unknown entry point {entry!r}; choose {', '.join(ENTRIES)}")
        self.bundle, self.entry, self.draws, self.seed = bundle, entry, draws, seed
        if entry == "decode":
            self.latents = read_latents(values, bundle.latent_size)
            return
        present = np.ones(values.shape, np.bool_) if observed is None else observed
        self.samples = Samples(values, present)
        if entry == "impute":
            self.k = bundle.check_imputing(draws, k)
            self.keys = row_ids(None, len(values), ids)

    def __call__(self) -> Feeds:
        bundle = self.bundle
        if self.entry == "decode":
            return {"reconstruction": bundle.decoded(self.latents)}
        if self.entry == "score":
            return bundle.judged(self.samples)
        if self.entry == "explain":
            return bundle.explained(self.samples)
        if self.entry == "encode":
            return bundle.encoded(self.samples)
        out = bundle.imputed(self.samples, self.keys, self.draws, self.seed, self.k)
        mean = fill(bundle.schema, self.samples.values, self.samples.observed, out.pop("mean_raw"))
        if "draws" in out:
            out["draws"] = np.moveaxis(out["draws"], 1, 0)
        return {"mean": mean, **out}


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

    def swap(self, engine: Engine) -> None:
        """Let another version answer whatever comes from now on."""
        self._engine = engine
