"""Who is asking: a Bearer key names a tenant and what it may do; every session id is scoped by the tenant.

Nothing is open but /health and /ready once a key exists. A key that is revoked while a request of it runs ends that
request within a second, also in the middle of a stream.
"""

from __future__ import annotations

import asyncio
from contextvars import Context, ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hope_server.api.errors import InsufficientScope, InvalidApiKey, error_object, error_response
from hope_server.api.key_book import OPEN_TENANT, KeyBook, tenant_of_key
from hope_server.api.key_registry import KeyRecord
from hope_server.api.scopes import ANY_KEY, OPEN_PATHS, needed_scope
from hope_server.api.wire import dump
from hope_server.errors import HopeError

__all__ = ["OPEN_TENANT", "KeyAuth", "current_key", "tenant_of_key"]

current_key: ContextVar[KeyRecord | None] = ContextVar("hope_current_key", default=None)
"""The record of the key that the current request was sent with."""

_LOOK_SECONDS = 0.25
_MAX_KEY_BYTES = 512


class KeyAuth:
    """Puts the caller's key and tenant into the request's state, or answers 401 or 403."""

    def __init__(self, app: ASGIApp, book: KeyBook) -> None:
        self.app = app
        self._book = book
        self._open: set[_Request] = set()
        self._watch: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        needed = needed_scope(scope)
        try:
            record = self._admit(scope, needed)
        except HopeError as exc:
            await error_response(exc)(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["tenant"], state["key"] = record.tenant, record
        token = current_key.set(record)
        try:
            await self._serve(scope, _Request(record, needed, receive, send))
        finally:
            current_key.reset(token)

    def _admit(self, scope: Scope, needed: str) -> KeyRecord:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        # Of two keys, a proxy before us may have looked at the other one.
        record = self._book.find(_bearer(given[0]) if len(given) == 1 else None)
        if record is None:
            raise InvalidApiKey
        if needed != ANY_KEY and needed not in record.scopes:
            raise InsufficientScope(needed)
        return record

    async def _serve(self, scope: Scope, request: _Request) -> None:
        if self._book.is_open:
            await self.app(scope, request.outer_receive, request.outer_send)
            return
        self._open.add(request)
        if self._watch is None or self._watch.done():
            # In a context of its own: what it logs belongs to no request.
            self._watch = asyncio.create_task(self._end_revoked(), context=Context())
        try:
            await self.app(scope, request.receive, request.send)
        finally:
            self._open.discard(request)
            await request.finish(scope)

    async def _end_revoked(self) -> None:
        """End the open requests of keys that are good no more; runs while any are open."""
        while self._open:
            await asyncio.sleep(_LOOK_SECONDS)
            for request in list(self._open):
                if not self._book.is_still_good(request.record, request.needed):
                    request.revoke()


def _bearer(header: bytes) -> bytes | None:
    scheme, _, given = header.partition(b" ")
    return given.strip() if scheme.lower() == b"bearer" and len(given) <= _MAX_KEY_BYTES else None


class _Request:
    """One request of a key that can be revoked: then the app sees its client go, and the client is told why."""

    def __init__(self, record: KeyRecord, needed: str, receive: Receive, send: Send) -> None:
        self.record = record
        self.needed = needed
        self.outer_receive = receive
        self.outer_send = send
        self._revoked = asyncio.Event()
        self._has_started = False
        self._is_stream = False
        self._is_complete = False

    def revoke(self) -> None:
        """End the request."""
        self._revoked.set()

    async def receive(self) -> Message:
        """Return what comes of the client; once the key is revoked, that it is gone."""
        if self._revoked.is_set():
            return {"type": "http.disconnect"}
        receiving = asyncio.ensure_future(self.outer_receive())
        revoking = asyncio.ensure_future(self._revoked.wait())
        try:
            await asyncio.wait({receiving, revoking}, return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else {"type": "http.disconnect"}
        finally:
            receiving.cancel()
            revoking.cancel()

    async def send(self, message: Message) -> None:
        """Pass on what the app says, as long as the key is good."""
        if self._revoked.is_set() and not self._is_complete:
            return
        if message["type"] == "http.response.start":
            self._has_started = True
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._is_stream = any(value.startswith(b"text/event-stream") for value in kinds)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._is_complete = True
        await self.outer_send(message)

    async def finish(self, scope: Scope) -> None:
        """Tell the client of a revoked key what happened, where its answer is not complete."""
        if not self._revoked.is_set() or self._is_complete:
            return
        if not self._has_started:
            await error_response(InvalidApiKey())(scope, self.outer_receive, self.outer_send)
        elif self._is_stream:
            last = b"data: " + dump(error_object(InvalidApiKey())) + b"\n\n"
            await self.outer_send({"type": "http.response.body", "body": last, "more_body": False})
