"""Counts every request by route and status, and traces it where traces are asked for; pure ASGI."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hope_server.api.scopes import OPEN_PATHS
from hope_server.telemetry import Metrics, Tracing, request_id, request_trace

__all__ = ["Observed"]

_UNTRACED = OPEN_PATHS | {"/metrics"}
_FAULT = 500
_UNAVAILABLE = 503


class Observed:
    """Surrounds everything that may refuse or answer a request; it needs the request's id."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status: int | None = None

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        trace = None
        if self.tracing is not None and scope["path"] not in _UNTRACED:
            trace = self.tracing.begin(scope["method"], Headers(scope=scope), request_id.get())
        token = request_trace.set(trace)
        try:
            await self.app(scope, receive, send_noted)
        except asyncio.CancelledError:
            # The server ends; who has had no answer is told so.
            status = status or _UNAVAILABLE
            raise
        finally:
            request_trace.reset(token)
            # The route's template, as a path holds session ids and whatever else a stranger types.
            route = getattr(scope.get("route"), "path", "unmatched")
            # Any other exception is answered further out.
            final = status or _FAULT
            self.metrics.requests.labels(route, str(final)).inc()
            if trace is not None:
                trace.end(route, final)
