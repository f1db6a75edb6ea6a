"""Two tenants on one real engine: over every route and every way to name a session, one gets nothing of the other's."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hope_memory.key_file import KeyRing
from hypothesis import given
from hypothesis import strategies as st
from serving import fill, routes_of
from taking import chat as take_chat
from toys import toy_engine, toy_settings

from hope_server.api import create_app
from hope_server.api.key_registry import KeyRegistry, new_key
from hope_server.api.scopes import OPEN_PATHS
from hope_server.engine.turn import SessionKey
from hope_server.errors import SessionNotFound

pytestmark = pytest.mark.anyio

CANARY = "canary-7f3a"
CHAT = "/v1/chat/completions"
TURN = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}

# Where a chat request can name its session; each returns what to add to headers and body.
WAYS = {
    "X-Session-ID": lambda name: ({"X-Session-ID": name}, {}),
    "session_id": lambda name: ({}, {"session_id": name}),
    "conversation": lambda name: ({}, {"conversation": name}),
    "conversation.id": lambda name: ({}, {"conversation": {"id": name}}),
    "metadata": lambda name: ({}, {"metadata": {"session_id": name}}),
    "X-OpenWebUI-Chat-Id": lambda name: ({"X-OpenWebUI-Chat-Id": name}, {}),
    "x-litellm-session-id": lambda name: ({"x-litellm-session-id": name}, {}),
    "x-session-affinity": lambda name: ({"x-session-affinity": name}, {}),
    "prompt_cache_key": lambda name: ({}, {"prompt_cache_key": name}),
}
# Names that look like `ada`, or that a careless join of tenant and name would read as it.
LOOKALIKES = ["аda", "ａda", "ada\u200b", "ada ", "Ada", "ada/", "../ada", "ada\x00", "a:da", "ada%00", "h-ada"]


@dataclass
class Tenant:
    """One key and a client that sends it."""

    name: str
    client: httpx.AsyncClient
    secrets: list[str] = field(default_factory=list)
    answer_ids: list[str] = field(default_factory=list)

    async def ok(self, method: str, path: str, **request: Any) -> Any:
        """Send a request that must go well; return its JSON, or its bytes."""
        answer = await self.client.request(method, path, **request)
        assert answer.is_success, answer.text
        is_json = answer.headers["content-type"] == "application/json"
        return answer.json() if is_json else answer.content

    async def world(self) -> dict[str, Any]:
        """Everything that can be seen of the tenant's sessions, their states included."""
        seen: dict[str, Any] = {}
        for info in (await self.ok("GET", "/v1/sessions?limit=100"))["data"]:
            path = f"/v1/sessions/{info['id']}"
            archive = await self.ok("GET", f"{path}/export") if info["version"] else b""
            seen[info["id"]] = (info, await self.ok("GET", f"{path}/versions"), archive)
        return seen


@dataclass
class World:
    """An app on a toy engine with Ada, who has taught two sessions, and Bob, who has not."""

    app: Any
    engine: Any
    ada: Tenant
    bob: Tenant


@pytest.fixture
async def world(tmp_path) -> AsyncIterator[World]:
    """Ada's sessions hold a canary; Bob's key has the same scopes as hers."""
    registry = KeyRegistry(tmp_path / "keys.jsonl")
    settings = toy_settings(tmp_path / "s.db", api_key_file=str(registry.path))
    engine = toy_engine(tmp_path / "s.db")
    app = create_app(engine, settings)
    tenants = []
    async with app.router.lifespan_context(app):
        while not engine.is_ready:
            await asyncio.sleep(0.01)
        for name in ("ada", "bob"):
            record, key = new_key(name)
            registry.add(record)
            headers = {"Authorization": f"Bearer {key}"}
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://h", headers=headers)
            tenants.append(Tenant(record.tenant, client))
        found = World(app, engine, *tenants)
        await _teach(found.ada)
        yield found
        for tenant in tenants:
            await tenant.client.aclose()


