"""From what a user calls a model to an open bundle, looked up in the tracking store of a given root."""

from __future__ import annotations

from pathlib import Path

from vae_anomaly.locate import locate
from vae_anomaly.mlflow_access import default_tracking_uri
from vae_anomaly.runtime import Bundle, load_bundle


def open_model(source: str, root: Path = Path("mlruns"), device: str = "auto") -> Bundle:
    """`load_bundle`, for a local tracking store anywhere.

    Parameters
    ----------
    source : str
        A bundle folder, ``runs:/<run id>`` or ``models:/<name>@<alias>``.
    root : Path
        Holds the local tracking store; MLFLOW_TRACKING_URI wins.
    device : {"auto", "cpu", "cuda"}
    """
    found = locate(source, tracking_uri=default_tracking_uri(root))
    return load_bundle(found.path, device=device, expected_digest=found.digest)
