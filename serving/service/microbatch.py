"""Many small requests as few large runs: a bounded queue per entry point, emptied as the device comes free.

Whenever a worker is free it takes what waits, up to the largest batch; nobody waits for others to come unless
a wait is set. A large request is cut, and after each piece the next in the queue has its turn. Who gave
up or came too late is left out before the run. Rows never mix: each request gets its own rows of
the outputs back, whatever ran beside them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from serving.service.refusals import Expired, Overloaded
from vae_anomaly.batches import PAD_TO, Feeds
from vae_anomaly.schema import Array

Rows = tuple[Array, ...]
Compute = Callable[[str, Hashable, Rows], Feeds]

# Longest that one run should keep a worker from the others, seconds; batches shrink to it.
RUN_SECONDS = 0.25
# Weight of the newest run in the running mean of a row's cost.
NEWEST = 0.2
LONGEST_RETRY = 60


@dataclass(frozen=True)
class Limits:
    """How much runs and waits at once.

    Attributes
    ----------
    batch_rows : int
        Largest batch; 1 runs every row alone.
    batch_wait : float
        Seconds that a batch waits for company while it is not full.
    queue_rows, queue_bytes : int
        What may wait at one entry point; a request that finds nobody waiting always may.
    """

    batch_rows: int = 256
    batch_wait: float = 0.0
    queue_rows: int = 20_000
    queue_bytes: int = 128 * 2**20


class Watch(Protocol):
    """Who is told what happens."""

    def waiting(self, entry: str, rows: int) -> None:
        """So many rows wait."""

    def ran(self, entry: str, requests: int, rows: int, seconds: float) -> None:
        """A batch is through."""

    def waited(self, entry: str, seconds: float) -> None:
        """A request begins to run."""

    def dropped(self, entry: str, why: str) -> None:
        """A request gets no answer: overloaded, expired or abandoned."""


@dataclass(eq=False, slots=True)
class _Request:
    rows: Rows
    how: Hashable
    future: asyncio.Future[Feeds]
    arrived: float
    count: int
    size: int
    taken: int = 0
    missing: int = 1
    parts: list[tuple[int, Feeds]] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.count - self.taken


@dataclass(eq=False, slots=True)
class _Queue:
    """What waits at one entry point."""

    entry: str
    waiting: deque[_Request] = field(default_factory=deque)
    rows: int = 0
    size: int = 0
    row_seconds: float = 0.0


@dataclass(eq=False, slots=True)
class _Batch:
    queue: _Queue
    how: Hashable
    pieces: list[tuple[_Request, int, int]]

    @property
    def count(self) -> int:
        return sum(stop - start for _, start, stop in self.pieces)

    def rows(self) -> Rows:
        """The pieces end to end; not copied where there is but one."""
        cut = [[part[start:stop] for part in request.rows] for request, start, stop in self.pieces]
        if len(cut) == 1:
            return tuple(cut[0])
        return tuple(np.concatenate(parts) for parts in zip(*cut, strict=True))


class MicroBatcher:
    """Runs requests in batches on a few threads.

    Used from one event loop; only ``compute`` runs elsewhere.

    Parameters
    ----------
    compute : callable
        ``(entry, how, rows) -> outputs``: arrays with the rows first, in and out.
    workers : int
        Runs at once.
    limits : Limits
    watch : Watch, optional
    """

    def __init__(self, compute: Compute, workers: int, limits: Limits, watch: Watch | None = None) -> None:
        self.limits = limits
        self._compute, self._watch = compute, watch
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="runs")
        self._free = workers
        self._queues: dict[str, _Queue] = {}
        self._wakened = False
        self._alarm: asyncio.TimerHandle | None = None

    async def ask(self, entry: str, rows: Rows, how: Hashable = None, deadline: float | None = None) -> Feeds:
        """The outputs for the rows of one request.

        Parameters
        ----------
        entry : str
        rows : tuple of ndarray
            Of one length.
        how : hashable
            Only requests that are equal in it share a run.
        deadline : float, optional
            On `time.monotonic`'s clock.

        Raises
        ------
        Overloaded
            If too much waits, or what waits takes longer than the deadline leaves.
        Expired
            If the deadline passes first.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        size = sum(part.nbytes for part in rows)
        request = _Request(rows, how, loop.create_future(), now, len(rows[0]), size)
        queue = self._queues.setdefault(entry, _Queue(entry))
        self._admit(queue, request, deadline)
        timer = None if deadline is None else loop.call_later(max(deadline - now, 0), _expire, request.future)
        try:
            return await request.future
        except BaseException as error:
            self._forget(queue, request)
            if isinstance(error, Expired | asyncio.CancelledError):
                self._tell_dropped(entry, "expired" if isinstance(error, Expired) else "abandoned")
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _admit(self, queue: _Queue, request: _Request, deadline: float | None) -> None:
        seconds = queue.row_seconds * queue.rows
        full = queue.rows + request.count > self.limits.queue_rows or (
            queue.size + request.size > self.limits.queue_bytes
        )
        late = deadline is not None and request.arrived + seconds > deadline
        if queue.rows and (full or late):
            self._tell_dropped(queue.entry, "overloaded")
            raise Overloaded(
                f"{queue.rows} rows wait already; send again after a while",
                min(max(math.ceil(seconds), 1), LONGEST_RETRY),
            )
        queue.waiting.append(request)
        queue.rows += request.count
        queue.size += request.size
        self._tell_waiting(queue)
        if self._free and queue.rows >= PAD_TO:
            self._dispatch()  # a run is full: nothing is gained by waiting for the rest
        else:
            self._wake()

    def _forget(self, queue: _Queue, request: _Request) -> None:
        """Take what of a request still waits out of the count; its place in the queue is passed over."""
        queue.rows -= request.left
        queue.size -= request.size
        request.taken, request.size = request.count, 0
        self._tell_waiting(queue)

    def _tell_waiting(self, queue: _Queue) -> None:
        if self._watch is not None:
            self._watch.waiting(queue.entry, queue.rows)

    def _tell_dropped(self, entry: str, why: str) -> None:
        if self._watch is not None:
            self._watch.dropped(entry, why)

    def _wake(self) -> None:
        """See to the queues once this turn of the event loop has read all that came with it."""
        if not self._wakened:
            self._wakened = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _ring(self) -> None:
        self._alarm = None
        self._dispatch()

    def _dispatch(self) -> None:
        self._wakened, started = False, True
        while self._free and started:
            started = any([self._serve(queue) for queue in list(self._queues.values())])

    def _serve(self, queue: _Queue) -> bool:
        """Start one batch of a queue, if there is one and someone to run it."""
        if not self._free or not queue.waiting:
            return False
        if (young := self._still_young(queue)) > 0:
            self._alarm = self._alarm or asyncio.get_running_loop().call_later(young, self._ring)
            return False
        if (batch := self._take(queue)) is None:
            return False
        # To the end of the line: entry points take turns.
        self._queues[queue.entry] = self._queues.pop(queue.entry)
        self._start(batch)
        return True

    def _still_young(self, queue: _Queue) -> float:
        """Seconds that the batch of a queue may yet wait for company."""
        if not self.limits.batch_wait or queue.rows >= self.limits.batch_rows:
            return 0.0
        return queue.waiting[0].arrived + self.limits.batch_wait - time.monotonic()

    def _room(self, queue: _Queue) -> int:
        rows = most = self.limits.batch_rows
        if queue.row_seconds:
            rows = min(rows, int(RUN_SECONDS / queue.row_seconds))
        rows = min(rows, -(-queue.rows // (self._free * PAD_TO)) * PAD_TO)
        return max(rows - rows % PAD_TO, min(most, PAD_TO))

    def _take(self, queue: _Queue) -> _Batch | None:
        """The next batch: requests in order as long as they fit and may share a run."""
        room, batch = self._room(queue), _Batch(queue, None, [])
        while queue.waiting and (room or not batch.pieces):
            request = queue.waiting[0]
            if request.future.done():
                queue.waiting.popleft()
                continue
            if batch.pieces and request.how != batch.how:
                break
            queue.waiting.popleft()
            batch.how = request.how
            room -= self._cut(queue, request, batch, room)
        if not batch.pieces:
            return None
        self._tell_waiting(queue)
        return batch

    def _cut(self, queue: _Queue, request: _Request, batch: _Batch, room: int) -> int:
        """Move up to ``room`` rows of a request into a batch; the rest goes to the end of the queue."""
        count = min(room, request.left)
        if not request.taken and self._watch is not None:
            self._watch.waited(queue.entry, time.monotonic() - request.arrived)
        batch.pieces.append((request, request.taken, request.taken + count))
        request.taken += count
        queue.rows -= count
        if request.left:
            request.missing += 1
            queue.waiting.append(request)
        else:
            queue.size -= request.size
            request.size = 0
        return count

    def _start(self, batch: _Batch) -> None:
        self._free -= 1
        loop = asyncio.get_running_loop()

        def done(future: Future[tuple[Feeds, float]]) -> None:
            loop.call_soon_threadsafe(self._finish, batch, future)

        self._pool.submit(self._run, batch).add_done_callback(done)

    def _run(self, batch: _Batch) -> tuple[Feeds, float]:
        started = time.perf_counter()
        out = self._compute(batch.queue.entry, batch.how, batch.rows())
        return out, time.perf_counter() - started

    def _finish(self, batch: _Batch, future: Future[tuple[Feeds, float]]) -> None:
        self._free += 1
        self._wake()
        queue = batch.queue
        if (error := future.exception()) is not None:
            for request, _, _ in batch.pieces:
                if not request.future.done():
                    request.future.set_exception(error)
            return
        out, seconds = future.result()
        count = batch.count
        cost = seconds / max(count, PAD_TO)
        queue.row_seconds += (cost - queue.row_seconds) * (NEWEST if queue.row_seconds else 1.0)
        if self._watch is not None:
            self._watch.ran(queue.entry, len(batch.pieces), count, seconds)
        _deliver(batch, out)

    def close(self) -> None:
        """End the threads once what runs is through."""
        self._pool.shutdown(wait=False)


def _deliver(batch: _Batch, out: Feeds) -> None:
    """Give every request its own rows."""
    place = 0
    for request, start, stop in batch.pieces:
        here = slice(place, place + stop - start)
        place = here.stop
        if request.future.done():
            continue
        mine = {name: values[here] for name, values in out.items()}
        request.missing -= 1
        request.parts.append((start, mine))
        if not request.missing:
            request.future.set_result(mine if len(request.parts) == 1 else _joined(request.parts))


def _joined(parts: list[tuple[int, Feeds]]) -> Feeds:
    ordered = [part for _, part in sorted(parts, key=lambda part: part[0])]
    return {name: np.concatenate([part[name] for part in ordered]) for name in ordered[0]}


def _expire(future: asyncio.Future[Feeds]) -> None:
    if not future.done():
        future.set_exception(Expired("the deadline passed before the answer was there; send less, or later"))
