"""How many sessions a key may keep and how large: asked before anything is made, however the session is named."""

from __future__ import annotations

import asyncio

import pytest

from hope_server.api.key_registry import KeyLimits, KeyRegistry, new_key
from hope_server.engine.turn import SessionInfo, SessionKey

pytestmark = pytest.mark.anyio

KEY = {"Authorization": "Bearer k1"}
OTHER = {"Authorization": "Bearer k2"}
KEYS = {"api_keys": ("k1", "k2")}
ARCHIVE = {**KEY, "Content-Type": "application/octet-stream"}


def _check_refused(answer, fact: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (403, "quota_exceeded", "invalid_request_error")
    assert fact in error["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_sessions_are_bounded_whatever_makes_them(serving, engine, tools):
    """Create, fork, import, chat and learn make no session beyond the limit; what is there goes on being served."""
    async with serving(**KEYS, max_sessions=2) as (_, client):
        for name in ("a", "b"):
            assert (await client.post("/v1/sessions", json={"id": name}, headers=KEY)).status_code == 201
        chat = tools.chat_body(session_id="c")
        for answer in (
            await client.post("/v1/sessions", json={"id": "c"}, headers=KEY),
            await client.post("/v1/sessions/a/fork", json={"id": "c"}, headers=KEY),
            await client.post("/v1/sessions/import?id=c", content=b"x", headers=ARCHIVE),
            await client.post("/v1/chat/completions", json=chat, headers=KEY),
            await client.post("/v1/chat/completions", json={**chat, "stream": True}, headers=KEY),
            await client.post("/v1/sessions/c/learn", json={"text": "x"}, headers=KEY),
        ):
            _check_refused(answer, "keeps 2 sessions, the limit is 2")
        assert (await client.post("/v1/sessions", json={"id": "a"}, headers=KEY)).status_code == 200
        existing = tools.chat_body(session_id="a")
        assert (await client.post("/v1/chat/completions", json=existing, headers=KEY)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=tools.chat_body(), headers=KEY)).status_code == 200
        reading = tools.chat_body(session_id="c", memory={"mode": "read"})
        assert (await client.post("/v1/chat/completions", json=reading, headers=KEY)).status_code == 200
        assert (await client.post("/v1/sessions", json={"id": "c"}, headers=OTHER)).status_code == 201
        assert (await client.delete("/v1/sessions/b", headers=KEY)).status_code == 200
        assert (await client.post("/v1/sessions", json={"id": "c"}, headers=KEY)).status_code == 201
    assert engine.num_open == 0


async def test_many_at_once_make_no_more(serving, engine):
    """Requests that come together are counted one after the other."""
    async with serving(**KEYS, max_sessions=5) as (_, client):
        making = [client.post("/v1/sessions", json={"id": f"s{number}"}, headers=KEY) for number in range(20)]
        statuses = [answer.status_code for answer in await asyncio.gather(*making)]
    assert (statuses.count(201), statuses.count(403)) == (5, 15)
    assert len(engine.sessions) == 5


async def test_bytes_are_bounded(serving, engine, tools):
    """Sessions that take too much together learn nothing more; reading, and deleting, go on."""
    async with serving(**KEYS, max_stored_bytes=1000) as (_, client):
        await client.post("/v1/sessions", json={"id": "mine"}, headers=KEY)
        (key,) = engine.sessions
        engine.sessions[key] = SessionInfo("mine", 10, 20, "v1", 1, 5, 5, {"fast": 600, "window": 400})
        engine.sessions[SessionKey("somebody", "else")] = SessionInfo("else", 1, 1, "v1", 1, 1, 1, {"fast": 10**9})
        chat = tools.chat_body(session_id="mine")
        # What was counted a moment ago is believed for some seconds; a deletion counts anew.
        await client.delete("/v1/sessions/none", headers=KEY)
        for answer in (
            await client.post("/v1/chat/completions", json=chat, headers=KEY),
            await client.post("/v1/sessions/mine/learn", json={"text": "x"}, headers=KEY),
            await client.post("/v1/sessions", json={"id": "new"}, headers=KEY),
        ):
            _check_refused(answer, "take 1,000 bytes, the limit is 1,000")
        reading = {**chat, "memory": {"mode": "read"}}
        assert (await client.post("/v1/chat/completions", json=reading, headers=KEY)).status_code == 200
        assert (await client.delete("/v1/sessions/mine", headers=KEY)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=chat, headers=KEY)).status_code == 200


async def test_a_key_has_a_quota_of_its_own(serving, tmp_path):
    """What the registry says of a key goes before the settings."""
    registry = KeyRegistry(tmp_path / "keys.jsonl")
    record, key = new_key("small", limits=KeyLimits(max_sessions=1))
    registry.add(record)
    headers = {"Authorization": f"Bearer {key}"}
    async with serving(api_key_file=str(registry.path), api_keys=("k1",)) as (_, client):
        assert (await client.post("/v1/sessions", json={"id": "a"}, headers=headers)).status_code == 201
        _check_refused(await client.post("/v1/sessions", json={"id": "b"}, headers=headers), "the limit is 1")
        for name in "abc":
            assert (await client.post("/v1/sessions", json={"id": name}, headers=KEY)).status_code == 201


async def test_without_quotas_nothing_is_counted(serving, engine, tools):
    """The store is not asked on behalf of limits that nobody set, and many requests share one count."""
    calls = []
    wrapped = engine.list_sessions

    async def counted(*args):
        calls.append(args)
        await asyncio.sleep(0.01)
        return await wrapped(*args)

    engine.list_sessions = counted
    body = tools.chat_body(session_id="s")
    async with serving(**KEYS) as (_, client):
        await client.post("/v1/chat/completions", json=body, headers=KEY)
    assert calls == []
    async with serving(**KEYS, max_sessions=50) as (_, client):
        await asyncio.gather(*(client.post("/v1/chat/completions", json=body, headers=KEY) for _ in range(10)))
    assert len(calls) == 1
