"""An engine answers with the very bits of its bundle."""

from __future__ import annotations

import asyncio
import re
import time
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sample_models import colour_images, grey_images, table_rows

from serving.service.engine import Engine, Models
from serving.service.microbatch import Limits
from serving.service.refusals import Expired, Overloaded
from vae_anomaly.batches import Feeds
from vae_anomaly.exceptions import ConfigError, UnsupportedError
from vae_anomaly.runtime import Bundle
from vae_anomaly.schema import Samples

Array = npt.NDArray[Any]
ROWS = 21
SAMPLES = {"table": table_rows, "image": grey_images, "autoencoder": colour_images}


@pytest.fixture(scope="module", params=list(SAMPLES))
def asked(request: pytest.FixtureRequest) -> tuple[Bundle, Samples]:
    """A bundle and samples with gaps, the last one empty."""
    bundle: Bundle = request.getfixturevalue(f"{request.param}_bundle")
    rows = SAMPLES[request.param](ROWS, 3)
    if request.param == "table":
        rows = rows.to_numpy()
    observed = np.random.default_rng(0).random(rows.shape) < 0.7
    observed[0], observed[-1] = True, False
    return bundle, bundle.schema.read(rows, observed)


def answered(bundle: Bundle, entry: str, values: Array, observed: Any = None, **how: Any) -> Feeds:
    async def ask() -> Feeds:
        return await Engine(bundle, "m", "1").run(entry, values, observed, **how)

    return asyncio.run(ask())


