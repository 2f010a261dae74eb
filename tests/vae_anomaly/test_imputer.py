"""What `VAEImputer` promises about the table it hands back."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from sample_models import IMAGE_MODEL, TABLE_MODEL, settings, table_rows
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from vae_anomaly import VAEDetector, VAEImputer, load_bundle
from vae_anomaly.columns import Kinds
from vae_anomaly.exceptions import NotFittedError, SchemaError, UnsupportedError
from vae_anomaly.runtime import Bundle

QUICK = settings(TABLE_MODEL, imputation_draws=50)
NAMES = ["plain", "large", "tiny", "time"]
GAPS = table_rows(40, 3)
# The third column never has a gap, the last row nothing but gaps.
GAPS["tiny"] = GAPS["tiny"].fillna(0.0)
GAPS.iloc[-1] = np.nan


@pytest.fixture(scope="module")
def imputer(table_detector: VAEDetector) -> VAEImputer:
    return VAEImputer.from_detector(table_detector)


@pytest.fixture(scope="module")
def indicating() -> VAEImputer:
    """Fitted to a table whose third column is complete."""
    rows = table_rows(80)
    return VAEImputer(settings=QUICK, add_indicator=True, device="cpu", random_state=0).fit(
        rows.assign(tiny=rows["tiny"].fillna(0.0))
    )


def bits(values: Any) -> bytes:
    return np.ascontiguousarray(values).tobytes()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("frame", [True, False], ids=["frame", "array"])
def test_observed_cells_keep_their_bits_and_no_gap_is_left(
    imputer: VAEImputer, dtype: str, frame: bool
) -> None:
    rows = GAPS.astype(dtype)
    rows.iloc[0, 0] = -0.0
    before = rows.copy()
    filled = imputer.transform(rows if frame else rows.to_numpy())
    seen, values = rows.notna().to_numpy(), np.asarray(filled)
    assert values.dtype == dtype
    assert bits(values[seen]) == bits(rows.to_numpy()[seen])
    assert np.isfinite(values).all()
    pd.testing.assert_frame_equal(rows, before, check_exact=True)


def test_dtypes_index_and_order_are_kept(imputer: VAEImputer) -> None:
    index = pd.MultiIndex.from_product([["a", "b"], range(20)], names=["site", "day"])
    rows = GAPS.set_axis(index).astype({"plain": "float32"})[["time", "tiny", "plain", "large"]]
    rows = rows.iloc[:-1].astype({"tiny": "int64"})
    filled = imputer.transform(rows)
    assert filled.index.equals(rows.index)
    assert filled.index.names == ["site", "day"]
    assert filled.columns.tolist() == ["time", "tiny", "plain", "large"]
    assert filled.dtypes.equals(rows.dtypes)


def test_rows_of_one_name_are_kept_apart(imputer: VAEImputer, indicating: VAEImputer) -> None:
    twins = GAPS.set_axis(["twin"] * 40)
    for one in (imputer, indicating):
        filled = one.transform(twins)
        assert filled.index.tolist() == ["twin"] * 40
        assert np.array_equal(filled, one.transform(GAPS))


def test_transform_never_refits(imputer: VAEImputer) -> None:
    weights = {name: value.clone() for name, value in imputer.fitted_.model.state_dict().items()}
    first, others = imputer.transform(GAPS), table_rows(40, 9) * 3
    imputer.transform(others)
    assert imputer.transform(GAPS).equals(first)
    assert imputer.transform(GAPS[:7]).equals(first[:7])
    after = imputer.fitted_.model.state_dict()
    assert all(bits(after[name].numpy()) == bits(value.numpy()) for name, value in weights.items())


def test_fit_transform_is_fit_then_transform() -> None:
    rows = table_rows(60)
    once = VAEImputer(settings=QUICK, device="cpu", random_state=0).fit_transform(rows)
    again = VAEImputer(settings=QUICK, device="cpu", random_state=0).fit(rows).transform(rows)
    pd.testing.assert_frame_equal(once, again, check_exact=True)


def test_two_loads_of_a_bundle_fill_alike_and_as_the_estimator(
    imputer: VAEImputer, table_bundle: Bundle
) -> None:
    """docs/bundle.md: reconstructions agree within 1e-5 of the column's scale."""
    again = load_bundle(table_bundle.path, device="cpu", threads=2)
    theirs = table_bundle.impute(GAPS).mean
    assert bits(again.impute(GAPS).mean) == bits(theirs)
    scale = table_rows().std().to_numpy()
    assert (np.abs(imputer.transform(GAPS) - theirs) / scale).to_numpy().max() < 1e-5


