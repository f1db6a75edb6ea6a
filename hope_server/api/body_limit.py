"""Refuses a body that is too large, before and while it arrives, so that it is never held in memory."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hope_server.api.errors import BodyTooLarge, error_response

__all__ = ["BodyLimit"]

_IMPORT_PATH = "/v1/sessions/import"
_LEARN_PATH = re.compile(r"/v1/sessions/[^/]+/learn/?")
# A client that is still sending reads our answer only when it is done; up to here we let it finish.
_MAX_DRAINED_BYTES = 64 * 2**20


class BodyLimit:
    """Answers 413 to bodies over `max_learn_bytes` on the learn route, `max_import_bytes` on the import route and
    `max_body_bytes` elsewhere.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_learn_bytes: int, max_import_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_learn_bytes = max_learn_bytes
        self.max_import_bytes = max_import_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self._limit(scope["path"])
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced[:20]) > limit:
            if b"expect" not in headers and int(announced[:20]) <= _MAX_DRAINED_BYTES:
                await _drain(receive, 0)
            await error_response(BodyTooLarge(limit))(scope, receive, send)
            return
        await self.app(scope, _limited(receive, limit), send)

    def _limit(self, path: str) -> int:
        if path == _IMPORT_PATH:
            return self.max_import_bytes
        return self.max_learn_bytes if _LEARN_PATH.fullmatch(path) else self.max_body_bytes


def _limited(receive: Receive, limit: int) -> Receive:
    """Return a `receive` that raises BodyTooLarge once more than `limit` bytes have come."""
    total = 0

    async def limited_receive() -> Message:
        nonlocal total
        message = await receive()
        if message["type"] == "http.request":
            total += len(message.get("body", b""))
            if total > limit:
                if message.get("more_body", False):
                    await _drain(receive, total)
                raise BodyTooLarge(limit)
        return message

    return limited_receive


async def _drain(receive: Receive, total: int) -> None:
    """Read and drop the rest of the body, up to a bound."""
    while total <= _MAX_DRAINED_BYTES:
        message = await receive()
        total += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
