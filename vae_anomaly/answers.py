"""Every question that one can ask of a model, whatever runs its graphs.

`Answers` reads raw samples, cuts them into padded batches, runs the graphs of a `Backend` and puts
the results together. A bundle runs them through onnxruntime, a fitted estimator as torch modules:
the code here is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly import calibration
from vae_anomaly.batches import (
    Backend,
    Feeds,
    Float,
    all_observed,
    collect,
    nothing_observed,
    pad,
    sample_feeds,
)
from vae_anomaly.bundle import Manifest
from vae_anomaly.choices import whole_number
from vae_anomaly.exceptions import ConfigError, SchemaError, UnsupportedError
from vae_anomaly.explanation import Explanation, ranked_columns
from vae_anomaly.filling import fill
from vae_anomaly.gaps import Tables, missing_share
from vae_anomaly.imputing import Imputation, MaskedDecode
from vae_anomaly.noise import row_ids
from vae_anomaly.schema import Array, ImageSchema, Mask, Samples, Schema, TableSchema

log = logging.getLogger(__name__)
LOW_ESS = 2.0


class Latent(NamedTuple):
    """q(z | x observed).

    Attributes
    ----------
    mean : float32 ndarray, shape (n, L)
    log_variance : float32 ndarray, shape (n, L), or None for an autoencoder
    """

    mean: Array
    log_variance: Array | None


@dataclass
class Answers:
    """Scores, explanations, imputations and latents of raw samples.

    Parameters
    ----------
    manifest : Manifest
    calibration : dict of ndarray
        Sorted calibration scores, ``score_<name>`` each, and the imputation's ``noise``.
    backend : Backend
    batch_size : int
        Rows per run of a graph, rounded up to a multiple of 16.
    """

    manifest: Manifest
    calibration: dict[str, Array]
    backend: Backend
    batch_size: int = 1024

    @property
    def schema(self) -> Schema:
        """What a sample is."""
        return self.manifest.schema

    @property
    def kind(self) -> str:
        """Which kind of model: "vae" or "autoencoder"."""
        return self.manifest.kind

    @property
    def score_names(self) -> tuple[str, ...]:
        """The exported scores."""
        return self.manifest.scores

    @property
    def default_score(self) -> str:
        """The score that decides."""
        return self.manifest.default_score

    @property
    def latent_size(self) -> int:
        """L."""
        return self.manifest.latent_size

    @property
    def false_alarm_rate(self) -> float:
        """The rate at which verdicts are given unless another is asked for."""
        return self.manifest.false_alarm_rate

    @property
    def provider(self) -> str:
        """Where the graphs run."""
        return self.backend.provider

    @property
    def tables(self) -> Tables:
        """Calibration scores by missing share."""
        return Tables(self.calibration)

    def verdicts(
        self,
        x: Any,
        observed: Any = None,
        false_alarm_rate: float | None = None,
        *,
        fdr: float | None = None,
    ) -> pd.DataFrame:
        """Everything about each row, as the batch job writes it.

        Parameters
        ----------
        x : array-like or DataFrame, shape (n, *sample shape)
            NaN means missing.
        observed : bool array-like, optional
            True where a value is present.
        false_alarm_rate : float, optional
            Share of normal rows that may be called outliers; from stored tables, no refit.
        fdr : float, optional
            In its place a false discovery rate: share of the rows called outliers that may be normal, on
            average, by the procedure of Benjamini and Hochberg over all rows of this call.

        Returns
        -------
        DataFrame
            ``score`` (larger = more anomalous), ``p_value``, ``is_outlier``, one ``score_<name>``
            per score, ``clipped`` (cells outside the model's range) and, for a table with categories,
            ``unseen`` (cells with a category that training did not have: they count as missing).
            Null for a row with nothing observed.

        Raises
        ------
        SchemaError
            If the samples do not fit the schema.
        CalibrationError
            If too few rows were held out for the rate.
        ConfigError
            If a rate is out of range, or both are given.
        """
        rate = self._check_rates(false_alarm_rate, fdr)
        samples = self.schema.read(x, observed)
        missing = missing_share(samples)
        if fdr is None and (beyond := self.tables.beyond(rate, missing)):
            log.warning(
                "%d rows with gaps are judged by too few calibration rows for a false alarm rate of %g: "
                "none of them can be an outlier",
                beyond,
                rate,
            )
        if fuller := self.tables.fuller(missing):
            log.warning(
                "%d rows miss less than nearly all of the calibration rows that judge them: "
                "their p-values may be too small; recalibrate with rows like them",
                fuller,
            )
        out = self.judged(samples)
        p_value = out["p_value"]
        flags = pd.array(p_value <= rate if fdr is None else self.discoveries(p_value, fdr), dtype="boolean")
        flags[np.isnan(out["p_value"])] = pd.NA
        clipped = out.pop("clipped") + self._clipped_by_cast(x, samples)
        columns = {"score": out.pop("score"), "p_value": out.pop("p_value"), "is_outlier": flags, **out}
        columns["clipped"] = clipped
        if (strange := self._unseen(x, observed)) is not None:
            columns["unseen"] = strange.sum(axis=1)
        return pd.DataFrame(columns, index=_index(x))

    def rate(self, false_alarm_rate: float | None = None) -> float:
        """The false alarm rate asked for, or the bundle's own.

        Raises
        ------
        CalibrationError
            If too few rows were held out for it.
        ConfigError
            If it is not strictly between 0 and 1.
        """
        rate = self.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        calibration.check_rate(len(self.calibration["score_score"]), rate)
        return rate

    def judged(self, samples: Samples) -> Feeds:
        """What is known of each row before a rate is chosen.

        Returns
        -------
        dict of ndarray, shape (n,)
            ``score``, on one scale whatever is missing; ``p_value``; one ``score_<name>`` per score, as the
            graph has it: NaN where nothing is observed; ``clipped``, as counted by the graph.
        """
        out = self.run("score", samples)
        empty = nothing_observed(samples)
        score, missing = _null(out["score"], empty), missing_share(samples)
        columns = {
            "score": self.tables.comparable(score, missing, self.false_alarm_rate),
            "p_value": self.tables.p_values("score", score, missing),
        }
        columns |= {f"score_{name}": _null(out[name], empty) for name in self.score_names}
        return {**columns, "clipped": out["clipped"]}

    def _check_rates(self, false_alarm_rate: float | None, fdr: float | None) -> float:
        """The false alarm rate of verdicts, once it or ``fdr`` is known to be attainable."""
        if fdr is None:
            return self.rate(false_alarm_rate)
        if false_alarm_rate is not None:
            raise ConfigError(
                f"verdicts go by a false alarm rate or by a false discovery rate, got {false_alarm_rate} "
                f"and {fdr}; name one"
            )
        calibration.fewest_discoveries(len(self.calibration["score_score"]), 1, fdr)
        return self.false_alarm_rate

    def discoveries(self, p_values: npt.ArrayLike, fdr: float) -> npt.NDArray[np.bool_]:
        """Which rows to report so that on average at most a share ``fdr`` of the reported ones is normal.

        Says so where the calibration rows are too few for what there is: no p-value is below
        1 / (rows + 1), which among many rows only many outliers together can bear.

        Parameters
        ----------
        p_values : float array-like, shape (n,)
            Of all rows of a batch, from `p_values` or `verdicts`; NaN is never reported.

        Returns
        -------
        bool ndarray, shape (n,)
        """
        p = np.asarray(p_values, dtype=np.float64)
        rows, judged = len(self.calibration["score_score"]), int((~np.isnan(p)).sum())
        fewest = calibration.fewest_discoveries(rows, judged, fdr)
        found = calibration.benjamini_hochberg(p, fdr)
        if fewest > 1 and not found.any():
            log.warning(
                "no row is reported at a false discovery rate of %g; with %d calibration rows fewer than "
                "%d of %d rows cannot be, however strange they are",
                fdr,
                rows,
                fewest,
                judged,
            )
        return found

    def scores(self, x: Any, observed: Any = None) -> pd.DataFrame:
        """The default score as ``score``, and one column per score; larger = more anomalous."""
        frame = self.verdicts(x, observed)
        return pd.DataFrame({"score": frame["score"], **{n: frame[f"score_{n}"] for n in self.score_names}})

    def p_values(self, x: Any, observed: Any = None, *, score: str | None = None) -> Float:
        """Conformal p-values, shape (n,): (1 + calibration scores >= s) / (calibration rows + 1).

        Parameters
        ----------
        score : str, optional
            One of `score_names` in place of the default.
        """
        if score is not None and score not in self.score_names:
            raise ConfigError(f"this model has no score {score!r}; it has {', '.join(self.score_names)}")
        samples, name = self.schema.read(x, observed), score or "score"
        values = _null(self.run("score", samples)[name], nothing_observed(samples))
        return self.tables.p_values(name, values, missing_share(samples))

    def explain(self, x: Any, observed: Any = None) -> Explanation:
        """Contribution of every element to `recon`, what was expected, and how strange each score is."""
        samples = self.schema.read(x, observed)
        judged, missing, out = self.judged(samples), missing_share(samples), self.run("explain", samples)
        ranks = [self.tables.ranks(name, judged[f"score_{name}"], missing) for name in self.score_names]
        return Explanation(
            **_decomposed(out),
            p_value=judged["p_value"],
            ranks=np.column_stack(ranks),
            score_names=tuple(self.score_names),
            decided_by=self.default_score,
            low=out.get("low"),
            high=out.get("high"),
        )

    def ranked_columns(self, x: Any, observed: Any = None, top: int = 5) -> pd.DataFrame:
        """Columns of each row of a table that contribute most: see `explanation.ranked_columns`."""
        samples = self.schema.read(x, observed)
        index = x.index.tolist() if isinstance(x, pd.DataFrame) else None
        return ranked_columns(self.explain(x, observed), samples, self.schema, top, index)

    def explained(self, samples: Samples) -> Feeds:
        """Contributions, reconstruction and recon of an `Explanation`."""
        return _decomposed(self.run("explain", samples))

    def encode(self, x: Any, observed: Any = None) -> Latent:
        """Latent mean and log-variance: embeddings."""
        out = self.encoded(self.schema.read(x, observed))
        return Latent(out["mean"], out.get("log_variance"))

    def encoded(self, samples: Samples) -> Feeds:
        """The arrays of a `Latent`, of an autoencoder without ``log_variance``."""
        out = self.run("encode", samples)
        return {name: out[name] for name in Latent._fields if name in out}

    def decode(self, z: Any) -> Array:
        """Latents (n, L) to samples (n, *sample shape) in raw units."""
        return self.decoded(read_latents(z, self.latent_size))

    def decoded(self, latents: Array) -> Array:
        """Samples of latents that `read_latents` has read."""
        return self._batches("decode", len(latents), lambda rows: {"z": pad(latents[rows])})["reconstruction"]

    def sample(self, n: int, seed: int = 0) -> Array:
        """Samples from the prior: the decoder's mean at z ~ N(0, I), shape (n, *sample shape)."""
        self._require_vae("samples from the prior")
        if (n := whole_number("n", n)) < 0:
            raise ConfigError(f"the number of samples must not be negative, got {n}")
        return self.decode(np.random.default_rng(seed).standard_normal((n, self.latent_size)))

    def impute(
        self,
        x: Any,
        observed: Any = None,
        draws: int | None = None,
        seed: int = 0,
        ids: Sequence[object] | None = None,
        k: int | None = None,
    ) -> Imputation:
        """Fill what is missing by importance-weighted masked decode.

        Parameters
        ----------
        x : array-like or DataFrame, shape (n, *sample shape)
        observed : bool array-like, optional
        draws : int, optional
            M multiple imputations as well, independent across rows.
        seed : int
            Of the draws; mean, std and ess use the bundle's own noise and never change.
        ids : sequence, optional
            Names of the rows: a row's draws depend on (seed, id) alone, and rows of one name share
            their noise. Else a unique pandas index, else the row's number.
        k : int, optional
            K, the importance samples; rounded up to whole chunks.

        Raises
        ------
        UnsupportedError
            For an autoencoder, which has no distribution to impute from.
        ConfigError
            If draws, seed or k is no whole number, or there is nothing to draw.
        """
        draws = None if draws is None else whole_number("draws", draws)
        k, seed = self.check_imputing(draws, k), whole_number("seed", seed)
        samples = self.schema.read(x, observed)
        # A name per row takes as long as a tenth of its imputation.
        keys = row_ids(x, len(samples.values), ids) if draws or ids is not None else []
        out = self.imputed(samples, keys, draws, seed, k)
        drawn, strange = out.get("draws"), self._unseen(x, observed)
        # A category that training did not have says nothing, and yet the cell is the caller's own.
        own = samples.observed if strange is None else samples.observed | strange
        if drawn is not None and strange is not None and isinstance(self.schema, TableSchema):
            drawn = np.where(strange[:, None], self.schema.own_numbers(x)[:, None], drawn)
        return Imputation(
            fill(self.schema, x, own, out["mean_raw"]),
            out["std"] if strange is None else np.where(strange, 0, out["std"]),
            None if drawn is None else np.moveaxis(drawn, 1, 0),
            out["ess"],
            out["flags"],
        )

    def check_imputing(self, draws: int | None = None, k: int | None = None) -> int:
        """K, the importance samples asked for, or the bundle's own.

        Raises
        ------
        UnsupportedError
            For an autoencoder.
        ConfigError
            If k is no whole number, or there is nothing to draw.
        """
        self._require_vae("imputations")
        if draws is not None and draws < 1:
            raise ConfigError(f"draws must be at least 1, got {draws}")
        k = int(self.manifest.imputation["draws"]) if k is None else whole_number("k", k)
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        if draws is not None and draws > k:
            log.warning("%d draws from %d importance samples repeat some; ask for a larger k", draws, k)
        return k

    def imputed(self, samples: Samples, keys: list[int], draws: int | None, seed: int, k: int) -> Feeds:
        """What `impute` tells, rows first.

        Parameters
        ----------
        samples : Samples
        keys : list of int
            Of the rows, from `row_ids`; read only for draws.
        draws, seed, k : int
            As `impute` takes them.

        Returns
        -------
        dict of ndarray
            ``mean_raw`` (n, *sample shape), what belongs in the gaps; ``std``, ``ess``, ``flags`` as
            in `Imputation`; ``draws`` (n, M, *sample shape), if asked for, observed cells as given.
        """
        decode = MaskedDecode(self.manifest, self.calibration["noise"], self.backend, self.batch_size)
        out = decode.answer(samples, keys, draws, seed, k)
        flags = np.where(
            nothing_observed(samples),
            "nothing_observed",
            np.where(out["ess"] < LOW_ESS, "low_ess", np.where(out["stepped"], "metropolis", "")),
        )
        found = {
            "mean_raw": out["mean_raw"],
            "std": np.where(samples.observed, 0, out["std_raw"]),
            "ess": out["ess"],
            "flags": np.where(all_observed(samples), "", flags),
        }
        if draws:
            found["draws"] = np.where(samples.observed[:, None], samples.values[:, None], out["draws"])
        return found

    def run(self, graph: str, samples: Samples) -> Feeds:
        """Every output of one graph for samples already read by the schema."""
        return self._batches(graph, len(samples.values), lambda rows: sample_feeds(samples, rows))

    def _batches(self, graph: str, count: int, feeds: Callable[[slice], Feeds]) -> Feeds:
        return collect(
            self.backend, count, lambda rows: self.backend.run(graph, feeds(rows)), self.batch_size
        )

    def _clipped_by_cast(self, x: Any, samples: Samples) -> npt.NDArray[np.int64] | int:
        """Pixels that left no trace for the graph to count: their cast to uint8 clipped them."""
        schema = self.schema
        return schema.clipped_by_cast(x, samples.observed) if isinstance(schema, ImageSchema) else 0

    def _unseen(self, x: Any, observed: Any) -> Mask | None:
        """Cells with a category that training did not have; None where no column has categories."""
        schema = self.schema
        if not isinstance(schema, TableSchema) or not schema.has_categories:
            return None
        return schema.unseen(x, observed)

    def _require_vae(self, what: str) -> None:
        if self.kind != "vae":
            raise UnsupportedError(
                f"an autoencoder gives no {what}: its code has no distribution to weigh or draw from; "
                "train a VAE"
            )


def read_latents(z: Any, latent_size: int) -> Array:
    """Latents (n, L) as float32; refused where they are not finite numbers of that shape."""
    try:
        latents = np.ascontiguousarray(z, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"latents are not numbers in rows of {latent_size}") from error
    if latents.ndim != 2 or latents.shape[1] != latent_size:
        raise SchemaError(f"latents have shape {latents.shape}; expected (n, {latent_size})")
    if not np.isfinite(latents).all():
        raise SchemaError("latents hold NaN or infinite values; every latent must be a finite number")
    return latents


def _decomposed(out: Feeds) -> Feeds:
    contributions = out["contributions"]
    recon = contributions.astype(np.float64).sum(axis=tuple(range(1, contributions.ndim)))
    return {"contributions": contributions, "reconstruction": out["reconstruction"], "recon": recon}


def _null(values: Array, empty: Mask) -> Float:
    return np.where(empty, np.nan, values.astype(np.float64))


def _index(x: Any) -> pd.Index[Any] | None:
    return x.index if isinstance(x, pd.DataFrame) else None