# -- set_output and names ---------------------------------------------------------------------------


def test_a_container_asked_for_names_every_column_rightly(table_detector: VAEDetector) -> None:
    """It renames by place, so the places must be those of the names."""
    imputer = VAEImputer.from_detector(table_detector)
    mirrored, plain = GAPS[NAMES[::-1]], imputer.transform(GAPS)
    assert imputer.transform(mirrored).columns.tolist() == NAMES[::-1]
    named = imputer.set_output(transform="pandas").transform(mirrored)
    pd.testing.assert_frame_equal(named, plain, check_exact=True)
    with sklearn.config_context(transform_output="pandas"):
        again = VAEImputer.from_detector(table_detector).transform(mirrored)
    pd.testing.assert_frame_equal(again, plain, check_exact=True)
    from_array = imputer.transform(GAPS.to_numpy())
    assert from_array.columns.tolist() == NAMES
    assert np.array_equal(from_array, plain)


def test_names_out_are_checked(imputer: VAEImputer) -> None:
    assert imputer.get_feature_names_out().tolist() == NAMES
    assert imputer.get_feature_names_out(NAMES).tolist() == NAMES
    with pytest.raises(ValueError, match=r"^input_features is not equal to feature_names_in_$"):
        imputer.get_feature_names_out(NAMES[::-1])
    with pytest.raises(NotFittedError, match=r"^this VAEImputer is not fitted yet; call fit"):
        VAEImputer().get_feature_names_out()
    check_is_fitted(imputer)


# -- indicator --------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [True, False], ids=["frame", "array"])
def test_indicator_columns_are_scikit_learns(indicating: VAEImputer, frame: bool) -> None:
    rows = table_rows(80)
    rows["tiny"] = rows["tiny"].fillna(0.0)
    simple = SimpleImputer(add_indicator=True).fit(rows)
    # A gap in a column that had none when fitted is filled and not reported.
    asked = GAPS if frame else GAPS.to_numpy()
    filled = indicating.transform(asked)
    expected = simple.transform(GAPS)
    assert filled.shape == (40, 7)
    assert np.array_equal(np.asarray(filled)[:, 4:], expected[:, 4:])
    assert indicating.get_feature_names_out().tolist() == simple.get_feature_names_out().tolist()
    if frame:
        assert filled.columns.tolist() == simple.get_feature_names_out().tolist()


def test_indicators_follow_the_fit_not_the_callers_order(indicating: VAEImputer) -> None:
    mirrored = indicating.transform(GAPS[NAMES[::-1]])
    assert mirrored.columns[:4].tolist() == NAMES[::-1]
    pd.testing.assert_frame_equal(
        mirrored[indicating.get_feature_names_out()], indicating.transform(GAPS), check_exact=True
    )


def test_a_detectors_imputer_has_no_indicator(imputer: VAEImputer) -> None:
    assert imputer.indicator_ is None
    assert not imputer.add_indicator


def test_an_array_of_another_width_is_refused(imputer: VAEImputer) -> None:
    sentence = "X has 5 features, but VAEImputer is expecting 4 features as input"
    for ask in (imputer.transform, imputer.sample):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            ask(np.zeros((2, 5)))


@pytest.mark.parametrize(
    "names",
    [pd.Index([7, 8]), pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])],
    ids=["numbers", "levels"],
)
def test_indicators_beside_names_that_are_not_text(names: Any) -> None:
    rows = table_rows(80)[["plain", "large"]].set_axis(names, axis=1)
    imputer = VAEImputer(settings=QUICK, add_indicator=True, device="cpu", random_state=0)
    filled = imputer.fit_transform(rows)
    expected = ["x0", "x1", "missingindicator_x0", "missingindicator_x1"]
    assert filled.columns.tolist() == expected == imputer.get_feature_names_out().tolist()
    mirrored = imputer.transform(rows.iloc[:, ::-1])
    pd.testing.assert_frame_equal(mirrored, filled)
    LogisticRegression().fit(filled, np.arange(80) % 2).predict(imputer.transform(rows))


