"""What several tests of the service share."""

from __future__ import annotations

from pathlib import Path

import pytest
from request_samples import people
from sample_models import TABLE_MODEL, fit

from vae_anomaly.export import export_bundle
from vae_anomaly.runtime import Bundle, load_bundle


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder: Path = tmp_path_factory.mktemp("mixed") / "bundle"
    export_bundle(fit(people(), TABLE_MODEL, draws=4, imputation_draws=100), folder)
    return load_bundle(folder, device="cpu", threads=1)
