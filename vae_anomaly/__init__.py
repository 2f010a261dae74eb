"""One VAE, two answers: how strange is this sample, and what belongs in its gaps.

Public names resolve lazily: importing the package, or running a bundle, needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vae_anomaly.answers import Latent
    from vae_anomaly.estimators import VAEDetector, VAEImputer
    from vae_anomaly.exceptions import VaeAnomalyError
    from vae_anomaly.explanation import Explanation
    from vae_anomaly.imputing import Imputation
    from vae_anomaly.pooling import Pooled, pool_estimates
    from vae_anomaly.runtime import Bundle, load_bundle
    from vae_anomaly.sensitivity import missing_sensitivity

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "runtime",
    "Explanation": "explanation",
    "Imputation": "imputing",
    "Latent": "answers",
    "Pooled": "pooling",
    "VAEDetector": "estimators",
    "VAEImputer": "estimators",
    "VaeAnomalyError": "exceptions",
    "load_bundle": "runtime",
    "missing_sensitivity": "sensitivity",
    "pool_estimates": "pooling",
}

__all__ = [
    "Bundle",
    "Explanation",
    "Imputation",
    "Latent",
    "Pooled",
    "VAEDetector",
    "VAEImputer",
    "VaeAnomalyError",
    "__version__",
    "load_bundle",
    "missing_sensitivity",
    "pool_estimates",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'vae_anomaly' has no attribute {name!r}")
    try:
        return getattr(import_module(f"vae_anomaly.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        from vae_anomaly.exceptions import MissingPackageError

        if (error.name or "").startswith("vae_anomaly"):
            raise
        raise MissingPackageError(
            f"{name} needs {error.name}, which is not installed; pip install 'vae-anomaly[train]'"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
