"""Why a row scored as it did: ranks for the verdict, contributions and ranges for `recon`."""

from typing import Any

import numpy as np
import pytest
from sample_models import ALL_SCORES, grey_images, table_rows

from vae_anomaly import VAEDetector
from vae_anomaly.calibration import rank_of
from vae_anomaly.exceptions import ConfigError, UnsupportedError
from vae_anomaly.runtime import Bundle


def whole_rows(count: int) -> Any:
    rows = table_rows(count, 3)
    return rows[rows.notna().all(axis=1)]


def test_ranks_are_those_of_the_calibration_tables(table_bundle: Bundle) -> None:
    rows = whole_rows(60)
    found, scores = table_bundle.explain(rows), table_bundle.scores(rows)
    assert (found.decided_by, found.score_names) == ("neg_elbo", ALL_SCORES)
    assert found.ranks.shape == (len(rows), len(ALL_SCORES))
    for place, name in enumerate(ALL_SCORES):
        expected = rank_of(table_bundle.calibration[f"score_{name}"], scores[name])
        assert np.array_equal(found.ranks[:, place], expected)
    assert np.array_equal(found.p_value, table_bundle.p_values(rows))


def test_a_reason_names_the_score_that_decided(table_bundle: Bundle) -> None:
    rows = table_rows(3).fillna(0.0)
    rows.iloc[0] = [9.0, -9000.0, 9e-6, 1.6e9]
    rows.iloc[2] = np.nan
    first, _, last = table_bundle.explain(rows).reasons()
    assert first.startswith("neg_elbo decided, p = 0.0204, above 100.0 % of calibration rows; ")
    assert first.endswith("; contributions take recon apart, not neg_elbo")
    assert last == "nothing was observed"
    told = table_bundle.explain(rows)._replace(decided_by="recon").reasons()[0]
    assert "contributions" not in told


def test_an_autoencoder_decides_by_what_is_taken_apart(autoencoder_bundle: Bundle) -> None:
    shape = autoencoder_bundle.schema.shape
    images = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    found = autoencoder_bundle.explain(images)
    assert found.decided_by == "recon"
    assert found.reasons()[0].startswith("recon decided, p = ")
    assert np.array_equal(found.heatmaps, found.contributions.sum(axis=1))


def test_the_range_is_around_what_was_expected_and_holds_most_values(table_bundle: Bundle) -> None:
    rows = whole_rows(240)
    found = table_bundle.explain(rows)
    assert found.low is not None
    assert found.high is not None
    middle = (found.low + found.high) / 2
    width = found.high - found.low
    assert (width > 0).all()
    assert np.abs(middle - found.reconstruction).max(axis=0) == pytest.approx(np.zeros(4), abs=3600.0)
    assert (np.abs(middle - found.reconstruction) < 1e-3 * width).all()
    inside = (rows.to_numpy() >= found.low) & (rows.to_numpy() <= found.high)
    assert 0.85 < inside.mean() <= 1.0


def test_the_range_of_a_pixel_stays_inside_its_own(image_bundle: Bundle) -> None:
    found = image_bundle.explain(grey_images(5))
    assert found.low is not None
    assert found.high is not None
    assert (found.low >= 0).all()
    assert (found.low <= found.high).all()
    assert (found.high <= 255).all()
    assert found.heatmaps.shape == (5, 8, 9)


def test_columns_are_ranked_by_what_they_contribute(table_bundle: Bundle) -> None:
    rows = table_rows(6).set_axis(list("abcdef"))
    rows.loc["b", "large"] = 9e4
    rows.loc["c", "large"] = np.nan
    frame, found = table_bundle.ranked_columns(rows, top=3), table_bundle.explain(rows)
    strange = frame[frame["row"] == "b"]
    assert strange["place"].tolist() == [1, 2, 3]
    first = strange.iloc[0]
    assert (first["column"], first["value"]) == ("large", 9e4)
    assert first["expected"] == found.reconstruction[1, 1]
    assert first["high"] < 9e4
    assert first["contribution"] == found.contributions[1, 1]
    assert first["share"] == pytest.approx(found.contributions[1, 1] / found.recon[1])
    assert strange["contribution"].is_monotonic_decreasing
    assert "large" not in frame.loc[frame["row"] == "c", "column"].tolist()
    every = table_bundle.ranked_columns(rows.iloc[:2], top=99)
    assert every.groupby("row")["share"].sum().tolist() == pytest.approx([1.0, 1.0])


def test_the_detector_ranks_columns_as_its_bundle(table_detector: VAEDetector, table_bundle: Bundle) -> None:
    rows = whole_rows(20)
    mine, theirs = table_detector.ranked_columns(rows, top=2), table_bundle.ranked_columns(rows, top=2)
    assert mine["column"].tolist() == theirs["column"].tolist()
    assert np.allclose(mine["contribution"], theirs["contribution"], rtol=1e-4, atol=1e-4)


def test_an_image_has_no_columns(image_bundle: Bundle) -> None:
    with pytest.raises(UnsupportedError, match=r"^only the columns of a table can be ranked; an image has"):
        image_bundle.ranked_columns(grey_images(2))


@pytest.mark.parametrize("top", [0, -1, 2.5, "3"], ids=str)
def test_a_number_of_columns_is_at_least_one(table_bundle: Bundle, top: Any) -> None:
    with pytest.raises(ConfigError, match=r"^top is .*; (expected 1 or more|give a whole number)$"):
        table_bundle.ranked_columns(table_rows(3), top=top)
