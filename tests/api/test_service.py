"""Start and stop, keys and tenants, body limits, metrics."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from hope_server.api import create_app
from hope_server.engine.turn import SessionKey, TokenText
from hope_server.errors import CheckpointError
from hope_server.settings import Settings

pytestmark = pytest.mark.anyio

MIB = 2**20


async def test_while_loading(serving, engine, tools):
    """Until the engine is ready, /health answers 200, /ready 503 and every other route 503 with code loading."""
    engine.start_gate.clear()
    async with serving(wait=False) as (_, client):
        assert (await client.get("/health")).json() == {"status": "ok"}
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
        for answer in (
            await client.get("/v1/models"),
            await client.get("/metrics"),
            await client.post("/v1/chat/completions", json=tools.chat_body()),
        ):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "loading"
            assert answer.headers["retry-after"] == "1"
        engine.start_gate.set()
        await tools.eventually(lambda: engine.is_ready)
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        assert (await client.get("/v1/models")).status_code == 200
    assert engine.num_stops == 1


@pytest.mark.parametrize(
    ("error", "shown"), [(CheckpointError("no model at /x"), "no model at /x"), (ValueError("SECRET"), "unexpected")]
)
async def test_failed_start(engine, tools, error, shown):
    """A start that fails is told to the command line once and to every caller, without an exception's own text."""
    told = []
    engine.start_error = error
    app = create_app(engine, Settings(), told.append)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client,
    ):
        await tools.eventually(lambda: bool(told))
        assert (await client.get("/ready")).json() == {"status": "failed"}
        answer = await client.get("/v1/models")
    assert len(told) == 1
    assert shown in told[0].message
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "startup_error"
    assert shown in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert engine.num_stops == 1


async def test_stop_during_start(engine):
    """A server that is stopped while it loads cancels the load and stops the engine."""
    engine.start_gate.clear()
    app = create_app(engine, Settings())
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
    assert engine.num_stops == 1
    assert engine.is_ready is False


async def test_draining_engine_refuses(serving, engine):
    """An engine that was ready and no longer is answers shutting_down, not loading."""
    async with serving() as (_, client):
        engine.is_ready = False
        assert (await client.get("/v1/models")).json()["error"]["code"] == "shutting_down"
        assert (await client.get("/ready")).json() == {"status": "stopping"}


async def test_models(client):
    """The one model is listed and found by its id, with the four fields that clients require."""
    model = {"id": "fake-model", "object": "model", "created": 1_700_000_000, "owned_by": "hope-server"}
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [model]}
    assert (await client.get("/v1/models/fake-model")).json() == model
    missing = await client.get("/v1/models/org/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "header",
    [None, "Bearer wrong", "Bearer", "Basic key-1", "key-1", "Bearer key-1x", "Bearer k\xe4y", "Bearer key-1,key-2"],
)
async def test_wrong_key(serving, engine, header):
    """Without a known Bearer key every route but /health and /ready answers 401 in OpenAI's shape."""
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    async with serving(api_keys=("key-1", "key-2")) as (_, client):
        for path in ("/v1/models", "/v1/sessions", "/metrics", "/nothing"):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready"):
            assert (await client.get(path, headers=headers)).status_code == 200


async def test_tenants_are_apart(serving, engine, tools):
    """Each key is a tenant: equal session ids of two keys are two sessions."""
    async with serving(api_keys=("key-1", "key-2")) as (_, client):
        for key in ("key-1", "key-2"):
            headers = {"Authorization": f"bearer {key}", "X-Session-ID": "same"}
            assert (
                await client.post("/v1/chat/completions", json=tools.chat_body(), headers=headers)
            ).status_code == 200
            created = await client.post("/v1/sessions", json={"id": "same"}, headers=headers)
            assert created.status_code == 201
            assert [each["id"] for each in (await client.get("/v1/sessions", headers=headers)).json()["data"]] == [
                "same"
            ]
    first, second = (request.session for request in engine.requests)
    # The first 16 hex digits of SHA-256("key-1").
    assert first == SessionKey("be2974546978e373", "same")
    assert second.tenant != first.tenant


async def _chunks(total: int, size: int = 65536):
    sent = 0
    while sent < total:
        sent += size
        yield b" " * size


@pytest.mark.parametrize("is_chunked", [False, True], ids=["announced", "chunked"])
@pytest.mark.parametrize(
    ("path", "limit"),
    [("/v1/chat/completions", 2 * MIB), ("/v1/sessions", 2 * MIB), ("/v1/sessions/s1/learn", 16 * MIB)],
)
async def test_body_limit(client, engine, path, limit, is_chunked):
    """A body over the route's limit answers 413 in OpenAI's shape, whether its length is announced or found out."""
    content = _chunks(limit + 1) if is_chunked else b" " * (limit + 1)
    answer = await client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert f"{limit:,}" in answer.json()["error"]["message"]
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"]
    assert engine.requests == []


async def test_body_at_its_limit(client, engine):
    """A learn request of exactly the limit is served."""
    body = json.dumps({"text": ""}).encode()
    body = json.dumps({"text": "x" * (16 * MIB - len(body))}).encode()
    assert len(body) == 16 * MIB
    answer = await client.post("/v1/sessions/s1/learn", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True], ids=["announced", "chunked"])
async def test_large_body_over_a_socket(listening, is_chunked):
    """A real client that sends 10 MB reads the 413 instead of a broken connection."""
    content = _chunks(10 * MIB) if is_chunked else b" " * (10 * MIB)
    async with listening() as (url, _), httpx.AsyncClient(base_url=url) as client:
        answer = await client.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


async def test_refused_before_it_is_sent(listening):
    """A client that asks first (Expect: 100-continue) is refused without having sent the body."""
    async with listening() as (url, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        head = "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
        writer.write(head.encode())
        assert b"413" in await asyncio.wait_for(reader.readline(), 2)
        writer.close()


async def test_metrics(client, engine, tools):
    """Turns, tokens and times are counted by outcome, and the engine's gauges are published under hope_."""
    await client.post("/v1/chat/completions", json=tools.chat_body())
    engine.script = [TokenText("a"), ValueError("x")]
    await client.post("/v1/chat/completions", json=tools.chat_body(stream=True))
    answer = await client.get("/metrics")
    lines = answer.text.splitlines()
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'hope_turns_total{outcome="stop"} 1.0',
        'hope_turns_total{outcome="internal_error"} 1.0',
        'hope_tokens_total{kind="prompt"} 12.0',
        'hope_tokens_total{kind="completion"} 2.0',
        'hope_tokens_total{kind="learned"} 9.0',
        "hope_turn_ttft_seconds_count 2.0",
        "hope_turn_seconds_count 2.0",
        "hope_slots_total 8.0",
        "hope_turns_running 0.0",
    ):
        assert line in lines


async def test_a_server_that_cannot_reach_its_store_is_not_ready(client, engine):
    """A router then asks another one; what needs no store is answered all the same."""
    engine.reaches_store = False
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "store_unavailable"})
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/v1/models")).status_code == 200
    engine.reaches_store = True
    assert (await client.get("/ready")).status_code == 200
