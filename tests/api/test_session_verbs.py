"""The endpoints that change, tag, reset and measure a session."""

from __future__ import annotations

import pytest

from hope_server.errors import SessionFrozen

pytestmark = pytest.mark.anyio


async def make(client, **fields):
    """Create the session s1."""
    return await client.post("/v1/sessions", json={"id": "s1", **fields})


async def test_a_session_is_patched(client, engine):
    """What is given is changed and told; what is absent or null is left to the engine as it was."""
    await make(client)
    body = {"frozen": True, "ttl": 60, "metadata": {"team": "blue"}}
    answer = await client.patch("/v1/sessions/s1", json=body, headers={"If-Match": '"v1"'})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["frozen"], found["ttl"], found["expires"], found["metadata"]) == (True, 60.0, 80, {"team": "blue"})
    assert engine.asked[-1] == ("update", True, 60.0, {"team": "blue"}, "v1")
    await client.patch("/v1/sessions/s1", json={"frozen": None})
    assert engine.asked[-1] == ("update", None, None, None, None)


async def test_a_session_is_created_with_its_life_and_labels(client, engine):
    """They apply to a session that is there already too, so that a repeated creation ends the same."""
    first = await make(client, ttl=60, metadata={"a": "b"})
    again = await make(client, ttl=60, metadata={"a": "b"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert (first.json()["ttl"], first.json()["metadata"]) == (60.0, {"a": "b"})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"ttl": -1}, "ttl"),
        ({"ttl": "60"}, "ttl"),
        ({"frozen": 1}, "frozen"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"frosen": True}, "frosen"),
    ],
)
async def test_a_bad_patch_is_refused(client, body, param):
    """The answer is 400 with the field's name."""
    await make(client)
    answer = await client.patch("/v1/sessions/s1", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(("verb", "is_frozen"), [("freeze", True), ("unfreeze", False)])
async def test_freezing_has_its_own_routes(client, engine, verb, is_frozen):
    """Both answer with the session, and need no body."""
    await make(client)
    answer = await client.post(f"/v1/sessions/s1/{verb}", headers={"If-Match": "v3"})
    assert (answer.status_code, answer.json()["frozen"]) == (200, is_frozen)
    assert engine.asked[-1] == ("update", is_frozen, None, None, "v3")


async def test_a_reset_names_levels_or_all(client, engine):
    """Without a list, everything is made new."""
    await make(client)
    await client.post("/v1/sessions/s1/reset", json={"levels": ["fast"]})
    assert engine.asked[-1] == ("reset", ["fast"], None)
    answer = await client.post("/v1/sessions/s1/reset", json={})
    assert (answer.status_code, answer.json()["object"]) == (200, "session")
    assert engine.asked[-1] == ("reset", None, None)


async def test_snapshots_are_made_listed_and_deleted(client, engine):
    """A tag is told with the session; deleted twice it is not found."""
    await make(client)
    made = await client.post("/v1/sessions/s1/snapshots", json={"tag": "start", "version": "v7"})
    assert (made.status_code, made.json()["tags"]) == (200, {"start": "v7"})
    listed = (await client.get("/v1/sessions/s1/snapshots")).json()
    assert listed == {"object": "list", "data": [{"tag": "start", "version": "v7"}]}
    gone = await client.delete("/v1/sessions/s1/snapshots/start")
    assert gone.json() == {"tag": "start", "object": "session.snapshot.deleted", "deleted": True}
    again = await client.delete("/v1/sessions/s1/snapshots/start")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "version_not_found")


@pytest.mark.parametrize("tag", ["", "a b", "a.b", "x" * 65, "0123456789abcdef" * 2])
async def test_a_bad_tag_is_refused(client, tag):
    """A tag is short, plain and cannot be taken for a version."""
    await make(client)
    answer = await client.post("/v1/sessions/s1/snapshots", json={"tag": tag})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tag")
    if tag:
        answer = await client.delete(f"/v1/sessions/s1/snapshots/{tag}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tag")


async def test_memory_and_turns_are_told(client):
    """Both say whose they are."""
    await make(client)
    memory = (await client.get("/v1/sessions/s1/memory")).json()
    assert memory["object"] == "session.memory"
    assert (memory["session_id"], memory["levels"]["fast"]["num_writes"]) == ("s1", 2)
    assert (await client.get("/v1/sessions/s1/turns")).json()["data"] == [{"turn": 1, "kind": "chat"}]


async def test_learning_in_a_frozen_session_is_refused(client, engine, tools):
    """The answer is 409, and a client need not send it again."""
    engine.script = [SessionFrozen("s1")]
    answer = await client.post("/v1/sessions/s1/learn", json={"text": "The barn is red."})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "session_frozen")
    assert answer.headers["x-should-retry"] == "false"
