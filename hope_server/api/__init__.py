"""HTTP in, server-sent events out: the OpenAI-compatible surface and the session endpoints."""

from hope_server.api.app import create_app

__all__ = ["create_app"]
