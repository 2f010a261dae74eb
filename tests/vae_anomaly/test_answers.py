"""Every question, asked with whatever callers hold: same bits, refusals, null where nothing is known."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sample_models import ALL_SCORES, colour_images, grey_images, table_rows

from vae_anomaly.batches import PAD_TO, pad
from vae_anomaly.calibration import benjamini_hochberg, p_values, threshold
from vae_anomaly.exceptions import CalibrationError, ConfigError, SchemaError, UnsupportedError
from vae_anomaly.gaps import Tables
from vae_anomaly.imputing import fresh_state
from vae_anomaly.runtime import Bundle

Array = npt.NDArray[Any]
NAN = float("nan")
ROWS = 40


@pytest.fixture(scope="module", params=["table", "image", "autoencoder"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    found: Bundle = request.getfixturevalue(f"{request.param}_bundle")
    return found


@pytest.fixture(scope="module", params=["table", "image"])
def vae(request: pytest.FixtureRequest) -> Bundle:
    found: Bundle = request.getfixturevalue(f"{request.param}_bundle")
    return found


def rows_of(bundle: Bundle, rows: int = ROWS, seed: int = 3) -> Array:
    if bundle.schema.kind == "table":
        x: Array = table_rows(rows, seed).fillna({"plain": 0.5}).to_numpy(copy=True)
        return x
    return grey_images(rows, seed)[:, None] if bundle.kind == "vae" else colour_images(rows, seed)


def some_hidden(x: Array, seed: int = 0) -> npt.NDArray[np.bool_]:
    """A mask with gaps, a whole row and an empty one, the first element of all others seen."""
    observed = np.random.default_rng(seed).random(x.shape) < 0.6
    observed.reshape(len(x), -1)[:, 0] = True
    observed[0], observed[-1] = True, False
    return observed


def same_frame(left: pd.DataFrame, right: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(left, right, check_exact=True)


# -- verdicts ---------------------------------------------------------------------------------------


def test_a_verdict_tells_everything_of_a_row(table_bundle: Bundle) -> None:
    rows = table_rows(ROWS, 3).set_index(pd.Index([f"r{i}" for i in range(ROWS)], name="who"))
    frame = table_bundle.verdicts(rows)
    names = ["score", "p_value", "is_outlier", *(f"score_{name}" for name in ALL_SCORES), "clipped"]
    assert frame.columns.tolist() == names
    assert frame.index.equals(rows.index)
    assert frame["is_outlier"].dtype == "boolean"
    common = frame[rows.isna().sum(axis=1) < 2]
    assert np.array_equal(common["score"], common["score_neg_elbo"])
    expected = p_values(table_bundle.calibration["score_score"], common["score"])
    assert np.array_equal(common["p_value"], expected)
    assert np.array_equal(frame["is_outlier"], frame["p_value"] <= 0.05)
    assert frame["clipped"].sum() == 0


@pytest.mark.parametrize("rate", [1 / 49, 0.05, 2 / 49, 0.3, 0.999])
def test_any_rate_is_judged_without_refit(table_bundle: Bundle, rate: float) -> None:
    """p <= rate, which is a score above the threshold: on ties and ends too."""
    rows = table_rows(240)
    # Rows that miss more are judged by tables of their own.
    x = table_bundle.schema.read(rows[rows.isna().sum(axis=1) < 2])
    frame = table_bundle.verdicts(x.values, x.observed, false_alarm_rate=rate)
    cut = threshold(table_bundle.calibration["score_score"], rate)
    assert np.array_equal(frame["is_outlier"], frame["p_value"] <= rate)
    assert np.array_equal(frame["is_outlier"], frame["score"] > cut)
    assert 0 < frame["is_outlier"].sum() < len(frame) == 224


def test_a_rate_that_the_calibration_cannot_promise(table_bundle: Bundle) -> None:
    sentence = (
        "a false alarm rate of 0.01 needs at least 99 normal rows, got 48; "
        "fit or recalibrate with more rows, or accept a rate of 1/49 or more"
    )
    with pytest.raises(CalibrationError, match=f"^{re.escape(sentence)}$"):
        table_bundle.verdicts(table_rows(3), false_alarm_rate=0.01)
    with pytest.raises(ConfigError, match=r"^the false alarm rate is 1\.5; choose one above 0 and below 1"):
        table_bundle.verdicts(table_rows(3), false_alarm_rate=1.5)


def test_a_rate_beyond_the_table_of_gappy_rows_is_said(
    table_bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table_rows(6).fillna(0.0)
    rows.iloc[2:, 1:] = np.nan
    place = int(table_bundle.tables.places(np.array([0.75]))[0])
    few = {**table_bundle.calibration, f"gap{place}_score_score": np.arange(20.0)}
    monkeypatch.setattr(Bundle, "tables", property(lambda bundle: Tables(few)))
    assert not table_bundle.verdicts(rows, false_alarm_rate=1 / 49)["is_outlier"][2:].any()
    assert caplog.messages == [
        "4 rows with gaps are judged by too few calibration rows for a false alarm rate of 0.0204082: "
        "none of them can be an outlier"
    ]


def test_rows_fuller_than_those_that_calibrate_are_said(
    table_bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table_rows(6).fillna(0.0)
    rows.iloc[2:, 0] = np.nan
    sparse = {**table_bundle.calibration, "gap_least": np.array(0.1)}
    monkeypatch.setattr(Bundle, "tables", property(lambda bundle: Tables(sparse)))
    table_bundle.verdicts(rows)
    assert caplog.messages == [
        "2 rows miss less than nearly all of the calibration rows that judge them: "
        "their p-values may be too small; recalibrate with rows like them"
    ]


def test_verdicts_by_a_false_discovery_rate(table_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    rows = table_rows(60, 3).fillna(0.0)
    rows.iloc[:12] *= 4.0
    frame = table_bundle.verdicts(rows, fdr=0.3)
    p = table_bundle.p_values(rows)
    assert np.array_equal(frame["is_outlier"], benjamini_hochberg(p, 0.3))
    assert np.array_equal(table_bundle.discoveries(p, 0.3), frame["is_outlier"])
    assert 12 <= frame["is_outlier"].sum() < 40
    assert not caplog.records
    few = table_bundle.verdicts(rows.iloc[11:], fdr=0.05)
    assert not few["is_outlier"].any()
    assert caplog.messages == [
        "no row is reported at a false discovery rate of 0.05; with 48 calibration rows fewer than 20 of 49 "
        "rows cannot be, however strange they are"
    ]


def test_a_verdict_goes_by_one_rate(table_bundle: Bundle) -> None:
    sentence = "verdicts go by a false alarm rate or by a false discovery rate, got 0.1 and 0.2; name one"
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        table_bundle.verdicts(table_rows(3), false_alarm_rate=0.1, fdr=0.2)
    with pytest.raises(CalibrationError, match=r"^a false discovery rate of 0\.01 needs at least 99 normal"):
        table_bundle.verdicts(table_rows(3), fdr=0.01)


def test_scores_and_p_values_are_the_verdicts(bundle: Bundle) -> None:
    x = rows_of(bundle)
    frame, scores = bundle.verdicts(x), bundle.scores(x)
    assert scores.columns.tolist() == ["score", *bundle.score_names]
    assert np.array_equal(scores["score"], frame["score"])
    for name in bundle.score_names:
        assert np.array_equal(scores[name], frame[f"score_{name}"])
        expected = p_values(bundle.calibration[f"score_{name}"], scores[name])
        assert np.array_equal(bundle.p_values(x, score=name), expected)
    assert np.array_equal(bundle.p_values(x), frame["p_value"])
    assert np.array_equal(bundle.p_values(x, score=bundle.default_score), frame["p_value"])
    with pytest.raises(
        ConfigError, match=f"^this model has no score 'elbo'; it has {', '.join(bundle.score_names)}$"
    ):
        bundle.p_values(x, score="elbo")


def test_a_row_with_nothing_observed_has_no_verdict(bundle: Bundle) -> None:
    x = rows_of(bundle)
    observed = some_hidden(x)
    frame = bundle.verdicts(x, observed)
    last = frame.iloc[-1]
    assert frame.drop(columns=["is_outlier"]).iloc[-1, :-1].isna().all()
    assert last["is_outlier"] is pd.NA
    assert last["clipped"] == 0
    assert frame.iloc[:-1].notna().all().all()
    assert np.isnan(bundle.p_values(x, observed)[-1])
    assert np.isnan(bundle.p_values(x, observed, score="recon")[-1])
    assert np.isfinite(bundle.explain(x, observed).reconstruction).all()
    assert not bundle.explain(x, observed).contributions[-1].any()


def test_nan_and_the_mask_say_the_same(table_bundle: Bundle, autoencoder_bundle: Bundle) -> None:
    for bundle in (table_bundle, autoencoder_bundle):
        x = rows_of(bundle)
        observed = some_hidden(x) & ~np.isnan(x)
        same_frame(bundle.verdicts(np.where(observed, x, np.nan)), bundle.verdicts(x, observed))


def test_a_mask_of_pixels_hides_all_channels(autoencoder_bundle: Bundle) -> None:
    x = rows_of(autoencoder_bundle)
    pixels = some_hidden(x[:, 0])
    whole = np.repeat(pixels[:, None], 3, axis=1)
    same_frame(autoencoder_bundle.verdicts(x, pixels), autoencoder_bundle.verdicts(x, whole))


# -- far values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [1e300, -1e300, 1.7976931348623157e308, 1e12])
def test_far_cells_of_a_table_are_clipped_counted_and_finite(table_bundle: Bundle, far: float) -> None:
    x = rows_of(table_bundle)
    x = np.where(np.isnan(x), np.nanmedian(x, axis=0), x)
    plain = table_bundle.verdicts(x)
    x[5], x[6, 0] = far, far
    frame = table_bundle.verdicts(x)
    assert np.isfinite(frame.drop(columns="is_outlier").to_numpy(float)).all()
    assert frame["clipped"].tolist() == [0] * 5 + [4, 1] + [0] * (ROWS - 7)
    assert frame.loc[[5, 6], "is_outlier"].all()
    assert frame.loc[[5, 6], "score"].min() > plain["score"].max()
    found = table_bundle.impute(np.where(np.arange(4) == 1, np.nan, x))
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.std).all()


def test_a_cell_at_the_limit_is_not_clipped(table_bundle: Bundle) -> None:
    """1e4 standard units, seen from both sides; a hidden cell is not counted."""
    column = table_rows()["plain"]
    frame = pd.concat([table_rows(1, 3)] * 3, ignore_index=True)
    frame["plain"] = [9e3 * column.std(), 1.1e4 * column.std(), 1.1e4 * column.std()]
    observed = np.ones((3, 4), bool)
    observed[2, 0] = False
    assert table_bundle.verdicts(frame, observed)["clipped"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("dtype", ["int16", "int64", "float64", "object"])
def test_pixels_out_of_range_are_clipped_and_counted(image_bundle: Bundle, dtype: str) -> None:
    x = rows_of(image_bundle).astype(dtype)
    x[1, 0, 0, :3], x[2, 0, 7, 8] = [-1, 256, 300], -5
    observed = np.ones(x.shape, bool)
    observed[2] = observed[1]
    observed[3, 0, 0, 0] = False
    frame = image_bundle.verdicts(x, observed)
    assert frame["clipped"].tolist() == [0, 3, 1] + [0] * (ROWS - 3)
    inside = np.clip(x.astype(np.int64), 0, 255).astype(np.uint8)
    same_frame(frame.drop(columns="clipped"), image_bundle.verdicts(inside, observed).drop(columns="clipped"))


def test_float_pixels_out_of_range_are_clipped_and_counted(autoencoder_bundle: Bundle) -> None:
    x = rows_of(autoencoder_bundle).astype(np.float64)
    x[1, 0, 0, :3], x[2, 2, 0, 0], x[3, 0, 0, 0] = [-0.1, 1.5, 1e300], -1e300, NAN
    frame = autoencoder_bundle.verdicts(x)
    assert frame["clipped"].tolist() == [0, 3, 1] + [0] * (ROWS - 3)
    assert np.isfinite(frame["score"]).all()


# -- what callers hold ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cast",
    [
        lambda x: x.astype(">f8"),
        lambda x: x.astype(object),
        lambda x: np.where(np.isnan(x), None, x),
        lambda x: x.tolist(),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: pd.DataFrame(x, columns=table_rows().columns),
        lambda x: pd.DataFrame(x, columns=table_rows().columns)[["time", "tiny", "plain", "large"]],
        lambda x: pd.DataFrame(x, columns=table_rows().columns).astype(object),
        lambda x: pd.DataFrame(x, columns=table_rows().columns).astype("Float64"),
        lambda x: pd.DataFrame(x, columns=table_rows().columns).astype("float64[pyarrow]"),
    ],
    ids=[
        "big-endian",
        "object",
        "None",
        "list",
        "Fortran",
        "strided",
        "frame",
        "order",
        "objects",
        "null",
        "arrow",
    ],
)
def test_a_table_is_the_same_in_any_dress(table_bundle: Bundle, cast: Any) -> None:
    x = rows_of(table_bundle)
    given = cast(x)
    same_frame(table_bundle.verdicts(given), table_bundle.verdicts(x))
    for mine, theirs in zip(table_bundle.encode(given), table_bundle.encode(x), strict=True):
        assert mine is not None
        assert np.array_equal(mine, theirs)
    order = (
        [list(given.columns).index(name) for name in table_rows().columns]
        if isinstance(given, pd.DataFrame)
        else []
    )
    mean = np.asarray(table_bundle.impute(given).mean, dtype=np.float64)
    assert np.array_equal(mean[:, order] if order else mean, table_bundle.impute(x).mean)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", ">i4", "float32", "float16", "bool"])
def test_numbers_of_any_width_are_read_as_float64(table_bundle: Bundle, dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 2, (5, 4)).astype(dtype)
    same_frame(table_bundle.verdicts(x), table_bundle.verdicts(x.astype(np.float64)))
    frame = pd.DataFrame(x.astype(x.dtype.newbyteorder("=")), columns=table_rows().columns)
    same_frame(table_bundle.verdicts(frame), table_bundle.verdicts(x.astype(np.float64)))


@pytest.mark.parametrize("dtype", ["int16", ">u2", "int64", "float32", ">f8", "object"])
@pytest.mark.parametrize("shape", [(ROWS, 1, 8, 9), (ROWS, 8, 9), (ROWS, 72)], ids=str)
def test_an_image_is_the_same_in_any_dress(image_bundle: Bundle, dtype: str, shape: tuple[int, ...]) -> None:
    x = rows_of(image_bundle)
    observed = some_hidden(x)
    given = x.reshape(shape).astype(dtype)
    same_frame(image_bundle.verdicts(given, observed.reshape(shape)), image_bundle.verdicts(x, observed))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda f: f.assign(plain="a"),
            "column 'plain' has dtype .*; expected numbers: convert it or leave it out",
        ),
        (lambda f: f.assign(plain=1j), "column 'plain' has dtype complex128; expected numbers.*"),
        (lambda f: f.rename(columns={"plain": "plane"}), "unknown column 'plane'; did you mean 'plain'?.*"),
        (lambda f: f.drop(columns="plain"), r"missing columns \['plain'\]; to leave a value out, .*"),
        (
            lambda f: f.assign(plain=np.inf),
            r"infinite values in row \[0, 1, 2\] of columns \['plain'\]; use NaN for a missing value",
        ),
        (lambda f: f.to_numpy()[:, :3], r"rows have shape \(3, 3\); expected \(B, 4\)"),
        (lambda f: [[1.0, 2.0], [3.0]], "cells are ragged; give every row the same length"),
    ],
)
def test_what_does_not_fit_is_refused_by_every_question(
    table_bundle: Bundle, change: Any, sentence: str
) -> None:
    given = change(table_rows(3))
    for question in (table_bundle.verdicts, table_bundle.explain, table_bundle.encode, table_bundle.impute):
        with pytest.raises(SchemaError, match=f"^{sentence}$"):
            question(given)


# -- no rows, one row -------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1])
def test_none_and_one(bundle: Bundle, rows: int) -> None:
    x = rows_of(bundle)
    few, shape = x[:rows], x.shape[1:]
    frame = bundle.verdicts(few)
    assert len(frame) == len(bundle.scores(few)) == len(bundle.p_values(few)) == rows
    assert frame.dtypes.tolist() == bundle.verdicts(x).dtypes.tolist()
    explained, latent = bundle.explain(few), bundle.encode(few)
    assert explained.contributions.shape == explained.reconstruction.shape == (rows, *shape)
    assert explained.recon.shape == (rows,)
    assert latent.mean.shape == (rows, bundle.latent_size)
    assert bundle.decode(np.zeros((rows, bundle.latent_size))).shape == (rows, *shape)
    assert len(bundle.p_values(few, score="recon")) == rows


@pytest.mark.parametrize("rows", [0, 1])
def test_none_and_one_imputed(vae: Bundle, rows: int) -> None:
    x = rows_of(vae)[:rows]
    found = vae.impute(x, draws=2)
    assert found.mean.shape == found.std.shape == x.shape
    assert found.mean.dtype == x.dtype
    assert found.draws is not None
    assert found.draws.shape == (2, *x.shape)
    assert found.ess.shape == found.flags.shape == (rows,)
    assert vae.sample(rows).shape == x.shape


def test_an_empty_frame_keeps_its_columns(table_bundle: Bundle) -> None:
    empty = table_rows(3).iloc[:0]
    assert len(table_bundle.verdicts(empty)) == 0
    pd.testing.assert_frame_equal(table_bundle.impute(empty).mean, empty)


# -- explanations, latents --------------------------------------------------------------------------


def test_contributions_sum_to_recon(bundle: Bundle) -> None:
    x = rows_of(bundle)
    observed = some_hidden(x)
    found, scores = bundle.explain(x, observed), bundle.scores(x, observed)
    np.testing.assert_allclose(found.recon[:-1], scores["recon"][:-1], rtol=1e-6)
    total = found.contributions.astype(np.float64).sum(axis=tuple(range(1, x.ndim)))
    np.testing.assert_allclose(found.recon, total, rtol=1e-12)
    seen = observed & ~np.isnan(x) if x.dtype.kind == "f" else observed
    assert not found.contributions[~seen].any()
    if bundle.schema.kind == "image":
        assert found.reconstruction.min() >= bundle.schema.low
        assert found.reconstruction.max() <= bundle.schema.high


def test_the_reconstruction_is_the_decoded_code(bundle: Bundle) -> None:
    x = rows_of(bundle)
    latent = bundle.encode(x)
    assert (latent.log_variance is None) == (bundle.kind == "autoencoder")
    scale = bundle.explain(x).reconstruction
    np.testing.assert_allclose(bundle.decode(latent.mean), scale, rtol=1e-5, atol=1e-5 * np.abs(scale).max())


def test_samples_follow_their_seed(vae: Bundle) -> None:
    first = vae.sample(20, seed=1)
    assert np.array_equal(first, vae.sample(20, seed=1))
    assert np.array_equal(first[:5], vae.sample(5, seed=1))
    assert not np.array_equal(first, vae.sample(20, seed=2))
    with pytest.raises(ConfigError, match=r"^the number of samples must not be negative, got -1$"):
        vae.sample(-1)
    with pytest.raises(ConfigError, match=r"^n is 2\.5; give a whole number$"):
        vae.sample(2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("z", "sentence"),
    [
        (np.zeros((2, 5)), "latents have shape (2, 5); expected (n, 2)"),
        (np.zeros(2), "latents have shape (2,); expected (n, 2)"),
        ([[1.0, NAN]], "latents hold NaN or infinite values; every latent must be a finite number"),
        ([["a", "b"]], "latents are not numbers in rows of 2"),
        ([[1.0], [1.0, 2.0]], "latents are not numbers in rows of 2"),
    ],
)
def test_latents_that_do_not_fit(table_bundle: Bundle, z: Any, sentence: str) -> None:
    with pytest.raises(SchemaError, match=f"^{re.escape(sentence)}$"):
        table_bundle.decode(z)


# -- imputation -------------------------------------------------------------------------------------


def test_observed_cells_are_the_callers_own_bits(table_bundle: Bundle) -> None:
    x = rows_of(table_bundle)
    x[0] = [-0.0, 5e-324, 0.1 + 0.2, 1e300]
    x[1] = [-1e-310, np.nextafter(1.0, 2.0), NAN, 123456789.12345679]
    found = table_bundle.impute(x).mean
    observed = ~np.isnan(x)
    assert found.dtype == np.float64
    assert np.array_equal(found.view(np.uint64)[observed], x.view(np.uint64)[observed])
    assert np.isfinite(found[~observed]).all()
    assert np.isnan(x[1, 2])


def test_observed_pixels_are_the_callers_own(image_bundle: Bundle) -> None:
    x = rows_of(image_bundle)
    observed = some_hidden(x)
    found = image_bundle.impute(x, observed)
    assert found.mean.dtype == np.uint8
    assert np.array_equal(found.mean[observed], x[observed])
    assert np.unique(found.mean[~observed]).size > 1
    as_float = image_bundle.impute(x.astype(np.float64), observed).mean
    assert np.array_equal(np.rint(as_float), found.mean)
    assert np.abs(as_float - np.rint(as_float)).max() > 0.1


def test_a_frame_comes_back_in_its_own_order_with_its_own_index(table_bundle: Bundle) -> None:
    rows = table_rows(ROWS, 3)
    turned = rows[["time", "tiny", "large", "plain"]].iloc[::-1].set_axis([i * 7 for i in range(ROWS)])
    expected, found = table_bundle.impute(rows).mean, table_bundle.impute(turned).mean
    assert found.columns.tolist() == turned.columns.tolist()
    assert found.index.equals(turned.index)
    assert np.array_equal(found[rows.columns].to_numpy(), expected.to_numpy()[::-1])
    assert not expected.isna().any().any()


def test_integer_columns_stay_integers_where_nothing_is_missing(table_bundle: Bundle) -> None:
    rows = table_rows(3, 3).fillna(0).assign(plain=[1, 2, 3], time=np.arange(3, dtype=np.int32))
    observed = np.ones((3, 4), bool)
    observed[1, 3] = False
    found = table_bundle.impute(rows, observed).mean
    assert found.dtypes.astype(str).tolist() == ["int64", "float64", "float64", "float64"]
    assert found["plain"].tolist() == [1, 2, 3]
    assert found["time"].tolist()[::2] == [0.0, 2.0]


def test_gaps_are_filled_from_what_is_seen(table_bundle: Bundle) -> None:
    """`plain` and `time` share a factor with opposite signs: better than the column's mean by half."""
    rows = table_rows(200, 11).dropna()
    hidden = rows.assign(time=np.nan)
    error = table_bundle.impute(hidden).mean["time"] - rows["time"]
    assert (error**2).mean() < 0.5 * rows["time"].var()


