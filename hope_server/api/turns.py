"""Reads one turn from the engine for one client: whole or piece by piece, and ends it when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from hope_server.api.errors import unexpected_error
from hope_server.api.wire import JsonResponse, memory_headers
from hope_server.engine.turn import SessionKey, TokenText, TurnEvent, TurnFinished
from hope_server.errors import HopeError
from hope_server.telemetry import TurnMeter, log_failure, turn_ledger

__all__ = ["TurnFeed", "acknowledgement", "closing", "collect", "unless_gone", "whole_answer"]

Result = TypeVar("Result")


class Acknowledging(Protocol):
    """The one thing that an answer which was sent needs of an engine."""

    def acknowledge(self, key: SessionKey, version: str | None) -> None:
        """Note that a turn's answer was sent whole."""


@runtime_checkable
class _Closable(Protocol):
    async def aclose(self) -> None: ...


@asynccontextmanager
async def closing(events: AsyncIterator[TurnEvent]) -> AsyncIterator[AsyncIterator[TurnEvent]]:
    """Close the engine's iterator, where it can be closed, at the end of the block."""
    try:
        yield events
    finally:
        if isinstance(events, _Closable):
            await events.aclose()


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
        self.is_client_gone = False
        self._pump: asyncio.Task[None] | None = asyncio.create_task(self._read())
        self._watch: asyncio.Task[None] | None = asyncio.create_task(self._end_with_client(receive))

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
        tasks = [task for task in (self._watch, self._pump) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A cancelled task keeps its frames, and these keep this feed: a ring that would hold the turn's state until
        # somebody looks for rings.
        self._watch = self._pump = None
        if not self._has_begun:
            # A task that is cancelled before its first step never reaches its own clean-up.
            self._meter.end("cancelled")
            if isinstance(self._events, _Closable):
                await self._events.aclose()

    async def _read(self) -> None:
        self._has_begun = True
        # Seen by what the engine does in this task, and in those that it starts.
        turn_ledger.set(self._meter.ledger)
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
            receipt, usage = finished.receipt, finished.usage
            if receipt is not None and receipt.replayed:
                self._meter.end("replayed")
            else:
                learned = 0 if receipt is None else receipt.tokens_learned
                self._meter.add_tokens(usage.prompt_tokens, usage.completion_tokens, learned)
                if receipt is not None:
                    self._meter.add_memory(receipt.restored_from, receipt.loss_before, receipt.steps)
                self._meter.end(finished.finish_reason)
            self._queue.put_nowait(finished)

    async def _forward(self) -> TurnFinished:
        """Queue every event but the terminal one, which is returned once the iterator is closed."""
        async with closing(self._events) as events:
            async for event in events:
                if isinstance(event, TurnFinished):
                    return event
                if isinstance(event, TokenText):
                    self._meter.first_text()
                self._queue.put_nowait(event)
        raise RuntimeError("the engine ended a turn without a terminal event")

    async def _end_with_client(self, receive: Receive) -> None:
        await _until_gone(receive)
        self.is_client_gone = True
        if self._pump is not None:
            self._pump.cancel()
        self._queue.put_nowait(ClientDisconnect())


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def collect(feed: TurnFeed, take: Callable[[TurnEvent], object] | None = None) -> TurnFinished:
    """Return a turn's end, after `take` had every event before it; closes the feed.

    Raises HopeError or ClientDisconnect.
    """
    async with feed:
        while True:
            event = await feed.next()
            if isinstance(event, TurnFinished):
                return event
            if event is not None and take is not None:
                take(event)


def acknowledgement(engine: Acknowledging, session: SessionKey | None) -> Callable[[TurnFinished], None]:
    """Return what to call with a turn's end once its answer was sent whole."""

    def acknowledge(finished: TurnFinished) -> None:
        receipt = finished.receipt
        if session is not None and receipt is not None and receipt.mode == "write":
            engine.acknowledge(session, receipt.version_after)

    return acknowledge


def whole_answer(
    content: Mapping[str, Any], finished: TurnFinished, on_sent: Callable[[TurnFinished], None]
) -> JsonResponse:
    """Return the response of a turn that is not streamed; `on_sent` is called once it was sent."""

    async def sent() -> None:
        on_sent(finished)

    return JsonResponse(content, headers=memory_headers(finished.receipt), background=BackgroundTask(sent))


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
