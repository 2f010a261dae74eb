"""The histogram loses no row and marks the threshold of the stored table."""

import numpy as np
import pytest

from serving.service.histogram import BINS, calibration_histogram, calibration_histograms
from vae_anomaly.gaps import Tables


def test_every_row_is_counted_though_the_tails_are_cut() -> None:
    scores = np.sort(np.append(np.random.default_rng(0).normal(size=999), 1e9))
    shown = calibration_histogram(scores, 0.05)

    assert sum(shown["counts"]) == shown["rows"] == 1000
    assert len(shown["edges"]) == BINS + 1
    assert shown["edges"][-1] == pytest.approx(np.quantile(scores, 0.995))


def test_the_threshold_is_that_of_the_rate() -> None:
    # floor(.1 * 100) = 10 alarms may be as high as the tenth largest of 99.
    assert calibration_histogram(np.arange(99.0), 0.1)["threshold"] == 89.0


def test_a_rate_beyond_the_rows_marks_nothing() -> None:
    assert calibration_histogram(np.arange(9.0), 0.01)["threshold"] is None


def test_equal_scores_fall_into_one_bin() -> None:
    assert max(calibration_histogram(np.full(50, 3.0), 0.1)["counts"]) == 50


def test_rows_with_gaps_have_histograms_of_their_own() -> None:
    arrays = {"score_score": np.arange(99.0), "gap1_score_score": np.arange(200.0) + 1000}
    whole, gaps = calibration_histograms(Tables({**arrays, "gap_edges": np.array([0.0, 1.0])}), 0.1)
    assert (whole["missing_up_to"], whole["rows"], whole["threshold"]) == (0.0, 99, 89.0)
    assert (gaps["missing_up_to"], gaps["rows"]) == (1.0, 200)
    # On the scale of whole rows, as the scores that are judged by it.
    assert gaps["threshold"] == 89.0


def test_without_bins_one_histogram_is_for_every_row() -> None:
    (only,) = calibration_histograms(Tables({"score_score": np.arange(99.0)}), 0.1)
    assert only["missing_up_to"] == 1.0