def test_spread_is_zero_where_observed(vae: Bundle) -> None:
    x = rows_of(vae)
    observed = some_hidden(x) & ~np.isnan(x.astype(float))
    found = vae.impute(x, observed)
    assert not found.std[observed].any()
    assert (found.std[~observed] > 0).all()


def test_mean_std_and_ess_do_not_depend_on_the_draws(vae: Bundle) -> None:
    x = rows_of(vae)
    observed = some_hidden(x)
    plain = vae.impute(x, observed)
    for draws, seed in ((1, 0), (3, 5)):
        found = vae.impute(x, observed, draws=draws, seed=seed)
        assert np.array_equal(found.mean, plain.mean, equal_nan=x.dtype.kind == "f")
        assert np.array_equal(found.std, plain.std)
        assert np.array_equal(found.ess, plain.ess)
        assert found.draws is not None
        assert found.draws.shape == (draws, *x.shape)
    assert plain.draws is None


def test_more_draws_than_samples_are_said_to_repeat(vae: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    assert vae.check_imputing(50, 50) == 50
    assert not caplog.messages
    vae.check_imputing(51, 50)
    assert caplog.messages == ["51 draws from 50 importance samples repeat some; ask for a larger k"]


def test_draws_depend_on_seed_and_id_alone(vae: Bundle) -> None:
    x = rows_of(vae)
    observed, ids = some_hidden(x), [f"row {i}" for i in range(ROWS)]
    draws = vae.impute(x, observed, draws=3, ids=ids).draws
    assert draws is not None
    order = np.random.default_rng(0).permutation(ROWS)[:17]
    moved = vae.impute(x[order], observed[order], draws=3, ids=[ids[i] for i in order]).draws
    assert np.array_equal(moved, draws[:, order])
    other = vae.impute(x, observed, draws=3, ids=ids, seed=1).draws
    renamed = vae.impute(x, observed, draws=3).draws
    for another in (other, renamed):
        assert another is not None
        assert not np.array_equal(another[:, ~observed], draws[:, ~observed])
    seen = np.broadcast_to(observed & ~np.isnan(x.astype(float)), draws.shape)
    assert np.array_equal(draws[seen], np.broadcast_to(x, draws.shape)[seen])
    assert not np.array_equal(draws[0], draws[1])


def test_any_type_of_whole_number_is_a_seed(table_bundle: Bundle) -> None:
    x = np.full((3, 4), NAN)
    draws = table_bundle.impute(x, draws=2, seed=3, k=50).draws
    assert draws is not None
    asked: dict[str, Any] = {"draws": np.int8(2), "seed": np.int64(3), "k": np.uint8(50)}
    np.testing.assert_array_equal(table_bundle.impute(x, **asked).draws, draws)
    # Below 0 and beyond 64 bits they are taken modulo 2**64.
    np.testing.assert_array_equal(table_bundle.impute(x, draws=2, seed=3 - 2**64, k=50).draws, draws)


@pytest.mark.parametrize(
    ("choice", "value"),
    [("seed", None), ("seed", "a"), ("seed", 2.5), ("draws", 2.5), ("draws", "2"), ("k", 50.0), ("k", "5")],
)
def test_what_is_no_whole_number_is_refused(table_bundle: Bundle, choice: str, value: Any) -> None:
    asked: dict[str, Any] = {"draws": 2, choice: value}
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{choice} is {value!r}; give a whole number')}$"):
        table_bundle.impute(np.full((1, 4), NAN), **asked)


def test_a_unique_index_names_the_rows(table_bundle: Bundle) -> None:
    rows = table_rows(ROWS, 3)
    by_number, by_array = (table_bundle.impute(x, draws=2).draws for x in (rows, rows.to_numpy()))
    assert by_number is not None
    assert np.array_equal(by_number, by_array)
    shuffled = rows.iloc[[7, 3, 11]]
    assert np.array_equal(table_bundle.impute(shuffled, draws=2).draws, by_number[:, [7, 3, 11]])
    with pytest.raises(SchemaError, match=r"^got 2 ids for 40 rows; give one id per row$"):
        table_bundle.impute(rows, draws=2, ids=["a", "b"])


def test_draws_scatter_about_the_mean_with_its_spread(table_bundle: Bundle) -> None:
    x = table_bundle.schema.read(table_rows(30, 3)).values
    observed = np.ones(x.shape, bool)
    observed[:, 0] = False
    found = table_bundle.impute(x, observed, draws=400)
    assert found.draws is not None
    trusted = (found.ess > 20) & ~np.isnan(x[:, 1:]).any(axis=1)
    assert trusted.sum() > 5
    drawn, std = found.draws[:, trusted, 0], found.std[trusted, 0]
    error = (drawn.mean(axis=0) - np.asarray(found.mean)[trusted, 0]) / std
    # 400 draws, and 100 importance samples of their own, at an effective size above 20.
    assert np.abs(error).max() < 4 * np.sqrt(1 / 400 + 1 / 20)
    assert drawn.std(axis=0) / std == pytest.approx(1, abs=0.5)


def test_importance_samples_come_in_whole_chunks(vae: Bundle) -> None:
    x = rows_of(vae)
    observed = some_hidden(x)
    found = {k: vae.impute(x, observed, k=k) for k in (1, 30, 50, 100, 300)}
    default = vae.impute(x, observed)
    for one, other in ((1, 50), (30, 50)):
        assert np.array_equal(found[one].std, found[other].std)
    assert np.array_equal(found[100].std, default.std)
    assert not np.array_equal(found[50].std, found[100].std)
    assert not np.array_equal(found[300].std, found[100].std)
    for k, answer in found.items():
        assert (answer.ess >= 1 - 1e-3).all()
        assert (answer.ess <= max(k, 50) * (1 + 1e-3)).all()


def test_flags_say_how_far_to_trust(table_bundle: Bundle) -> None:
    x = np.nan_to_num(rows_of(table_bundle))
    observed = np.ones(x.shape, bool)
    observed[1, 0], observed[2], observed[3, 0] = False, False, False
    x[3, 1] = 1e9
    found = table_bundle.impute(x, observed)
    assert found.flags.tolist()[:4] == ["", "", "nothing_observed", "low_ess"]
    assert found.ess[1] > 2 > found.ess[3] >= 1 - 1e-6
    assert set(found.flags[4:]) == {""}
    # With nothing observed all weights are the prior's over q(z): the same for every such row.
    again = table_bundle.impute(np.zeros((2, 4)), np.zeros((2, 4), bool))
    assert np.array_equal(again.mean[0], found.mean[2])
    assert np.array_equal(again.mean[0], again.mean[1])


@pytest.mark.parametrize(("choice", "value"), [("draws", 0), ("draws", -2), ("k", 0), ("k", -50)])
def test_counts_are_at_least_one(table_bundle: Bundle, choice: str, value: int) -> None:
    asked: dict[str, Any] = {choice: value}
    with pytest.raises(ConfigError, match=f"^{choice} must be at least 1, got {value}$"):
        table_bundle.impute(table_rows(3), **asked)


@pytest.mark.parametrize("what", ["imputations", "samples from the prior"])
def test_an_autoencoder_says_what_it_cannot(autoencoder_bundle: Bundle, what: str) -> None:
    sentence = (
        f"an autoencoder gives no {what}: its code has no distribution to weigh or draw from; train a VAE"
    )
    ask: Any = autoencoder_bundle.impute if what == "imputations" else autoencoder_bundle.sample
    given: Any = colour_images(2) if what == "imputations" else 2
    with pytest.raises(UnsupportedError, match=f"^{re.escape(sentence)}$"):
        ask(given)


# -- batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "padded"), [(0, 16), (1, 16), (16, 16), (17, 32), (1008, 1008)])
def test_batches_are_padded_to_whole_sixteens(rows: int, padded: int) -> None:
    out = pad(np.ones((rows, 3), np.uint8))
    assert out.shape == (padded, 3)
    assert padded % PAD_TO == 0
    assert out.sum() == rows * 3
    assert out.flags.c_contiguous


def test_a_fresh_state_weighs_nothing() -> None:
    state = fresh_state(3, 4, 2)
    assert np.exp(state["log_total"].astype(np.float64)).tolist() == [0.0, 0.0, 0.0]
    assert state["drawn"].shape == (2, 3, 4)
    assert (state["best"] == -1e30).all()
