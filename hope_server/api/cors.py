"""What web pages may do with the server: which origins may call it, under which names, and what browsers may keep."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hope_server.api.errors import HostNotAllowed, error_response
from hope_server.api.scopes import OPEN_PATHS

__all__ = ["Browsers", "cors"]

_METHODS = ("GET", "POST", "PATCH", "DELETE")
_EXPOSED = (
    "ETag",
    "Retry-After",
    "x-request-id",
    "x-should-retry",
    "x-memory-session",
    "x-memory-version-before",
    "x-memory-version",
    "x-memory-tokens-learned",
    "x-memory-durability",
    "x-memory-replayed",
    *(f"x-ratelimit-{fact}-{kind}" for fact in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
)
# An answer is data and never a page: nothing in it may run, be framed or be guessed to be of another type. What a
# session said is nobody else's, so no cache keeps it.
_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
# Endings that nobody can register, so no stranger's name can lead here by them.
_LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".home.arpa", ".test")


def cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Return `app` for the web pages of `origins`, `*` for all; `app` itself if there are none.

    Credentials (cookies) are never allowed: a key goes into a header, which a page that has the key can set.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=_METHODS,
        allow_headers=["*"],
        allow_credentials=False,
        expose_headers=_EXPOSED,
    )


class Browsers:
    """Adds the headers that browsers go by; on a server without keys refuses requests that come by a foreign name.

    Without keys all that protects a server on this machine is that others cannot reach it. A web page can: the
    name that it was loaded from may be pointed at this machine (DNS rebinding), and its requests are then its own.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str] | None) -> None:
        """`allowed_hosts` None checks no names."""
        self.app = app
        self._allowed_hosts = None if allowed_hosts is None else frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        host = _host_of(scope)
        if self._allowed_hosts is not None and scope["path"] not in OPEN_PATHS and not self._is_ours(host):
            await error_response(HostNotAllowed(host[:100]))(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _is_ours(self, host: str) -> bool:
        # A name without a dot is one of this network (of a container, of this machine).
        if "." not in host or host.endswith(_LOCAL_ENDINGS) or host in (self._allowed_hosts or ()):
            return True
        return _is_address(host)


def _host_of(scope: Scope) -> str:
    """Return the name that the request was sent to, without the port, in small letters."""
    given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").lower()
    if given.startswith("["):
        return given.partition("]")[0].lstrip("[")
    return given.partition(":")[0].rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
