"""What scikit-learn asks of every estimator, and its own tools around ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sample_models import TABLE_MODEL, grey_images, settings, table_rows
from sklearn.base import BaseEstimator
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.estimator_checks import estimator_checks_generator

from vae_anomaly import VAEDetector, VAEImputer
from vae_anomaly.exceptions import ConfigError, SchemaError

QUICK = settings(TABLE_MODEL, imputation_draws=50)
DETECTOR = VAEDetector(settings=QUICK, device="cpu", random_state=0)
IMPUTER = VAEImputer(settings=QUICK, device="cpu", random_state=0)
INDICATING = VAEImputer(settings=QUICK, add_indicator=True, device="cpu", random_state=0)
ROWS = table_rows(80)


def every_check(name: str, estimator: BaseEstimator, *marks: pytest.MarkDecorator) -> Iterator[Any]:
    """No exclusions. `check_array_api_input` skips itself unless SCIPY_ARRAY_API is set."""
    for one, check in estimator_checks_generator(estimator):
        asked = check.func.__name__ + "".join(f"-{value}" for value in check.keywords.values())
        yield pytest.param(one, check, id=f"{name}-{asked}", marks=marks)


# `parametrize_with_checks` would print every parameter in every name.
@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        *every_check("detector", DETECTOR),
        *every_check("imputer", IMPUTER),
        *every_check("indicating", INDICATING),
        *every_check("detector as it comes", VAEDetector(), pytest.mark.slow),
        *every_check("imputer as it comes", VAEImputer(), pytest.mark.slow),
    ],
)
def test_every_check_of_scikit_learn_passes(
    estimator: BaseEstimator, check: Callable[[BaseEstimator], None]
) -> None:
    check(estimator)


# Not asked of third parties, and kept all the same, but for two: check_dataframe_column_names_consistency
# wants columns in another order refused, which we read by name; check_set_output_transform_pandas wants
# an array where no container was asked for, and we answer a frame with a frame.
@pytest.mark.parametrize(
    "check",
    [
        "check_n_features_in",
        "check_transformer_get_feature_names_out",
        "check_transformer_get_feature_names_out_pandas",
        "check_set_output_transform",
    ],
)
@pytest.mark.parametrize("estimator", [IMPUTER, INDICATING], ids=["plain", "indicating"])
def test_checks_of_scikit_learns_own_transformers_pass(estimator: VAEImputer, check: str) -> None:
    getattr(estimator_checks, check)(type(estimator).__name__, estimator)


@pytest.mark.parametrize("estimator", [DETECTOR, IMPUTER], ids=["detector", "imputer"])
def test_tags_say_what_is_accepted(estimator: BaseEstimator) -> None:
    tags = get_tags(estimator)
    asked = tags.input_tags
    assert (asked.two_d_array, asked.three_d_array, asked.allow_nan) == (True, True, True)
    assert (asked.sparse, asked.string, tags.non_deterministic, tags.requires_fit) == (
        False,
        False,
        False,
        True,
    )


def test_wrong_input_is_our_error_in_scikit_learns_words(table_detector: VAEDetector) -> None:
    sentence = "X has 3 features, but VAEDetector is expecting 4 features as input"
    with pytest.raises(SchemaError, match=f"^{sentence}$"):
        table_detector.score_samples(np.zeros((2, 3)))
    with pytest.raises(SchemaError, match=r"^Expected 2D array, got 1D array instead:"):
        table_detector.predict(np.zeros(4))
    assert table_detector.predict(np.zeros((0, 4))).shape == (0,)


def test_a_refit_forgets_the_names_of_the_fit_before() -> None:
    detector = VAEDetector(settings=QUICK, device="cpu", random_state=0).fit(ROWS)
    assert detector.feature_names_in_.tolist() == list(ROWS)
    assert not hasattr(detector.fit(ROWS.to_numpy()), "feature_names_in_")
    numbered = ROWS.set_axis(range(4), axis=1)
    assert not hasattr(detector.fit(numbered), "feature_names_in_")
    assert detector.predict(numbered).shape == (80,)


# -- contamination ----------------------------------------------------------------------------------


def contaminated(share: float | None, rows: Any = ROWS) -> VAEDetector:
    detector: VAEDetector = VAEDetector(
        settings=QUICK, contamination=share, device="cpu", random_state=0
    ).fit(rows)
    return detector


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5])
def test_contamination_is_the_share_of_the_training_rows_flagged(share: float) -> None:
    detector = contaminated(share)
    scores = detector.score_samples(ROWS)
    assert detector.offset_ == np.quantile(scores, share)
    assert np.array_equal(detector.decision_function(ROWS), scores - detector.offset_)
    assert np.array_equal(detector.predict(ROWS), np.where(scores < detector.offset_, -1, 1))
    assert (detector.predict(ROWS) == -1).sum() == share * 80
    assert np.array_equal(detector.fit_predict(ROWS), detector.predict(ROWS))


def test_contamination_counts_as_an_isolation_forest_does() -> None:
    rows = ROWS.fillna(0.0)
    forest = IsolationForest(contamination=0.13, random_state=0).fit(rows)
    flagged = (contaminated(0.13, rows).predict(rows) == -1).sum()
    assert flagged == (forest.predict(rows) == -1).sum() == 11


def test_contamination_moves_the_threshold_alone() -> None:
    plain, moved = contaminated(None), contaminated(0.25)
    assert np.array_equal(plain.score_samples(ROWS), moved.score_samples(ROWS))
    assert np.array_equal(plain.p_values(ROWS), moved.p_values(ROWS))
    assert moved.fitted_.manifest.false_alarm_rate == plain.fitted_.manifest.false_alarm_rate
    assert moved.offset_ > plain.offset_


def test_rows_with_nothing_observed_have_no_say_in_the_threshold() -> None:
    rows = ROWS.copy()
    rows.iloc[:8] = np.nan
    detector = contaminated(0.25, rows)
    assert np.isfinite(detector.offset_)
    assert (detector.predict(rows)[:8] == 1).all()
    assert (detector.predict(rows)[8:] == -1).sum() == 18


@pytest.mark.parametrize("share", [0.0, -0.1, 0.51, float("nan"), "auto"])
def test_contamination_out_of_range_is_refused(share: Any) -> None:
    sentence = f"contamination must be above 0 and at most 0.5, got {share!r}; leave it out to go by p-values"
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        contaminated(share)


# -- around the estimators --------------------------------------------------------------------------


def labelled() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Rows along a line, labelled 1, and every tenth far off it, -1."""
    rng = np.random.default_rng(0)
    line = rng.normal(size=(100, 1)) * np.ones(3) + 0.1 * rng.normal(size=(100, 3))
    line[::10] += rng.choice([-20.0, 20.0], size=(10, 3))
    return line, np.where(np.arange(100) % 10 == 0, -1, 1)


