"""The verbs of a session that are no turn: what each sends, and what it makes of the answer."""

from __future__ import annotations

import httpx
import pytest
from hope_client import (
    LevelMemory,
    MemoryEvicted,
    MemoryStatistics,
    Message,
    Snapshot,
    Turn,
)

ANSWER = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}


def _called(server) -> list[tuple[str, str]]:
    return [(request.method, request.url.path.removeprefix("/v1/sessions/s1")) for request in server.requests]


def test_a_session_is_made_with_its_time_to_live_and_notes(client, server, tools):
    """In the call that makes or finds it; 0 is never, and what is not given is not sent."""
    server.answer({**tools.session, "ttl": 60.0, "metadata": {"who": "ada"}}, 201)
    server.answer(tools.session)
    client.session("s1", ttl=60, metadata={"who": "ada"})
    client.session("s1", ttl=0)
    assert server.bodies == [{"id": "s1", "ttl": 60, "metadata": {"who": "ada"}}, {"id": "s1", "ttl": 0}]


def test_a_patch_sends_what_is_given(session, server, tools):
    """None leaves a field as it is; an empty dictionary takes the notes away."""
    server.answer({**tools.session, "frozen": True})
    server.answer({**tools.session, "ttl": None})
    assert session.patch(frozen=True).frozen
    assert session.patch(ttl=0, metadata={}).ttl is None
    assert server.bodies == [{"frozen": True}, {"ttl": 0, "metadata": {}}]
    assert _called(server) == [("PATCH", "")] * 2


def test_snapshots_are_made_listed_and_removed(session, server, tools):
    """A tag goes in the path as one part of it, whatever it is made of."""
    server.answer({**tools.session, "version": "v3", "tags": {"before": "v3"}})
    server.answer({"object": "list", "data": [{"tag": "before", "version": "v3", "created": 5}]})
    server.answer({"deleted": True})
    server.answer({**tools.session, "version": "v4"})
    assert session.snapshot("before").tags == {"before": "v3"}
    assert session.version == "v3"
    assert session.snapshots() == [Snapshot("before", "v3", 5)]
    session.delete_snapshot("be/fore")
    assert session.version == "v4"
    assert server.bodies[0] == {"tag": "before"}
    assert _called(server)[:2] == [("POST", "/snapshots"), ("GET", "/snapshots")]
    assert server.requests[2].url.raw_path == b"/v1/sessions/s1/snapshots/be%2Ffore"


def test_a_fork_of_a_tag(session, server, tools):
    """A tag goes where a version does; the two exclude another."""
    server.answer({**tools.session, "id": "s2"}, 201)
    assert session.fork("s2", tag="before").id == "s2"
    assert server.bodies == [{"id": "s2", "version": "before"}]
    with pytest.raises(ValueError, match="not both"):
        session.fork(tag="before", version="v3")


def test_a_strict_client_names_its_version_in_every_change(connect, server, tools):
    """Each takes over the version that it made; the removal of a tag looks it up."""
    client = connect(strict=True)
    server.answer({**tools.session, "version": "v0"}, 201)
    session = client.session("s1")
    calls = [
        session.freeze,
        session.unfreeze,
        session.reset,
        lambda: session.patch(ttl=60),
        lambda: session.snapshot("before"),
        lambda: session.rollback("before"),
        lambda: session.delete_snapshot("before"),
        session.freeze,
    ]
    for number in range(1, 9):
        server.answer({**tools.session, "version": f"v{number}"})
    server.answer({**tools.session, "version": "v9"})
    for call in calls:
        call()
    named = [request.headers.get("if-match") for request in server.requests[1:]]
    assert named == ['"v0"', '"v1"', '"v2"', '"v3"', '"v4"', '"v5"', '"v6"', None, '"v8"']


