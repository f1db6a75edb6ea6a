"""What a turn says in its headers and in `memory`, and how sessions are set back, copied and carried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hope_server.engine.turn import ChatRequest, LearnRequest, MemoryOptions, Replay, SessionKey, TokenText
from hope_server.errors import VersionMismatch

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
ADA = {"X-Session-ID": "ada"}


async def _memory(client, engine, tools, headers=None, **fields) -> MemoryOptions:
    answer = await client.post(CHAT, json=tools.chat_body(**fields), headers={**ADA, **(headers or {})})
    assert answer.status_code == 200, answer.text
    request = engine.requests[-1]
    assert isinstance(request, ChatRequest)
    return request.memory


async def _param(client, tools, headers=None, **fields) -> str | None:
    answer = await client.post(CHAT, json=tools.chat_body(**fields), headers={**ADA, **(headers or {})})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["param"]


async def test_durability_comes_from_the_header_or_the_body(client, engine, tools):
    """Either will do; both may say the same; neither leaves it to the server."""
    header = {"X-Memory-Durability": "fsync"}
    assert (await _memory(client, engine, tools)).durability is None
    assert (await _memory(client, engine, tools, header)).durability == "fsync"
    assert (await _memory(client, engine, tools, memory={"durability": "replicated:2"})).durability == "replicated:2"
    assert (await _memory(client, engine, tools, header, memory={"durability": "fsync"})).durability == "fsync"
    assert await _param(client, tools, header, memory={"durability": "none"}) == "memory.durability"


@pytest.mark.parametrize("bad", ["", "always", "replicated", "replicated:0", "replicated:100", "COMMIT"])
async def test_a_durability_that_is_none_is_refused(client, engine, tools, bad):
    """In the body and in the header, before anything is done."""
    assert await _param(client, tools, memory={"durability": bad}) == "memory.durability"
    assert await _param(client, tools, {"X-Memory-Durability": bad}) == "X-Memory-Durability"
    assert engine.requests == []


async def test_if_match_comes_from_the_header_or_the_body(client, engine, tools):
    """The header may be quoted, as HTTP has it; `*` is any version."""
    for header in ("v1", '"v1"'):
        assert (await _memory(client, engine, tools, {"If-Match": header})).if_match == "v1"
    assert (await _memory(client, engine, tools, {"If-Match": "*"})).if_match == "*"
    assert (await _memory(client, engine, tools, memory={"if_match": "v2"})).if_match == "v2"
    for bad in ('"v1", "v2"', 'W/"v1"', '""', "a b"):
        assert await _param(client, tools, {"If-Match": bad}) == "If-Match"
    assert await _param(client, tools, memory={"if_match": ""}) == "memory.if_match"


async def test_how_a_request_was_sent(client, engine, tools):
    """The key, and the count by which OpenAI's clients tell a retry; each answer has a name of its own."""
    await client.post(CHAT, json=tools.chat_body())
    await client.post(CHAT, json=tools.chat_body(), headers={"Idempotency-Key": "k 1", "x-stainless-retry-count": "0"})
    await client.post(CHAT, json=tools.chat_body(), headers={"x-stainless-retry-count": "2"})
    attempts = [request.attempt for request in engine.requests]
    assert [(each.key, each.is_retry) for each in attempts] == [(None, False), ("k 1", False), (None, True)]
    assert len({each.answer_id for each in attempts}) == 3


@pytest.mark.parametrize("bad", ["", "x" * 256, "caf\u00e9", "a\tb"])
async def test_a_key_that_is_none_is_refused(client, engine, tools, bad):
    """Empty, too long, and what is not printable ASCII."""
    answer = await client.post(CHAT, json=tools.chat_body(), headers={"Idempotency-Key": bad.encode()})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = await client.post(CHAT, json=tools.chat_body(), headers=twice)
    assert (answer.status_code, engine.requests) == (400, [])


