"""Server-sent events: one stream per turn, pings through its silences, exactly one terminal event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hope_server.api.errors import error_object
from hope_server.api.middleware import shutting_down
from hope_server.api.turns import TurnFeed
from hope_server.api.wire import dump
from hope_server.engine.turn import Replay, TurnEvent, TurnFinished
from hope_server.errors import HopeError

__all__ = ["PING_SECONDS", "PLAIN", "Dialect", "EventStream", "StreamWriter", "spell_data", "start_stream"]

PING_SECONDS = 10.0
"""Longest silence of a stream; proxies cut connections that say nothing for long."""

OnSent = Callable[[TurnFinished], None]

# A client that stopped reading cannot hold up the server's end.
_LAST_WORD_SECONDS = 1.0
_PING = b": ping\n\n"
_DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Content-Type": "text/event-stream"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a kind of stream spells an object, and what it says of an error that ends it."""

    spell: Callable[[Mapping[str, Any]], bytes]
    failure: Callable[[HopeError], Iterable[Mapping[str, Any]]]


def spell_data(payload: Mapping[str, Any]) -> bytes:
    """Return an event that has data only."""
    return b"data: " + dump(payload) + b"\n\n"


def _plain_failure(error: HopeError) -> Iterable[Mapping[str, Any]]:
    return (error_object(error),)


PLAIN = Dialect(spell_data, _plain_failure)
"""OpenAI's completions: data only, and the error's own object."""


class StreamWriter(Protocol):
    """Turns the engine's events into the objects of one kind of stream."""

    def objects(self, event: TurnEvent) -> Iterable[Mapping[str, Any]]:
        """Return the objects that `event` becomes, none if the stream leaves it out."""


async def start_stream(feed: TurnFeed, writer: StreamWriter, on_sent: OnSent, dialect: Dialect = PLAIN) -> EventStream:
    """Return the response of a streamed turn; it closes `feed`, and calls `on_sent` once all of it was sent.

    Waits for the first event, but no longer than PING_SECONDS, so that a turn that is refused is answered with
    its HTTP status, which is what clients retry by. Raises HopeError or ClientDisconnect.
    """
    async with AsyncExitStack() as stack:
        stack.push_async_callback(feed.aclose)
        first = await feed.next(PING_SECONDS)
        stack.pop_all()
    return EventStream(feed, writer, first, on_sent, dialect)


class EventStream(Response):
    """The body: events, `[DONE]`; or up to an error event, after which nothing comes."""

    def __init__(
        self, feed: TurnFeed, writer: StreamWriter, first: TurnEvent | None, on_sent: OnSent, dialect: Dialect = PLAIN
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        if isinstance(first, Replay):
            self.headers["x-memory-replayed"] = "true"
        self._feed = feed
        self._writer = writer
        self._first = first
        self._on_sent = on_sent
        self._dialect = dialect
        self._finished: TurnFinished | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in self._chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            # Asked before the last message, after which every client counts as gone.
            is_client_here = not self._feed.is_client_gone
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            if self._finished is not None and is_client_here:
                self._on_sent(self._finished)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            # uvicorn cancels what outlives the drain time; the client is still there and is owed an end.
            await self._feed.aclose()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORD_SECONDS):
                    last = self._last_words(shutting_down())
                    await send({"type": "http.response.body", "body": last, "more_body": False})
            raise
        finally:
            await self._feed.aclose()

    async def _chunks(self) -> AsyncIterator[bytes]:
        event = self._first
        while not isinstance(event, TurnFinished):
            if event is None:
                yield _PING
            else:
                for each in self._writer.objects(event):
                    yield self._dialect.spell(each)
            try:
                event = await self._feed.next(PING_SECONDS)
            except HopeError as exc:
                yield self._last_words(exc)
                return
        for each in self._writer.objects(event):
            yield self._dialect.spell(each)
        yield _DONE
        self._finished = event

    def _last_words(self, error: HopeError) -> bytes:
        return b"".join(map(self._dialect.spell, self._dialect.failure(error)))
