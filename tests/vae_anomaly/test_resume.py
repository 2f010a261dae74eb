"""Training is its seed, and survives a crash bit by bit."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import MASKED, TRAIN, VALIDATION, figures, same, trainer, weights

from vae_anomaly.training import Epoch


def test_the_same_seed_gives_the_same_bits() -> None:
    runs = [trainer(MASKED) for _ in range(2)]
    histories = [run.fit(TRAIN, VALIDATION) for run in runs]
    assert same(weights(runs[0].model), weights(runs[1].model))
    assert figures(histories[0]) == figures(histories[1])


@pytest.mark.parametrize("changed", [{"seed": 1}, {"init": 1}], ids=str)
def test_another_seed_gives_other_weights(changed: dict[str, int]) -> None:
    first, other = trainer(MASKED), trainer(MASKED, **changed)
    for run in (first, other):
        run.fit(TRAIN, VALIDATION)
    assert not same(weights(first.model), weights(other.model))


def test_no_global_generator_is_touched_or_asked() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    first = trainer(MASKED)
    first.fit(TRAIN, VALIDATION)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert random.getstate() == before[2]
    torch.rand(7)
    again = trainer(MASKED)
    again.fit(TRAIN, VALIDATION)
    assert same(weights(first.model), weights(again.model))


class CrashError(Exception):
    pass


@pytest.mark.parametrize("done", [1, 3, 5])
@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, done: int, optimizer: Any
) -> None:
    config = replace(MASKED, optimizer=optimizer)
    whole = trainer(config)
    expected = whole.fit(TRAIN, VALIDATION)

    def crash(epoch: Epoch) -> None:
        if epoch["epoch"] == done + 1:
            raise CrashError

    with pytest.raises(CrashError):
        trainer(config, checkpoints=tmp_path, callbacks=[crash]).fit(TRAIN, VALIDATION)
    seen: list[Epoch] = []
    resumed = trainer(config, init=5, checkpoints=tmp_path, callbacks=[seen.append])
    history = resumed.fit(TRAIN, VALIDATION, resume=True)
    assert [epoch["epoch"] for epoch in seen] == list(range(done + 1, 7))
    assert same(weights(resumed.model), weights(whole.model))
    assert figures(history) == figures(expected)


def test_a_finished_run_resumes_to_its_result(tmp_path: Path) -> None:
    first = trainer(MASKED, checkpoints=tmp_path)
    history = first.fit(TRAIN, VALIDATION)
    again = trainer(MASKED, init=3, checkpoints=tmp_path)
    assert again.fit(TRAIN, VALIDATION, resume=True) == history
    assert same(weights(again.model), weights(first.model))


def test_without_resume_a_run_starts_afresh(tmp_path: Path) -> None:
    trainer(MASKED, seed=3, checkpoints=tmp_path).fit(TRAIN, VALIDATION)
    fresh, plain = trainer(MASKED, checkpoints=tmp_path), trainer(MASKED)
    fresh.fit(TRAIN, VALIDATION)
    plain.fit(TRAIN, VALIDATION)
    assert same(weights(fresh.model), weights(plain.model))
    # With nothing there, resume is a start.
    empty = trainer(MASKED, checkpoints=tmp_path / "empty")
    empty.fit(TRAIN, VALIDATION, resume=True)
    assert same(weights(empty.model), weights(plain.model))