async def _teach(ada: Tenant) -> None:
    await ada.ok("POST", "/v1/sessions", json={"id": "ada"})
    await ada.ok("POST", "/v1/sessions/ada/learn", json={"text": f"The word is {CANARY}."})
    chat = await ada.ok("POST", CHAT, json={**TURN, "session_id": "ada"}, headers={"Idempotency-Key": "once"})
    ada.answer_ids.append(chat["id"])
    await ada.ok("POST", "/v1/sessions/ada/fork", json={"id": "ada-fork"})
    response = await ada.client.post("/v1/responses", json={"input": f"Say {CANARY}", "max_output_tokens": 2})
    if response.is_success:
        ada.answer_ids.append(response.json()["id"])
    await ada.client.post("/v1/sessions/ada/snapshots", json={"tag": CANARY})
    for info, versions, _ in (await ada.world()).values():
        ada.secrets += [info["version"], *(each["version"] for each in versions["data"])]
    assert len(set(ada.secrets)) >= 3


def _leaks(world: World, answer: httpx.Response, sent: object) -> list[str]:
    """What an answer tells of Ada's that was not in the request."""
    known = json.dumps(sent, default=str) + str(answer.request.url) + str(answer.request.headers)
    told = answer.text + str(dict(answer.headers))
    return [secret for secret in {*world.ada.secrets, CANARY} if secret in told and secret not in known]


def _bodies(world: World, template: str) -> list[dict[str, Any]]:
    """Bodies that a route may take, naming Ada's things."""
    versions = list(dict.fromkeys(world.ada.secrets))
    fitting: dict[str, list[dict[str, Any]]] = {
        "rollback": [{"version": version} for version in versions] + [{"version": CANARY}],
        "fork": [{}, *({"version": version} for version in versions), {"id": "stolen", "version": CANARY}],
        "learn": [{"text": "x"}, *({"text": "x", "if_match": version} for version in versions)],
        "consolidate": [{}, *({"if_match": version} for version in versions)],
        "score": [{"prompt": "The word is", "continuations": [f" {CANARY}"]}],
        "snapshots": [{"tag": "mine"}, *({"tag": "mine", "version": version} for version in versions)],
        "sessions": [{"id": "ada"}],
        "responses": [{"input": "x", "previous_response_id": each} for each in world.ada.answer_ids],
        "completions": [{**TURN, "session_id": "ada", "memory": {"if_match": each}} for each in versions],
    }
    return [*fitting.get(template.rpartition("/")[2], []), {}, {"frozen": True}, {"levels": ["fast"]}]


async def test_no_route_gives_or_changes_anything_of_another_tenant(world):
    """Every route with Ada's ids, versions, tags and answers, asked by Bob: no fact of hers comes, nothing moves."""
    before = await world.ada.world()
    num_asked = 0
    for method, template in routes_of(world.app):
        if template in OPEN_PATHS or method == "HEAD":
            continue
        ids = itertools.product(("ada", "ada-fork"), world.ada.answer_ids, (world.ada.secrets[0], CANARY))
        paths = {
            fill(template, {"session_id": name, "response_id": answer, "version": version, "tag": version})
            for name, answer, version in ids
        }
        for path in sorted(paths):
            query = "" if method != "GET" else f"?version={world.ada.secrets[0]}&after=a"
            for body in _bodies(world, template) if method != "GET" else [None]:
                answer = await world.bob.client.request(method, path + query, json=body)
                num_asked += 1
                assert answer.status_code < 500, (method, path, body, answer.text)
                assert _leaks(world, answer, body) == [], (method, path, body)
    assert num_asked > 60
    assert await world.ada.world() == before
    assert not {"stolen"} & set(await world.bob.world())


async def test_the_sessions_that_one_has_made_are_his_own(world):
    """What Bob made under Ada's names knows nothing of hers: no version of hers, and his own first turn."""
    for number, (way, name) in enumerate(itertools.product(WAYS, ("ada", "ada-fork"))):
        headers, fields = WAYS[way](name)
        answer = await world.bob.client.post(CHAT, json={**TURN, **fields}, headers=headers)
        assert answer.status_code == 200, (way, answer.text)
        receipt = answer.json()["memory"]
        assert receipt["session_id"] == name
        assert receipt["version_before"] not in world.ada.secrets
        assert receipt["turn"] <= number + 1
    world_of_bob = await world.bob.world()
    assert set(world_of_bob) == {"ada", "ada-fork"}
    assert CANARY.encode() not in b"".join(archive for _, _, archive in world_of_bob.values())
    assert CANARY.encode() in (await world.ada.world())["ada"][2]


