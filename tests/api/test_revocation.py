"""A key that is revoked ends what it is doing: within a second, told to the client, nothing of the turn kept."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest
from serving import serve

from hope_server.api import create_app
from hope_server.api.key_registry import KeyRegistry, new_key
from hope_server.engine.turn import TokenText
from hope_server.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def keyed(tmp_path):
    """A registry with one key: the registry, the key's id, the header that carries it."""
    registry = KeyRegistry(tmp_path / "keys.jsonl")
    record, key = new_key("laptop")
    registry.add(record)
    return registry, record.id, {"Authorization": f"Bearer {key}"}


async def test_revocation_ends_an_open_stream(engine, tools, keyed):
    """Over a real socket: the stream's last event is the error, no [DONE], the turn is closed, the next request 401."""
    registry, key_id, headers = keyed
    settings = Settings(api_key_file=str(registry.path))
    engine.script = [TokenText("Hel"), asyncio.Event()]
    app = create_app(engine, settings)
    async with serve(app, settings) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        body = tools.chat_body(stream=True)
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            while "Hel" not in await anext(lines):
                pass
            revoked = time.monotonic()
            registry.revoke(key_id)
            rest = [line async for line in lines if line]
            seconds = time.monotonic() - revoked
        assert seconds < 1.0
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "invalid_api_key"
        assert "[DONE]" not in "".join(rest)
        assert engine.num_open == 0
        refused = await client.post("/v1/chat/completions", json=body, headers=headers)
        assert refused.status_code == 401


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/sessions/s1/learn", "/v1/sessions/s1/score"])
async def test_revocation_ends_a_whole_answer(serving, engine, tools, keyed, path):
    """A request that is still computed answers 401 and its turn is closed, whatever it was waiting for."""
    registry, key_id, headers = keyed
    engine.script = [asyncio.Event()]
    engine.score_gate.clear()
    bodies = {"learn": {"text": "x"}, "score": {"prompt": "x", "continuations": ["y"]}}
    body = bodies.get(path.rpartition("/")[2], tools.chat_body())
    async with serving(api_key_file=str(registry.path)) as (_, client):
        asking = asyncio.create_task(client.post(path, json=body, headers=headers))
        await tools.eventually(lambda: engine.num_open == 1)
        registry.revoke(key_id)
        answer = await asyncio.wait_for(asking, 1.0)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["x-request-id"]
        assert engine.num_open == 0


async def test_revocation_ends_a_body_that_is_still_coming(serving, engine, tools, keyed):
    """A client that is still sending is told as well."""
    registry, key_id, headers = keyed
    gate = asyncio.Event()

    async def slowly():
        yield b"{"
        await gate.wait()

    async with serving(api_key_file=str(registry.path)) as (_, client):
        sending = client.post(
            "/v1/chat/completions", content=slowly(), headers={**headers, "Content-Type": "application/json"}
        )
        asking = asyncio.create_task(sending)
        await asyncio.sleep(0.05)
        registry.revoke(key_id)
        assert (await asyncio.wait_for(asking, 1.0)).status_code == 401
        assert engine.requests == []


async def test_other_keys_go_on(serving, engine, tools, keyed):
    """Streams of other keys of the same file are not touched by the change."""
    registry, key_id, _ = keyed
    record, key = new_key("other")
    registry.add(record)
    gate = asyncio.Event()
    engine.script = [TokenText("a"), gate, tools.FINISHED]
    async with serving(api_key_file=str(registry.path)) as (_, client):
        headers = {"Authorization": f"Bearer {key}"}
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=tools.chat_body(), headers=headers))
        await tools.eventually(lambda: engine.num_open == 1)
        registry.revoke(key_id)
        await asyncio.sleep(0.6)
        gate.set()
        assert (await asking).status_code == 200


async def test_a_lost_scope_ends_the_request(serving, engine, tools, keyed):
    """A key that may not chat any more is cut off as a revoked one; what it still may do goes on."""
    registry, _, headers = keyed
    engine.script = [asyncio.Event()]
    async with serving(api_key_file=str(registry.path)) as (_, client):
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=tools.chat_body(), headers=headers))
        await tools.eventually(lambda: engine.num_open == 1)
        registry.path.write_text(registry.path.read_text().replace('"chat", ', ""))
        assert (await asyncio.wait_for(asking, 1.0)).status_code == 401
        assert (await client.get("/v1/sessions", headers=headers)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=tools.chat_body(), headers=headers)).status_code == 403