def same(found: Feeds, expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, values in found.items():
        other = np.asarray(expected[name])
        assert values.dtype == other.dtype, name
        np.testing.assert_array_equal(values, other, err_msg=name)


def test_score_is_the_bundles_verdict(asked: tuple[Bundle, Samples]) -> None:
    bundle, (values, observed) = asked
    frame = bundle.verdicts(values, observed).drop(columns="is_outlier")
    same(answered(bundle, "score", values, observed), {name: frame[name] for name in frame})


def test_explain_encode_and_decode_are_the_bundles(asked: tuple[Bundle, Samples]) -> None:
    bundle, (values, observed) = asked
    why = bundle.explain(values, observed)
    same(
        answered(bundle, "explain", values, observed),
        {"contributions": why.contributions, "reconstruction": why.reconstruction, "recon": why.recon},
    )
    latent = {
        name: value for name, value in bundle.encode(values, observed)._asdict().items() if value is not None
    }
    same(answered(bundle, "encode", values, observed), latent)
    same(answered(bundle, "decode", latent["mean"]), {"reconstruction": bundle.decode(latent["mean"])})


@pytest.mark.parametrize("draws", [None, 3])
def test_impute_is_the_bundles(asked: tuple[Bundle, Samples], draws: int | None) -> None:
    bundle, (values, observed) = asked
    if bundle.kind == "autoencoder":
        with pytest.raises(UnsupportedError, match=r"^an autoencoder gives no imputations: "):
            answered(bundle, "impute", values, observed)
        return
    how: dict[str, Any] = {"draws": draws, "seed": 5, "ids": [f"r{i}" for i in range(ROWS)], "k": 60}
    expected = bundle.impute(values, observed, **how)._asdict()
    if draws is None:
        del expected["draws"]
    same(answered(bundle, "impute", values, observed, **how), expected)


def test_no_rows_get_no_answers_of_the_right_shape(table_bundle: Bundle) -> None:
    out = answered(table_bundle, "impute", np.empty((0, 4)), np.empty((0, 4), np.bool_), draws=2)
    assert out["mean"].shape == (0, 4)
    assert out["draws"].shape == (2, 0, 4)


def test_an_unknown_entry_point_is_named(table_bundle: Bundle) -> None:
    message = "unknown entry point 'guess'; choose score, explain, impute, encode, decode"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        answered(table_bundle, "guess", np.zeros((1, 4)))


def test_a_passed_deadline_is_an_expired_request(table_bundle: Bundle) -> None:
    with pytest.raises(
        Expired, match=r"^the deadline passed before the answer was there; send less, or later$"
    ):
        answered(table_bundle, "score", np.zeros((1, 4)), deadline=time.monotonic() - 1)


def test_a_lease_outlives_a_swap(table_bundle: Bundle) -> None:
    first, second = Engine(table_bundle, "m", "1"), Engine(table_bundle, "m", "2")
    models = Models(first)
    with models.current() as engine:
        models.swap(second)
        assert (engine, first.leases) == (first, 1)
        with models.current() as other:
            assert other is second
    assert first.leases == second.leases == 0


@pytest.mark.parametrize("model", ["table_bundle", "image_bundle"])
def test_a_rows_bits_do_not_depend_on_neighbours(model: str, request: pytest.FixtureRequest) -> None:
    """Alone, in crowds of any size, in pieces, on two threads: the same bits."""
    bundle: Bundle = request.getfixturevalue(model)
    rows = table_rows(150, 3).to_numpy() if model == "table_bundle" else grey_images(150, 3)
    observed = np.random.default_rng(1).random(rows.shape) < 0.8
    values, present = bundle.schema.read(rows, observed)
    cuts = [0, 1, 2, 3, 10, 33, 34, 149, 150]

    async def crowd(entry: str) -> list[Feeds]:
        engine = Engine(bundle, "m", "1", workers=2, limits=Limits(batch_rows=48))
        asked = [
            engine.run(entry, values[a:b], present[a:b], ids=range(a, b), draws=2) for a, b in pairwise(cuts)
        ]
        return list(await asyncio.gather(*asked))

    for entry in ("score", "explain", "encode", "impute"):
        whole = answered(bundle, entry, values, present, ids=range(150), draws=2)
        parts = asyncio.run(crowd(entry))
        for name in whole:
            joined = np.concatenate([part[name] for part in parts], axis=int(name == "draws"))
            assert joined.tobytes() == whole[name].tobytes(), (entry, name)


def test_a_device_out_of_memory_gets_half_the_batch_once(table_bundle: Bundle) -> None:
    class Small(Engine):
        fits = 8

        def _run(self, entry: str, how: Any, rows: Any) -> Feeds:
            if len(rows[0]) > self.fits:
                raise RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 9")
            return super()._run(entry, how, rows)

    async def ask(fits: int) -> Feeds:
        engine = Small(table_bundle, "m", "1")
        engine.fits = fits
        return await engine.run("score", np.zeros((16, 4)))

    same(asyncio.run(ask(8)), answered(table_bundle, "score", np.zeros((16, 4))))
    message = "the device has no memory left; send fewer rows at once, or later"
    with pytest.raises(Overloaded, match=f"^{message}$"):
        asyncio.run(ask(7))


def test_a_replaced_engine_ends_with_its_last_lease(table_bundle: Bundle) -> None:
    async def story() -> None:
        first, second = Engine(table_bundle, "m", "1"), Engine(table_bundle, "m", "2")
        models = Models(first)
        with models.current() as engine:
            models.swap(second)
            assert np.isfinite((await engine.run("score", np.zeros((1, 4))))["score"]).all()
            assert not first.closed
        assert first.closed
        assert not second.closed

    asyncio.run(story())


def test_warm_runs_every_entry_point(image_bundle: Bundle, autoencoder_bundle: Bundle) -> None:
    for bundle, entries in ((image_bundle, 5), (autoencoder_bundle, 4)):
        seen: list[str] = []

        class Seen(Engine):
            def _run(self, entry: str, how: Any, rows: Any, seen: list[str] = seen) -> Feeds:
                seen.append(entry)
                return super()._run(entry, how, rows)

        engine = Seen(bundle, "m", "1")
        engine.warm()
        assert seen == list(engine.entries)
        assert len(seen) == entries


def test_on_cuda_every_fixed_size_is_warmed_by_one_worker(
    table_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_bundle.backend, "provider", "CUDAExecutionProvider")
    seen: list[tuple[str, int]] = []

    class Seen(Engine):
        def _run(self, entry: str, how: Any, rows: Any) -> Feeds:
            seen.append((entry, len(rows[0])))
            return {}

    engine = Seen(table_bundle, "m", "1", workers=4)
    engine.warm()
    sizes = [16, 64, 256, 1024]
    assert engine.workers == 1
    assert seen == [(e, n) for e in engine.entries for n in (sizes[:1] if e == "impute" else sizes)]
