"""A turn over HTTP with a real engine: all of it or nothing, whenever the client hangs up, and learned once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from toys import KEY, toy_engine

from hope_server.api import create_app
from hope_server.engine.engine import Engine

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
SESSION = {"x-session-id": KEY.session_id}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Engine, Any]]:
    """A toy engine that runs, and the app that serves it."""
    engine = toy_engine(tmp_path / "store.db")
    app = create_app(engine, engine.settings)
    async with app.router.lifespan_context(app):
        async with asyncio.timeout(10):
            while not engine.is_ready:
                await asyncio.sleep(0.005)
        yield engine, app


def _body(text: str, *, stream: bool = True) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"messages": messages, "max_tokens": 5, "temperature": 0, "stream": stream}).encode()


class HoldCommit:
    """Keeps the store's commits back until told."""

    def __init__(self, engine: Engine) -> None:
        self.has_begun = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self._commit = engine._book._store.commit
        engine._book._store.commit = self.commit

    def __enter__(self) -> HoldCommit:
        return self

    def __exit__(self, *_: object) -> None:
        # A test that fails must not keep the engine's end waiting.
        self.may_go_on.set()

    async def commit(self, *args: Any) -> Any:
        self.has_begun.set()
        await self.may_go_on.wait()
        return await self._commit(*args)


async def test_hanging_up_at_any_event_leaves_the_session_before_or_after_the_turn(served, tools) -> None:
    """For each n: hang up after n messages; the session is at the parent or at the child, and the retry learns once."""
    engine, app = served
    expected_turn = 0
    for cut in range(40):
        headers = {**SESSION, "idempotency-key": f"cut-{cut}"}
        call = tools.RawCall(app, CHAT, _body(f"Turn {cut}"), headers)
        await tools.eventually(lambda call=call, cut=cut: len(call.sent) >= cut or call.task.done())
        is_whole = call.body.endswith(b"data: [DONE]\n\n")
        call.hang_up()
        await asyncio.wait_for(call.task, 5)
        again = tools.RawCall(app, CHAT, _body(f"Turn {cut}"), headers)
        await asyncio.wait_for(again.task, 5)
        expected_turn += 1
        assert (await engine.get_session(KEY)).turn == expected_turn
        memory = tools.events(again.body.decode())[-2]["memory"]
        assert memory["turn"] == expected_turn
        if is_whole:
            assert memory["replayed"]
            break
    else:
        pytest.fail("no call ran to its end")
    assert expected_turn > 5


async def test_the_end_is_sent_after_the_commit(served, tools) -> None:
    """While the store has not answered, neither the last chunk nor [DONE] is out, however long it takes."""
    engine, app = served
    with HoldCommit(engine) as hold:
        call = tools.RawCall(app, CHAT, _body("Hello"), SESSION)
        await asyncio.wait_for(hold.has_begun.wait(), 5)
        await tools.eventually(lambda: b'"content"' in call.body)
        assert b'"finish_reason":"' not in call.body
        assert b"[DONE]" not in call.body
    await call.task
    assert call.body.endswith(b"data: [DONE]\n\n")


async def test_a_commit_that_began_is_finished_without_its_client(served, tools) -> None:
    """Hanging up during the commit changes nothing of it; the retry waits for it and gets the answer again."""
    engine, app = served
    headers = {**SESSION, "idempotency-key": "k1"}
    with HoldCommit(engine) as hold:
        call = tools.RawCall(app, CHAT, _body("Hello"), headers)
        await asyncio.wait_for(hold.has_begun.wait(), 5)
        call.hang_up()
        await asyncio.wait_for(call.task, 5)
        again = tools.RawCall(app, CHAT, _body("Hello"), headers)
        await asyncio.sleep(0.02)
        assert not again.task.done()
    await asyncio.wait_for(again.task, 5)
    assert tools.events(again.body.decode())[-2]["memory"]["replayed"]
    assert (await engine.get_session(KEY)).turn == 1


