"""Settings of training: the schedule of its rate, and what is refused."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from vae_anomaly.exceptions import ConfigError
from vae_anomaly.training import TrainingConfig


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    config = TrainingConfig(learning_rate=2.0, rise=0.2)
    rates = [config.rate(step, 100) for step in range(100)]
    assert max(rates) == rates[20] == 2.0
    assert rates[0] == pytest.approx(2.0 * (0.04 + 0.96 / 21))
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[60] == pytest.approx(1.0)
    assert 0 < rates[99] < 2e-3
    assert {replace(config, schedule="constant").rate(step, 100) for step in (0, 50, 99)} == {2.0}


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("rise", [0.0, 0.2, 1.0])
def test_short_runs_have_a_rate_too(steps: int, rise: float) -> None:
    config = TrainingConfig(rise=rise)
    assert all(0 < config.rate(step, steps) <= 1e-3 for step in range(steps))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"random_mask": 1.5}, "random_mask must be between 0 and 1, got 1.5"),
        (
            {"denoise": True},
            "denoise judges what random masks take, and random_mask is 0; raise it or drop denoise",
        ),
        ({"rise": -0.1}, "rise must be between 0 and 1, got -0.1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"clip_norm": -1.0}, "clip_norm must not be negative, got -1.0"),
        ({"patience": -1}, "patience must not be negative, got -1"),
        ({"max_seconds": -5.0}, "max_seconds must not be negative, got -5.0"),
        ({"weight_decay": math.nan}, "weight_decay must not be negative, got nan"),
        ({"schedule": "one_cycle"}, "schedule is 'one_cycle'; did you mean 'one-cycle'?"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; choose adamw, adam"),
        ({"epochs": 2.5}, "epochs is 2.5; give a whole number"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; give a number"),
        ({"denoise": 1}, "denoise is 1; give True or False"),
        ({"precision": "float16"}, "precision is 'float16'; did you mean 'bfloat16'?"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        TrainingConfig(**settings)
