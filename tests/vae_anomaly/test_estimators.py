"""The scikit-learn face: its contract, its signs, one fit for both answers."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.exceptions
from sample_models import (
    ALL_SCORES,
    AUTOENCODER,
    IMAGE_MODEL,
    TABLE_MODEL,
    colour_images,
    grey_images,
    settings,
    table_rows,
)
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags

from vae_anomaly import VAEDetector, VAEImputer
from vae_anomaly.answers import Answers
from vae_anomaly.assembly import ExportConfig
from vae_anomaly.exceptions import ConfigError, DataError, NotFittedError, SchemaError, UnsupportedError
from vae_anomaly.fitting import Settings
from vae_anomaly.runtime import Bundle
from vae_anomaly.scores import LatentKnn
from vae_anomaly.training import Trainer, TrainingConfig

QUICK = settings(TABLE_MODEL, epochs=2, imputation_draws=50)


def quick(rows: Any, **choices: Any) -> VAEDetector:
    fitted: VAEDetector = VAEDetector(device="cpu", **({"settings": QUICK, "random_state": 0} | choices)).fit(
        rows
    )
    return fitted


@pytest.fixture(scope="module")
def imputer(table_detector: VAEDetector) -> VAEImputer:
    return VAEImputer.from_detector(table_detector)


@pytest.mark.parametrize("kind", [VAEDetector, VAEImputer])
def test_parameters_are_kept_as_given_and_cloned(kind: type[VAEDetector] | type[VAEImputer]) -> None:
    estimator = kind(settings=QUICK, device="cpu", random_state=7)
    expected: dict[str, Any] = {"settings": QUICK, "device": "cpu", "random_state": 7}
    expected |= {"kinds": None, "bounds": None}
    expected |= (
        {"false_alarm_rate": None, "contamination": None, "trim": None}
        if kind is VAEDetector
        else {"missing": "mar", "add_indicator": False}
    )
    assert estimator.get_params() == expected
    copy = clone(estimator)
    assert copy.get_params() == expected
    assert copy is not estimator
    assert estimator.set_params(random_state=8).random_state == 8
    assert kind().get_params()["settings"] is None


def test_a_clone_of_a_fitted_estimator_is_not_fitted(table_detector: VAEDetector) -> None:
    copy = clone(table_detector)
    assert not hasattr(copy, "fitted_")
    sentence = "this VAEDetector is not fitted yet; call fit with training data first"
    for ask in (copy.scores, copy.predict, copy.p_values, copy.explain, copy.decision_function):
        for error in (NotFittedError, sklearn.exceptions.NotFittedError):
            with pytest.raises(error, match=f"^{sentence}$"):
                ask(table_rows(3))
    with pytest.raises(NotFittedError, match=f"^{sentence}$"):
        copy.export("nowhere")
    with pytest.raises(NotFittedError, match=f"^{sentence}$"):
        VAEImputer.from_detector(copy)
    with pytest.raises(NotFittedError, match=r"^this VAEImputer is not fitted yet; call fit"):
        VAEImputer().transform(table_rows(3))


def test_same_seed_same_bits_and_another_seed_another_model() -> None:
    rows = table_rows(80)
    first, again, other = quick(rows), quick(rows), quick(rows, random_state=1)
    assert np.array_equal(first.score_samples(rows), again.score_samples(rows))
    assert first.offset_ == again.offset_
    assert not np.array_equal(first.score_samples(rows), other.score_samples(rows))
    generator = np.random.RandomState(0)
    assert np.array_equal(quick(rows, random_state=generator).score_samples(rows), first.score_samples(rows))


def test_the_callers_generator_is_left_alone() -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    quick(table_rows(60))
    assert np.array_equal(np.random.get_state()[1], before)


def test_a_pickled_estimator_gives_the_same_bits(table_detector: VAEDetector, imputer: VAEImputer) -> None:
    rows = table_rows(30, 3)
    detector, filler = pickle.loads(pickle.dumps(table_detector)), pickle.loads(pickle.dumps(imputer))
    pd.testing.assert_frame_equal(detector.scores(rows), table_detector.scores(rows), check_exact=True)
    assert np.array_equal(detector.p_values(rows), table_detector.p_values(rows))
    assert np.array_equal(detector.predict(rows), table_detector.predict(rows))
    pd.testing.assert_frame_equal(filler.transform(rows), imputer.transform(rows), check_exact=True)


@pytest.mark.parametrize("rate", [0.05, 2 / 49, 0.3])
def test_signs_and_verdicts_agree(rate: float) -> None:
    """Lower is more abnormal for scikit-learn; -1 is p <= rate, on the calibration rows' ties too."""
    rows = table_rows()
    detector = quick(rows, false_alarm_rate=rate)
    scores, p_values = detector.scores(rows)["score"].to_numpy(), detector.p_values(rows)
    assert np.array_equal(detector.score_samples(rows), -scores)
    assert np.array_equal(detector.decision_function(rows), -scores - detector.offset_)
    assert np.array_equal(detector.predict(rows), np.where(p_values <= rate, -1, 1))
    verdicts = detector.answers_.verdicts(rows)["is_outlier"]
    assert np.array_equal(detector.predict(rows) == -1, verdicts.to_numpy(bool))
    assert -detector.offset_ in detector.fitted_.calibration["score_score"]


