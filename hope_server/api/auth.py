"""Who is asking: a Bearer key names a tenant, and every session id is scoped by it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from hope_server.api.errors import InvalidApiKey, error_response
from hope_server.api.middleware import ALWAYS_OPEN

__all__ = ["OPEN_TENANT", "KeyAuth", "tenant_of_key"]

OPEN_TENANT = "default"
"""The one tenant of a server without keys."""


def tenant_of_key(key: str) -> str:
    """Return the tenant that `key` belongs to: the first 16 hex digits of its SHA-256, so no key is ever stored."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


class KeyAuth:
    """Puts the caller's tenant into the request's state, or answers 401."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self.app = app
        self._tenants = [(key.encode(), tenant_of_key(key)) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            tenant = self._tenant(scope)
            if tenant is None and scope["path"] not in ALWAYS_OPEN:
                await error_response(InvalidApiKey())(scope, receive, send)
                return
            scope.setdefault("state", {})["tenant"] = tenant
        await self.app(scope, receive, send)

    def _tenant(self, scope: Scope) -> str | None:
        if not self._tenants:
            return OPEN_TENANT
        header: bytes = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, given = header.partition(b" ")
        found: str | None = None
        # Every key is compared, in constant time, so that timing tells nothing about any of them.
        for key, tenant in self._tenants:
            if hmac.compare_digest(key, given.strip()):
                found = tenant
        return found if scheme.lower() == b"bearer" else None
