"""What the client sends and what it makes of the answers, without streams."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hope_client import (
    Health,
    HopeClient,
    Message,
    Model,
    Receipt,
    Reply,
    Score,
    SessionInfo,
    UnexpectedAnswer,
    Usage,
    Version,
)

from hope_server.engine import turn


def test_a_session_is_made_by_name_or_without(client, server, tools):
    """The id is sent when there is one, and the server's id is the session's."""
    server.answer(tools.session)
    server.answer({**tools.session, "id": "sess_0"}, 201)
    assert [client.session("s1").id, client.session().id] == ["s1", "sess_0"]
    assert server.bodies == [{"id": "s1"}, {}]
    assert {str(request.url) for request in server.requests} == {"http://hope.test:8000/v1/sessions"}


def test_sessions_are_walked_page_by_page(client, server, tools):
    """The next page starts behind the last id, until the server says that there are no more."""
    server.answer({"data": [{**tools.session, "id": "a"}, {**tools.session, "id": "b"}], "has_more": True})
    server.answer({"data": [{**tools.session, "id": "c"}], "has_more": False})
    assert [each.id for each in client.sessions(page_size=2)] == ["a", "b", "c"]
    assert [dict(request.url.params) for request in server.requests] == [{"limit": "2"}, {"limit": "2", "after": "b"}]


def test_models_and_health_are_read(client, server):
    """Health takes 503 as an answer, because a loading server is not an error."""
    server.answer({"object": "list", "data": [{"id": "toy", "object": "model", "created": 5, "owned_by": "hope"}]})
    server.answer({"status": "ready"})
    server.answer({"status": "loading"}, 503)
    assert client.models() == [Model("toy", 5, "hope")]
    assert [client.health(), client.health()] == [Health(True, "ready"), Health(False, "loading")]


def test_a_key_travels_as_a_bearer_token(connect, server):
    """Every request carries the key."""
    client = connect("http://hope.test", "sk-1")
    server.answer({"data": []})
    client.models()
    assert server.requests[0].headers["authorization"] == "Bearer sk-1"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:abc", "http://a b", ""])
def test_a_url_that_is_none_is_refused_at_once(url):
    """The constructor says what a URL looks like."""
    with pytest.raises(ValueError, match="is not the URL of a server"):
        HopeClient(url)


def test_a_key_that_no_header_can_carry_is_refused():
    """A line break in a key never reaches the wire."""
    with pytest.raises(ValueError, match="printable ASCII"):
        HopeClient(api_key="sk\n1")


def test_a_chat_turn_sends_what_was_asked_and_nothing_more(session, server):
    """Parameters that were left out are not sent; the session goes in the header."""
    answer = {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
    server.answer({**answer, "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}, "memory": None})
    reply = session.chat("hello", temperature=0, memory={"mode": "read", "window": False}, top_p=0.5)
    assert reply == Reply("hi", None, Usage(3, 2, 5), "stop")
    assert server.requests[0].headers["x-session-id"] == "s1"
    assert server.bodies == [
        {
            "model": "toy",
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0,
            "memory": {"mode": "read", "window": False},
            "top_p": 0.5,
        }
    ]


def test_messages_are_sent_as_given(session, server):
    """A conversation takes the place of a single text, and a null content reads as no text."""
    server.answer({"choices": [{"message": {"content": None}}]})
    messages: list[Message] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "é\ud800"}]
    assert session.chat(messages).text == ""
    assert server.bodies[0]["messages"] == messages


def test_the_receipt_has_the_fields_that_the_server_writes():
    """The client's objects and the server's vocabulary do not drift apart."""

    def names(kind: type) -> list[str]:
        return [field.name for field in dataclasses.fields(kind)]

    assert names(Receipt) == names(turn.Receipt)
    renamed = {"session_id": "id", "is_frozen": "frozen", "ttl_seconds": "ttl"}
    assert [renamed.get(name, name) for name in names(turn.SessionInfo)] == names(SessionInfo)[:-1]


def test_an_answer_is_read_with_its_receipt_and_without_fields_it_does_not_know(session, server):
    """A newer server may say more than this client knows."""
    values = dataclasses.asdict(
        turn.Receipt("s1", "write", None, "v1", 1, 5, 4, 2, 3.5, None, {"fast": 0.5}, "commit", "new")
    )
    server.answer({"choices": [{"message": {"content": "hi"}}], "memory": {**values, "new_field": 1}})
    receipt = session.chat("hello").receipt
    assert receipt is not None
    assert dataclasses.asdict(receipt) == values


def test_scores_come_in_order_and_null_is_no_number(session, server):
    """A log-probability that JSON cannot say becomes NaN."""
    server.answer({"scores": [{"logprob": -3.0, "num_tokens": 2}, {"logprob": None, "num_tokens": 1}]})
    first, second = session.score([" a", " b"], messages=[{"role": "user", "content": "q"}], window=False)
    assert (first, first.per_token) == (Score(-3.0, 2), -1.5)
    assert math.isnan(second.per_token)
    assert server.bodies[0] == {
        "continuations": [" a", " b"],
        "messages": [{"role": "user", "content": "q"}],
        "window": False,
    }


def test_a_score_needs_exactly_one_kind_of_prompt(session, server):
    """Both or none is a mistake of the caller, found before anything is sent."""
    with pytest.raises(ValueError, match="exactly one"):
        session.score(["x"])
    with pytest.raises(ValueError, match="exactly one"):
        session.score(["x"], prompt="a", messages=[])
    assert server.requests == []


def test_versions_fork_and_delete(session, server, tools):
    """Each call goes to its own route; a fork is a session of its own."""
    server.answer({"data": [{"version": "v2", "parent": "v1", "number": 2, "created": 1.5, "num_bytes": 9}]})
    server.answer({**tools.session, "id": "s2"}, 201)
    server.answer({"deleted": True})
    assert session.versions() == [Version("v2", 1.5, "v1", 2, num_bytes=9)]
    assert session.fork("s2").id == "s2"
    session.delete()
    called = [(request.method, request.url.path) for request in server.requests]
    assert called == [
        ("GET", "/v1/sessions/s1/versions"),
        ("POST", "/v1/sessions/s1/fork"),
        ("DELETE", "/v1/sessions/s1"),
    ]


def test_an_answer_of_another_kind_is_named_so(client, server):
    """A wrong shape is an error that says what is missing, never a KeyError."""
    server.answer({"id": "s1"})
    server.answer([1])
    server.answer({"models": []})
    with pytest.raises(UnexpectedAnswer, match="SessionInfo lacks created, updated"):
        client.session("s1")
    with pytest.raises(UnexpectedAnswer, match="expected an object for SessionInfo"):
        client.session("s1")
    with pytest.raises(UnexpectedAnswer, match="expected a list object"):
        client.models()
