"""Refuses a body that is too large, too slow, too deep or too full, while it arrives, so that none is held whole."""

from __future__ import annotations

import asyncio
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hope_server.api.errors import BodyTooLarge, RequestTimeout, error_response
from hope_server.api.json_shape import JsonShape
from hope_server.errors import HopeError

__all__ = ["BodyLimit"]

_IMPORT_PATH = "/v1/sessions/import"
_LEARN_PATH = re.compile(r"/v1/sessions/[^/]+/learn/?")
# A client that is still sending reads our answer only when it is done; up to here we let it finish.
_MAX_DRAINED_BYTES = 64 * 2**20
_BYTES_PER_SECOND = 16 * 2**10


class BodyLimit:
    """Answers 413 to bodies over `max_learn_bytes` on the learn route, `max_import_bytes` on the import route and
    `max_body_bytes` elsewhere; 408 to those that take longer than `timeout_seconds` and a second more per 16 KiB;
    400 to JSON that is nested too deeply or has too many values.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, max_learn_bytes: int, max_import_bytes: int, timeout_seconds: float
    ) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_learn_bytes = max_learn_bytes
        self.max_import_bytes = max_import_bytes
        self.timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(receive, self._limit(scope["path"]), self.timeout_seconds, scope["path"] != _IMPORT_PATH)
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced[:20]) > body.limit:
            try:
                if b"expect" not in headers and int(announced[:20]) <= _MAX_DRAINED_BYTES:
                    await body.drain()
            except HopeError as exc:
                await error_response(exc)(scope, receive, send)
            else:
                await error_response(BodyTooLarge(body.limit))(scope, receive, send)
            return
        await self.app(scope, body.receive, send)

    def _limit(self, path: str) -> int:
        if path == _IMPORT_PATH:
            return self.max_import_bytes
        return self.max_learn_bytes if _LEARN_PATH.fullmatch(path) else self.max_body_bytes


class _Body:
    """One request's body on its way in."""

    def __init__(self, receive: Receive, limit: int, timeout_seconds: float, is_json: bool) -> None:
        self.limit = limit
        self._receive = receive
        self._timeout_seconds = timeout_seconds
        self._started = time.monotonic()
        self._num_bytes = 0
        self._is_whole = False
        self._shape = JsonShape() if is_json else None

    async def receive(self) -> Message:
        """Return what comes next. Raises BodyTooLarge, RequestTimeout or InvalidRequest, at which the turn is over."""
        if self._is_whole:
            # What comes now is the end of the connection, which may take as long as the answer.
            return await self._receive()
        message = await self._next()
        if message["type"] != "http.request":
            return message
        if self._num_bytes > self.limit:
            await self.drain()
            raise BodyTooLarge(self.limit)
        if self._shape is not None:
            try:
                self._shape.feed(message.get("body", b""))
            except HopeError:
                await self.drain()
                raise
        return message

    async def drain(self) -> None:
        """Read and drop the rest of the body, up to a bound."""
        while not self._is_whole and self._num_bytes <= _MAX_DRAINED_BYTES:
            if (await self._next())["type"] != "http.request":
                return

    async def _next(self) -> Message:
        deadline = self._started + self._timeout_seconds + self._num_bytes / _BYTES_PER_SECOND
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            seconds = time.monotonic() - self._started
            raise RequestTimeout(
                f"{self._num_bytes:,} bytes of the body came in {seconds:.0f} s, which is too slow; "
                "send it at 16 KiB a second or faster"
            ) from None
        self._num_bytes += len(message.get("body", b""))
        self._is_whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message
