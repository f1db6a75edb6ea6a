"""Streamed answers: text and progress as they come, the receipt at the end, and streams that break."""

from __future__ import annotations

import dataclasses

import httpx
import pytest
from hope_client import (
    LearnProgress,
    SessionNotFound,
    StoreFull,
    StreamInterrupted,
    TimedOut,
    UnexpectedAnswer,
    Usage,
)

PROGRESS = {"tokens_done": 1, "tokens_total": 4, "steps_done": 0, "steps_total": 2, "loss": 2.5}


def test_text_comes_in_pieces_and_the_receipt_at_the_end(session, server, tools):
    """Role-only and empty deltas are no text; usage may come in a chunk without choices."""
    server.answer_bytes(
        tools.sse(
            tools.chunk(None),
            tools.chunk("Hel"),
            tools.chunk(""),
            tools.chunk("lo"),
            tools.chunk(None, "stop", memory=tools.receipt),
            {"choices": [], "usage": tools.usage},
        )
    )
    stream = session.stream("hi", max_tokens=4)
    assert stream.receipt is None
    assert list(stream) == ["Hel", "lo"]
    assert dataclasses.asdict(stream.receipt) == tools.receipt
    assert (stream.reply.text, stream.reply.finish_reason, stream.reply.usage) == ("Hello", "stop", Usage(3, 2, 5))
    assert server.bodies[0]["stream"] is True
    assert server.bodies[0]["stream_options"] == {"include_usage": True}
    assert server.requests[0].headers["x-session-id"] == "s1"


def test_pings_and_what_follows_done_are_no_text(session, server, tools):
    """Comments are skipped, and [DONE] ends the stream whatever is behind it."""
    content = b": ping\n\n" + tools.sse(tools.chunk("a")) + tools.sse(tools.chunk("b"))
    server.answer_bytes(content)
    assert list(session.stream("hi")) == ["a"]


def test_a_refused_stream_raises_when_it_is_opened(session, server):
    """An error status needs no iteration to be seen."""
    server.answer({"error": {"message": "gone", "code": "session_not_found"}}, 404)
    with pytest.raises(SessionNotFound, match="gone"):
        session.stream("hi")


def test_an_error_inside_the_stream_is_raised_behind_the_text_before_it(session, server, tools):
    """What came before the error is given, also when both arrive at once; the request id is kept."""
    content = tools.sse(tools.chunk("a"), {"error": {"message": "disk full", "code": "store_full"}}, done=False)
    server.queue.append(httpx.Response(200, content=content, headers={"x-request-id": "req_9"}))
    stream = session.stream("hi")
    assert next(iter(stream)) == "a"
    with pytest.raises(StoreFull, match="disk full") as caught:
        next(iter(stream))
    assert (caught.value.status, caught.value.request_id) == (None, "req_9")


def test_a_stream_without_its_end_is_interrupted(session, server, tools):
    """A body that ends without [DONE] is never taken for a whole answer, and what had come is on the error."""
    server.answer_bytes(tools.sse(tools.chunk("half"), tools.chunk(" of"), done=False))
    stream = session.stream("hi")
    with pytest.raises(StreamInterrupted, match="broke off") as caught:
        list(stream)
    assert caught.value.text == "half of"
    assert caught.value.code == "stream_interrupted"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (httpx.RemoteProtocolError("peer closed"), StreamInterrupted),
        (httpx.ReadError("reset"), StreamInterrupted),
        (httpx.ReadTimeout("slow"), TimedOut),
    ],
)
def test_a_broken_connection_in_a_stream_is_told_apart(session, server, tools, fault, kind):
    """A cut connection is an interrupted stream, silence is a time-out, and the response is closed either way."""
    body = tools.broken([tools.sse(tools.chunk("a"), done=False)], fault)
    server.queue.append(httpx.Response(200, stream=body))
    stream = session.stream("hi")
    with pytest.raises(kind):
        list(stream)
    assert stream.reply.text == "a"
    assert body.is_closed


def test_leaving_a_stream_early_closes_it(session, server, tools):
    """The end of the with block lets go of the connection, which is how the server learns that the turn is off."""
    body = tools.broken([tools.sse(tools.chunk("a"), done=False)], RuntimeError("read too far"))
    server.queue.append(httpx.Response(200, stream=body))
    with session.stream("hi") as stream:
        assert next(iter(stream)) == "a"
    assert body.is_closed


@pytest.mark.parametrize("content", [b"data: {broken\n\n", b"data: [1]\n\n"])
def test_an_event_that_is_no_object_is_an_error(session, server, content):
    """Something between client and server that garbles the stream is not passed over."""
    server.answer_bytes(content)
    with pytest.raises(UnexpectedAnswer):
        list(session.stream("hi"))


def test_learning_reports_progress_and_ends_with_a_receipt(session, server, tools):
    """Each report is given to the callback; the text and the passes are sent as asked."""
    final = {"object": "session.learn", "session_id": "s1", "usage": tools.usage, "memory": tools.receipt}
    server.answer_bytes(tools.sse({"object": "session.learn.progress", **PROGRESS}, final))
    seen = []
    result = session.learn("A fact.", passes=3, progress=seen.append)
    assert seen == [LearnProgress(**PROGRESS)]
    assert dataclasses.asdict(result.receipt) == tools.receipt
    assert server.requests[0].url.path == "/v1/sessions/s1/learn"
    assert server.bodies == [{"text": "A fact.", "passes": 3, "stream": True}]


def test_consolidation_needs_no_text_and_no_callback(session, server, tools):
    """Consolidate goes to its own route with nothing but what was asked."""
    server.answer_bytes(
        tools.sse({"object": "session.learn.progress", **PROGRESS}, {"object": "session.consolidate", "memory": None})
    )
    assert session.consolidate().receipt is None
    assert server.requests[0].url.path == "/v1/sessions/s1/consolidate"
    assert server.bodies == [{"stream": True}]


@pytest.mark.parametrize("has_done", [True, False])
def test_learning_without_an_outcome_is_interrupted(session, server, tools, has_done):
    """A learn stream that ends without its result is never taken for success."""
    server.answer_bytes(tools.sse({"object": "session.learn.progress", **PROGRESS}, done=has_done))
    with pytest.raises(StreamInterrupted):
        session.learn("A fact.")
