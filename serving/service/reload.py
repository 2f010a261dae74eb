"""From a model's name to an engine that is ready, and from an alias that moves to the next one.

A version is fetched, compared with the digest in the registry, self-tested and warmed beside the one
that answers; only then it takes over, between two batches. One that fails changes nothing, is counted, and is
not tried again until the alias moves.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from serving.service.engine import Engine, Models
from serving.service.metrics import Metrics
from serving.service.microbatch import Limits
from vae_anomaly.exceptions import BundleError, TrackingError, VaeAnomalyError
from vae_anomaly.locate import MODEL, Located, locate, stands_for
from vae_anomaly.runtime import load_bundle
from vae_anomaly.selftest import AGAIN, first_line

log = logging.getLogger(__name__)

# Share of the interval by which looks vary, so that many servers do not ask the registry at once.
JITTER = 0.1


class Pin(NamedTuple):
    """One version of a model; the digest is None where nobody vouches for it."""

    version: str
    digest: str | None


class Origin(Protocol):
    """Where versions come from."""

    def newest(self) -> Pin:
        """The version that should answer now."""

    def open(self) -> Engine:
        """That version, verified, self-tested and warm."""


@dataclass(frozen=True)
class Source:
    """A model by its name: a bundle folder, ``runs:/...`` or ``models:/...``.

    Attributes
    ----------
    source : str
    tracking_uri : str, optional
    name : str, optional
        As responses call the model; by default as the registry, else as the bundle does.
    device : {"auto", "cpu", "cuda"}
    tf32 : bool
    workers : int, optional
    limits : Limits
    metrics : Metrics, optional
    """

    source: str
    tracking_uri: str | None = None
    name: str | None = None
    device: str = "auto"
    tf32: bool = False
    workers: int | None = None
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics | None = None

    @property
    def moves(self) -> bool:
        """Whether the name may stand for another version tomorrow."""
        parts = MODEL.fullmatch(self.source)
        return parts is not None and parts["alias"] is not None

    def newest(self) -> Pin:
        """The version that an alias names now.

        Raises
        ------
        BundleError, TrackingError
            As `stands_for`.
        """
        return Pin(*stands_for(self.source, tracking_uri=self.tracking_uri))

    def open(self) -> Engine:
        """Fetch, verify, self-test and warm what the name stands for now.

        Raises
        ------
        BundleError
            If it cannot be trusted or does not run.
        TrackingError
            If the registry does not answer.
        DeviceError
            If the device cannot be had.
        """
        found = locate(self.source, tracking_uri=self.tracking_uri)
        _check_vouched(found)
        bundle = load_bundle(
            found.path,
            device=self.device,
            threads=1,
            batch_size=self.limits.batch_rows,
            expected_digest=found.digest,
            tf32=self.tf32,
        )
        name = self.name or found.name or bundle.manifest.name
        version = found.version or bundle.digest[:12]
        engine = Engine(bundle, name, version, workers=self.workers, limits=self.limits, watch=self.metrics)
        try:
            engine.warm()
        except VaeAnomalyError:
            raise
        except Exception as error:  # onnxruntime raises several unrelated classes here
            reason = f"it does not answer: {first_line(error)}"
            raise BundleError(f"bundle {found.path}: {reason}; {AGAIN}") from error
        return engine


def _check_vouched(found: Located) -> None:
    if found.version is not None and found.digest is None:
        raise BundleError(
            f"version {found.version} of model {found.name!r} has no tag bundle_digest to compare with; "
            "register the model again"
        )


class Follower:
    """Lets the newest version answer.

    Parameters
    ----------
    origin : Origin
    models : Models
    metrics : Metrics
    """

    def __init__(self, origin: Origin, models: Models, metrics: Metrics) -> None:
        self._origin, self._models, self._metrics = origin, models, metrics
        self._refused: Pin | None = None

    async def follow(self, every: float, vary: Callable[[], float] = random.random) -> None:
        """Look again and again until cancelled.

        Parameters
        ----------
        every : float
            Seconds between looks, varied by a tenth.
        vary : callable
            A number in 0..1 for each look.
        """
        while True:
            await asyncio.sleep(every * (1 + JITTER * (2 * vary() - 1)))
            await self.look()

    async def look(self) -> str:
        """Take up another version if there is one.

        Returns
        -------
        str
            "same", "swapped", "refused" (it stays as it was) or "unreachable".
        """
        try:
            pin = await asyncio.to_thread(self._origin.newest)
            if pin == self._refused or self._answers(pin):
                return "same"
        except Exception as error:  # whatever goes wrong here, the version that answers goes on
            return self._told("unreachable" if isinstance(error, TrackingError) else "refused", error)
        try:
            engine = await asyncio.to_thread(self._origin.open)
        except TrackingError as error:
            return self._told("unreachable", error)
        except Exception as error:  # a bad bundle may fail anywhere
            self._refused = pin
            return self._told("refused", error)
        self._refused = None
        self._models.swap(engine)
        self._metrics.serving(engine.name, engine.version, engine.provider, engine.calibration)
        log.info("version %s answers", engine.version, extra={"facts": {"digest": engine.digest}})
        return self._told("swapped")

    def _answers(self, pin: Pin) -> bool:
        with self._models.current() as engine:
            return pin.version == engine.version and pin.digest in (None, engine.digest)

    def _told(self, result: str, error: Exception | None = None) -> str:
        self._metrics.reloaded(result)
        if error is not None:
            log.warning("another version is not taken up: %s", error)
        return result
