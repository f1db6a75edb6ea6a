"""One turn at a time per session: a bounded first-come-first-served gate. Safety does not rest on it, the store's
compare-and-swap gives that.
"""

from __future__ import annotations

import asyncio
from collections import deque

from hope_server.engine.turn import SessionKey
from hope_server.errors import SessionBusy


class SessionGate:
    """Queues turns of one session behind each other. Used from one event loop."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._queues: dict[SessionKey, deque[asyncio.Future[None]]] = {}

    async def enter(self, key: SessionKey) -> None:
        """Wait for the session's turn. Raises SessionBusy if too many wait already."""
        waiting = self._queues.get(key)
        if waiting is None:
            self._queues[key] = deque()
            return
        if len(waiting) >= self._max_queued:
            raise SessionBusy(key.session_id, 1.0)
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(ticket)
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled():
                self.leave(key)
            elif ticket in waiting:
                # `leave` may have passed over the cancelled ticket already.
                waiting.remove(ticket)
            raise

    def leave(self, key: SessionKey) -> None:
        """Let the next turn in."""
        waiting = self._queues[key]
        while waiting:
            ticket = waiting.popleft()
            if not ticket.done():
                ticket.set_result(None)
                return
        del self._queues[key]
