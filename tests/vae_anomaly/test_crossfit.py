"""The rows of one table, each judged by a model that has not seen it."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sample_models import TABLE_MODEL, settings, table_rows

from vae_anomaly import VAEDetector
from vae_anomaly.crossfit import cross_fitted
from vae_anomaly.exceptions import ConfigError, DataError
from vae_anomaly.gaps import Tables, missing_share
from vae_anomaly.schema import Samples

QUICK = settings(TABLE_MODEL)


class Fake:
    """Models whose score is the first column; it remembers what they were fitted on."""

    def __init__(self, **gaps: Any) -> None:
        self.fits: list[set[float]] = []
        self.gaps = gaps

    def fit(self, samples: Samples, seed: int) -> Any:
        first = samples.values[:, 0]
        self.fits.append(set(first))
        # A third of the rows calibrates.
        return FakeAnswers(
            Tables({"score_score": np.sort(first[: len(first) // 3]), **self.gaps}), self.fits[-1]
        )


@dataclass
class FakeAnswers:
    tables: Tables
    seen: set[float]
    false_alarm_rate: float = 0.05

    def judged(self, samples: Samples) -> dict[str, Any]:
        assert not set(samples.values[:, 0]) & self.seen
        own = samples.values[:, 0]
        return {"score": self.tables.comparable(own, missing_share(samples), self.false_alarm_rate)}


def judge(fake: Fake, column: Any, folds: int, seed: int = 0) -> pd.DataFrame:
    values = np.asarray(column)[:, None]
    samples = Samples(values, np.ones(values.shape, dtype=bool))
    return cross_fitted(fake.fit, samples, folds, np.random.RandomState(seed))


def test_every_row_is_judged_once_by_a_fit_without_it() -> None:
    fake = Fake()
    column = np.random.default_rng(0).permutation(np.arange(60.0))
    frame = judge(fake, column, folds=4)
    assert len(fake.fits) == 4
    assert frame["score"].tolist() == column.tolist()
    assert frame["fold"].value_counts().tolist() == [15] * 4
    assert frame["p_value"].between(1 / 30, 1).all()
    # Ranks among 15 rows of the fold and 15 of calibration: half are above one half.
    assert frame["p_value"].mean() == pytest.approx(0.5, abs=0.05)
    assert frame["p_value"][frame["score"].idxmax()] == pytest.approx(1 / 30)


def test_alarms_among_normal_rows_are_as_rare_as_promised() -> None:
    """Exact for one fold: its places are those of exchangeable rows."""
    rng = np.random.default_rng(1)
    p = np.concatenate([judge(Fake(), rng.normal(size=90), 3, seed)["p_value"] for seed in range(40)])
    for alpha in (0.05, 0.2):
        assert abs((p <= alpha).mean() - alpha) < 0.02


def test_rows_with_gaps_are_placed_among_rows_with_gaps() -> None:
    """Gaps push scores up by 100: a gappy row is as strange as its place among gappy rows."""
    rng = np.random.default_rng(2)
    values = np.column_stack([rng.permutation(np.arange(60.0)), np.zeros(60)])
    observed = np.ones(values.shape, dtype=bool)
    observed[:20, 1] = False
    values[:20, 0] += 100
    table = np.arange(101.0, 160.0, 3.0)
    fake = Fake(gap_edges=np.array([0.0, 1.0]), gap1_score_score=table)
    frame = cross_fitted(fake.fit, Samples(values, observed), 3, np.random.RandomState(0))
    fold = frame["fold"][:20].to_numpy()
    for row in range(20):
        others = np.concatenate([table, values[:20, 0][fold == fold[row]]])
        assert frame["p_value"][row] == (others >= values[row, 0]).mean()


def test_columns_are_what_the_whole_table_says() -> None:
    """A column of 0 and 1 but for one row, and words of which a fold may not hold every one twice."""
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(90, 3)), columns=list("abc"))
    x["count"] = rng.integers(0, 2, 90)
    x.loc[17, "count"] = 50
    x["word"] = [f"w{i // 2}" for i in range(90)]
    frame = VAEDetector(settings=QUICK, random_state=0, device="cpu").cross_fit(x, folds=3)
    own = frame[frame["fold"] == frame.loc[17, "fold"]]
    assert own["score"].idxmax() == 17


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
    flagged = detector.set_params(contamination=0.1).cross_fit(rows, folds=3)
    strange = flagged.pop("is_outlier")
    pd.testing.assert_frame_equal(frame, flagged)
    # 59 rows have a p-value: the six smallest, and what ties with the sixth.
    judged = frame["p_value"].dropna()
    assert strange.drop("r30").astype(bool).equals(judged <= judged.sort_values().iloc[5])
    assert strange["r7"]
    assert strange["r30"] is pd.NA


@pytest.mark.parametrize("folds", [2.5, "5", None])
def test_folds_are_whole(folds: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(f'folds is {folds!r}; give a whole number')}$"):
        VAEDetector(settings=QUICK).cross_fit(table_rows(60), folds=folds)


@pytest.mark.parametrize("folds", [1, 61])
def test_folds_out_of_range_are_refused(folds: int) -> None:
    sentence = f"folds must be at least 2 and at most the 60 rows, got {folds}"
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        VAEDetector(settings=QUICK).cross_fit(table_rows(60), folds=folds)


def test_a_fit_of_too_few_rows_is_told_with_its_fold() -> None:
    sentence = "without fold 0 of 5 of 12 rows: n_samples=9 leaves 6 rows to train on; "
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}"):
        VAEDetector(settings=QUICK).cross_fit(table_rows(12))


def test_a_column_with_all_its_values_in_one_fold_is_refused_before_any_fit() -> None:
    fake, values = Fake(), np.arange(120.0).reshape(60, 2)
    observed = np.ones(values.shape, dtype=bool)
    observed[:, 1] = np.arange(60) == 41
    sentence = (
        "column 'b' has all its values in one of 3 folds, and the fit without that fold would have none; "
        "leave it out"
    )
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}$"):
        cross_fitted(fake.fit, Samples(values, observed), 3, np.random.RandomState(0), ("a", "b"))
    assert not fake.fits
    observed[::7, 1] = True
    cross_fitted(fake.fit, Samples(values, observed), 3, np.random.RandomState(0), ("a", "b"))
    assert len(fake.fits) == 3


def test_a_detector_names_the_column_that_a_fold_holds_alone() -> None:
    rows = table_rows(60)
    rows.loc[rows.index != 30, "tiny"] = np.nan
    with pytest.raises(DataError, match=r"^column 'tiny' has all its values in one of 3 folds, and "):
        VAEDetector(settings=QUICK).cross_fit(rows, folds=3)
