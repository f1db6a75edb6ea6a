"""The session endpoints and those that teach and measure."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hope_server.engine.turn import Attempt, LearnProgress, LearnRequest, Message, ScoreRequest, SessionKey

pytestmark = pytest.mark.anyio

KEY = SessionKey("default", "s1")


async def test_create_is_idempotent(client):
    """The first creation answers 201, a repeated one 200 with the same session."""
    first = await client.post("/v1/sessions", json={"id": "s1"})
    again = await client.post("/v1/sessions", json={"id": "s1"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json() == {
        "id": "s1",
        "object": "session",
        "created": 10,
        "updated": 20,
        "version": None,
        "turn": 0,
        "num_tokens": 0,
        "tokens_learned": 0,
        "state_bytes": {"window": 7},
        "frozen": False,
        "ttl": None,
        "expires": None,
        "metadata": {},
        "tags": {},
        "model": "fake-model",
    }


@pytest.mark.parametrize("content", [b"", b"{}", b'{"id": null}'])
async def test_create_generates_an_id(client, content):
    """Without an id, or without a body, a session of a fresh id is made."""
    answer = await client.post("/v1/sessions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201
    assert answer.json()["id"].startswith("sess_")
    assert len(answer.json()["id"]) == len("sess_") + 24


async def test_listing_is_paged(client):
    """A page has at most `limit` sessions and says whether more follow; `after` continues it."""
    for name in ("a", "b", "c"):
        await client.post("/v1/sessions", json={"id": name})
    first = (await client.get("/v1/sessions", params={"limit": 2})).json()
    rest = (await client.get("/v1/sessions", params={"limit": 2, "after": first["last_id"]})).json()
    assert [each["id"] for each in first["data"]] == ["a", "b"]
    assert (first["object"], first["has_more"], first["first_id"], first["last_id"]) == ("list", True, "a", "b")
    assert [each["id"] for each in rest["data"]] == ["c"]
    assert rest["has_more"] is False


@pytest.mark.parametrize(
    ("query", "param"), [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("after=a/b", "after")]
)
async def test_bad_page_is_refused(client, query, param):
    """A page size out of range, or a page start that is no id, answers 400 with its name."""
    answer = await client.get(f"/v1/sessions?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["message"].startswith(param)


async def test_get_delete_and_versions(client):
    """A session can be read, its versions listed, and it is gone after its deletion."""
    await client.post("/v1/sessions", json={"id": "s1"})
    assert (await client.get("/v1/sessions/s1")).json()["id"] == "s1"
    versions = (await client.get("/v1/sessions/s1/versions")).json()
    assert versions == {"object": "list", "data": [{"version": "v1", "turn": 1}]}
    gone = await client.delete("/v1/sessions/s1")
    assert gone.json() == {"id": "s1", "object": "session.deleted", "deleted": True}
    for answer in (await client.get("/v1/sessions/s1"), await client.delete("/v1/sessions/s1")):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "session_not_found"


async def test_fork(client):
    """A fork answers 201 with the new session, under the given id or a generated one."""
    await client.post("/v1/sessions", json={"id": "s1"})
    named = await client.post("/v1/sessions/s1/fork", json={"id": "s2"})
    unnamed = await client.post("/v1/sessions/s1/fork")
    assert (named.status_code, named.json()["id"]) == (201, "s2")
    assert unnamed.json()["id"].startswith("sess_")


@pytest.mark.parametrize("bad", ["a%20b", "x" * 65, "%C3%A4", "a%0A", "a.b"])
async def test_bad_id_in_the_path(client, bad):
    """An id in the path that could not name a session answers 400 and says what ids look like."""
    answer = await client.get(f"/v1/sessions/{bad}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "session_id"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("", {"id": "a b"}, "id"),
        ("", {"name": "x"}, "name"),
        ("/s1/fork", {"id": 5}, "id"),
        ("/s1/learn", {}, "text"),
        ("/s1/learn", {"text": " \n"}, "text"),
        ("/s1/learn", {"text": "x", "passes": 1001}, "passes"),
        ("/s1/learn", {"text": "x", "pases": 1}, "pases"),
        ("/s1/consolidate", {"text": "x"}, "text"),
        ("/s1/score", {"continuations": ["x"]}, "messages"),
        (
            "/s1/score",
            {"continuations": ["x"], "prompt": "p", "messages": [{"role": "user", "content": "x"}]},
            "messages",
        ),
        ("/s1/score", {"continuations": [], "prompt": "p"}, "continuations"),
        ("/s1/score", {"continuations": ["x"] * 65, "prompt": "p"}, "continuations"),
        ("/s1/score", {"continuations": ["x", ""], "prompt": "p"}, "continuations[1]"),
    ],
)
async def test_bad_bodies(client, engine, path, body, param):
    """Each wrong body answers 400 with the parameter, and nothing is done."""
    answer = await client.post(f"/v1/sessions{path}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert engine.requests == []
    assert engine.sessions == {}


@pytest.mark.parametrize(
    ("name", "body", "wanted"),
    [
        ("learn", {"text": "The barn is red.", "passes": 3}, LearnRequest(KEY, "The barn is red.", 3)),
        ("consolidate", {}, LearnRequest(KEY, None, None)),
    ],
)
async def test_learning_whole(client, engine, name, body, wanted):
    """Learning without a stream answers once, with usage, receipt and headers."""
    answer = await client.post(f"/v1/sessions/s1/{name}", json=body)
    assert answer.status_code == 200
    assert [replace(request, attempt=Attempt()) for request in engine.requests] == [wanted]
    assert answer.json()["object"] == f"session.{name}"
    assert answer.json()["session_id"] == "s1"
    assert answer.json()["usage"]["prompt_tokens"] == 12
    assert answer.json()["memory"]["tokens_learned"] == 9
    assert answer.headers["x-memory-version"] == "v1"


async def test_learning_streamed(client, engine, tools):
    """Streamed learning reports its progress, then the final object, then [DONE]; a loss that is not finite is null."""
    engine.script = [LearnProgress(5, 10, 1, 2, 2.5), LearnProgress(10, 10, 2, 2, math.inf), tools.FINISHED]
    answer = await client.post("/v1/sessions/s1/learn", json={"text": "x", "stream": True})
    found = tools.events(answer.text)
    assert answer.headers["content-type"] == "text/event-stream"
    assert found[0] == {
        "object": "session.learn.progress",
        "tokens_done": 5,
        "tokens_total": 10,
        "steps_done": 1,
        "steps_total": 2,
        "loss": 2.5,
    }
    assert found[1]["loss"] is None
    assert found[2]["object"] == "session.learn"
    assert found[2]["memory"]["version_after"] == "v1"
    assert found[3:] == ["[DONE]"]


async def test_score(client, engine):
    """Scores come in the order of the continuations, and the question reaches the engine as asked."""
    body = {"messages": [{"role": "user", "content": "q"}], "continuations": ["a", "bc"], "window": False}
    answer = await client.post("/v1/sessions/s1/score", json=body)
    scores = [{"logprob": -1.5, "num_tokens": 1}, {"logprob": -3.0, "num_tokens": 2}]
    assert answer.json() == {"object": "session.score", "scores": scores}
    assert engine.requests == [ScoreRequest(("a", "bc"), (Message("user", "q"),), None, KEY, False, "default")]
