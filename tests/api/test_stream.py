"""Streamed chat: order and shape of chunks, pings, one terminal event."""

from __future__ import annotations

import asyncio

import pytest

from hope_server.api import sse
from hope_server.engine.turn import TokenText
from hope_server.errors import Overloaded

pytestmark = pytest.mark.anyio


async def test_chunks_come_in_the_order_clients_expect(client, tools):
    """Role first, then text, then one chunk with the reason, an empty delta and the receipt, then [DONE]."""
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(stream=True))
    found = tools.events(answer.text)
    chunks = found[:-1]
    assert found[-1] == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert ["memory" in chunk for chunk in chunks] == [False, False, False, True]
    assert chunks[-1]["memory"]["tokens_learned"] == 9
    assert not any("usage" in chunk for chunk in chunks)


async def test_headers_of_a_stream(client, tools):
    """A stream is declared as events, is not to be cached or buffered, and has no length."""
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(stream=True))
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers


async def test_usage_on_request(client, tools):
    """include_usage adds one last chunk without choices that has the usage; it is null in the others."""
    body = tools.chat_body(stream=True, stream_options={"include_usage": True})
    chunks = tools.events((await client.post("/v1/chat/completions", json=body)).text)[:-1]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 2,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


async def test_text_that_breaks_line_readers_is_escaped(client, engine, tools):
    """Characters at which some clients split lines arrive whole, as the stream is plain ASCII."""
    text = "a\u2028b\x85c\r\nd🎻"
    engine.script = [TokenText(text), tools.FINISHED]
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(stream=True))
    assert answer.content.isascii()
    assert tools.events(answer.text)[1]["choices"][0]["delta"] == {"content": text}


async def test_empty_text_is_left_out(client, engine, tools):
    """An event without text makes no chunk."""
    engine.script = [TokenText(""), tools.FINISHED]
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(stream=True))
    assert len(tools.events(answer.text)) == 3


async def test_silence_is_filled_with_pings(serving, engine, tools, monkeypatch):
    """While the engine says nothing, the stream says `: ping`, before the first text and between two."""
    monkeypatch.setattr(sse, "PING_SECONDS", 0.02)
    early, late = asyncio.Event(), asyncio.Event()
    engine.script = [early, TokenText("a"), late, TokenText("b"), tools.FINISHED]
    async with serving() as (app, _):
        call = tools.RawCall(app, "/v1/chat/completions", b'{"messages":[{"role":"user","content":"x"}],"stream":true}')
        await tools.eventually(lambda: call.body.count(b": ping\n\n") >= 2)
        early.set()
        await tools.eventually(lambda: b'"a"' in call.body)
        before = call.body.count(b": ping\n\n")
        await tools.eventually(lambda: call.body.count(b": ping\n\n") >= before + 2)
        late.set()
        await call.task
    assert call.body.endswith(b"data: [DONE]\n\n")
    assert call.body.count(b"[DONE]") == 1


async def test_refusal_after_a_long_wait_is_in_the_stream(serving, engine, tools, monkeypatch):
    """A turn refused after the headers had to go out ends with the error event instead of a status."""
    monkeypatch.setattr(sse, "PING_SECONDS", 0.02)
    gate = asyncio.Event()
    engine.script = [gate, Overloaded(5, 1)]
    async with serving() as (app, _):
        call = tools.RawCall(app, "/v1/chat/completions", b'{"messages":[{"role":"user","content":"x"}],"stream":true}')
        await tools.eventually(lambda: b": ping" in call.body)
        gate.set()
        await call.task
    assert call.sent[0]["status"] == 200
    assert tools.events(call.body.decode())[-1]["error"]["code"] == "overloaded"
    assert b"[DONE]" not in call.body


async def test_nothing_after_the_terminal_event(client, engine, tools):
    """What an engine would say after its terminal event is never asked for."""
    engine.script = [tools.FINISHED, TokenText("late"), tools.FINISHED]
    found = tools.events((await client.post("/v1/chat/completions", json=tools.chat_body(stream=True))).text)
    assert sum(1 for event in found if event != "[DONE]" and event["choices"][0]["finish_reason"]) == 1
    assert found.count("[DONE]") == 1
    assert engine.num_open == 0
