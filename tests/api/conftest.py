"""A scripted engine and the ways to talk to an app that serves it: in process, as raw ASGI, over a socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn

from hope_server.api import create_app
from hope_server.engine.turn import (
    ChatRequest,
    LearnRequest,
    Receipt,
    Score,
    ScoreRequest,
    SessionInfo,
    SessionKey,
    TextRequest,
    TokenText,
    TurnEvent,
    TurnFinished,
    Usage,
)
from hope_server.errors import SessionNotFound, VersionNotFound
from hope_server.settings import Settings

RECEIPT = Receipt(
    session_id="s1",
    mode="write",
    version_before=None,
    version_after="v1",
    turn=1,
    tokens_read=12,
    tokens_learned=9,
    steps=3,
    loss_before=2.5,
    loss_after=float("nan"),
    update_norm={"fast": 0.25},
    durability="commit",
    restored_from="new",
)
FINISHED = TurnFinished("stop", Usage(12, 2), RECEIPT)
Step = TurnEvent | Exception | asyncio.Event


class FakeEngine:
    """Plays `script` for every turn: events are yielded, errors raised, and an asyncio.Event is waited for."""

    def __init__(self) -> None:
        self.model_id = "fake-model"
        self.created = 1_700_000_000
        self.is_ready = False
        self.reaches_store = True
        self.script: list[Step] = [TokenText("Hel"), TokenText("lo"), FINISHED]
        self.requests: list[ChatRequest | TextRequest | LearnRequest | ScoreRequest] = []
        self.answers: dict[str, str] = {}
        self.sessions: dict[SessionKey, SessionInfo] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.acknowledged: list[tuple[SessionKey, str | None]] = []
        self.num_open = 0
        self.start_gate = asyncio.Event()
        self.start_gate.set()
        self.start_error: Exception | None = None
        self.num_stops = 0
        self.score_gate = asyncio.Event()
        self.score_gate.set()

    async def start(self) -> None:
        await self.start_gate.wait()
        if self.start_error is not None:
            raise self.start_error
        self.is_ready = True

    async def stop(self) -> None:
        self.is_ready = False
        self.num_stops += 1

    async def _play(self) -> AsyncIterator[TurnEvent]:
        self.num_open += 1
        try:
            for step in self.script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.num_open -= 1

    def chat(self, request: ChatRequest) -> AsyncIterator[TurnEvent]:
        self.requests.append(request)
        return self._play()

    def complete(self, request: TextRequest) -> AsyncIterator[TurnEvent]:
        self.requests.append(request)
        return self._play()

    async def find_answer(self, key: SessionKey, answer_id: str) -> str | None:
        await self.get_session(key)
        return self.answers.get(answer_id)

    def learn(self, request: LearnRequest) -> AsyncIterator[TurnEvent]:
        self.requests.append(request)
        return self._play()

    async def score(self, request: ScoreRequest) -> list[Score]:
        self.requests.append(request)
        self.num_open += 1
        try:
            await self.score_gate.wait()
        finally:
            self.num_open -= 1
        return [Score(-1.5 * len(text), len(text)) for text in request.continuations]

    async def create_session(self, key: SessionKey) -> tuple[SessionInfo, bool]:
        is_new = key not in self.sessions
        self.sessions.setdefault(key, SessionInfo(key.session_id, 10, 20, None, 0, 0, 0, {"window": 7}))
        return self.sessions[key], is_new

    async def list_sessions(self, tenant: str, limit: int, after: str | None) -> list[SessionInfo]:
        ids = sorted(key.session_id for key in self.sessions if key.tenant == tenant)
        return [self.sessions[SessionKey(tenant, each)] for each in ids if after is None or each > after][:limit]

    async def get_session(self, key: SessionKey) -> SessionInfo:
        if key not in self.sessions:
            raise SessionNotFound(key.session_id)
        return self.sessions[key]

    async def delete_session(self, key: SessionKey) -> bool:
        return self.sessions.pop(key, None) is not None

    async def fork_session(self, key: SessionKey, new_id: str, version: str | None = None) -> SessionInfo:
        await self.get_session(key)
        self.asked.append(("fork", new_id, version))
        return (await self.create_session(SessionKey(key.tenant, new_id)))[0]

    async def update_session(
        self,
        key: SessionKey,
        *,
        is_frozen: bool | None = None,
        ttl_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
    ) -> SessionInfo:
        self.asked.append(("update", is_frozen, ttl_seconds, metadata, if_match))
        info = await self.get_session(key)
        if is_frozen is not None:
            info = replace(info, is_frozen=is_frozen)
        if ttl_seconds is not None:
            info = replace(info, ttl_seconds=ttl_seconds, expires=int(20 + ttl_seconds))
        self.sessions[key] = info if metadata is None else replace(info, metadata=dict(metadata))
        return self.sessions[key]

    async def reset_session(
        self, key: SessionKey, levels: Sequence[str] | None = None, if_match: str | None = None
    ) -> SessionInfo:
        self.asked.append(("reset", levels, if_match))
        return await self.get_session(key)

    async def create_snapshot(
        self, key: SessionKey, tag: str, version: str | None = None, if_match: str | None = None
    ) -> SessionInfo:
        self.asked.append(("snapshot", tag, version, if_match))
        self.sessions[key] = replace(await self.get_session(key), tags={tag: version or "v1"})
        return self.sessions[key]

    async def list_snapshots(self, key: SessionKey) -> list[dict[str, Any]]:
        tags = (await self.get_session(key)).tags
        return [{"tag": tag, "version": version} for tag, version in tags.items()]

    async def delete_snapshot(self, key: SessionKey, tag: str, if_match: str | None = None) -> None:
        info = await self.get_session(key)
        if tag not in info.tags:
            raise VersionNotFound(key.session_id, tag)
        self.sessions[key] = replace(info, tags={})

    async def session_memory(self, key: SessionKey) -> dict[str, Any]:
        await self.get_session(key)
        return {"version": "v1", "levels": {"fast": {"num_writes": 2, "norm": 0.5}}}

    async def session_turns(self, key: SessionKey) -> list[dict[str, Any]]:
        await self.get_session(key)
        return [{"turn": 1, "kind": "chat"}]

    async def rollback_session(self, key: SessionKey, version: str, if_match: str | None = None) -> SessionInfo:
        self.asked.append(("rollback", version, if_match))
        return replace(await self.get_session(key), version="v9")

    async def export_session(self, key: SessionKey, version: str | None = None) -> tuple[str, bytes]:
        await self.get_session(key)
        return version or "v1", b"an archive"

    async def import_session(self, key: SessionKey, data: bytes) -> SessionInfo:
        self.asked.append(("import", key.session_id, data))
        return (await self.create_session(key))[0]

    def acknowledge(self, key: SessionKey, version: str | None) -> None:
        self.acknowledged.append((key, version))

    async def session_versions(self, key: SessionKey) -> list[dict[str, Any]]:
        await self.get_session(key)
        return [{"version": "v1", "turn": 1}]

    def stats(self) -> dict[str, float]:
        return {"turns_running": float(self.num_open), "slots_total": 8.0}


class RawCall:
    """One request spoken as bare ASGI, so that a test can hang up at any moment."""

    def __init__(self, app: Any, path: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.may_send = asyncio.Event()
        self.may_send.set()
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        names = {"content-type": "application/json", **(headers or {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in names.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.task = asyncio.create_task(app(scope, self._inbox.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        await self.may_send.wait()
        self.sent.append(message)

    def hang_up(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


@pytest.fixture
def anyio_backend() -> str:
    """Run the asynchronous tests on asyncio, which is what the service runs on."""
    return "asyncio"


@pytest.fixture
async def engine() -> FakeEngine:
    """An engine that answers "Hello" until its script is changed."""
    return FakeEngine()


@pytest.fixture
def serving(engine: FakeEngine) -> Callable[..., Any]:
    """Open an app and an httpx client on it: `async with serving(api_keys=(...)) as (app, client)`."""

    @asynccontextmanager
    async def open_app(wait: bool = True, **fields: Any) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
        app = create_app(engine, Settings(**fields))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                if wait:
                    await eventually(lambda: engine.is_ready)
                yield app, client

    return open_app


@pytest.fixture
async def client(serving: Callable[..., Any]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a ready server without keys."""
    async with serving() as (_, opened):
        yield opened