@pytest.mark.parametrize("way", WAYS)
async def test_a_condition_on_anothers_version_is_never_met(world, way):
    """Naming Ada's session and its very version, Bob is told that his session is elsewhere."""
    headers, fields = WAYS[way]("ada")
    for version in dict.fromkeys(world.ada.secrets):
        body = {**TURN, **fields, "memory": {"if_match": version}}
        answer = await world.bob.client.post(CHAT, json=body, headers=headers)
        assert answer.status_code in (404, 409, 412), answer.text
        assert _leaks(world, answer, [body, headers]) == []


async def test_an_answer_is_replayed_to_its_own_tenant_only(world):
    """The same Idempotency-Key and request under the same session id is a new turn for another tenant."""
    request = {"json": {**TURN, "session_id": "ada"}, "headers": {"Idempotency-Key": "once"}}
    own = await world.ada.client.post(CHAT, **request)
    other = await world.bob.client.post(CHAT, **request)
    assert (own.json()["id"], own.headers["x-memory-replayed"]) == (world.ada.answer_ids[0], "true")
    assert other.json()["id"] not in world.ada.answer_ids
    assert "x-memory-replayed" not in other.headers
    assert other.json()["memory"]["version_before"] is None


@pytest.mark.parametrize("name", LOOKALIKES, ids=ascii)
async def test_a_name_that_looks_alike_is_another_session(world, name):
    """Refused, or a session of its own: for Bob, and for Ada herself."""
    before = (await world.ada.world())["ada"]
    for tenant in (world.ada, world.bob):
        for way in WAYS.values():
            headers, fields = way(name)
            try:
                encoded = {key: value.encode("utf-8") for key, value in headers.items()}
                answer = await tenant.client.post(CHAT, json={**TURN, **fields}, headers=encoded)
            except httpx.LocalProtocolError:
                continue
            assert answer.status_code in (200, 400), answer.text
            if answer.status_code == 200:
                assert answer.json()["memory"]["session_id"] != "ada"
    assert (await world.ada.world())["ada"] == before


async def test_unknown_and_foreign_are_told_apart_by_nobody(world):
    """Bob gets the same answer for Ada's session as for one that nobody has, to the letter but for its name."""
    for method, template in routes_of(world.app):
        if "{session_id}" not in template or method == "HEAD":
            continue
        for body in _bodies(world, template)[:1]:
            foreign, unknown = [
                await world.bob.client.request(method, fill(template, {"session_id": name}), json=body)
                for name in ("ada-fork", "ada-none")
            ]
            assert foreign.status_code == unknown.status_code, template
            if not foreign.is_success:
                assert foreign.text == unknown.text.replace("ada-none", "ada-fork")


async def test_joined_names_do_not_collide(world):
    """Tenants and names that would be one text when joined by any delimiter are different sessions of the engine."""
    await take_chat(world.engine, session=SessionKey("a", "b"))
    for delimiter in (":", "/", "|", ".", "-", "_", "}", "{"):
        left, right = SessionKey(f"a{delimiter}b", "c"), SessionKey("a", f"b{delimiter}c")
        await take_chat(world.engine, session=left)
        assert (await world.engine.get_session(left)).turn == 1
        with pytest.raises(SessionNotFound):
            await world.engine.get_session(right)
        assert await world.engine.list_sessions("a", 10, None) == [await world.engine.get_session(SessionKey("a", "b"))]


names = st.text(st.sampled_from("ab:/|.-_\x00{}"), max_size=6)


@given(names, names, names, names)
def test_stored_places_do_not_collide(tenant, name, other_tenant, other_name):
    """The hash under which a store keeps a session is of both parts, not of their join."""
    ring = KeyRing(b"n" * 32, {"k": b"k" * 32})
    is_same = (tenant, name) == (other_tenant, other_name)
    assert (ring.place(tenant, name) == ring.place(other_tenant, other_name)) is is_same
