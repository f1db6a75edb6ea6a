"""How many connections are held and how slow they may be: what a web server needs and uvicorn leaves to a proxy.

A client that does not send its request's head in time gets 408 and is closed, one that does not read its answer is
dropped: its turn then ends as after any disconnect. Bodies have their own deadline (`body_limit.py`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import resource
import time
from collections import Counter
from typing import Any, ClassVar

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from hope_server.api.errors import HeadersTooLarge, RequestTimeout, error_object
from hope_server.api.middleware import MAX_HEADER_BYTES, MAX_HEADERS
from hope_server.errors import HopeError, InvalidRequest
from hope_server.settings import Settings
from hope_server.telemetry import log_event

__all__ = ["Door", "raise_file_limit", "server_config"]

_BACKLOG = 512
_FILES_BESIDE = 256
_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
}


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Return how uvicorn serves `app`: its own logging is off, and connections go through a Door."""
    protocol = type("GuardedProtocol", (_GuardedProtocol,), {"door": Door(settings)})
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]  # call_later takes fractions too
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
        # Nothing here goes by a caller's address but the count of connections, and anyone can write X-Forwarded-For.
        proxy_headers=False,
    )


def raise_file_limit(settings: Settings) -> None:
    """Let the process open as many files as its connections need, as far as the system allows."""
    wanted = settings.max_connections + _FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        allowed = soft
    if allowed < wanted:
        log_event("few_files_allowed", {"allowed": allowed, "wanted": wanted}, logging.WARNING)


class _TooManyConnections(HopeError):
    code = "overloaded"


class Door:
    """Counts the connections of one server and looks after the slow ones."""

    def __init__(self, settings: Settings) -> None:
        self.max_connections = settings.max_connections
        self.max_per_address = settings.max_connections_per_address
        self.head_seconds = settings.request_timeout_seconds
        self.write_seconds = settings.write_timeout_seconds
        self._inside: set[_GuardedProtocol] = set()
        self._per_address: Counter[str] = Counter()
        self._round: asyncio.TimerHandle | None = None
        self._round_seconds = min(1.0, self.head_seconds / 4, self.write_seconds / 4)

    def enter(self, connection: _GuardedProtocol, address: str) -> bool:
        """Let a connection in, unless there are too many, of all or of its address."""
        if len(self._inside) >= self.max_connections or self._per_address[address] >= self.max_per_address:
            return False
        self._inside.add(connection)
        self._per_address[address] += 1
        if self._round is None:
            self._round = asyncio.get_running_loop().call_later(self._round_seconds, self._look)
        return True

    def leave(self, connection: _GuardedProtocol, address: str) -> None:
        """Forget a connection that ended."""
        if connection in self._inside:
            self._inside.discard(connection)
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]

    def _look(self) -> None:
        now = time.monotonic()
        for connection in list(self._inside):
            connection.look(now)
        running = asyncio.get_running_loop()
        self._round = running.call_later(self._round_seconds, self._look) if self._inside else None


class _GuardedProtocol(H11Protocol):
    """One connection, with deadlines."""

    door: ClassVar[Door]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._address = ""
        # Since when a request's head is awaited, and since when nothing could be written; monotonic seconds.
        self._awaited_since: float | None = None
        self._stuck_since: float | None = None
        self._num_lines = 0
        self._last_bytes = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let the connection in, or tell it to come back."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._awaited_since = time.monotonic()
        if not self.door.enter(self, self._address):
            self._refuse(429, _TooManyConnections("too many connections are open; close some, and retry in 1 s"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.door.leave(self, self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the clock of the head runs from its first one."""
        if self.transport.is_closing():
            return
        if not self._is_serving():
            if self._awaited_since is None:
                self._awaited_since = time.monotonic()
            if self._is_head_too_large(data):
                self._refuse(431, HeadersTooLarge(f"the request's head has more than {MAX_HEADERS} lines; send fewer"))
                return
        super().data_received(data)
        if self._is_serving():
            self._awaited_since, self._num_lines, self._last_bytes = None, 0, b""

    def _is_head_too_large(self, data: bytes) -> bool:
        """Count lines before they are parsed, which costs a thousand times more; what follows the head is left out."""
        joined = self._last_bytes + data
        end = joined.find(b"\r\n\r\n")
        self._num_lines += joined.count(b"\n", len(self._last_bytes), len(joined) if end < 0 else end)
        self._last_bytes = joined[-3:]
        return self._num_lines > MAX_HEADERS + 1

    def pause_writing(self) -> None:
        """Note that the client does not read as fast as is written."""
        self._stuck_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that the client goes on reading."""
        self._stuck_since = None
        super().resume_writing()

    def look(self, now: float) -> None:
        """Close the connection if it is over time."""
        if self.transport.is_closing():
            # What is still to be written may wait for a client that does not read.
            self._stuck_since = self._stuck_since or now
        if self._stuck_since is not None and now - self._stuck_since >= self.door.write_seconds:
            self.transport.abort()
        elif self._awaited_since is not None and now - self._awaited_since >= self.door.head_seconds:
            seconds = self.door.head_seconds
            self._refuse(408, RequestTimeout(f"no complete request came in {seconds:g} s; send it without pauses"))

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, InvalidRequest(f"{msg} Its head must be HTTP/1.1 of at most {MAX_HEADER_BYTES:,} bytes."))

    def _is_serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, error: HopeError) -> None:
        """Say why and close; to a client that said nothing yet only close, as it would take it for an answer later."""
        if self.transport.is_closing():
            return
        self._awaited_since = None
        is_answered = self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or (
            self.cycle is not None and self._is_serving() and self.cycle.response_started
        )
        if not is_answered and (status != 408 or self.conn.trailing_data[0]):
            body = json.dumps(error_object(error)).encode()
            retry = "Retry-After: 1" if status == 429 else "x-should-retry: false"
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n{retry}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