async def test_a_commit_that_began_is_finished_when_the_server_stops(tmp_path: Path, tools) -> None:
    """The stop waits for it; the next process finds the turn."""
    engine = toy_engine(tmp_path / "store.db", drain_seconds=0.1)
    app = create_app(engine, engine.settings)
    with HoldCommit(engine) as hold:
        async with app.router.lifespan_context(app):
            await tools.eventually(lambda: engine.is_ready)
            call = tools.RawCall(app, CHAT, _body("Hello"), SESSION)
            await asyncio.wait_for(hold.has_begun.wait(), 5)
            call.task.cancel()
            asyncio.get_running_loop().call_later(0.3, hold.may_go_on.set)
    await asyncio.gather(call.task, return_exceptions=True)
    again = toy_engine(tmp_path / "store.db")
    await again.start()
    assert (await again.get_session(KEY)).turn == 1
    await again.stop()


async def test_a_repeated_stream_has_the_same_chunks(served, tools) -> None:
    """The same id, time, text and receipt come again, and both ends say that they are a repetition."""
    _, app = served
    headers = {**SESSION, "idempotency-key": "k1"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        first, again = [
            await client.post(CHAT, content=_body("Hello"), headers={**headers, "Content-Type": "application/json"})
            for _ in range(2)
        ]
        whole = await client.post(
            CHAT, content=_body("Hello", stream=False), headers={**headers, "Content-Type": "application/json"}
        )
    chunks = [tools.events(answer.text)[:-1] for answer in (first, again)]
    names = {(chunk["id"], chunk["created"]) for each in chunks for chunk in each}
    assert names == {(whole.json()["id"], whole.json()["created"])}
    texts = ["".join(chunk["choices"][0]["delta"].get("content", "") for chunk in each) for each in chunks]
    assert texts == [whole.json()["choices"][0]["message"]["content"]] * 2
    assert [each[-1]["memory"].pop("replayed") for each in chunks] == [False, True]
    assert chunks[0][-1] == chunks[1][-1]
    assert ["x-memory-replayed" in answer.headers for answer in (first, again, whole)] == [False, True, True]


class LossyProxy:
    """Forwards HTTP to a server and drops the connection of the first answers instead of delivering them."""

    def __init__(self, port: int, num_drops: int) -> None:
        self.num_requests = 0
        self._port = port
        self._num_drops = num_drops

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, which carries one request."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-l"))
        body = await reader.readexactly(length)
        self.num_requests += 1
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._port)
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        upstream.write(b"\r\n".join([*lines[:-2], b"Connection: close", b"", b""]) + body)
        answer = await upstream_reader.read(-1)
        upstream.close()
        if self.num_requests > self._num_drops:
            writer.write(answer)
            await writer.drain()
        writer.transport.abort() if self.num_requests <= self._num_drops else writer.close()


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_the_stock_client_retries_in_silence_and_teaches_once(served, tools, is_streamed) -> None:
    """Its answers are lost twice; it sends the turn three times by itself, and the session learns it once."""
    engine, _ = served
    app = create_app(engine, engine.settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve())
    await tools.eventually(lambda: server.started)
    proxy = LossyProxy(server.servers[0].sockets[0].getsockname()[1], num_drops=2)
    front = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{front.sockets[0].getsockname()[1]}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=2) as stock:
        answer: Any = await stock.chat.completions.create(
            model=engine.model_id,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=5,
            stream=is_streamed,
            extra_headers=SESSION,
        )
        memory = [chunk async for chunk in answer][-1].memory if is_streamed else answer.memory
    front.close()
    server.should_exit = True
    await serving
    assert proxy.num_requests == 3
    assert memory["replayed"]
    assert (await engine.get_session(KEY)).turn == 1


async def test_an_answer_that_was_sent_is_acknowledged(served, tools) -> None:
    """The same words right after a whole answer are a new turn; after an answer that broke off they are a retry."""
    engine, app = served
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=SESSION) as client:
        for stream in (False, True):
            for _ in range(2):
                body = _body("Same", stream=stream)
                await client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
                await engine._commits.drain()
    assert (await engine.get_session(KEY)).turn == 4
