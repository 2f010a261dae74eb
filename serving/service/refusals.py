"""Why a request that is well formed gets no answer: too many wait, or its time has passed."""

from __future__ import annotations

from vae_anomaly.exceptions import VaeAnomalyError


class Overloaded(VaeAnomalyError, RuntimeError):  # noqa: N818 - names of events, read as such in handlers
    """More waits than can be answered in time.

    Attributes
    ----------
    retry_after : int
        Seconds after which another try makes sense.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Expired(VaeAnomalyError, TimeoutError):  # noqa: N818
    """The deadline passed before the answer was there."""
