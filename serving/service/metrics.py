"""What the service tells Prometheus, in a registry of its own.

Names begin with ``vae_anomaly_``. Scores are counted per version in buckets at quantiles of its calibration
scores: were all rows normal, each bucket would hold the share that its two quantiles say.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from vae_anomaly.batches import Feeds
from vae_anomaly.schema import Array, Mask

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "vae_anomaly"
# Seconds; from a bare probe to the request deadline.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
VERDICTS = 64  # of single rows that are counted at once
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """All that is counted; also the `Watch` of every engine.

    The parts of a request's latency: ``read`` (body to samples), ``wait`` (in the queue), ``run`` (its batch
    on the device), ``write`` (arrays to body) and ``total``.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[Any, ...], Any] = {}
        self._requests = self._counter("requests", "Requests answered.", "entry", "status")
        self._rows = self._counter("rows", "Rows answered.", "entry")
        self._seconds = self._histogram("request_seconds", "Parts of the latency.", SECONDS, "entry", "part")
        self._waiting = self._gauge("queue_rows", "Rows that wait.", "entry")
        self._batches = self._histogram("batch_rows", "Rows per run.", BATCH_ROWS, "entry")
        self._dropped = self._counter("dropped_requests", "Not run: overloaded, expired ...", "entry", "why")
        self._judged = self._counter("judged_rows", "Rows with a verdict.", "version")
        self._flagged = self._counter("flagged_rows", "Rows called outliers.", "version")
        self._cells = self._counter("cells", "Cells received.", "entry")
        self._missing = self._counter("missing_cells", "Cells not observed.", "entry")
        self._clipped = self._counter("clipped_cells", "Cells outside the model's range.")
        self._reloads = self._counter("reloads", "Attempts to take up another version.", "result")
        self._info = self._gauge("model_info", "The version that answers.", "name", "version", "provider")
        self._verdicts: list[tuple[str, float, Array, Array, Array]] = []  # not yet counted
        self._scores = _Scores()
        self.registry.register(self._scores)

    def _counter(self, name: str, said: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", said, labels, registry=self.registry)

    def _gauge(self, name: str, said: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", said, labels, registry=self.registry)

    def _histogram(self, name: str, said: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", said, labels, buckets=buckets, registry=self.registry)

    def _of(self, metric: Any, *labels: str) -> Any:
        """The child of a metric, remembered: `labels` looks it up anew under a lock every time."""
        key = (metric, *labels)
        if key not in self._children:
            self._children[key] = metric.labels(*labels)
        return self._children[key]

    def text(self) -> bytes:
        """All of it in Prometheus' text format, to be sent as `CONTENT_TYPE`."""
        self._count_verdicts()
        return generate_latest(self.registry)

    def answered(self, entry: str, status: int, rows: int, seconds: float) -> None:
        """A request got its answer, whatever its status; ``entry`` must come from a closed list."""
        self._of(self._requests, entry, str(status)).inc()
        self._of(self._seconds, entry, "total").observe(seconds)
        if rows and status < 400:
            self._of(self._rows, entry).inc(rows)

    def took(self, entry: str, part: str, seconds: float) -> None:
        """A part of a request's latency: read, wait, run or write."""
        self._of(self._seconds, entry, part).observe(seconds)

    def waiting(self, entry: str, rows: int) -> None:
        """So many rows wait."""
        self._of(self._waiting, entry).set(rows)

    def ran(self, entry: str, requests: int, rows: int, seconds: float) -> None:
        """A batch is through."""
        self._of(self._batches, entry).observe(rows)
        self._of(self._seconds, entry, "run").observe(seconds)

    def waited(self, entry: str, seconds: float) -> None:
        """A request begins to run."""
        self._of(self._seconds, entry, "wait").observe(seconds)

    def dropped(self, entry: str, why: str) -> None:
        """A request gets no answer: overloaded, expired or abandoned."""
        self._of(self._dropped, entry, why).inc()

    def received(self, entry: str, observed: Mask) -> None:
        """Samples were read."""
        self._of(self._cells, entry).inc(observed.size)
        if missing := observed.size - int(np.count_nonzero(observed)):
            self._of(self._missing, entry).inc(missing)

    def judged(self, version: str, out: Feeds, rate: float) -> None:
        """Rows were scored; ``out`` as `Engine.run` gave it. Single ones are counted many at once."""
        p_value = out["p_value"]
        self._verdicts.append((version, rate, p_value, out["clipped"], out["score"]))
        if len(p_value) > 1 or len(self._verdicts) >= VERDICTS:
            self._count_verdicts()

    def _count_verdicts(self) -> None:
        verdicts, self._verdicts = self._verdicts, []
        for (version, rate), group in groupby(verdicts, key=itemgetter(0, 1)):
            p_value, clipped, score = (np.concatenate(part) for part in list(zip(*group, strict=True))[2:])
            self._of(self._judged, version).inc(len(p_value) - int(np.count_nonzero(np.isnan(p_value))))
            if flagged := int(np.count_nonzero(p_value <= rate)):
                self._of(self._flagged, version).inc(flagged)
            if outside := int(clipped.sum()):
                self._clipped.inc(outside)
            self._scores.add(version, score)

    def reloaded(self, result: str) -> None:
        """Another version was looked for: "swapped", "refused" or "unreachable"."""
        self._of(self._reloads, result).inc()

    def serving(self, name: str, version: str, provider: str, calibration: Array) -> None:
        """This version answers from now on.

        Parameters
        ----------
        name, version, provider : str
        calibration : ndarray, shape (n,)
            Its calibration scores, ascending.
        """
        self._count_verdicts()
        for old in self._scores.expect(version, np.unique(np.quantile(calibration, QUANTILES))):
            for counter in (self._judged, self._flagged):
                with suppress(KeyError):
                    counter.remove(old)
                self._children.pop((counter, old), None)
        self._info.clear()
        self._info.labels(name, version, provider).set(1)


class _Scores(Collector):
    """Scores per version in buckets of its own; Prometheus' histogram has the same for all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._edges: dict[str, Array] = {}
        self._counts: dict[str, Array] = {}
        self._sums: dict[str, float] = {}

    def expect(self, version: str, edges: Array) -> list[str]:
        """Count a version's scores between these edges, and return those versions that are forgotten.

        The newest two are kept: the older may yet answer what it began.
        """
        with self._lock:
            if version in self._edges:
                return []
            forgotten = list(self._edges)[:-1]
            for old in forgotten:
                del self._edges[old], self._counts[old], self._sums[old]
            self._edges[version], self._sums[version] = edges, 0.0
            self._counts[version] = np.zeros(len(edges) + 1, np.int64)
            return forgotten

    def add(self, version: str, scores: Array) -> None:
        """Count scores, NaN left out."""
        known = scores[~np.isnan(scores)]
        with self._lock:
            if len(known) and version in self._edges:
                # A bucket holds what is at most its edge.
                places = np.searchsorted(self._edges[version], known, side="left")
                self._counts[version] += np.bincount(places, minlength=len(self._counts[version]))
                self._sums[version] += float(known.sum())

    def collect(self) -> Iterator[Metric]:
        """The histogram, as Prometheus asks for it."""
        family = HistogramMetricFamily(f"{PREFIX}_score", "Scores of the default score.", labels=["version"])
        with self._lock:
            for version, edges in self._edges.items():
                totals = np.cumsum(self._counts[version]).tolist()
                named = [*map(repr, edges.tolist()), "+Inf"]
                buckets = list(zip(named, map(float, totals), strict=True))
                family.add_metric([version], buckets, self._sums[version])
        yield family
