"""The queue in front of the device: who runs together, who is left out, who is turned away."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

import numpy as np
import pytest

from serving.service.microbatch import Limits, MicroBatcher, Rows
from serving.service.refusals import Expired, Overloaded
from vae_anomaly.batches import Feeds

LATE = r"^the deadline passed before the answer was there; send less, or later$"


class Device:
    """Doubles its rows; held back until told to go on, and remembers what it ran."""

    def __init__(self, held: bool = False) -> None:
        self.open = threading.Event()
        self.began = threading.Semaphore(0)
        self.ran: list[list[float]] = []
        if not held:
            self.open.set()

    def __call__(self, entry: str, how: Hashable, rows: Rows) -> Feeds:
        self.began.release()
        self.ran.append(rows[0].tolist())
        assert self.open.wait(10)
        return {"out": 2 * rows[0]}


class Told:
    """A watch that writes down what it is told."""

    def __init__(self) -> None:
        self.drops: list[str] = []
        self.batches: list[tuple[int, int]] = []
        self.left = 0

    def waiting(self, entry: str, rows: int) -> None:
        assert rows >= 0
        self.left = rows

    def ran(self, entry: str, requests: int, rows: int, seconds: float) -> None:
        self.batches.append((requests, rows))

    def waited(self, entry: str, seconds: float) -> None:
        assert seconds >= 0

    def dropped(self, entry: str, why: str) -> None:
        self.drops.append(why)


def rows(*values: float) -> Rows:
    return (np.array(values, np.float64),)


def play(
    device: Any, story: Callable[[MicroBatcher], Coroutine[Any, Any, None]], limits: Limits, workers: int = 1
) -> Told:
    """A story told to a batcher, which must end with nothing left to do."""
    told = Told()

    async def run() -> None:
        batcher = MicroBatcher(device, workers, limits, told)
        try:
            await story(batcher)
            assert all((q.rows, q.size) == (0, 0) for q in batcher._queues.values())
            assert batcher._free == workers
            assert told.left == 0
        finally:
            batcher.close()

    asyncio.run(asyncio.wait_for(run(), 20))
    return told


def begun(batcher: MicroBatcher, *values: float, **how: Any) -> asyncio.Task[Feeds]:
    return asyncio.create_task(batcher.ask("score", rows(*values), **how))


async def until(device: Device) -> None:
    """The device has begun a run."""
    await asyncio.to_thread(device.began.acquire)


def test_what_comes_in_one_turn_of_the_loop_runs_together() -> None:
    device = Device()

    async def story(batcher: MicroBatcher) -> None:
        out = await asyncio.gather(*(batcher.ask("score", rows(i)) for i in range(5)))
        assert [found["out"].tolist() for found in out] == [[2.0 * i] for i in range(5)]

    assert play(device, story, Limits()).batches == [(5, 5)]
    assert device.ran == [[0, 1, 2, 3, 4]]


def test_how_many_wait_is_told_while_nothing_runs_through() -> None:
    device = Device(held=True)

    async def story(batcher: MicroBatcher) -> None:
        first = begun(batcher, 1)
        await until(device)
        later, late = begun(batcher, 2, 3), begun(batcher, 4, deadline=time.monotonic() + 0.05)
        await asyncio.sleep(0)
        assert isinstance(batcher._watch, Told)
        assert batcher._watch.left == 3
        with pytest.raises(Expired, match=LATE):
            await late
        assert batcher._watch.left == 2
        device.open.set()
        await asyncio.gather(first, later)

    play(device, story, Limits())


def test_a_full_run_does_not_wait_for_the_turn_to_end() -> None:
    device = Device()

    async def story(batcher: MicroBatcher) -> None:
        await asyncio.gather(*(batcher.ask("score", rows(i)) for i in range(20)))

    assert play(device, story, Limits()).batches == [(16, 16), (4, 4)]


def test_free_workers_share_what_waits() -> None:
    async def story(batcher: MicroBatcher) -> None:
        out = await begun(batcher, *range(50))
        np.testing.assert_array_equal(out["out"], 2.0 * np.arange(50))

    assert sorted(play(Device(), story, Limits(), workers=2).batches) == [(1, 18), (1, 32)]


def test_what_waits_while_the_device_is_busy_is_the_next_batch() -> None:
    device = Device(held=True)

    async def story(batcher: MicroBatcher) -> None:
        first = begun(batcher, 1)
        await until(device)
        later = [begun(batcher, i, i + 0.5) for i in range(2, 12)]
        await asyncio.sleep(0)
        device.open.set()
        await asyncio.gather(first, *later)

    told = play(device, story, Limits(batch_rows=16))
    assert told.batches == [(1, 1), (8, 16), (2, 4)]


def test_rows_find_their_way_back_whatever_is_cut_and_joined() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 70, 60)
    asked = [rng.normal(size=size) for size in sizes]

    async def story(batcher: MicroBatcher) -> None:
        out = await asyncio.gather(*(batcher.ask("score", (values,)) for values in asked))
        for found, values in zip(out, asked, strict=True):
            np.testing.assert_array_equal(found["out"], 2 * values)

    told = play(Device(), story, Limits(batch_rows=32), workers=3)
    assert max(count for _, count in told.batches) == 32
    assert sum(count for _, count in told.batches) == sizes.sum()


def test_a_large_request_lets_others_in_between_its_pieces() -> None:
    device = Device(held=True)

    async def story(batcher: MicroBatcher) -> None:
        large = begun(batcher, *range(48))
        await until(device)
        small = begun(batcher, 100)
        await asyncio.sleep(0)
        device.open.set()
        assert (await large)["out"].tolist() == [2.0 * i for i in range(48)]
        assert (await small)["out"].tolist() == [200.0]

    play(device, story, Limits(batch_rows=16))
    assert device.ran == [[*range(16)], [*range(16, 32)], [100, *range(32, 47)], [47]]


def test_entry_points_take_turns() -> None:
    device = Device(held=True)

    async def story(batcher: MicroBatcher) -> None:
        asked = [asyncio.create_task(batcher.ask("impute", rows(*range(48))))]
        await until(device)
        asked.append(asyncio.create_task(batcher.ask("score", rows(100))))
        await asyncio.sleep(0)
        device.open.set()
        await asyncio.gather(*asked)

    play(device, story, Limits(batch_rows=16))
    assert [100.0] in device.ran[1:3]


def test_requests_that_differ_in_how_never_share_a_run() -> None:
    device = Device()

    async def story(batcher: MicroBatcher) -> None:
        await asyncio.gather(*(batcher.ask("impute", rows(i), how=i // 2) for i in range(6)))

    play(device, story, Limits())
    assert device.ran == [[0, 1], [2, 3], [4, 5]]


def test_the_expired_and_the_abandoned_never_run() -> None:
    device = Device(held=True)

    async def story(batcher: MicroBatcher) -> None:
        running = begun(batcher, 1)
        await until(device)
        late = begun(batcher, 2, deadline=time.monotonic() + 0.02)
        gone = begun(batcher, 3)
        stays = begun(batcher, 4, deadline=time.monotonic() + 60)
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(Expired, match=LATE):
            await late
        assert batcher._queues["score"].rows == 1
        device.open.set()
        assert (await running)["out"] == [2]
        assert (await stays)["out"] == [8]

    told = play(device, story, Limits())
    assert device.ran == [[1], [4]]
    assert sorted(told.drops) == ["abandoned", "expired"]


def test_a_deadline_that_passes_during_the_run_is_kept() -> None:
    device = Device(held=True)

    async def story(batcher: MicroBatcher) -> None:
        started = time.monotonic()
        with pytest.raises(Expired, match=LATE):
            await batcher.ask("score", rows(1), deadline=started + 0.05)
        assert time.monotonic() - started < 5
        device.open.set()
        assert (await batcher.ask("score", rows(2)))["out"] == [4]

    play(device, story, Limits())


@pytest.mark.parametrize(
    "limits", [Limits(queue_rows=3), Limits(queue_bytes=24)], ids=["rows bound", "bytes bound"]
)
def test_a_full_queue_turns_away_at_once(limits: Limits) -> None:
    device = Device(held=True)

    async def story(batcher: MicroBatcher) -> None:
        asked = [begun(batcher, *range(9))]
        await until(device)
        asked.append(begun(batcher, 1, 2, 3))
        await asyncio.sleep(0)
        message = "3 rows wait already; send again after a while"
        with pytest.raises(Overloaded, match=f"^{re.escape(message)}$") as caught:
            await batcher.ask("score", rows(4))
        assert caught.value.retry_after == 1
        assert not asked[0].done()
        device.open.set()
        await asyncio.gather(*asked)
        await batcher.ask("score", rows(4))

    assert play(device, story, limits).drops == ["overloaded"]


def test_what_could_not_be_answered_in_time_is_turned_away_at_once() -> None:
    device = Device(held=True)

    async def story(batcher: MicroBatcher) -> None:
        batcher._queues["score"] = queue = _queue(row_seconds=0.5)
        asked = [begun(batcher, *range(16))]
        await until(device)
        asked.append(begun(batcher, *range(16)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await batcher.ask("score", rows(1), deadline=time.monotonic() + 5)
        assert caught.value.retry_after == 8
        device.open.set()
        await asyncio.gather(*asked)
        assert queue.row_seconds < 0.5

    play(device, story, Limits())


def _queue(row_seconds: float) -> Any:
    from serving.service.microbatch import _Queue

    return _Queue("score", row_seconds=row_seconds)


def test_slow_rows_run_in_small_batches() -> None:
    device = Device()

    async def story(batcher: MicroBatcher) -> None:
        batcher._queues["score"] = _queue(row_seconds=0.01)
        await batcher.ask("score", rows(*range(64)))

    play(device, story, Limits())
    assert len(device.ran[0]) == 16


def test_a_failed_run_fails_its_requests_and_no_other() -> None:
    def fragile(entry: str, how: Hashable, given: Rows) -> Feeds:
        if (given[0] < 0).any():
            raise RuntimeError("the device broke")
        return {"out": given[0]}

    async def story(batcher: MicroBatcher) -> None:
        values = np.arange(40.0)
        values[3] = -1
        with pytest.raises(RuntimeError, match=r"^the device broke$"):
            await batcher.ask("score", (values,))
        assert (await batcher.ask("score", rows(5)))["out"] == [5]

    play(fragile, story, Limits(batch_rows=16))


def test_a_batch_waits_for_company_as_long_as_it_is_told() -> None:
    device = Device()

    async def story(batcher: MicroBatcher) -> None:
        first = begun(batcher, 1)
        await asyncio.sleep(0.01)
        await asyncio.gather(first, begun(batcher, 2))
        started = time.monotonic()
        await batcher.ask("score", rows(*range(32)))
        assert time.monotonic() - started < 0.1

    play(device, story, Limits(batch_rows=32, batch_wait=0.15))
    assert device.ran[0] == [1, 2]