def test_a_block_is_frozen_and_then_as_before(session, server, tools):
    """Also where the block fails; a session that was frozen already stays so."""
    for frozen in (False, True, False, True):
        server.answer({**tools.session, "frozen": frozen})
    with pytest.raises(ZeroDivisionError), session.frozen():
        _ = len(_called(server)) // 0
    assert _called(server)[:2] == [("GET", ""), ("POST", "/freeze")]
    assert _called(server)[2:] == [("POST", "/unfreeze")]
    with session.frozen() as same:
        assert same.id == "s1"
    assert _called(server)[3:] == [("GET", "")]


def test_freeze_unfreeze_and_reset(session, server, tools):
    """Each has its route and takes over the version that it made."""
    server.answer({**tools.session, "version": "v2", "frozen": True})
    server.answer({**tools.session, "version": "v3"})
    server.answer({**tools.session, "version": "v4"})
    server.answer({**tools.session, "version": "v5"})
    assert session.freeze().frozen
    assert not session.unfreeze().frozen
    session.reset()
    session.reset(["fast"])
    assert session.version == "v5"
    assert _called(server) == [("POST", "/freeze"), ("POST", "/unfreeze"), ("POST", "/reset"), ("POST", "/reset")]
    assert server.bodies[2:] == [{}, {"levels": ["fast"]}]


def test_statistics_and_turns_are_read(session, server):
    """Level by level, and turn by turn in the order of the server; what a turn does not say has a default."""
    level = {"schedule": "online", "num_writes": 3, "num_bytes": 10, "norm": 0.5, "rank": 1}
    server.answer({"version": "v1", "levels": {"fast": level}, "position": 9, "window": {"used": 9, "size": 64}})
    server.answer({"data": [{"turn": 1, "created": 5, "kind": "learn", "tokens_learned": 4, "loss_after": None}]})
    levels = {"fast": LevelMemory(3, 10, 0.5, "online")}
    assert session.memory() == MemoryStatistics(levels, "v1", position=9, window={"used": 9, "size": 64})
    assert session.turns() == [Turn(1, 5, "learn", tokens_learned=4)]
    assert _called(server) == [("GET", "/memory"), ("GET", "/turns")]


def test_the_lift_compares_weights_alone_with_no_session(session, server):
    """Both are asked the same; the first empties the window, the second does without the memory as well."""
    server.answer({"scores": [{"logprob": -2.0, "num_tokens": 4}]})
    server.answer({"scores": [{"logprob": -10.0, "num_tokens": 4}]})
    lift = session.recall_lift("Where?", " In the barn.")
    assert (lift.with_memory, lift.without, lift.lift, lift.num_tokens) == (-0.5, -2.5, 2.0, 4)
    asked = {
        "continuations": [" In the barn."],
        "messages": [{"role": "user", "content": "Where?"}],
        "window": False,
    }
    assert server.bodies == [asked, {**asked, "memory": {"mode": "off"}}]


def test_an_export_is_written_to_a_file_of_its_own(session, server, tmp_path):
    """For its owner only, and never over another file."""
    path = tmp_path / "s1.hope"
    server.answer_bytes(b"archive")
    assert session.export(path) == b"archive"
    assert path.read_bytes() == b"archive"
    assert path.stat().st_mode & 0o777 == 0o600
    server.answer_bytes(b"other")
    with pytest.raises(FileExistsError):
        session.export(path)
    assert path.read_bytes() == b"archive"


def test_the_openai_client_is_told_where_the_session_is(connect, server, tools):
    """Plain dictionaries for its constructor and its calls."""
    client = connect("http://hope.test/v1", "sk-1")
    server.answer(tools.session)
    session = client.session("s1")
    assert client.openai() == {"base_url": "http://hope.test/v1", "api_key": "sk-1"}
    assert connect().openai()["api_key"] == "none"
    assert session.openai_kwargs() == {"extra_headers": {"X-Session-ID": "s1"}, "extra_body": {}}
    assert session.openai_kwargs({"mode": "read"}, key="order 17") == {
        "extra_headers": {"X-Session-ID": "s1", "Idempotency-Key": "order 17"},
        "extra_body": {"memory": {"mode": "read"}},
    }