@pytest.fixture
def listening(engine: FakeEngine) -> Callable[..., Any]:
    """Serve over a real socket: `async with listening() as url`; uvicorn runs in the test's own loop."""

    @asynccontextmanager
    async def listen(drain_seconds: int = 1) -> AsyncIterator[tuple[str, uvicorn.Server]]:
        app = create_app(engine, Settings())
        config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=drain_seconds)
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        serve = asyncio.create_task(server.serve())
        await eventually(lambda: server.started and engine.is_ready)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}", server
        finally:
            server.should_exit = True
            await serve

    return listen


@pytest.fixture
def tools() -> SimpleNamespace:
    """What tests share: `eventually`, `events`, `chat_body`, `RawCall`, `RECEIPT`, `FINISHED`."""
    return SimpleNamespace(
        eventually=eventually, events=events, chat_body=chat_body, RawCall=RawCall, RECEIPT=RECEIPT, FINISHED=FINISHED
    )


async def eventually(is_true: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until `is_true` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not become true in time"
        await asyncio.sleep(0.005)


def events(text: str) -> list[Any]:
    """Return the data of a stream: objects, the word [DONE], and None for a ping."""
    found: list[Any] = []
    for block in text.split("\n\n"):
        if block == ": ping":
            found.append(None)
        elif block == "data: [DONE]":
            found.append("[DONE]")
        elif block:
            assert block.startswith("data: "), block
            found.append(json.loads(block.removeprefix("data: ")))
    return found


def chat_body(**fields: Any) -> dict[str, Any]:
    """Return a valid chat body with `fields` on top."""
    return {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}], **fields}
