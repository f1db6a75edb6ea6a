"""A toy engine behind the whole API, in process, traced into memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from toys import toy_engine

from hope_server.api import create_app
from hope_server.telemetry import Tracing

Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def anyio_backend() -> str:
    """Run the asynchronous tests on asyncio, which is what the service runs on."""
    return "asyncio"


@pytest.fixture
def serve_toy(tmp_path: Path) -> Serve:
    """Serve a toy engine and give back a client of it; keywords are settings."""

    @asynccontextmanager
    async def serve(tracing: Tracing | None = None, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
        engine = toy_engine(tmp_path / "store.db", **changes)
        app = create_app(engine, engine.settings, tracing=tracing)
        async with app.router.lifespan_context(app):
            async with asyncio.timeout(30):
                while not engine.is_ready:
                    await asyncio.sleep(0.005)
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                yield client

    return serve