def test_memory_that_is_gone_is_told(session, server, tools):
    """A turn that found nothing where there was a version: its answer is kept on the error, the next one goes on."""
    server.answer({**ANSWER, "memory": tools.receipt})
    session.chat("one")
    server.answer({**ANSWER, "memory": {**tools.receipt, "version_after": "w1"}})
    server.answer({**tools.session, "created": 9, "version": "w1"})
    with pytest.raises(MemoryEvicted, match="was at version v1 and is gone") as caught:
        session.chat("two")
    assert (caught.value.text, caught.value.status, session.version) == ("hi", None, "w1")
    server.answer({**ANSWER, "memory": {**tools.receipt, "version_before": "w1", "version_after": "w2"}})
    assert session.chat("three").text == "hi"


def test_memory_that_is_gone_is_told_by_a_stream(session, server, tools):
    """Behind the whole text, with the turn's key."""
    server.answer({**tools.session, "version": "v1"})
    session.info()
    server.answer_bytes(tools.sse(tools.chunk("a"), tools.chunk(None, "stop", memory=tools.receipt)))
    server.answer({**tools.session, "created": 9, "version": "v1"})
    stream = session.stream("two")
    texts = iter(stream)
    assert next(texts) == "a"
    with pytest.raises(MemoryEvicted) as caught:
        next(texts)
    assert (caught.value.text, caught.value.key) == ("a", stream.key)


def test_going_back_to_before_the_first_message_is_no_loss(session, server, tools):
    """The session is the same one, as its birth tells."""
    server.answer({**tools.session, "version": "v1"})
    session.info()
    server.answer({**ANSWER, "memory": tools.receipt})
    server.answer({**tools.session, "version": "v1"})
    assert session.chat("again").text == "hi"


def test_tool_calls_are_read_whole_and_in_pieces(session, server, tools):
    """The arguments come as text; a streamed call is put together from its pieces."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    message = {"content": None, "tool_calls": [call]}
    server.answer({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    whole = session.chat("hi", tools=[{"type": "function", "function": {"name": "look"}}])
    pieces = [{"index": 0, "id": "c1", "function": {"name": "look", "arguments": ""}}]
    pieces += [{"index": 0, "function": {"arguments": text}} for text in ('{"at"', ": 1}")]
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]} for piece in pieces]
    server.answer_bytes(tools.sse(*chunks, tools.chunk(None, "tool_calls")))
    stream = session.stream("hi")
    assert list(stream) == []
    assert whole.tool_calls == stream.reply.tool_calls
    (found,) = whole.tool_calls
    assert (found.id, found.name, found.arguments, whole.finish_reason) == ("c1", "look", '{"at": 1}', "tool_calls")


def test_further_fields_are_sent_by_their_names(session, server):
    """What the options do not name goes in extra_body, and the key in no body at all."""
    server.answer(ANSWER)
    messages: list[Message] = [{"role": "tool", "content": "42", "tool_call_id": "c1"}]
    session.chat(messages, extra_body={"min_p": 0.1}, seed=None, key="k")
    assert server.bodies == [{"model": "toy", "messages": messages, "min_p": 0.1}]


def test_an_error_tells_the_key_of_its_call(session, server):
    """So that the same call can be made again and is learned once."""
    server.queue.append(httpx.ReadError("reset"))
    server.answer({"error": {"message": "no", "code": "session_frozen"}}, 409)
    with pytest.raises(Exception, match="reset") as caught:
        session.chat("hi")
    assert caught.value.key == server.requests[0].headers["idempotency-key"]
    with pytest.raises(Exception, match="no") as caught:
        session.learn("text", key="mine")
    assert (caught.value.code, caught.value.key) == ("session_frozen", "mine")
