"""What Prometheus reads, number by number."""

from __future__ import annotations

import numpy as np
import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.service.metrics import Metrics

NAN = float("nan")


def read(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Sample name and labels, by their names, to value, without the times of creation."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (
            sample.name.removeprefix("vae_anomaly_"),
            *(str(value) for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_requests_rows_and_parts_of_latency() -> None:
    metrics = Metrics()
    metrics.answered("score", 200, 3, 0.004)
    metrics.answered("score", 422, 3, 0.001)
    metrics.took("score", "read", 0.002)
    metrics.waited("score", 0.25)
    metrics.ran("score", 2, 20, 0.5)
    metrics.waiting("score", 7)
    metrics.dropped("score", "expired")
    found = read(metrics)
    assert found["requests_total", "score", "200"] == found["requests_total", "score", "422"] == 1
    assert found["rows_total", "score"] == 3
    assert found["request_seconds_sum", "score", "total"] == pytest.approx(0.005)
    assert [found["request_seconds_sum", "score", part] for part in ("read", "wait", "run")] == [
        0.002,
        0.25,
        0.5,
    ]
    assert (found["batch_rows_bucket", "score", "16.0"], found["batch_rows_bucket", "score", "32.0"]) == (
        0,
        1,
    )
    assert (found["queue_rows", "score"], found["dropped_requests_total", "score", "expired"]) == (7, 1)


def test_shares_of_missing_flagged_and_clipped() -> None:
    metrics = Metrics()
    metrics.received("score", np.array([[True, False, True], [True, True, False]]))
    out = {
        "score": np.array([1.0, 2.0, NAN]),
        "p_value": np.array([0.05, 0.06, NAN]),
        "clipped": np.array([1, 2, 0]),
    }
    metrics.judged("4", out, 0.05)
    found = read(metrics)
    assert (found["cells_total", "score"], found["missing_cells_total", "score"]) == (6, 2)
    assert (found["judged_rows_total", "4"], found["flagged_rows_total", "4"]) == (2, 1)
    assert found["clipped_cells_total",] == 3


def scored(values: list[float]) -> dict[str, np.ndarray]:
    some = np.array(values)
    return {"score": some, "p_value": some, "clipped": np.zeros(len(some), np.int64)}


def test_scores_fall_into_buckets_at_the_versions_own_quantiles() -> None:
    metrics = Metrics()
    metrics.serving("m", "1", "CPU", np.arange(101.0))
    metrics.judged("1", scored([0.5, 1.0, 50.0, 50.5, 1000.0, NAN]), 0.05)
    found = read(metrics)
    buckets = {key[1]: value for key, value in found.items() if key[0] == "score_bucket"}
    assert (buckets["1.0"], buckets["50.0"], buckets["75.0"], buckets["100.0"], buckets["+Inf"]) == (
        2,
        3,
        4,
        4,
        5,
    )
    assert (found["score_count", "1"], found["score_sum", "1"]) == (5, 1102.0)


def test_the_version_that_answers_is_named_and_old_ones_are_forgotten() -> None:
    metrics = Metrics()
    for version in ("1", "2", "3", "3"):
        metrics.serving("m", version, "CPUExecutionProvider", np.arange(5.0))
        metrics.judged(version, scored([1.0]), 0.5)
    metrics.reloaded("swapped")
    found = read(metrics)
    assert [key for key in found if key[0] == "model_info"] == [
        ("model_info", "m", "CPUExecutionProvider", "3")
    ]
    assert {key[1] for key in found if key[0] == "score_count"} == {"2", "3"}
    assert {key[1] for key in found if key[0] == "judged_rows_total"} == {"2", "3"}
    assert found["reloads_total", "swapped"] == 1


def test_nothing_enters_the_registry_of_the_process() -> None:
    Metrics().answered("score", 200, 1, 0.1)
    assert b"vae_anomaly" not in prometheus_client.generate_latest()