def test_gaps_and_images_are_declared() -> None:
    for estimator in (VAEDetector(), VAEImputer()):
        tags = get_tags(estimator)
        assert tags.input_tags.allow_nan
        assert tags.input_tags.three_d_array
    assert get_tags(VAEDetector()).estimator_type == "outlier_detector"


def test_bits_do_not_depend_on_the_other_rows_of_a_call() -> None:
    """With layers wide enough for torch to choose its kernels by the number of rows."""
    wide = settings(dataclasses.replace(TABLE_MODEL, hidden=(64, 64)), imputation_draws=50)
    rows = table_rows(80)
    detector = quick(rows, settings=wide)
    together = detector.score_samples(rows)
    alone = [detector.score_samples(rows[i : i + 1])[0] for i in range(80)]
    assert np.array_equal(together, alone)
    assert np.array_equal(together[5:40], detector.score_samples(rows[5:40]))
    imputer = VAEImputer.from_detector(detector)
    pd.testing.assert_frame_equal(
        imputer.transform(rows)[5:40], imputer.transform(rows[5:40]), check_exact=True
    )


def test_fit_predict_is_fit_then_predict() -> None:
    rows = table_rows(80)
    detector = VAEDetector(settings=QUICK, device="cpu", random_state=0)
    assert np.array_equal(detector.fit_predict(rows), quick(rows).predict(rows))


def test_the_detectors_rate_is_the_bundles(table_detector: VAEDetector, table_bundle: Bundle) -> None:
    assert table_detector.fitted_.manifest.false_alarm_rate == 0.05
    assert table_bundle.false_alarm_rate == 0.05
    detector = quick(table_rows(80), false_alarm_rate=0.2)
    assert detector.fitted_.manifest.false_alarm_rate == 0.2
    assert detector.settings is QUICK


def test_the_settings_rate_holds_where_the_detector_names_none() -> None:
    choices = settings(TABLE_MODEL, false_alarm_rate=0.2)
    for given, rate in ((None, 0.2), (0.25, 0.25)):
        detector = VAEDetector(settings=choices, false_alarm_rate=given, device="cpu").fit(table_rows(40))
        assert detector.fitted_.manifest.false_alarm_rate == rate


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"settings": "fast"}, "settings is 'fast'; give Settings(...) or None"),
        ({"kinds": ["real"]}, "kinds is ['real']; give a dictionary by column or None"),
        ({"bounds": [(0, 1)]}, "bounds is [(0, 1)]; give a dictionary by column or None"),
    ],
    ids=["settings", "kinds", "bounds"],
)
@pytest.mark.parametrize("kind", [VAEDetector, VAEImputer])
def test_parameters_of_another_type_are_refused(
    kind: type[VAEDetector] | type[VAEImputer], given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        kind(**given).fit(table_rows())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Settings(training="long"), "training is 'long'; give TrainingConfig or None"),  # type: ignore[arg-type]
        (lambda: Settings(model=TrainingConfig()), "model is TrainingConfig("),  # type: ignore[arg-type]
        (lambda: ExportConfig(draws=2.5), "draws is 2.5; give a whole number"),  # type: ignore[arg-type]
        (lambda: ExportConfig(scores="recon"), "scores is 'recon'; give a tuple"),  # type: ignore[arg-type]
    ],
    ids=["text", "another section", "fraction", "no tuple"],
)
def test_settings_of_another_type_are_refused(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}"):
        make()


