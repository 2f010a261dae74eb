"""What MLflow calls to serve a logged bundle as a Python function: onnxruntime, no torch, no pickle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from vae_anomaly.runtime import Bundle


class Verdicts:
    """A bundle with MLflow's word for its verdicts."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, samples: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score, p-value and verdict of every row, as `Bundle.verdicts` gives them.

        Parameters
        ----------
        samples : DataFrame or ndarray
        params : dict, optional
            ``false_alarm_rate`` in place of the bundle's own.
        """
        return self.bundle.verdicts(samples, false_alarm_rate=(params or {}).get("false_alarm_rate"))


def _load_pyfunc(path: str) -> Verdicts:
    """MLflow's entry point: ``path`` is the model's ``bundle/`` folder."""
    from vae_anomaly.runtime import load_bundle

    return Verdicts(load_bundle(path))
