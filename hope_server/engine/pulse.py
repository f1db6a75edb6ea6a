"""Whether the store answers, asked now and then, so that a server that cannot reach it does not call itself ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from hope_server.errors import HopeError
from hope_server.telemetry import log_event

__all__ = ["Pulse"]

EVERY_SECONDS = 2.0
PATIENCE_SECONDS = 10.0
"""Longer than a failover takes: while a primary of many is replaced, a server goes on serving what the others hold."""


class Pulse:
    """Asks in a task of its own between `start` and `stop`. Used from one event loop."""

    def __init__(
        self,
        ping: Callable[[], Awaitable[None]],
        every_seconds: float = EVERY_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ping: returns when the store answers, raises HopeError when it does not. clock: seconds."""
        self._ping = ping
        self._every_seconds = every_seconds
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._answered_at = clock()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_felt(self) -> bool:
        """Whether the store answered within the time that is waited for it."""
        return self._clock() - self._answered_at <= self._patience_seconds

    def start(self) -> None:
        """Begin to ask; the store has just answered."""
        self._answered_at = self._clock()
        self._task = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _beat(self) -> None:
        was_felt = True
        while True:
            await asyncio.sleep(self._every_seconds)
            with suppress(HopeError):
                await self._ping()
                self._answered_at = self._clock()
            if self.is_felt is not was_felt:
                was_felt = self.is_felt
                log_event("store_reached" if was_felt else "store_lost", {})
