"""A server in memory, and both clients in front of it: every test of these fixtures runs with each of them.

Answers are queued, requests are kept to look at.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from blocking import Blocking
from hope_client import AsyncHopeClient, HopeClient
from toy_server import toy_server

SESSION = {
    "id": "s1",
    "object": "session",
    "created": 1,
    "updated": 2,
    "version": None,
    "turn": 0,
    "num_tokens": 0,
    "tokens_learned": 0,
    "state_bytes": {"fast": 10, "window": 4},
    "model": "toy",
}
RECEIPT = {
    "session_id": "s1",
    "mode": "write",
    "version_before": None,
    "version_after": "v1",
    "turn": 1,
    "tokens_read": 5,
    "tokens_learned": 4,
    "steps": 2,
    "loss_before": 3.5,
    "loss_after": None,
    "update_norm": {"fast": 0.5},
    "durability": "commit",
    "restored_from": "new",
    "discarded": None,
    "durability_requested": "commit",
    "replicas": 0,
    "replayed": False,
    "not_learned": None,
}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def sse(*payloads: object, done: bool = True) -> bytes:
    """Return the bytes of an event stream."""
    events = [f"data: {json.dumps(payload)}\n\n" for payload in payloads]
    return "".join([*events, "data: [DONE]\n\n" if done else ""]).encode()


def chunk(text: str | None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Return one chunk of a streamed chat completion."""
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **more}


class BrokenStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that fails after some pieces, as when the server is killed."""

    def __init__(self, pieces: list[bytes], error: Exception) -> None:
        self.pieces = pieces
        self.error = error
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        raise self.error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        """Note that the client let go."""
        self.is_closed = True

    async def aclose(self) -> None:
        """Note that the client let go."""
        self.close()


class FakeServer:
    """Gives the queued answers in order; an exception in the queue is raised as the transport would."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.queue: list[httpx.Response | Exception] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.queue.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def answer(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Queue a JSON answer."""
        self.queue.append(httpx.Response(status, json=body, headers=headers))

    def answer_bytes(self, content: bytes, status: int = 200) -> None:
        """Queue an answer of these bytes."""
        self.queue.append(httpx.Response(status, content=content))

    @property
    def bodies(self) -> list[Any]:
        """The JSON bodies of the requests, None for those without."""
        return [json.loads(request.content) if request.content else None for request in self.requests]


@pytest.fixture
def tools() -> SimpleNamespace:
    """What tests build answers from."""
    return SimpleNamespace(session=SESSION, receipt=RECEIPT, usage=USAGE, sse=sse, chunk=chunk, broken=BrokenStream)


@pytest.fixture
def server() -> FakeServer:
    """A fake server with an empty queue."""
    return FakeServer()


@pytest.fixture(params=["plain", "async"])
def connect(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Callable[..., Any]]:
    """Makes clients of the fake server; the asynchronous ones take the same lines, see `blocking`.

    They take `transport=None` for the network instead.
    """
    fake = httpx.MockTransport(server)
    with ExitStack() as stack:
        if request.param == "plain":
            yield lambda url="http://hope.test", *args, transport=fake, **options: stack.enter_context(
                HopeClient(url, *args, transport=transport, **options)
            )
            return
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        stack.callback(lambda: loop.run_until_complete(loop.shutdown_asyncgens()))
        yield lambda url="http://hope.test", *args, transport=fake, **options: stack.enter_context(
            Blocking(AsyncHopeClient(url, *args, transport=transport, **options), loop)
        )


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    """A client of the fake server that sends every call once."""
    return connect("http://hope.test:8000/v1/", max_retries=0)


@pytest.fixture
def session(client: Any, server: FakeServer) -> Any:
    """A session of the fake server; the request that made it is forgotten."""
    server.answer(SESSION, 201)
    session = client.session("s1")
    server.requests.clear()
    return session


@pytest.fixture(scope="session")
def toy_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server with a toy model and a store of its own; started once for all tests."""
    with toy_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client waited, without waiting."""
    found: list[float] = []

    async def note(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr("hope_client.transport.time.sleep", found.append)
    monkeypatch.setattr("hope_client.transport.asyncio.sleep", note)
    return found