def test_rows_without_any_value_take_no_part() -> None:
    rows = np.random.default_rng(0).normal(size=(10, 3))
    empty = np.full((110, 3), np.nan)
    detector = quick(np.concatenate([empty, rows]))
    assert detector.fitted_.manifest.provenance["rows_calibration"] == 2
    sentence = "n_samples=115, 110 of them without any value, leaves 3 rows to train on; "
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}"):
        quick(np.concatenate([empty, rows[:5]]))


def test_too_few_rows_for_the_rate_take_the_smallest() -> None:
    detector = quick(table_rows(40), false_alarm_rate=0.01)
    assert detector.fitted_.manifest.false_alarm_rate == 1 / 9
    assert -detector.offset_ == detector.fitted_.calibration["score_score"][-1]


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_a_rate_out_of_range_is_refused_before_training(rate: float) -> None:
    with pytest.raises(ConfigError, match=f"^false_alarm_rate must be between 0 and 1, got {rate}$"):
        VAEDetector(false_alarm_rate=rate).fit(table_rows())


def test_the_detector_and_its_bundle_agree(table_detector: VAEDetector, table_bundle: Bundle) -> None:
    rows = table_rows(60, 3)
    ours, theirs = table_detector.scores(rows), table_bundle.scores(rows)
    assert ours.columns.tolist() == theirs.columns.tolist() == ["score", *ALL_SCORES]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert np.abs(table_detector.p_values(rows) - table_bundle.p_values(rows)).max() <= 2 / 49
    mean = table_detector.answers_.impute(rows).mean
    np.testing.assert_allclose(VAEImputer.from_detector(table_detector).transform(rows), mean)
    np.testing.assert_allclose(mean, table_bundle.impute(rows).mean, rtol=1e-4)


def test_one_fit_gives_both_answers(table_detector: VAEDetector, imputer: VAEImputer) -> None:
    assert imputer.fitted_ is table_detector.fitted_
    assert imputer.get_params() == {
        "settings": table_detector.settings,
        "kinds": None,
        "bounds": None,
        "missing": "mar",
        "add_indicator": False,
        "device": "cpu",
        "random_state": 0,
    }
    assert imputer.history_ is table_detector.history_
    assert imputer.n_features_in_ == 4
    assert imputer.feature_names_in_.tolist() == ["plain", "large", "tiny", "time"]


def test_feature_names_and_figures(table_detector: VAEDetector) -> None:
    assert table_detector.feature_names_in_.tolist() == ["plain", "large", "tiny", "time"]
    assert table_detector.n_features_in_ == 4
    assert len(table_detector.history_) == 160
    assert table_detector.history_[-1]["val_loss"] < table_detector.history_[0]["val_loss"]
    bare = quick(table_rows(60).to_numpy())
    assert not hasattr(bare, "feature_names_in_")
    assert VAEImputer.from_detector(bare).get_feature_names_out().tolist() == ["x0", "x1", "x2", "x3"]


def test_missing_columns_are_named(table_detector: VAEDetector) -> None:
    sentence = "missing columns ['tiny']; to leave a value out, keep the column and set it to NaN"
    with pytest.raises(SchemaError, match=f"^{re.escape(sentence)}$"):
        table_detector.predict(table_rows(3).drop(columns="tiny"))


