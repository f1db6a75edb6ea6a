"""The chain of responses as sessions and versions: going on, branching off, what is unknown, what is not stored."""

from __future__ import annotations

import json

import pytest

from hope_server.api.response_ids import new_response_id, session_of_response
from hope_server.engine.turn import SessionKey
from hope_server.errors import VersionMismatch, VersionNotFound

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"


async def _post(client, **fields):
    answer = await client.post(PATH, json={"input": "hi", **fields})
    assert answer.status_code == 200, answer.text
    return answer


def _last(text: str) -> dict:
    """The response in the last event of a stream."""
    return json.loads(text.split("\n\n")[-3].split("data: ")[1])["response"]


async def _previous(engine) -> str:
    """A response of session `old`, kept as version v3."""
    await engine.create_session(SessionKey("default", "old"))
    name = new_response_id("old")
    engine.answers[name] = "v3"
    return name


async def test_the_newest_response_goes_on_in_its_session(client, engine):
    """The turn goes to the session that the previous response names, on the condition that it is still there."""
    previous = await _previous(engine)
    body = (await _post(client, previous_response_id=previous)).json()
    asked = engine.requests[0]
    assert (asked.session, asked.memory.if_match) == (SessionKey("default", "old"), "v3")
    assert session_of_response(body["id"]) == "old"
    assert body["previous_response_id"] == previous
    assert body["id"] != previous


class _Moved:
    """Plays the engine of a session that is past the asked version: it refuses the condition and serves a fork."""

    def __init__(self, engine) -> None:
        self.engine = engine
        self.chat = engine.chat
        engine.chat = self.play

    def play(self, request):
        events = self.chat(request)
        return self.refuse() if request.memory.if_match else events

    async def refuse(self):
        raise VersionMismatch("old", "v3", "v4")
        yield


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_older_response_goes_on_in_a_branch(client, engine, is_streamed):
    """Where the session has gone on, a fork at the response's version does, and the answer's id names the fork."""
    previous = await _previous(engine)
    _Moved(engine)
    answer = await _post(client, previous_response_id=previous, stream=is_streamed)
    (kind, branch, version) = engine.asked[0]
    assert (kind, version) == ("fork", "v3")
    assert engine.requests[1].session == SessionKey("default", branch)
    assert engine.requests[1].memory.if_match is None
    body = _last(answer.text) if is_streamed else answer.json()
    assert session_of_response(body["id"]) == branch
    assert engine.requests[1].attempt.answer_id == body["id"]
    assert engine.acknowledged == [(SessionKey("default", branch), "v1")]


async def test_a_branch_that_is_not_to_be_stored_is_dropped(client, engine):
    """With store false the fork is only read, and deleted behind the turn."""
    previous = await _previous(engine)
    _Moved(engine)
    await _post(client, previous_response_id=previous, store=False)
    assert engine.requests[1].memory.mode == "read"
    assert list(engine.sessions) == [SessionKey("default", "old")]


async def test_a_version_that_is_gone_is_not_found(client, engine, monkeypatch):
    """A response whose version was dropped in between answers 404."""
    previous = await _previous(engine)
    _Moved(engine)

    async def fork(*_args):
        raise VersionNotFound("old", "v3")

    monkeypatch.setattr(engine, "fork_session", fork)
    answer = await client.post(PATH, json={"input": "x", "previous_response_id": previous})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")


async def test_a_condition_of_the_callers_own_is_kept(client, engine):
    """With memory.if_match the session must be there, and no branch is made."""
    previous = await _previous(engine)
    _Moved(engine)
    body = {"input": "x", "previous_response_id": previous, "memory": {"if_match": "v9"}}
    answer = await client.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (412, "version_mismatch")
    assert engine.asked == []


@pytest.mark.parametrize(
    "previous",
    ["resp_abc", "nonsense", "", "resp_" + "A" * 200, new_response_id("other"), new_response_id(None), "resp_\u00e9"],
    ids=["short", "word", "empty", "long", "unknown session", "not kept", "not ASCII"],
)
async def test_an_unknown_previous_response(client, engine, previous):
    """What names no kept response answers 404 with the parameter."""
    answer = await client.post(PATH, json={"input": "x", "previous_response_id": previous})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "response_not_found", "previous_response_id")
    assert engine.requests == []


async def test_not_stored_is_stateless(client, engine):
    """With store false and no session nothing is remembered; a named session is only read, unless told to write."""
    body = (await _post(client, store=False)).json()
    assert engine.requests[0].session is None
    assert session_of_response(body["id"]) is None
    assert body["store"] is False
    await _post(client, store=False, session_id="s1")
    assert (engine.requests[1].session.session_id, engine.requests[1].memory.mode) == ("s1", "read")
    await _post(client, store=False, session_id="s1", memory={"mode": "write"})
    assert engine.requests[2].memory.mode == "write"
    await _post(client, prompt_cache_key="cache me")
    assert engine.requests[3].resends_history


@pytest.mark.parametrize("session", ["a", "x" * 64, "a-b_C9"])
def test_a_response_id_holds_its_session(session):
    """A name gives its session back; a name that was altered gives none."""
    name = new_response_id(session)
    assert name.removeprefix("resp_").replace("-", "a").replace("_", "a").isalnum()
    assert session_of_response(name) == session
    assert session_of_response(name + "=") is None
    assert session_of_response(name + "A") != session
