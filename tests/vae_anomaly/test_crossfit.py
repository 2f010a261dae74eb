"""The rows of one table, each judged by a model that has not seen it."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sample_models import TABLE_MODEL, settings, table_rows

from vae_anomaly import VAEDetector
from vae_anomaly.crossfit import cross_fitted
from vae_anomaly.exceptions import ConfigError

QUICK = settings(TABLE_MODEL)


@dataclass
class FakeAnswers:
    calibration: dict[str, npt.NDArray[np.float64]]


class Fake:
    """A detector whose score is the first column; it remembers what it was fitted on."""

    random_state = 0
    fits: list[set[float]]

    def __init__(self) -> None:
        self.fits = []

    def set_params(self, random_state: int) -> "Fake":
        return self

    def fit(self, X: Any) -> "Fake":
        self.fits.append(set(X[:, 0]))
        # A third of the rows calibrates.
        self.answers_ = FakeAnswers({"score_score": np.sort(X[: len(X) // 3, 0])})
        return self

    def scores(self, X: Any) -> pd.DataFrame:
        assert not set(X[:, 0]) & self.fits[-1]
        return pd.DataFrame({"score": X[:, 0]})


def test_every_row_is_judged_once_by_a_fit_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = Fake()
    monkeypatch.setattr("sklearn.base.clone", lambda detector: detector)
    X = np.random.default_rng(0).permutation(60.0 * np.arange(60) / 60)[:, None]
    frame = cross_fitted(fake, X, folds=4)
    assert len(fake.fits) == 4
    assert frame["score"].tolist() == X[:, 0].tolist()
    assert frame["fold"].value_counts().tolist() == [15] * 4
    assert frame["p_value"].between(1 / 30, 1).all()
    # Ranks among 15 rows of the fold and 15 of calibration: half are above one half.
    assert frame["p_value"].mean() == pytest.approx(0.5, abs=0.05)
    assert frame["p_value"][frame["score"].idxmax()] == pytest.approx(1 / 30)


def test_alarms_among_normal_rows_are_as_rare_as_promised() -> None:
    """Exact for one fold: its places are those of exchangeable rows."""
    monkey, rng = pytest.MonkeyPatch(), np.random.default_rng(1)
    found = []
    with monkey.context() as patched:
        patched.setattr("sklearn.base.clone", lambda detector: detector)
        for _ in range(40):
            fake: Any = Fake()
            found.append(cross_fitted(fake, rng.normal(size=(90, 1)), folds=3)["p_value"])
    p = np.concatenate(found)
    for alpha in (0.05, 0.2):
        assert abs((p <= alpha).mean() - alpha) < 0.02


def test_a_detector_judges_its_own_table() -> None:
    rows = table_rows(60)
    rows.iloc[7] = [9.0, -9000.0, 9e-6, 1.6e9]
    rows.iloc[30] = np.nan
    rows = rows.set_axis([f"r{i}" for i in range(60)])
    detector = VAEDetector(settings=QUICK, random_state=0, device="cpu")
    frame = detector.cross_fit(rows, folds=3)
    assert not hasattr(detector, "fitted_")
    assert frame.index.equals(rows.index)
    # First of its fold of 20, 19 with values, and of 8 calibration rows.
    assert frame.loc["r7", "p_value"] in (1 / 27, 1 / 28)
    assert frame.loc["r30", ["score", "p_value"]].isna().all()
    assert frame.drop("r30").notna().all().all()
    pd.testing.assert_frame_equal(frame, detector.cross_fit(rows, folds=3))


@pytest.mark.parametrize("folds", [1, 61])
def test_folds_out_of_range_are_refused(folds: int) -> None:
    sentence = f"folds must be at least 2 and at most the 60 rows, got {folds}"
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        VAEDetector(settings=QUICK).cross_fit(table_rows(60), folds=folds)
