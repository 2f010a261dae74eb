"""Work that takes long goes to a thread, so that other requests are answered meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Bytes to read or cells to write above which a hop to a thread costs less than the wait of others.
INLINE_BYTES = 32_768
INLINE_BINARY = 2**20
INLINE_CELLS = 4_096


async def aside(large: bool, work: Callable[[], T]) -> T:
    """Run work here, or in a thread if it is large."""
    return await asyncio.to_thread(work) if large else work()
