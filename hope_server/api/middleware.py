"""What surrounds every request, as pure ASGI: its id, its log line, the last net for faults, and the ready gate."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hope_server.api.errors import EngineNotStarted, HeadersTooLarge, Loading, error_response, unexpected_error
from hope_server.api.scopes import OPEN_PATHS
from hope_server.errors import HopeError, ShuttingDown
from hope_server.telemetry import log_event, log_failure, request_id

__all__ = ["MAX_HEADERS", "MAX_HEADER_BYTES", "ReadyGate", "RequestContext", "Startup", "shutting_down"]

_QUIET = OPEN_PATHS | {"/metrics"}
MAX_HEADERS = 100
"""Headers that a request may have; clients send a dozen or two."""

MAX_HEADER_BYTES = 32 * 2**10
"""How long path, query and headers may be together."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def shutting_down() -> ShuttingDown:
    """Return the error of a request that the server's end cut off."""
    return ShuttingDown("the server is shutting down and kept nothing of this request; send it again")


class RequestContext:
    """Gives every request an id, refuses heaps of headers, answers unexpected faults, and writes one log line."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        current = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        token = request_id.set(current)
        started = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = current
            await send(message)

        try:
            if (fault := _header_fault(scope)) is not None:
                await error_response(fault)(scope, receive, send_with_id)
            else:
                await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # uvicorn cancels what outlives the drain time.
            if status is None:
                await error_response(shutting_down())(scope, receive, send_with_id)
            raise
        except Exception as exc:  # the top of a request: whatever it is, the client gets an answer
            log_failure("request_failed", exc)
            if status is not None:
                raise
            await error_response(unexpected_error())(scope, receive, send_with_id)
        finally:
            _log_request(scope, status, time.perf_counter() - started)
            request_id.reset(token)


def _header_fault(scope: Scope) -> HeadersTooLarge | None:
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS:
        return HeadersTooLarge(f"the request has {len(headers):,} headers, the limit is {MAX_HEADERS}; send fewer")
    num_bytes = sum(len(name) + len(value) for name, value in headers) + len(scope.get("raw_path") or b"")
    num_bytes += len(scope["query_string"])
    if num_bytes > MAX_HEADER_BYTES:
        return HeadersTooLarge(f"path and headers have {num_bytes:,} bytes, the limit is {MAX_HEADER_BYTES:,}")
    return None


def _log_request(scope: Scope, status: int | None, seconds: float) -> None:
    # The route's template, as a path holds session ids and whatever else a stranger types.
    route = getattr(scope.get("route"), "path", "unmatched")
    key = scope.get("state", {}).get("key")
    # Which key, by its public id, so that what a leaked key did can be found.
    fields = {
        "method": scope["method"],
        "route": route,
        "status": status,
        "seconds": round(seconds, 4),
        "key": None if key is None else key.id,
    }
    log_event("request", fields, logging.DEBUG if route in _QUIET else logging.INFO)


class Startup:
    """How far the engine's start has come; written by the lifespan, read by the gate."""

    def __init__(self) -> None:
        self.has_finished = False
        self.error: HopeError | None = None

    def refusal(self) -> HopeError:
        """Return why an engine that is not ready serves nothing."""
        if self.error is not None:
            return EngineNotStarted(self.error.message)
        return shutting_down() if self.has_finished else Loading()

    @property
    def status(self) -> str:
        """One word for GET /ready while the engine is not ready."""
        if self.error is not None:
            return "failed"
        return "stopping" if self.has_finished else "loading"


class HasReady(Protocol):
    """The one thing that the gate asks of an engine."""

    @property
    def is_ready(self) -> bool:
        """Whether turns are taken."""


class ReadyGate:
    """Answers 503 on all routes but /health and /ready while the engine is not ready."""

    def __init__(self, app: ASGIApp, engine: HasReady, startup: Startup) -> None:
        self.app = app
        self.engine = engine
        self.startup = startup

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self.engine.is_ready:
            await error_response(self.startup.refusal())(scope, receive, send)
            return
        await self.app(scope, receive, send)
