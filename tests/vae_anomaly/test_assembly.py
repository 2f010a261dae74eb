"""What is put together: scores, calibration, manifest."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sample_models import TABLE_MODEL, fit, settings, table_rows

from vae_anomaly import assembly
from vae_anomaly.assembly import ExportConfig, Fitted, Parts
from vae_anomaly.card import model_card
from vae_anomaly.exceptions import CalibrationError, ConfigError, UnsupportedError
from vae_anomaly.fitting import fit_model, split_parts
from vae_anomaly.networks import ModelConfig
from vae_anomaly.schema import infer_schema

AUTOENCODER = ModelConfig(kind="autoencoder", hidden=(4,), latent_size=2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"draws": 0}, "draws and imputation_draws must be at least 1, got 0 and 200"),
        ({"imputation_draws": -1}, "draws and imputation_draws must be at least 1, got 8 and -1"),
        ({"false_alarm_rate": 0.0}, "false_alarm_rate must be between 0 and 1, got 0.0"),
        ({"false_alarm_rate": 1.0}, "false_alarm_rate must be between 0 and 1, got 1.0"),
        ({"false_alarm_rate": "0.1"}, "false_alarm_rate must be between 0 and 1, got '0.1'"),
        ({"false_alarm_rate": None}, "false_alarm_rate must be between 0 and 1, got None"),
    ],
    ids=str,
)
def test_settings_out_of_range(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        ExportConfig(**changes)


@pytest.mark.parametrize(
    ("model", "chosen", "names", "default"),
    [
        (
            TABLE_MODEL,
            {},
            ("combined", "neg_elbo", "recon", "latent_knn", "rapp", "latent_maha"),
            "combined",
        ),
        (TABLE_MODEL, {"scores": ("rate", "combined")}, ("rate", "combined"), "combined"),
        (TABLE_MODEL, {"scores": ("rate",)}, ("rate",), "rate"),
        (TABLE_MODEL, {"scores": ("rate",), "default_score": "recon"}, ("recon", "rate"), "recon"),
        (TABLE_MODEL, {"scores": ("rate", "recon"), "default_score": "rate"}, ("rate", "recon"), "rate"),
        (AUTOENCODER, {}, ("recon", "latent_maha"), "recon"),
    ],
)
def test_the_score_that_decides_is_among_the_scores(
    model: ModelConfig, chosen: dict[str, Any], names: tuple[str, ...], default: str
) -> None:
    manifest = fit(table_rows(40), model, **chosen).manifest
    assert (manifest.scores, manifest.default_score) == (names, default)


def test_unknown_and_impossible_scores() -> None:
    known = "neg_elbo, iw_nll, recon, rate, latent_maha, latent_knn, lpath, rapp, conditional, "
    known += "typicality, background_ratio, combined"
    with pytest.raises(ConfigError, match=f"^unknown score 'elbow'; choose among {known}$"):
        fit(table_rows(40), TABLE_MODEL, scores=("elbow",))
    sentence = (
        "an autoencoder has no iw_nll: it has no distribution over z; "
        "use recon or latent_maha, or train a VAE"
    )
    with pytest.raises(UnsupportedError, match=f"^{re.escape(sentence)}$"):
        fit(table_rows(40), AUTOENCODER, scores=("iw_nll",))


def test_a_model_that_does_not_see_the_mask_has_no_conditional() -> None:
    sentence = (
        "a model that does not see the mask has no conditional: what is hidden would pass for zeros; "
        "use recon or latent_maha, or train with mask_input = true and random masks"
    )
    with pytest.raises(UnsupportedError, match=f"^{re.escape(sentence)}$"):
        fit(table_rows(40), replace(TABLE_MODEL, mask_input=False), scores=("conditional",))


def test_scores_that_keep_single_rows_say_so() -> None:
    manifest = fit(table_rows(40), AUTOENCODER, scores=("recon", "latent_maha", "latent_knn")).manifest
    assert manifest.derived_from_rows == ("latent_bank",)
    assert fit(table_rows(40), AUTOENCODER).manifest.derived_from_rows == ()


def test_a_rate_out_of_reach_becomes_the_smallest_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vae_anomaly"):
        manifest = fit(table_rows(40), TABLE_MODEL, false_alarm_rate=0.01).manifest
    told = (
        "a false alarm rate of 0.01 needs more than the 8 calibration rows there are; "
        "the smallest attainable rate 0.1111 is used"
    )
    assert manifest.false_alarm_rate == 1 / 9
    assert manifest.warnings == (told,)
    assert told in caplog.messages
    assert fit(table_rows(40), TABLE_MODEL, false_alarm_rate=1 / 9).manifest.warnings == ()


def test_constant_columns_are_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = table_rows(40).assign(plain=3.5, yes=True, word="a", both=np.arange(40) % 2 == 0)
    with caplog.at_level(logging.WARNING, logger="vae_anomaly"):
        manifest = fit(rows, TABLE_MODEL, false_alarm_rate=1 / 9).manifest
    assert manifest.warnings == ("constant in training: plain, yes, word",)
    assert manifest.warnings[0] in caplog.messages
    assert manifest.warnings[0] in model_card(manifest)


def test_calibration_needs_rows() -> None:
    rows = table_rows(40)
    schema = infer_schema(rows)
    parts = split_parts(schema.read(rows), 0)
    none = Parts(parts.train, parts.validation, schema.read(rows.iloc[:0]))
    with pytest.raises(
        CalibrationError, match=r"^no row with a value was held out for calibration; leave a share for it$"
    ):
        fit_model(schema, none, settings(TABLE_MODEL), device="cpu")


def test_rows_without_any_value_do_not_calibrate() -> None:
    rows = table_rows(40)
    schema = infer_schema(rows)
    parts = split_parts(schema.read(rows), 0)
    held = schema.read(table_rows(60, 1))
    held.observed[::3] = False
    found = fit_model(schema, Parts(parts.train, parts.validation, held), settings(TABLE_MODEL), device="cpu")
    assert found.fitted.manifest.provenance["rows_calibration"] == 40
    assert len(found.fitted.calibration["score_score"]) == 40


@pytest.fixture(scope="module")
def small() -> Fitted:
    return fit(table_rows(40), TABLE_MODEL, imputation_draws=120)


def test_the_noise_covers_whole_chunks(small: Fitted) -> None:
    assert small.manifest.imputation == {"draws": 120, "chunk": 50}
    noise = small.calibration["noise"]
    assert (noise.shape, noise.dtype) == ((150, 2), np.float32)
    assert noise.mean(axis=0) == pytest.approx(0, abs=0.05)
    # Its own stream: draws of the scores would be counted twice.
    assert not np.isin(noise, small.score_graph.noise.numpy()).any()


def test_tables_are_sorted_scores_of_the_rows_held_out(small: Fitted) -> None:
    held_out = small.calibration_samples
    frame = small.answers().scores(held_out.values, held_out.observed)
    assert len(frame) == 8
    for name in (*small.manifest.scores, "score"):
        assert np.array_equal(small.calibration[f"score_{name}"], np.sort(frame[name]))


def test_large_training_sets_are_thinned_by_seed(small: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = small.manifest.schema
    samples = schema.read(table_rows(500))
    kept = assembly._subset(samples, latent=2, seed=1, most=100)
    again = assembly._subset(samples, latent=2, seed=1, most=100)
    assert len(kept.values) == 100
    assert np.array_equal(kept.observed, again.observed)
    assert len(np.unique(kept.values[:, 3])) > 80
    monkeypatch.setattr(assembly, "FIT_NUMBERS", 1000)
    assert len(assembly._subset(samples, latent=100, seed=1, most=100).values) == 64


def test_architectures_are_plain_json() -> None:
    assert assembly._plain({"a": (1, (2.0, "x")), "b": {"c": ()}}) == {"a": [1, [2.0, "x"]], "b": {"c": []}}
