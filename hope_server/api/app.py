"""Puts the service together: routes, what surrounds them, and the engine's start and stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from hope_server.api import chat, completions, embeddings, health, learning, models, openapi, responses, sessions
from hope_server.api.auth import KeyAuth
from hope_server.api.body_limit import BodyLimit
from hope_server.api.cors import Browsers, cors
from hope_server.api.deps import Services
from hope_server.api.engine_port import EnginePort
from hope_server.api.errors import install_error_handlers
from hope_server.api.key_book import KeyBook
from hope_server.api.middleware import ReadyGate, RequestContext, Startup
from hope_server.api.observing import Observed
from hope_server.api.quotas import with_quotas
from hope_server.api.rate_limits import RateLimits, default_limits
from hope_server.errors import HopeError, StartupError
from hope_server.settings import Settings
from hope_server.telemetry import Metrics, Tracing, log_event, log_failure

__all__ = ["create_app"]

_ARCHIVE_OVERHEAD_BYTES = 2**20

StartFailed = Callable[[HopeError], None]


def create_app(
    engine: EnginePort,
    settings: Settings,
    on_start_failed: StartFailed | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Return the ASGI app that serves `engine`.

    Its lifespan starts the engine in the background, so that /health and /ready answer while the model loads, and
    stops it at the end. If the start fails, every route answers 503 and `on_start_failed` is called with the error:
    the command line prints its message and stops the server there. `tracing` gets a span of each request.
    Raises StartupError if the file of API keys cannot be used.
    """
    book, limits = KeyBook.of_settings(settings), default_limits(settings)
    engine = with_quotas(engine, limits)
    services = Services(engine, settings, Metrics(engine.stats), Startup(), tracing)
    app = FastAPI(
        lifespan=partial(_lifespan, services=services, on_start_failed=on_start_failed),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    install_error_handlers(app)
    rooms = (health, models, chat, completions, responses, embeddings, sessions, learning, openapi)
    app.state.routers = [room.router for room in rooms]
    for room in rooms:
        app.include_router(room.router)
    # The one added last is the outermost.
    app.add_middleware(
        BodyLimit,
        max_body_bytes=settings.max_body_bytes,
        max_learn_bytes=settings.max_learn_bytes,
        max_import_bytes=settings.max_snapshot_bytes + _ARCHIVE_OVERHEAD_BYTES,
        timeout_seconds=settings.request_timeout_seconds,
    )
    app.add_middleware(ReadyGate, engine=engine, startup=services.startup)
    app.add_middleware(RateLimits, defaults=limits)
    app.add_middleware(KeyAuth, book=book)
    app.add_middleware(Browsers, allowed_hosts=settings.allowed_hosts if book.is_open else None)
    app.add_middleware(Observed, metrics=services.metrics, tracing=tracing)
    app.add_middleware(RequestContext)
    app.add_middleware(cors, origins=settings.cors_origins)
    return app


@asynccontextmanager
async def _lifespan(_app: FastAPI, services: Services, on_start_failed: StartFailed | None) -> AsyncIterator[None]:
    starting = asyncio.create_task(services.engine.start())
    starting.add_done_callback(partial(_note_start, services=services, on_start_failed=on_start_failed))
    try:
        yield
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await services.engine.stop()
        if services.tracing is not None:
            await asyncio.to_thread(services.tracing.close)
        log_event("stopped")


def _note_start(starting: asyncio.Task[None], services: Services, on_start_failed: StartFailed | None) -> None:
    if starting.cancelled():
        return
    services.startup.has_finished = True
    error = starting.exception()
    if error is None:
        log_event("ready", {"model": services.engine.model_id})
        return
    if not isinstance(error, HopeError):
        log_failure("start_failed", error)
        error = StartupError("the engine failed to start for an unexpected reason; the log says where")
    else:
        log_event("start_failed", {"code": error.code, "reason": error.message})
    services.startup.error = error
    if on_start_failed is not None:
        on_start_failed(error)