def test_transform_keeps_what_the_caller_holds(imputer: VAEImputer) -> None:
    rows = table_rows(30, 3).set_axis([f"r{i}" for i in range(30)])[["time", "plain", "tiny", "large"]]
    filled = imputer.transform(rows)
    assert filled.index.equals(rows.index)
    assert filled.columns.equals(rows.columns)
    assert not filled.isna().any().any()
    seen = rows.notna().to_numpy()
    assert np.array_equal(filled.to_numpy()[seen], rows.to_numpy()[seen])
    array = imputer.transform(rows[imputer.feature_names_in_].to_numpy())
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, filled[imputer.feature_names_in_])


def test_sample_draws_imputations(imputer: VAEImputer) -> None:
    rows = table_rows(10, 3)
    drawn = imputer.sample(rows, draws=5)
    seen = np.broadcast_to(rows.notna().to_numpy(), drawn.shape)
    assert drawn.shape == (5, 10, 4)
    assert np.array_equal(drawn[seen], np.broadcast_to(rows.to_numpy(), drawn.shape)[seen])
    assert np.array_equal(drawn, imputer.sample(rows, draws=5))
    assert not np.array_equal(drawn, imputer.sample(rows, draws=5, seed=1))
    assert imputer.sample(rows).shape == (20, 10, 4)
    with pytest.raises(ConfigError, match=r"^draws is None; give a whole number$"):
        imputer.sample(rows, draws=None)  # type: ignore[arg-type]


def test_an_imputer_fits_and_works_in_a_pipeline() -> None:
    rows = table_rows(80).to_numpy()
    imputer = VAEImputer(settings=QUICK, device="cpu", random_state=0)
    pipeline = make_pipeline(FunctionTransformer(feature_names_out="one-to-one"), imputer)
    filled = pipeline.fit_transform(rows)
    assert np.isfinite(filled).all()
    named = pipeline.set_output(transform="pandas").transform(rows)
    assert named.columns.tolist() == ["x0", "x1", "x2", "x3"]
    assert np.array_equal(named, filled)


def test_images_of_either_kind() -> None:
    grey = VAEDetector(
        settings=settings(dataclasses.replace(TABLE_MODEL, likelihood="bernoulli")),
        device="cpu",
        random_state=0,
    ).fit(grey_images(60))
    assert grey.predict(grey_images(5)).shape == (5,)
    assert grey.explain(grey_images(5)).contributions.shape == (5, 1, 8, 9)
    assert VAEImputer.from_detector(grey).transform(grey_images(5)).dtype == np.uint8
    one = r"^got one image of shape \(8, 9\); expected a batch \(B, 1, 8, 9\); pass x\[None\]$"
    with pytest.raises(SchemaError, match=one):
        grey.scores(grey_images(5)[0])
    colour = VAEDetector(settings=settings(AUTOENCODER), device="cpu", random_state=0).fit(colour_images(60))
    assert colour.score_samples(colour_images(5)).shape == (5,)
    with pytest.raises(UnsupportedError, match=r"^an autoencoder gives no imputations: "):
        VAEImputer.from_detector(colour).transform(colour_images(5))


def test_an_imputer_of_an_autoencoder_is_refused_before_it_trains() -> None:
    imputer = VAEImputer(settings=settings(AUTOENCODER))
    with pytest.raises(ConfigError, match=r'^an autoencoder gives no imputations: .*; set kind to "vae"$'):
        imputer.fit(np.zeros((200, 4)))


@pytest.mark.parametrize(
    ("export", "error"),
    [
        (ExportConfig(scores=("nope",)), ConfigError),
        (ExportConfig(default_score="knn"), ConfigError),
        (ExportConfig(scores=("conditional",)), UnsupportedError),
    ],
    ids=["unknown", "unknown default", "impossible"],
)
def test_a_score_that_cannot_be_is_refused_before_training(
    export: ExportConfig, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *args, **kwargs: pytest.fail("trained"))
    choices = replace(QUICK, model=replace(TABLE_MODEL, mask_input=False), export=export)
    with pytest.raises(error):
        quick(table_rows(40), settings=choices)


def test_a_rate_of_any_number_type_is_written() -> None:
    detector = quick(table_rows(80), false_alarm_rate=np.float32(0.25))
    assert json.loads(detector.fitted_.manifest.to_json())["false_alarm_rate"] == 0.25


