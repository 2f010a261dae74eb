"""The false alarm rate of a request."""

from __future__ import annotations

from serving.service.engine import Engine
from serving.service.problems import Problem
from vae_anomaly.calibration import smallest_rate
from vae_anomaly.exceptions import CalibrationError


def rate_of(engine: Engine, alpha: float | None) -> float:
    """The rate asked for, or the model's own.

    Raises
    ------
    Problem
        422 with the smallest rate that the model can promise.
    ConfigError
        If it is not strictly between 0 and 1.
    """
    try:
        return engine.bundle.rate(alpha)
    except CalibrationError as error:
        least = smallest_rate(len(engine.calibration))
        detail = str(error).partition("; ")[0]
        hint = f"the smallest rate of this model is {least:g}"
        raise Problem(422, "rate_too_small", detail, hint=hint, field="alpha") from error
