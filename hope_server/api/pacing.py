"""Heavy work on the event loop, one piece at a time, and between two pieces twice as long a pause as the last one took.

Reading a large body takes some milliseconds in which nothing else is served. When many come at once, two thirds of the
time are left to everybody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["HEAVY_BYTES", "Pace"]

HEAVY_BYTES = 32 * 2**10
"""Bodies from this size on are read one after another."""


class Pace:
    """The turns that heavy pieces of work take."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._free_at = 0.0

    @asynccontextmanager
    async def turn(self, num_bytes: int) -> AsyncIterator[None]:
        """Enter when the work on `num_bytes` may be done: at once if they are few."""
        if num_bytes < HEAVY_BYTES:
            yield
            return
        async with self._lock:
            await asyncio.sleep(max(0.0, self._free_at - time.perf_counter()))
            started = time.perf_counter()
            try:
                yield
            finally:
                ended = time.perf_counter()
                self._free_at = ended + 2 * (ended - started)
