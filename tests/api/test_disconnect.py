"""A client that hangs up ends its turn at once, whatever the request was waiting for."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import weakref

import httpx
import pytest

from hope_server.api.turns import TurnFeed
from hope_server.engine.turn import TokenText
from hope_server.telemetry import Metrics

pytestmark = pytest.mark.anyio

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
LEARN = ("/v1/sessions/s1/learn", {"text": "x"})
SCORE = ("/v1/sessions/s1/score", {"prompt": "x", "continuations": ["y"]})


def _turns(app) -> dict[str, float]:
    registry = app.state.services.metrics.registry
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    return {sample.labels["outcome"]: sample.value for sample in samples if sample.name == "hope_turns_total"}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("path", "body"), [CHAT, LEARN], ids=["chat", "learn"])
@pytest.mark.parametrize("has_begun", [False, True], ids=["before-first-event", "mid-turn"])
async def test_hanging_up_closes_the_turn(serving, engine, tools, path, body, is_streamed, has_begun):
    """The engine's iterator is closed promptly, nothing more is sent, and the turn counts as cancelled, once."""
    engine.script = [TokenText("a"), asyncio.Event()] if has_begun else [asyncio.Event()]
    async with serving() as (app, _):
        call = tools.RawCall(app, path, json.dumps({**body, "stream": is_streamed}).encode())
        await tools.eventually(lambda: engine.num_open == 1 and (not (has_begun and is_streamed) or len(call.sent) > 0))
        call.hang_up()
        await tools.eventually(lambda: engine.num_open == 0, seconds=0.5)
        await asyncio.wait_for(call.task, 0.5)
        assert b"[DONE]" not in call.body
        assert b"error" not in call.body
        assert _turns(app) == {"cancelled": 1.0}


async def test_hanging_up_cancels_scoring(serving, engine, tools):
    """Scoring, which has no iterator, is cancelled just the same."""
    engine.score_gate.clear()
    async with serving() as (app, _):
        call = tools.RawCall(app, SCORE[0], json.dumps(SCORE[1]).encode())
        await tools.eventually(lambda: engine.num_open == 1)
        call.hang_up()
        await asyncio.wait_for(call.task, 0.5)
        assert engine.num_open == 0


class HandMadeIterator:
    """An iterator that is not a generator, as an engine may return: it must be closed by `aclose`."""

    def __init__(self) -> None:
        self.num_closed = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.num_closed += 1


async def test_feed_closed_before_its_first_step():
    """A feed that is closed before it read anything still closes the engine's iterator and counts the turn."""
    iterator, metrics = HandMadeIterator(), Metrics(dict)
    feed = TurnFeed(iterator, asyncio.Queue().get, metrics.turn("chat"))
    await feed.aclose()
    assert iterator.num_closed == 1
    assert 'hope_turns_total{outcome="cancelled"} 1.0' in metrics.render().decode()


async def test_a_closed_feed_is_gone_without_a_search_for_rings():
    """What a turn held is freed as its feed is dropped, although its tasks were cancelled in the middle."""
    feed = TurnFeed(HandMadeIterator(), asyncio.Queue().get, Metrics(dict).turn("chat"))
    await asyncio.sleep(0.01)
    await feed.aclose()
    left = weakref.ref(feed)
    gc.disable()
    try:
        del feed
        await asyncio.sleep(0.01)
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("is_immediate", [False, True], ids=["while-waiting", "at-once"])
async def test_any_iterator_is_closed_once(serving, engine, tools, is_immediate):
    """`aclose` is called exactly once on whatever the engine returned, even if nothing was read of it yet."""
    iterator = HandMadeIterator()
    asked = asyncio.Event()

    def chat(_request):
        asked.set()
        return iterator

    engine.chat = chat
    async with serving() as (app, _):
        call = tools.RawCall(app, CHAT[0], json.dumps(CHAT[1]).encode())
        if is_immediate:
            call.hang_up()
        else:
            await asked.wait()
            await asyncio.sleep(0.01)
            call.hang_up()
        await asyncio.wait_for(call.task, 0.5)
    assert iterator.num_closed == 1


async def test_slow_reader_does_not_hold_the_turn(serving, engine, tools):
    """A client that does not read holds up nothing: the turn ends and its iterator is closed before text is sent."""
    engine.script = [*[TokenText("x")] * 50, tools.FINISHED]
    async with serving() as (app, _):
        call = tools.RawCall(app, CHAT[0], json.dumps({**CHAT[1], "stream": True}).encode())
        call.may_send.clear()
        await tools.eventually(lambda: _turns(app) == {"stop": 1.0})
        assert engine.num_open == 0
        assert call.sent == []
        call.may_send.set()
        await call.task
    assert call.body.count(b'"content":"x"') == 50


async def test_hanging_up_while_a_piece_is_being_sent(serving, engine, tools):
    """The turn ends at once even if the response is stuck in sending."""
    engine.script = [TokenText("a"), asyncio.Event()]
    async with serving() as (app, _):
        call = tools.RawCall(app, CHAT[0], json.dumps({**CHAT[1], "stream": True}).encode())
        call.may_send.clear()
        await tools.eventually(lambda: engine.num_open == 1)
        call.hang_up()
        await tools.eventually(lambda: engine.num_open == 0, seconds=0.5)
        call.may_send.set()
        await asyncio.wait_for(call.task, 0.5)


async def test_cancelled_stream_to_a_stalled_client_ends(serving, engine, tools):
    """Cancelling a stream whose client stopped reading closes the turn and does not wait for that client for long."""
    engine.script = [TokenText("a"), asyncio.Event()]
    async with serving() as (app, _):
        call = tools.RawCall(app, CHAT[0], json.dumps({**CHAT[1], "stream": True}).encode())
        await tools.eventually(lambda: b'"a"' in call.body)
        call.may_send.clear()
        call.task.cancel()
        await tools.eventually(lambda: engine.num_open == 0, seconds=0.5)
        assert not call.task.done()
        await tools.eventually(call.task.done)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_closing_a_real_socket_closes_the_turn(listening, engine, tools, is_streamed):
    """Over a real connection, closing the socket closes the engine's iterator within a second."""
    engine.script = [TokenText("a"), asyncio.Event()]
    async with listening() as (url, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        body = json.dumps({**CHAT[1], "stream": is_streamed}).encode()
        head = f"POST {CHAT[0]} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\n\r\n".encode() + body)
        await tools.eventually(lambda: engine.num_open == 1)
        if is_streamed:
            assert b"200" in await reader.readline()
        started = time.monotonic()
        writer.close()
        await tools.eventually(lambda: engine.num_open == 0)
        assert time.monotonic() - started < 1


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_shutdown_still_ends_every_turn(listening, engine, tools, is_streamed):
    """A turn that outlives the drain time gets one terminal event, the shutting_down error, before the server goes."""
    engine.script = [TokenText("a"), asyncio.Event()]
    async with listening(drain_seconds=0) as (url, server), httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post(CHAT[0], json={**CHAT[1], "stream": is_streamed}))
        await tools.eventually(lambda: engine.num_open == 1)
        await asyncio.sleep(0.05)
        server.should_exit = True
        answer = await asyncio.wait_for(asking, 5)
    if is_streamed:
        assert answer.status_code == 200
        assert tools.events(answer.text)[-1]["error"]["code"] == "shutting_down"
        assert "[DONE]" not in answer.text
    else:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "shutting_down"
    assert engine.num_open == 0
    assert engine.num_stops == 1
