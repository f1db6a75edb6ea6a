"""Serves an app over a real socket as `hope serve` does, connection guard and all, in the test's own loop."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi.routing import iter_route_contexts

from hope_server.api.connections import server_config
from hope_server.settings import Settings


@asynccontextmanager
async def serve(app: Any, settings: Settings) -> AsyncIterator[int]:
    """Serve `app` on a free port of 127.0.0.1 until the block ends; yields the port once turns are taken."""
    config = server_config(app, settings)
    config.port = 0
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve())
    engine = app.state.services.engine
    deadline = time.monotonic() + 30
    while not (server.started and engine.is_ready):
        assert time.monotonic() < deadline and not serving.done()
        await asyncio.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def read_answer(reader: asyncio.StreamReader, seconds: float = 5.0) -> bytes:
    """Everything that comes until the server closes the connection, however it does so."""
    pieces = []
    try:
        async with asyncio.timeout(seconds):
            while piece := await reader.read(65536):
                pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def routes_of(app: Any) -> list[tuple[str, str]]:
    """Every method and path template that an app serves; nothing is left out, documented or not."""
    return [
        (method, context.path)
        for context in iter_route_contexts(app.routes)
        for method in sorted(context.methods or {"GET"})
    ]


def fill(template: str, values: Mapping[str, str]) -> str:
    """A path template with `values` in the place of its parameters, `x` for one that has none."""
    return re.sub(r"\{(\w+)(:\w+)?\}", lambda found: values.get(found[1], "x"), template)