def test_no_rows_have_indicators_too(indicating: VAEImputer) -> None:
    assert indicating.transform(GAPS[:0]).columns.tolist() == indicating.get_feature_names_out().tolist()
    assert indicating.transform(GAPS[:0].to_numpy()).shape == (0, 7)


# -- what training did not have ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def categories() -> VAEImputer:
    """Of a number, a category that is a number and one that is a name; both have gaps."""
    rng = np.random.default_rng(0)
    grade = rng.integers(1, 4, 80).astype(object)
    town = np.array(["lima", "rome"])[grade.astype(int) // 2 % 2].astype(object)
    grade[:5], town[5:9] = None, None
    rows = pd.DataFrame({"a": rng.normal(size=80), "grade": grade, "town": town})
    kinds = {"grade": "categorical"}
    return VAEImputer(settings=QUICK, kinds=kinds, add_indicator=True, device="cpu", random_state=0).fit(rows)


def test_a_category_that_training_did_not_have_is_kept_in_draws_too(categories: VAEImputer) -> None:
    rows = pd.DataFrame({"town": ["lima", "bonn"], "grade": [9, None], "a": [0.0, 1.0]})
    filled = categories.transform(rows)
    assert filled["grade"][0] == 9
    assert filled["town"].tolist() == ["lima", "bonn"]
    assert filled[["missingindicator_grade", "missingindicator_town"]].to_numpy().tolist() == [[0, 0], [1, 0]]
    drawn = categories.sample(rows, draws=3)
    assert drawn[:, 0].tolist() == [[0.0, 9.0, 0.0]] * 3
    assert set(drawn[:, 1, 1]) <= {1.0, 2.0, 3.0}
    assert np.isnan(drawn[:, 1, 2]).all()
    array = categories.transform(rows[["a", "grade", "town"]].to_numpy(object))
    assert array[:, 1:].tolist() == [[9, "lima", 0, 0], [filled["grade"][1], "bonn", 1, 0]]


@pytest.mark.parametrize(
    ("x", "kinds"),
    [
        ([[1.0, "a"], [2.0, "b"]], None),
        (np.array([[1.0, "a"], [2.0, "b"]]), None),
        (np.array([["p", "a"], ["q", "b"]], dtype=object), {0: "categorical"}),
    ],
    ids=["list", "text", "another"],
)
def test_text_in_a_bare_array_is_refused_by_place(x: Any, kinds: Any) -> None:
    sentence = (
        "column 1 of the array holds text, such as 'a'; leave it out, or say what it is by "
        "kinds={1: 'categorical'}"
    )
    with pytest.raises(SchemaError, match=f"^{re.escape(sentence)}$"):
        VAEImputer(kinds=kinds).fit(x)


def test_images_do_not_fit_a_table_that_is_asked_for() -> None:
    images = np.where(np.random.default_rng(0).random((12, 8, 8)) < 0.1, np.nan, 0.5)
    model = settings(IMAGE_MODEL, epochs=1, imputation_draws=50)
    imputer = VAEImputer(settings=model, device="cpu", random_state=0).fit(images)
    assert imputer.transform(images).shape == images.shape
    sentence = (
        "images do not fit the pandas table that set_output asks for; call "
        "set_output(transform='default') or give each image as a row"
    )
    with sklearn.config_context(transform_output="pandas"):
        with pytest.raises(UnsupportedError, match=f"^{re.escape(sentence)}$"):
            imputer.transform(images)
        assert imputer.transform(images.reshape(12, -1)).shape == (12, 64)


@pytest.mark.parametrize(("kinds", "nats"), [(None, 100), ({1: "positive"}, 4)], ids=["real", "positive"])
def test_a_constant_column_is_imputed_as_it_is(kinds: Kinds | None, nats: float) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 2))
    rows[:, 1] = 5.5
    rows[::3, 1] = np.nan
    imputer = VAEImputer(settings=QUICK, kinds=kinds, device="cpu", random_state=0).fit(rows)
    found = imputer.answers_.impute(rows, draws=3)
    assert np.unique(found.mean[:, 1]).tolist() == [5.5]
    assert not found.std.any()
    assert found.draws is not None
    assert np.unique(found.draws[..., 1]).tolist() == [5.5]
    assert imputer.answers_.verdicts([[0.0, 5.5], [0.0, 50.0]])["score_recon"].diff()[1] > nats