@pytest.mark.parametrize("name", ["learn", "consolidate"])
async def test_learning_takes_the_same_headers(client, engine, name):
    """Key, durability and version, in headers or beside the text."""
    body = {"text": "x"} if name == "learn" else {}
    headers = {"Idempotency-Key": "k1", "X-Memory-Durability": "async", "If-Match": "v1"}
    await client.post(f"/v1/sessions/s1/{name}", json=body, headers=headers)
    await client.post(f"/v1/sessions/s1/{name}", json={**body, "durability": "none", "if_match": "v2"})
    one, two = engine.requests
    assert isinstance(one, LearnRequest) and isinstance(two, LearnRequest)
    assert (one.attempt.key, one.durability, one.if_match) == ("k1", "async", "v1")
    assert (two.attempt.key, two.durability, two.if_match) == (None, "none", "v2")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeated_answer_keeps_its_name(client, engine, tools, stream):
    """Its id and time are those of the first answer; the role still comes first."""
    engine.script = [Replay("chatcmpl-first", 5), TokenText("Hello"), tools.FINISHED]
    answer = await client.post(CHAT, json=tools.chat_body(stream=stream), headers=ADA)
    chunks = tools.events(answer.text)[:-1] if stream else [answer.json()]
    assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {("chatcmpl-first", 5)}
    if stream:
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert answer.headers["x-memory-replayed"] == "true"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_whole_answer_is_acknowledged(client, engine, tools, stream):
    """The engine is told the session and the version of the receipt; a turn without a session has none."""
    await client.post(CHAT, json=tools.chat_body(stream=stream), headers=ADA)
    await client.post("/v1/sessions/s1/learn", json={"text": "x", "stream": stream})
    await client.post(CHAT, json=tools.chat_body(stream=stream))
    assert engine.acknowledged == [(SessionKey("default", "ada"), "v1"), (SessionKey("default", "s1"), "v1")]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_failed_is_not_acknowledged(client, engine, tools, stream):
    """Neither a refusal nor a stream that ended in an error."""
    for script in ([VersionMismatch("s", "v1", "v2")], [TokenText("a"), VersionMismatch("s", "v1", "v2")]):
        engine.script = list(script)
        await client.post(CHAT, json=tools.chat_body(stream=stream), headers=ADA)
    assert engine.acknowledged == []


async def test_a_session_says_its_version_in_its_headers(client, engine):
    """As the ETag that If-Match takes."""
    await client.post("/v1/sessions", json={"id": "s1"})
    answer = await client.post("/v1/sessions/s1/rollback", json={"version": "v0"}, headers={"If-Match": '"v1"'})
    assert (answer.status_code, answer.json()["version"]) == (200, "v9")
    assert (answer.headers["etag"], answer.headers["x-memory-version"]) == ('"v9"', "v9")
    assert engine.asked == [("rollback", "v0", "v1")]
    missing = await client.post("/v1/sessions/s1/rollback", json={})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "version")


async def test_a_fork_names_its_version(client, engine):
    """None is the newest."""
    await client.post("/v1/sessions", json={"id": "s1"})
    await client.post("/v1/sessions/s1/fork", json={"id": "s2", "version": "v3"})
    await client.post("/v1/sessions/s1/fork", json={"id": "s4"})
    assert engine.asked == [("fork", "s2", "v3"), ("fork", "s4", None)]


async def test_an_export_is_a_file(client, engine):
    """Bytes with a name and the version that they hold."""
    await client.post("/v1/sessions", json={"id": "s1"})
    answer = await client.get("/v1/sessions/s1/export", params={"version": "v3"})
    assert answer.content == b"an archive"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="s1.hope"'
    assert answer.headers["x-memory-version"] == "v3"
    assert (await client.get("/v1/sessions/nobody/export")).status_code == 404
    assert (await client.get("/v1/sessions/s1/export", params={"version": "../x"})).status_code == 400


async def test_an_import_is_a_body_of_bytes(client, engine):
    """Under the given id or a generated one; other kinds of body and bad ids are refused."""
    headers = {"Content-Type": "application/octet-stream"}
    answer = await client.post("/v1/sessions/import", params={"id": "s5"}, content=b"data", headers=headers)
    assert (answer.status_code, answer.json()["id"]) == (201, "s5")
    generated = await client.post("/v1/sessions/import", content=b"data", headers=headers)
    assert generated.json()["id"].startswith("sess_")
    assert [each[0] for each in engine.asked] == ["import", "import"]
    assert (await client.post("/v1/sessions/import", content=b"data")).status_code == 415
    bad = await client.post("/v1/sessions/import", params={"id": "a/b"}, content=b"data", headers=headers)
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "id")


async def test_an_import_may_be_as_large_as_a_state(serving, engine):
    """Its limit is that of snapshots, not that of other bodies."""
    headers = {"Content-Type": "application/octet-stream"}
    async with serving(max_body_bytes=1024, max_snapshot_bytes=4096) as (_, client):
        fits = await client.post("/v1/sessions/import", content=b"x" * 500_000, headers=headers)
        too_large = await client.post("/v1/sessions/import", content=b"x" * 1_100_000, headers=headers)
    assert (fits.status_code, too_large.status_code) == (201, 413)


async def test_a_repeated_answer_is_counted_apart(serving, engine, tools):
    """It computed nothing, so its tokens are not counted again."""
    receipt = replace(tools.RECEIPT, replayed=True)
    engine.script = [Replay("chatcmpl-first", 5), TokenText("Hello"), replace(tools.FINISHED, receipt=receipt)]
    async with serving() as (_, client):
        await client.post(CHAT, json=tools.chat_body(), headers=ADA)
        metrics = (await client.get("/metrics")).text
    assert 'hope_turns_total{outcome="replayed"} 1.0' in metrics
    assert 'hope_tokens_total{kind="learned"} 0.0' in metrics