@pytest.mark.parametrize("missing", [pd.NA, pd.NaT, None], ids=str)
def test_what_pandas_calls_missing_is_so_in_arrays(missing: object) -> None:
    rows = table_rows(60).to_numpy(copy=True)
    rows[3, 0] = np.nan
    objects = rows.astype(object)
    objects[np.isnan(rows)] = missing
    assert np.array_equal(quick(objects).scores(objects[:9]), quick(rows).scores(rows[:9]))


def test_a_score_is_fitted_on_as_many_rows_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentKnn, "fit_rows", 30)
    monkeypatch.setattr(LatentKnn, "fit_images", 20)
    choices = replace(
        settings(IMAGE_MODEL, epochs=1), export=ExportConfig(scores=("latent_knn", "latent_maha"))
    )
    for rows, kept in ((table_rows(60), 30), (grey_images(60), 20)):
        plain = QUICK if isinstance(rows, pd.DataFrame) else choices
        detector = quick(rows, settings=replace(plain, export=choices.export))
        assert len(detector.fitted_.score_graph.scores["latent_knn"].bank) == kept


def test_bytes_that_are_bits_are_told() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (60, 8, 8)).astype(np.uint8)
    choices = settings(IMAGE_MODEL, epochs=1)
    sentence = "bytes are read as 0..255 and none is above 1 in training: pass booleans, or multiply by 255"
    assert sentence in quick(bits, settings=choices).fitted_.manifest.warnings
    assert sentence not in quick(bits * np.uint8(2), settings=choices).fitted_.manifest.warnings


@pytest.mark.parametrize(("levels", "dtype"), [(17, "int64"), (17, "int16"), (1000, "int32"), (2, "bool")])
def test_images_of_whole_numbers_score_as_those_of_floats(levels: int, dtype: str) -> None:
    images = np.random.default_rng(0).integers(0, levels, (60, 8, 8))
    choices = settings(IMAGE_MODEL, epochs=1)
    scores = [quick(x, settings=choices).score_samples(x) for x in (images.astype(dtype), images * 1.0)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize(
    ("rows", "error", "sentence"),
    [
        (
            table_rows(5),
            DataError,
            "n_samples=5 leaves 3 rows to train on; at least 7 are needed: fit on more",
        ),
        (
            table_rows(60).assign(tiny=np.nan),
            DataError,
            "training column 'tiny' has no value in any row; leave it out",
        ),
        (pd.DataFrame(index=range(20)), SchemaError, "the table has no columns; give at least one"),
        (
            np.zeros((0, 3)),
            DataError,
            "n_samples=0 leaves 0 rows to train on; at least 7 are needed: fit on more",
        ),
        (np.zeros((20, 4, 4)), SchemaError, "images are 4x4; both sides must be at least 8 pixels"),
        (
            np.zeros((20, 1, 1, 8, 8)),
            SchemaError,
            "data has shape (20, 1, 1, 8, 8); expected a table (B, D) or images (B, H, W) or (B, C, H, W)",
        ),
    ],
)
def test_data_that_cannot_be_learnt(rows: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        quick(rows)


def test_an_exported_detector_goes_on_as_before(table_detector: VAEDetector, table_folder: Path) -> None:
    """The bundle's calibration is its own; the estimator's offset still fits the estimator's p-values."""
    rows = table_detector.fitted_.calibration_samples
    frame = table_detector.answers_.verdicts(rows.values, rows.observed)
    assert table_folder.is_dir()
    assert np.array_equal(frame["is_outlier"], -frame["score"] < table_detector.offset_)
    # The threshold is the second largest of 48 scores: one row lies above it.
    assert frame["is_outlier"].sum() == 1
    assert isinstance(table_detector.answers_, Answers)


def test_settings_are_completed_not_changed(table_detector: VAEDetector) -> None:
    assert table_detector.settings_.model == TABLE_MODEL
    assert isinstance(table_detector.settings_, Settings)
    assert table_detector.settings is not None
    assert table_detector.settings_.export.scores == ALL_SCORES
