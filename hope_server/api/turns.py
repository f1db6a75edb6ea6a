"""Reads one turn from the engine for one client: whole or piece by piece, and ends it when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Protocol, TypeVar, runtime_checkable

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from hope_server.api.errors import unexpected_error
from hope_server.engine.turn import TokenText, TurnEvent, TurnFinished
from hope_server.errors import HopeError
from hope_server.telemetry import TurnMeter, log_failure

__all__ = ["TurnFeed", "collect", "unless_gone"]

Result = TypeVar("Result")


@runtime_checkable
class _Closable(Protocol):
    async def aclose(self) -> None: ...


class TurnFeed:
    """The events of one turn, read ahead by one task of its own.

    That task alone touches the engine's iterator: it is cancelled, and the iterator closed, the moment the client
    disconnects, whatever the response is doing then. Use it as an async context manager, or call `aclose`.
    """

    def __init__(self, events: AsyncIterator[TurnEvent], receive: Receive, meter: TurnMeter) -> None:
        """Start reading `events`; `receive` is the request's, its body already read."""
        self._queue: asyncio.Queue[TurnEvent | HopeError | ClientDisconnect] = asyncio.Queue()
        self._meter = meter
        self._events = events
        self._has_begun = False
        self._pump = asyncio.create_task(self._read())
        self._watch = asyncio.create_task(self._end_with_client(receive))

    async def __aenter__(self) -> TurnFeed:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def next(self, timeout_seconds: float | None = None) -> TurnEvent | None:
        """Return the next event, or None if none came in `timeout_seconds` (None waits for ever).

        Raises the HopeError that ended the turn, or ClientDisconnect.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                event = await self._queue.get()
        except TimeoutError:
            return None
        if isinstance(event, Exception):
            raise event
        return event

    async def aclose(self) -> None:
        """End the turn if it still runs, and wait until the engine's iterator is closed."""
        for task in (self._watch, self._pump):
            task.cancel()
        await asyncio.gather(self._watch, self._pump, return_exceptions=True)
        if not self._has_begun:
            # A task that is cancelled before its first step never reaches its own clean-up.
            self._meter.end("cancelled")
            if isinstance(self._events, _Closable):
                await self._events.aclose()

    async def _read(self) -> None:
        self._has_begun = True
        try:
            finished = await self._forward()
        except asyncio.CancelledError:
            self._meter.end("cancelled")
            raise
        except HopeError as exc:
            self._meter.end(exc.code)
            self._queue.put_nowait(exc)
        except Exception as exc:  # noqa: BLE001  the top of a turn: whatever it is, one terminal event goes out
            log_failure("turn_failed", exc)
            error = unexpected_error()
            self._meter.end(error.code)
            self._queue.put_nowait(error)
        else:
            learned = finished.receipt.tokens_learned if finished.receipt else 0
            self._meter.add_tokens(finished.usage.prompt_tokens, finished.usage.completion_tokens, learned)
            self._meter.end(finished.finish_reason)
            self._queue.put_nowait(finished)

    async def _forward(self) -> TurnFinished:
        """Queue every event but the terminal one, which is returned once the iterator is closed."""
        async with AsyncExitStack() as stack:
            if isinstance(self._events, _Closable):
                stack.push_async_callback(self._events.aclose)
            async for event in self._events:
                if isinstance(event, TurnFinished):
                    return event
                if isinstance(event, TokenText):
                    self._meter.first_text()
                self._queue.put_nowait(event)
        raise RuntimeError("the engine ended a turn without a terminal event")

    async def _end_with_client(self, receive: Receive) -> None:
        await _until_gone(receive)
        self._pump.cancel()
        self._queue.put_nowait(ClientDisconnect())


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def collect(feed: TurnFeed) -> tuple[str, TurnFinished]:
    """Return the whole text of a turn and its end; closes the feed. Raises HopeError or ClientDisconnect."""
    pieces: list[str] = []
    async with feed:
        while True:
            event = await feed.next()
            if isinstance(event, TokenText):
                pieces.append(event.text)
            elif isinstance(event, TurnFinished):
                return "".join(pieces), event


async def unless_gone(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """Return what `work` returns, or cancel it and raise ClientDisconnect when the client goes away first."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
