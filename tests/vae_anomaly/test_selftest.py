"""How far two runs of a graph may differ, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vae_anomaly.manifest import Manifest
from vae_anomaly.schema import Column, ImageSchema, TableSchema
from vae_anomaly.selftest import disagreements, p_values_agree, raw_range, tolerance_of

TABLE = Manifest(
    kind="vae",
    name="t",
    schema=TableSchema((Column("a", low=0.0, high=10.0), Column("b", low=5.0, high=5.0))),
    likelihood={},
    architecture={},
    scores=("neg_elbo", "rate"),
    default_score="neg_elbo",
    draws=1,
    imputation={"draws": 50, "chunk": 50},
    latent_size=2,
    false_alarm_rate=0.05,
    tolerances={"scores": 1e-5, "columns": 1e-5, "ess": 1e-4, "cuda": 1e-3},
    provenance={"rows_calibration": 9},
    derived_from_rows=(),
    warnings=(),
)
IMAGE = replace(TABLE, schema=ImageSchema(1, 20, 20, "float32", -1.0, 3.0))
KINDS = replace(
    TABLE,
    schema=TableSchema(
        (
            Column("a", low=0.0, high=10.0),
            Column("n", "integer", low=0.0, high=10.0),
            Column("g", "ordinal", 3.0, 9.0, categories=(3, 7, 9)),
            Column("ok", "binary", 0.0, 1.0),
        )
    ),
)
E = math.e
POSITIVE = replace(
    TABLE,
    schema=TableSchema(
        (Column("p", "positive", 1.0, E**10, lower=0.0), Column("c", "positive", 7.0, 7.0, lower=0.0))
    ),
)
NAN, INF = float("nan"), float("inf")


def outputs(**values: Any) -> dict[str, Any]:
    return {name: np.array(value, dtype=np.float64) for name, value in values.items()}


@pytest.mark.parametrize(
    ("manifest", "given", "name", "allowed"),
    [
        # The larger of value and median.
        (TABLE, {"score": [1.0, 100.0, 300.0]}, "score", [1e-3, 1e-3, 3e-3]),
        (TABLE, {"rate": [8.0, -2.0, 4.0]}, "rate", [8e-5, 4e-5, 4e-5]),
        # At least of one nat, or of a tenth of a nat per element where elements are summed.
        (TABLE, {"rate": [1e-9, 2e-9]}, "rate", [1e-5, 1e-5]),
        (IMAGE, {"rate": [1e-9, 2e-9]}, "rate", [1e-5, 1e-5]),
        (IMAGE, {"neg_elbo": [1.0, 100.0]}, "neg_elbo", [5.05e-4, 1e-3]),
        (IMAGE, {"score": [1.0, 2.0]}, "score", [4e-4, 4e-4]),
        # Small differences enlarged.
        (replace(TABLE, scores=("rapp",)), {"rapp": [4.0, 300.0, 5.0]}, "rapp", [1e-3, 3e-3, 1e-3]),
        (
            replace(TABLE, scores=("latent_maha",)),
            {"latent_maha": [4.0, 300.0, 5.0]},
            "latent_maha",
            [1e-3, 3e-3, 1e-3],
        ),
        (replace(TABLE, scores=("combined",)), {"combined": [-0.5, 2.0]}, "combined", [1e-3, 1e-3]),
        # Decoding rounds: to the next whole number, to another class.
        (
            KINDS,
            {"reconstruction": [[4.0, 1.0, 7.0, 2.0]]},
            "reconstruction",
            [[1e-4, 1.0001, 6.00006, 1.00002]],
        ),
        # A positive column by its logarithm, whose range is 10 here, and 1 in a constant column.
        (
            POSITIVE,
            {"reconstruction": [[E**5, 7.0], [E**20, 7.0]]},
            "reconstruction",
            [[1e-4 * E**5, 7e-5], [2e-4 * E**20, 7e-5]],
        ),
        (
            POSITIVE,
            {"reconstruction": [[E**5, 7.0]], "high": [[E**9, 7.0]]},
            "high",
            [[(1e-4 + 2 * 2.0**-22 * 10 * 10 / 2) * E**9, (1e-5 + 2.0**-10) * 7]],
        ),
        (
            POSITIVE,
            {"mean_raw": [[E**2, 7.0]], "std_raw": [[3 * E**2, 0.0]], "next_log_total": [10.0]},
            "mean_raw",
            [[(1e-4 + 3e-4) * E**2, 7e-5]],
        ),
        (
            POSITIVE,
            {"mean_raw": [[E**2, 7.0]], "std_raw": [[3 * E**2, 0.0]], "next_log_total": [10.0]},
            "std_raw",
            [[(1e-4 + 3e-4 + 2.0**-22 * 100 / 3 + 3 * (1e-4 + 3e-4)) * E**2, (1e-5 + 2.0**-11) * 7]],
        ),
        # The distance to a mean is as exact as the bound itself.
        (
            replace(TABLE, scores=("typicality", "iw_nll")),
            {"typicality": [1.0, 2.0], "iw_nll": [300.0, 100.0]},
            "typicality",
            [3e-3, 2e-3],
        ),
        # So is the difference of two bounds.
        (
            replace(TABLE, scores=("background_ratio", "iw_nll")),
            {"background_ratio": [1.0, 2.0], "iw_nll": [300.0, 100.0]},
            "background_ratio",
            [3e-3, 2e-3],
        ),
        (TABLE, {"clipped": [0.0, 7.0]}, "clipped", [0.5, 0.5]),
        # Raw units: of the column's range or of the distance to it; a constant column's range is 1.
        (TABLE, {"reconstruction": [[5.0, 5.0], [1e6, 7.0]]}, "reconstruction", [[1e-4, 1e-5], [10.0, 2e-5]]),
        (IMAGE, {"reconstruction": [[3.0, -1.0]]}, "reconstruction", [[4e-5, 4e-5]]),
        # Ends of the expected range are as exact as the root of a variance, which may be rounding alone.
        (
            TABLE,
            {"reconstruction": [[5.0, 5.0]], "high": [[25.0, 5.0]]},
            "high",
            [[2.5e-4 + 2 * 2.0**-22 * 10, 1e-5 + 2.0**-10]],
        ),
        # Terms of a score: of the row's sum, the column's largest or one nat.
        (
            TABLE,
            {"contributions": [[0.1, 5.0], [0.2, 0.3]]},
            "contributions",
            [[5.1e-5, 5.1e-5], [1e-5, 5e-5]],
        ),
        (TABLE, {"mean": [[0.5, -40.0], [0.1, 0.0]]}, "mean", [[4e-5, 4e-4], [4e-5, 4e-4]]),
        (TABLE, {"mean": [[0.0, 0.0]]}, "mean", [[1e-8, 1e-8]]),
        # Importance weights may differ as much as their logarithms, here by 1e-5 and by 1e-3.
        (TABLE, {"ess": [1.0, 50.0], "next_log_total": [0.1, -100.0]}, "ess", [1.2e-4, 0.105]),
        (
            TABLE,
            {
                "mean_raw": [[2.0, 5.0], [2.0, 5.0]],
                "std_raw": [[1.0, 0.0]] * 2,
                "next_log_total": [1.0, 100.0],
            },
            "mean_raw",
            [[1.1e-4, 1e-5], [1.1e-3, 1e-5]],
        ),
        (
            TABLE,
            {"std_raw": [[10.0, 0.0]], "next_log_total": [100.0]},
            "std_raw",
            [[1e-4 + 1e-2 + 2.0**-22 * 10, 1e-5 + 2.0**-11]],
        ),
    ],
)
def test_tolerances_by_hand(manifest: Manifest, given: dict[str, Any], name: str, allowed: Any) -> None:
    np.testing.assert_allclose(tolerance_of(name, outputs(**given), manifest), allowed, rtol=1e-12)


def test_differences_are_told_in_tolerances_per_output() -> None:
    expected = outputs(score=[1.0, 2.0, 4.0], rate=[10.0, 10.0, 10.0], clipped=[0, 0, 1])
    actual = outputs(score=[1.0, 2.00001, 4.0], rate=[10.0, 10.0, 9.9995], clipped=[0, 0, 1])
    found = disagreements(expected, actual, TABLE)
    assert found == {"score": pytest.approx(0.5), "rate": pytest.approx(5.0), "clipped": 0.0}


def test_state_draws_and_p_values_are_judged_elsewhere() -> None:
    expected = outputs(next_mean=[1.0], draws_raw=[1.0], p_value=[0.1], score=[1.0])
    assert disagreements(
        expected, outputs(next_mean=[9.0], draws_raw=[9.0], p_value=[0.9], score=[1.0]), TABLE
    ) == {"score": 0.0}


@pytest.mark.parametrize(
    ("expected", "actual", "agree"),
    [
        ([NAN, 1.0], [NAN, 1.0], True),
        ([INF, 1.0], [INF, 1.0], True),
        ([INF, 1.0], [-INF, 1.0], False),
        ([NAN, 1.0], [INF, 1.0], False),
        ([NAN, 1.0], [1.0, 1.0], False),
        ([1.0, 1.0], [1.0, NAN], False),
        # One entry that agrees in being NaN or infinite does not hide another that differs.
        ([NAN, 1.0], [NAN, 2.0], False),
        ([INF, 1.0], [INF, 2.0], False),
        ([1.0], [1.0, 1.0], False),
    ],
)
def test_what_is_not_finite_must_be_the_same(expected: list[float], actual: list[float], agree: bool) -> None:
    found = disagreements(outputs(rate=expected), outputs(rate=actual), TABLE)
    assert (found["rate"] <= 1) == agree


def test_p_values_must_be_those_of_the_table() -> None:
    table = np.array([1.0, 2.0, 2.0, 3.0])
    right = outputs(score=[0.0, 2.0, 9.0], p_value=[1.0, 0.8, 0.2])
    assert p_values_agree(right, table)
    assert not p_values_agree(right | outputs(p_value=[1.0, 0.4, 0.2]), table)


def test_the_range_of_raw_units() -> None:
    low, span = raw_range(TABLE)
    assert (low.tolist(), span.tolist()) == ([0.0, 5.0], [10.0, 1.0])
    assert [float(value) for value in raw_range(IMAGE)] == [-1.0, 4.0]
