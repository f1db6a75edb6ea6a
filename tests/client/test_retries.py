"""Calls that are sent again by themselves, under one key, and versions that a strict client insists on."""

from __future__ import annotations

import httpx
import pytest
from hope_client import (
    AnswerNotStored,
    ConnectionFailed,
    HopeError,
    IdempotencyKeyReused,
    InvalidRequest,
    LearnProgress,
    MemoryEvicted,
    MemoryRolledBack,
    Overloaded,
    SessionConflict,
    StreamInterrupted,
    VersionMismatch,
)

ANSWER = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
CONFLICT = {"error": {"message": "again", "code": "session_conflict"}}


@pytest.fixture
def stubborn(connect, server, tools, pauses):
    """A session of a client that retries twice and insists on versions."""
    client = connect(max_retries=2, strict=True)
    server.answer({**tools.session, "version": "v0"}, 201)
    session = client.session("s1")
    server.requests.clear()
    return session


def _keys(server) -> list[str | None]:
    return [request.headers.get("idempotency-key") for request in server.requests]


def _versions(server) -> list[str | None]:
    return [request.headers.get("if-match") for request in server.requests]


def test_a_turn_is_sent_again_under_its_key(stubborn, server, pauses):
    """A broken connection and an answer that says so are tried again; the next turn has another key."""
    server.queue.append(httpx.ReadError("reset"))
    server.answer(CONFLICT, 409, {"Retry-After": "1"})
    server.answer(ANSWER)
    server.answer(ANSWER)
    assert stubborn.chat("hello").text == "hi"
    stubborn.chat("hello")
    one, two, three, other = _keys(server)
    assert one == two == three != other
    assert len(one) == 32
    assert 0.3 < pauses[0] < 0.7
    assert pauses[1] >= 1.0


def test_a_key_can_be_given(stubborn, server, tools):
    """The caller's own name for a turn is sent as it is; one that no header can carry is refused before."""
    server.answer(ANSWER)
    stubborn.chat("hello", key="order 17")
    server.answer_bytes(tools.sse(tools.chunk("a")))
    stream = stubborn.stream("hello", key="order 18")
    assert (list(stream), stream.key) == (["a"], "order 18")
    assert _keys(server) == ["order 17", "order 18"]
    with pytest.raises(ValueError, match="1 to 255 printable ASCII"):
        stubborn.chat("hello", key="caf\u00e9")


def test_retries_are_bounded(stubborn, server):
    """Three attempts, then the last error."""
    for _ in range(3):
        server.answer({"error": {"message": "wait", "code": "overloaded"}}, 429, {"Retry-After": "0"})
    with pytest.raises(Overloaded):
        stubborn.chat("hello")
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("invalid_request", 400, InvalidRequest),
        ("memory_rolled_back", 409, MemoryRolledBack),
        ("answer_not_stored", 409, AnswerNotStored),
        ("memory_evicted", 410, MemoryEvicted),
        ("version_mismatch", 412, VersionMismatch),
        ("idempotency_key_reused", 422, IdempotencyKeyReused),
    ],
)
def test_what_stays_as_it_is_is_not_sent_again(stubborn, server, code, status, kind):
    """The server gives no time to try again, so the error is raised at once, in a class of its own."""
    server.answer({"error": {"message": "no", "code": code}}, status, {"x-should-retry": "false"})
    with pytest.raises(kind) as caught:
        stubborn.chat("hello")
    assert (len(server.requests), caught.value.is_retryable) == (1, False)


def test_what_must_happen_once_is_sent_once(connect, stubborn, server):
    """A fork, a roll-back, an import and a deletion have no key, so a lost answer is not asked for again."""
    client = connect(max_retries=2)
    calls = [
        lambda: stubborn.fork("s2"),
        lambda: stubborn.rollback("v0"),
        lambda: stubborn.reset(["fast"]),
        lambda: stubborn.delete_snapshot("before"),
        lambda: client.import_session(b"data", "s3"),
        stubborn.delete,
    ]
    for call in calls:
        server.queue.append(httpx.ReadError("reset"))
        with pytest.raises(ConnectionFailed):
            call()
    assert len(server.requests) == len(calls)


