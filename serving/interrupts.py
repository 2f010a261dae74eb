"""Ctrl-C and SIGTERM wait for what must not be cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put an interrupt off until the block is done; a second one is not put off.

    An exception in the middle of a transaction leaves a database locked.
    """
    if threading.current_thread() is not threading.main_thread():  # Python's handlers run in the main one
        yield
        return
    waiting: list[int] = []
    before: dict[int, Any] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        if waiting and callable(before[number]):
            before[number](number, frame)
        waiting.append(number)

    try:
        for number in INTERRUPTS:
            before[number] = signal.signal(number, hold)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
    if waiting:
        signal.raise_signal(waiting[0])