def auroc(detector: VAEDetector, X: Any, y: Any) -> float:
    return float(roc_auc_score(y == -1, -detector.score_samples(X)))


@pytest.mark.parametrize("scoring", [auroc, "roc_auc"], ids=["callable", "by name"])
def test_a_grid_search_chooses_by_a_scorer(scoring: Any) -> None:
    rows, labels = labelled()
    grid = {"settings": [QUICK, settings(TABLE_MODEL, epochs=4)], "contamination": [None, 0.1]}
    search = GridSearchCV(DETECTOR, grid, scoring=scoring, cv=2, error_score="raise").fit(rows, labels)
    assert len(search.cv_results_["mean_test_score"]) == 4
    assert search.best_score_ > 0.9
    assert search.predict(rows).shape == (100,)


def test_a_pipeline_scales_fills_and_detects() -> None:
    pipeline = Pipeline([("scale", StandardScaler()), ("fill", IMPUTER), ("detect", DETECTOR)])
    pipeline.set_params(detect__contamination=0.1)
    assert (pipeline.fit_predict(ROWS) == -1).sum() == 8
    assert np.array_equal(pipeline.predict(ROWS) == -1, pipeline.decision_function(ROWS) < 0)
    assert not np.isnan(pipeline[:-1].transform(ROWS)).any()


def test_names_pass_through_a_pipeline() -> None:
    pipeline = make_pipeline(StandardScaler(), INDICATING).set_output(transform="pandas").fit(ROWS)
    filled = pipeline.transform(ROWS)
    assert filled.columns.tolist() == pipeline.get_feature_names_out().tolist()
    assert filled.columns.tolist() == [*ROWS, *(f"missingindicator_{name}" for name in ROWS)]


def test_an_indicator_needs_a_table() -> None:
    with pytest.raises(ConfigError, match=r"^add_indicator appends columns to a table, and got images; set"):
        INDICATING.fit(grey_images(20))


def test_a_data_frame_is_read_by_name(table_detector: VAEDetector) -> None:
    rows = table_rows(20, 3)
    mirrored = rows[rows.columns[::-1]]
    assert isinstance(mirrored, pd.DataFrame)
    assert np.array_equal(table_detector.score_samples(mirrored), table_detector.score_samples(rows))
