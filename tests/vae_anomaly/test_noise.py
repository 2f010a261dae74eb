"""Noise belongs to a row, not to a place in a batch."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from vae_anomaly.exceptions import SchemaError
from vae_anomaly.noise import Draws, bank_chunks, row_ids

BANK = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)


def test_a_row_is_its_id_its_unique_index_or_its_number() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0]}, index=["x", "y", "z"])
    by_number = row_ids(frame.to_numpy(), 3, None)
    assert row_ids(frame, 3, None) == row_ids(frame.to_numpy(), 3, ["x", "y", "z"])
    assert row_ids(frame.reset_index(drop=True), 3, None) == by_number == row_ids(None, 3, [0, 1, 2])
    assert row_ids(frame.set_axis(["x", "x", "z"]), 3, None) == by_number
    assert row_ids(frame, 3, ["p", "q", "r"]) == row_ids(None, 3, pd.Series(["p", "q", "r"]))
    assert row_ids(None, 2, np.array([7, 8])) == row_ids(None, 2, ["7", "8"])


def test_ids_are_spread_over_64_bits_and_never_change() -> None:
    keys = row_ids(None, 2000, None)
    assert len(set(keys)) == 2000
    assert all(0 <= key < 2**64 for key in keys)
    assert sum(key >> 63 for key in keys) == pytest.approx(1000, abs=150)
    assert row_ids(None, 1, ["7"]) == [9407870976149377255]


@pytest.mark.parametrize("ids", [[1], [1, 2, 3]])
def test_there_is_one_id_per_row(ids: list[int]) -> None:
    sentence = f"got {len(ids)} ids for 2 rows; give one id per row"
    with pytest.raises(SchemaError, match=f"^{re.escape(sentence)}$"):
        row_ids(None, 2, ids)


@pytest.mark.parametrize(("draws", "chunks"), [(1, 1), (50, 1), (51, 2), (100, 2)])
def test_chunks_are_whole_and_cover_the_bank_in_order(draws: int, chunks: int) -> None:
    parts = list(bank_chunks(BANK, draws, 50))
    assert [part.shape for part in parts] == [(50, 1, 3)] * chunks
    assert np.array_equal(np.concatenate(parts)[:, 0], BANK[: 50 * chunks])


def test_beyond_the_bank_follows_one_fixed_stream() -> None:
    few, many = (np.concatenate(list(bank_chunks(BANK[:80], k, 50))) for k in (100, 1000))
    assert np.array_equal(few, many[:100])
    assert np.array_equal(many[:80, 0], BANK[:80])
    assert many.mean() == pytest.approx(0, abs=0.08)
    assert many.std() == pytest.approx(1, abs=0.05)


def drawn(seed: int, keys: list[int], rows: int) -> tuple[np.ndarray, ...]:
    noise = Draws(seed, keys, rows, draws=2, latent_size=3, elements=4)
    chunks = list(noise.chunks(100, 50))
    latent, gumbel = (np.concatenate([chunk[i] for chunk in chunks], axis=i) for i in (0, 1))
    return latent, gumbel, chunks[-1][2]


def test_noise_depends_on_seed_and_id_alone() -> None:
    keys = row_ids(None, 5, None)
    latent, gumbel, element = drawn(0, keys, rows=16)
    moved = drawn(0, [keys[3], keys[0]], rows=2)
    assert np.array_equal(moved[0][:, 0], latent[:, 3])
    assert np.array_equal(moved[1][:, :, 0], gumbel[:, :, 3])
    assert np.array_equal(moved[2][:, 1], element[:, 0])
    other = drawn(1, keys, rows=16)
    for mine, theirs in zip((latent, gumbel[0], element), (other[0], other[1][0], other[2]), strict=True):
        assert not np.isin(mine[:, :5], theirs[:, :5]).any()
    assert not np.isin(latent[:, 0], latent[:, 1:5]).any()


def test_padding_rows_get_none() -> None:
    latent, gumbel, element = drawn(0, row_ids(None, 3, None), rows=16)
    assert not latent[:, 3:].any()
    assert not gumbel[:, :, 3:].any()
    assert not element[:, 3:].any()


def test_noise_has_the_distributions_it_claims() -> None:
    noise = Draws(0, row_ids(None, 20, None), 20, draws=50, latent_size=8, elements=20)
    latent, gumbel, element = next(noise.chunks(100, 100))
    for normal in (latent, element):
        assert normal.mean() == pytest.approx(0, abs=4 / np.sqrt(normal.size))
        assert normal.std() == pytest.approx(1, abs=4 / np.sqrt(2 * normal.size))
    # Gumbel: mean is Euler's constant, variance pi^2 / 6.
    assert gumbel.mean() == pytest.approx(0.5772, abs=5 * 1.2825 / np.sqrt(gumbel.size))
    assert gumbel.var() == pytest.approx(np.pi**2 / 6, rel=0.03)


def test_a_negative_seed_is_a_seed() -> None:
    keys = row_ids(None, 1, None)
    assert np.isfinite(drawn(-1, keys, 1)[0]).all()
    assert not np.array_equal(drawn(-1, keys, 1)[0], drawn(1, keys, 1)[0])