def test_learning_that_broke_off_is_asked_for_again(stubborn, server, tools):
    """It says nothing that could be said twice; the answer of the first attempt comes if it was learned."""
    progress = {"tokens_done": 1, "tokens_total": 4, "steps_done": 0, "steps_total": 2, "loss": 2.5}
    final = {"object": "session.learn", "memory": {**tools.receipt, "replayed": True}}
    server.answer_bytes(tools.sse({"object": "session.learn.progress", **progress}, done=False))
    server.answer_bytes(tools.sse(final))
    seen: list[LearnProgress] = []
    result = stubborn.learn("A fact.", progress=seen.append)
    assert result.receipt.replayed
    assert len(seen) == 1
    assert len(set(_keys(server))) == 1


def test_text_that_broke_off_is_not_said_twice(stubborn, server, tools):
    """The stream raises; the caller may ask for the turn again under its key."""
    server.answer_bytes(tools.sse(tools.chunk("half"), done=False))
    stream = stubborn.stream("hello")
    with pytest.raises(StreamInterrupted) as caught:
        list(stream)
    assert caught.value.is_retryable
    server.answer_bytes(tools.sse(tools.chunk("half and more")))
    assert list(stubborn.stream("hello", key=stream.key)) == ["half and more"]
    assert _keys(server) == [stream.key] * 2


def test_a_stream_that_is_refused_is_opened_again(stubborn, server, tools):
    """As long as nothing was said."""
    server.answer(CONFLICT, 409, {"Retry-After": "1"})
    server.answer_bytes(tools.sse(tools.chunk("a")))
    assert list(stubborn.stream("hello")) == ["a"]


def test_a_strict_client_names_the_version_it_knows(stubborn, server, tools):
    """The newest of receipts and look-ups; a turn that the store does not have yet leaves none to name."""
    receipt = {**tools.receipt, "version_before": "v0"}
    server.answer({**ANSWER, "memory": receipt})
    server.answer_bytes(tools.sse(tools.chunk(None, memory={**receipt, "version_after": "v2"})))
    server.answer({**ANSWER, "memory": {**receipt, "version_after": None, "durability": "async"}})
    server.answer(ANSWER)
    stubborn.chat("one")
    list(stubborn.stream("two"))
    stubborn.chat("three")
    stubborn.chat("four")
    assert _versions(server) == ['"v0"', '"v1"', '"v2"', None]
    server.answer({**tools.session, "version": "v4"})
    assert (stubborn.info().version, stubborn.version) == ("v4", "v4")
    server.answer({**tools.session, "version": "v5"})
    stubborn.rollback("v1")
    assert (_versions(server)[-1], server.bodies[-1], stubborn.version) == ('"v4"', {"version": "v1"}, "v5")


def test_a_client_that_is_not_strict_names_none(session, server, tools):
    """It goes on with whatever the session is."""
    server.answer({**ANSWER, "memory": tools.receipt})
    server.answer(ANSWER)
    session.chat("one")
    session.chat("two")
    assert _versions(server) == [None, None]
    assert session.version == "v1"


def test_a_session_is_carried_as_bytes(client, session, server, tools):
    """Export gives the body as it came, import sends it as it is."""
    server.answer_bytes(b"\x00archive")
    data = session.export(version="v1")
    server.answer({**tools.session, "id": "s9"}, 201)
    assert client.import_session(data, "s9").id == "s9"
    export, sent = server.requests
    assert (export.url.path, dict(export.url.params)) == ("/v1/sessions/s1/export", {"version": "v1"})
    assert (sent.url.path, dict(sent.url.params), sent.content) == ("/v1/sessions/import", {"id": "s9"}, data)
    assert sent.headers["content-type"] == "application/octet-stream"
    server.answer({"error": {"message": "gone", "code": "version_not_found"}}, 404)
    with pytest.raises(HopeError, match="gone"):
        session.export(version="v0")


def test_a_fork_of_a_version(session, server, tools):
    """The version is sent when there is one."""
    server.answer({**tools.session, "id": "s2"}, 201)
    assert session.fork("s2", version="v1").id == "s2"
    assert server.bodies == [{"id": "s2", "version": "v1"}]


def test_a_conflict_is_retryable_only_with_a_time(client, server):
    """The class alone does not say; the server does."""
    server.answer(CONFLICT, 409, {"Retry-After": "1"})
    with pytest.raises(SessionConflict) as caught:
        client.models()
    assert caught.value.is_retryable
