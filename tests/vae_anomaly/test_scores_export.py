"""All scores together in one bundle: what torch says, the same bits whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sample_models import AUTOENCODER, IMAGE_MODEL, TABLE_MODEL, colour_images, fit, grey_images, table_rows

from vae_anomaly.assembly import Fitted
from vae_anomaly.export import export_bundle
from vae_anomaly.networks import ModelConfig
from vae_anomaly.runtime import Bundle, load_bundle
from vae_anomaly.scores import background, possible_scores
from vae_anomaly.selftest import tolerance_of

MODELS: dict[str, tuple[Callable[..., Any], ModelConfig]] = {
    "table": (table_rows, TABLE_MODEL),
    "images": (grey_images, IMAGE_MODEL),
    "autoencoder": (colour_images, AUTOENCODER),
}


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Fitted, Bundle, Any]:
    """A model with every score it can have; the parity gate has let it pass."""
    data, config = MODELS[request.param]
    scores = possible_scores(config.kind == "vae", config.mask_input)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background, "EPOCHS", (1, 2))
        fitted = fit(data(), config, epochs=4, scores=scores, draws=4, imputation_draws=50)
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    export_bundle(fitted, folder)
    return fitted, load_bundle(folder, device="cpu", threads=1), data


def gaps(x: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    observed = np.random.default_rng(0).random(np.shape(x)) < 0.7
    observed[:20], observed[-1] = True, False
    return observed


def test_every_score_is_exported_and_agrees_with_torch(exported: tuple[Fitted, Bundle, Any]) -> None:
    fitted, bundle, data = exported
    x = np.array(data(90, seed=7))
    ours, theirs = (answers.scores(x, gaps(x)) for answers in (fitted.answers(), bundle))
    assert theirs.columns.tolist() == ["score", *fitted.manifest.scores]
    empty = theirs["score"].isna()
    assert 0 < empty.sum() < 10
    for name in fitted.manifest.scores:
        a, b = (frame.loc[~empty, name].to_numpy() for frame in (ours, theirs))
        assert np.isfinite(b).all(), name
        assert (np.abs(a - b) <= tolerance_of(name, {name: a}, fitted.manifest)).all(), name


def test_a_row_of_one_bundle_has_the_same_bits_in_any_company(exported: tuple[Fitted, Bundle, Any]) -> None:
    _, bundle, data = exported
    x = np.array(data(70, seed=8))
    whole = bundle.scores(x, gaps(x))
    order = np.random.default_rng(1).permutation(70)
    shuffled = bundle.scores(x[order], gaps(x)[order])
    small = load_bundle(bundle.path, device="cpu", batch_size=7, threads=1, self_test=False)
    for other, rows in ((shuffled, order), (small.scores(x, gaps(x)), np.arange(70))):
        for name in whole:
            assert np.array_equal(other[name], whole[name].to_numpy()[rows], equal_nan=True), name
