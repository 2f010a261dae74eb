"""What every test shares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vae_anomaly.assembly import Fitted
    from vae_anomaly.estimators import VAEDetector
    from vae_anomaly.runtime import Bundle


@pytest.fixture(scope="session")
def table_detector() -> VAEDetector:
    """Fitted to a named table with gaps; every score, K = 4."""
    from sample_models import ALL_SCORES, TABLE_MODEL, settings, table_rows

    from vae_anomaly.estimators import VAEDetector

    choices = settings(TABLE_MODEL, epochs=160, scores=ALL_SCORES, draws=4, imputation_draws=100)
    return VAEDetector(settings=choices, device="cpu", random_state=0).fit(table_rows())


@pytest.fixture(scope="session")
def image_fitted() -> Fitted:
    """A convolutional VAE of grey uint8 images: Bernoulli, batch norm, every score."""
    from sample_models import ALL_SCORES, IMAGE_MODEL, fit, grey_images

    return fit(grey_images(), IMAGE_MODEL, epochs=4, scores=ALL_SCORES, draws=4, imputation_draws=100)


@pytest.fixture(scope="session")
def autoencoder_fitted() -> Fitted:
    """A convolutional autoencoder of float32 colour images: Laplace, tanh, no mask input."""
    from sample_models import AUTOENCODER, colour_images, fit

    return fit(colour_images(), AUTOENCODER, epochs=4)


@pytest.fixture(scope="session")
def table_folder(table_detector: VAEDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The detector's bundle. Copy it before changing anything in it."""
    folder = tmp_path_factory.mktemp("table") / "bundle"
    table_detector.export(folder)
    return folder


@pytest.fixture(scope="session")
def image_folder(image_fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image model's bundle."""
    return _exported(image_fitted, tmp_path_factory.mktemp("image") / "bundle")


@pytest.fixture(scope="session")
def autoencoder_folder(autoencoder_fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The autoencoder's bundle."""
    return _exported(autoencoder_fitted, tmp_path_factory.mktemp("autoencoder") / "bundle")


@pytest.fixture(scope="session")
def table_bundle(table_folder: Path) -> Bundle:
    """The table model on onnxruntime."""
    return _loaded(table_folder)


@pytest.fixture(scope="session")
def image_bundle(image_folder: Path) -> Bundle:
    """The image model on onnxruntime."""
    return _loaded(image_folder)


@pytest.fixture(scope="session")
def autoencoder_bundle(autoencoder_folder: Path) -> Bundle:
    """The autoencoder on onnxruntime."""
    return _loaded(autoencoder_folder)


def _exported(fitted: Fitted, folder: Path) -> Path:
    from vae_anomaly.export import export_bundle

    export_bundle(fitted, folder)
    return folder


def _loaded(folder: Path) -> Bundle:
    from vae_anomaly.runtime import load_bundle

    return load_bundle(folder, device="cpu", threads=1)
