"""The bundle that ships inside the package: small, sound, and made as its recipe says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipelines.embedded import MOST_BYTES, make, recipe
from serving.embedded import BUNDLE
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.runtime import Bundle, load_bundle


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(BUNDLE, device="cpu", threads=1)


def test_it_is_small_and_no_more_than_a_bundle(shipped: Bundle) -> None:
    files = {path.name: path.stat().st_size for path in BUNDLE.iterdir()}
    assert sum(files.values()) < MOST_BYTES
    assert set(files) == {*shipped.manifest.files, "manifest.json"}


def test_it_tells_digits_from_noise_and_fills_their_gaps(shipped: Bundle) -> None:
    images = (load_digits().images * 255 / 16).round().astype(np.uint8)[-300:]
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    scores = [shipped.scores(x)["score"].to_numpy() for x in (images, noise)]
    assert np.quantile(scores[0], 0.99) < np.quantile(scores[1], 0.01)
    observed = np.ones(images.shape, np.bool_)
    observed[:, 2:6, 2:6] = False
    filled = shipped.impute(images, observed).mean
    error = np.abs(filled.astype(float) - images)[~observed].mean()
    blank = np.abs(images.astype(float) - images.mean(axis=0))[~observed].mean()
    assert error < 0.75 * blank


def test_it_is_what_the_recipe_makes(shipped: Bundle, tmp_path: Path) -> None:
    """Remade with one epoch: the same in all but what was learnt."""
    digest = make(tmp_path / "digits", recipe("training.epochs=1"))
    again = load_bundle(tmp_path / "digits", device="cpu", threads=1, expected_digest=digest)
    for name in ("kind", "name", "schema", "architecture", "likelihood", "scores", "draws", "imputation"):
        assert getattr(again.manifest, name) == getattr(shipped.manifest, name), name
    assert set(again.manifest.files) == set(shipped.manifest.files)
    for name in ("data_fingerprint", "seed", "recipe", "rows_train"):
        assert again.manifest.provenance[name] == shipped.manifest.provenance[name], name
    # Settings that came since are at their defaults.
    now, then = again.manifest.provenance["data"], shipped.manifest.provenance["data"]
    assert {name: now[name] for name in then} == then


@pytest.mark.slow
def test_remade_in_full_it_scores_alike(shipped: Bundle, tmp_path: Path) -> None:
    make(tmp_path / "digits", recipe())
    again = load_bundle(tmp_path / "digits", device="cpu", threads=1)
    images = (load_digits().images * 255 / 16).round().astype(np.uint8)
    scores = [bundle.scores(images)["neg_elbo"].to_numpy() for bundle in (shipped, again)]
    assert np.corrcoef(*scores)[0, 1] > 0.95


def test_one_that_is_too_large_does_not_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.embedded.MOST_BYTES", 1000)
    monkeypatch.setattr("pipelines.embedded.train", lambda *_, **__: SimpleNamespace(bundle=BUNDLE))
    (tmp_path / "digits").mkdir()
    with pytest.raises(
        ConfigError, match=r"^the bundle has \d+ bytes, at most 1000 ship; narrow the network$"
    ):
        make(tmp_path / "digits", recipe("training.epochs=1"))
    assert list((tmp_path / "digits").iterdir()) == []
