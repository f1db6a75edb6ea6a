"""What a key must be allowed for each route; a route that is not listed here takes `admin`."""

from __future__ import annotations

import re
from typing import Literal

from starlette.routing import Match, Router
from starlette.types import Scope

__all__ = ["ALL_SCOPES", "ANY_KEY", "DEFAULT_SCOPES", "OPEN_PATHS", "needed_scope"]

ScopeName = Literal["chat", "sessions:read", "sessions:write", "admin"]

ALL_SCOPES: tuple[ScopeName, ...] = ("chat", "sessions:read", "sessions:write", "admin")
"""`chat`: turns, which also teach the session that they name. `sessions:read`: look at, score and export sessions.
`sessions:write`: create, teach, set back, fork and delete them. `admin`: metrics, and whatever is not listed."""

DEFAULT_SCOPES: tuple[ScopeName, ...] = ("chat", "sessions:read", "sessions:write")
"""What a new key may do unless told otherwise."""

ANY_KEY = "any"
"""In place of a scope: every valid key will do."""

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that need no key and no engine."""

_READING = ("GET", "HEAD")
# First match wins. Sessions go by their method, so that a new route of theirs is never open to readers by accident.
_RULES: tuple[tuple[re.Pattern[str], tuple[str, ...], str], ...] = (
    (re.compile(r"/v1/models(/.*)?"), _READING, ANY_KEY),
    (re.compile(r"/|/openapi\.json|/docs(/.*)?"), _READING, ANY_KEY),
    (re.compile(r"/v1/(chat/completions|completions|embeddings)"), ("POST",), "chat"),
    (re.compile(r"/v1/responses(/.*)?"), ("POST", "DELETE", *_READING), "chat"),
    (re.compile(r"/v1/sessions(/.*)?"), _READING, "sessions:read"),
    (re.compile(r"/v1/sessions/[^/]+/score"), ("POST",), "sessions:read"),
    (re.compile(r"/v1/sessions(/.*)?"), ("POST", "PUT", "PATCH", "DELETE"), "sessions:write"),
)


def needed_scope(scope: Scope) -> str:
    """Return the scope that a request needs, or ANY_KEY; for a path that no route has that is ANY_KEY, to get a 404."""
    path, method = scope["path"], scope["method"]
    for pattern, methods, needed in _RULES:
        if method in methods and pattern.fullmatch(path):
            return needed
    return "admin" if _is_routed(scope) else ANY_KEY


def _is_routed(scope: Scope) -> bool:
    app = scope.get("app")
    router: Router | None = getattr(app, "router", None)
    if router is None:
        return True
    # A copy: matching leaves traces in what it is given.
    return any(route.matches(dict(scope))[0] is Match.FULL for route in router.routes)
