"""Keys: every route closed by default, scopes, tenants, expiry, what the file may be and when it is read again."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time

import httpx
import pytest
from serving import fill, routes_of

from hope_server.api import create_app
from hope_server.api.key_book import KeyBook
from hope_server.api.key_registry import KeyRegistry, new_key
from hope_server.api.scopes import ALL_SCOPES, OPEN_PATHS, needed_scope
from hope_server.errors import StartupError
from hope_server.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def registry(tmp_path):
    """A registry whose file does not exist yet."""
    return KeyRegistry(tmp_path / "keys.jsonl")


def make(registry, name="laptop", **fields) -> tuple[str, dict[str, str]]:
    """Add a key; return its id and the header that a client sends."""
    record, key = new_key(name, **fields)
    registry.add(record)
    return record.id, {"Authorization": f"Bearer {key}"}


def every_route(app) -> list[tuple[str, str]]:
    """Every method and path that the app serves, parameters filled in."""
    return [(method, fill(template, {})) for method, template in routes_of(app)]


def _headers_without_access(registry) -> dict[str, dict[str, str]]:
    revoked_id, revoked = make(registry, "revoked")
    registry.revoke(revoked_id)
    good = make(registry, "good")[1]["Authorization"]
    return {
        "none": {},
        "empty": {"Authorization": ""},
        "unknown": {"Authorization": "Bearer hope_nobody"},
        "revoked": revoked,
        "expired": make(registry, "expired", expires=int(time.time()) - 1)[1],
        "other scheme": {"Authorization": good.replace("Bearer", "Basic")},
        "cut": {"Authorization": good[:-1]},
        "longer": {"Authorization": good + "x"},
        "in x-api-key": {"x-api-key": good.removeprefix("Bearer ")},
        "not ascii": {"Authorization": b"Bearer k\xe4y".decode("latin-1")},
        "huge": {"Authorization": "Bearer " + "k" * 20_000},
    }


async def test_every_route_is_closed_to_who_has_no_good_key(serving, engine, registry):
    """Whatever the app serves answers 401 without a good key, in OpenAI's shape; only /health and /ready do not."""
    bad = _headers_without_access(registry)
    num_checked = 0
    async with serving(api_key_file=str(registry.path)) as (app, client):
        routes = [*every_route(app), ("GET", "/nothing"), ("POST", "/v1/nothing"), ("TRACE", "/v1/models")]
        for method, path in routes:
            for name, headers in bad.items():
                encoded = {key: value.encode("latin-1") for key, value in headers.items()}
                answer = await client.request(method, path, headers=encoded)
                if path in OPEN_PATHS:
                    assert answer.status_code == 200, (method, path)
                    continue
                num_checked += 1
                assert answer.status_code == 401, (method, path, name)
                if method != "HEAD":
                    assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["x-should-retry"] == "false"
    assert num_checked > 11 * 15
    assert engine.requests == [] and engine.sessions == {}


async def test_every_route_is_in_the_table_of_scopes(serving):
    """No route needs admin by accident: those that do are known by name, all others are listed with their scope."""
    async with serving() as (app, _):
        scope = {"type": "http", "app": app, "root_path": "", "headers": []}
        needed = {route: needed_scope({**scope, "method": route[0], "path": route[1]}) for route in every_route(app)}
    assert {path for (_, path), each in needed.items() if each == "admin"} == {*OPEN_PATHS, "/metrics"}
    assert needed["GET", "/v1/sessions/x/export"] == "sessions:read"
    assert needed["DELETE", "/v1/sessions/x"] == "sessions:write"


@pytest.mark.parametrize("scope", ALL_SCOPES)
async def test_a_key_can_do_what_its_scope_says_and_nothing_else(serving, registry, scope):
    """On every route a key of one scope passes where that scope is needed, else gets 403 that names what it lacks."""
    _, headers = make(registry, scopes=(scope,))
    async with serving(api_key_file=str(registry.path)) as (app, client):
        for method, path in every_route(app):
            given = {"type": "http", "app": app, "root_path": "", "headers": [], "method": method, "path": path}
            needed = needed_scope(given)
            answer = await client.request(method, path, headers=headers)
            if path in OPEN_PATHS or needed in ("any", scope):
                assert answer.status_code not in (401, 403), (method, path)
                continue
            assert answer.status_code == 403, (method, path)
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("insufficient_scope", "invalid_request_error")
            assert needed in error["message"]
            assert answer.headers["x-should-retry"] == "false"


async def test_an_unlisted_route_is_for_admins(serving, registry):
    """A route that nobody put into the table is closed to every key without admin, and an unknown path is a 404."""
    _, plain = make(registry)
    _, admin = make(registry, "admin", scopes=("admin",))
    async with serving(api_key_file=str(registry.path)) as (app, client):

        @app.get("/v1/forgotten")
        async def forgotten() -> dict[str, str]:
            return {"a": "b"}

        assert (await client.get("/v1/forgotten", headers=plain)).status_code == 403
        assert (await client.get("/v1/forgotten", headers=admin)).status_code == 200
        assert (await client.get("/v1/unknown", headers=plain)).status_code == 404


async def test_two_authorization_headers_are_refused(serving, registry):
    """With two headers, a proxy may have looked at the other one."""
    _, headers = make(registry)
    async with serving(api_key_file=str(registry.path)) as (_, client):
        both = [("Authorization", "Bearer wrong"), ("Authorization", headers["Authorization"])]
        assert (await client.get("/v1/models", headers=both)).status_code == 401
        assert (await client.get("/v1/models", headers=both[1:])).status_code == 200


async def test_a_named_file_closes_the_server_even_before_it_has_keys(serving, registry):
    """Without the file nobody gets in; a key that is made while the server runs works at once, and never before."""
    async with serving(api_key_file=str(registry.path)) as (_, client):
        assert (await client.get("/v1/models")).status_code == 401
        _, headers = make(registry)
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401
        registry.path.unlink()
        assert (await client.get("/v1/models", headers=headers)).status_code == 401


async def test_a_damaged_file_opens_nothing_until_it_is_mended(serving, registry, caplog):
    """A key of a file that cannot be read may have been revoked; keys of the environment still work; it is logged."""
    _, headers = make(registry)
    async with serving(api_key_file=str(registry.path), api_keys=("env-key",)) as (_, client):
        whole = registry.path.read_text()
        registry.path.write_text(whole + "{broken\n")
        for _ in range(3):
            assert (await client.get("/v1/models", headers=headers)).status_code == 401
        good = {"Authorization": "Bearer env-key"}
        assert (await client.get("/v1/models", headers=good)).status_code == 200
        registry.path.write_text(whole)
        await asyncio.sleep(0.6)
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
    events = [record.hope_event for record in caplog.records if record.name == "hope"]
    assert events.count("api_keys_unreadable") == 1


async def test_an_expired_key_ends_by_itself():
    """A key is good up to its last second and not at it."""
    now = [100.0]
    record, key = new_key("short", expires=110)

    class Fixed:
        def signature(self):
            return (1,)

        def read(self):
            return (record,)

    book = KeyBook((), Fixed(), lambda: now[0])
    assert book.find(key.encode()) == record
    now[0] = 110.0
    assert book.find(key.encode()) is None
    assert not book.is_still_good(record, "any")


async def test_a_shared_tenant_shares_sessions(serving, registry, engine, tools):
    """Keys of one tenant see the same sessions, so that a key can be replaced; by default each has its own."""
    _, old = make(registry, "old", tenant="team")
    _, new = make(registry, "new", tenant="team")
    _, other = make(registry, "other")
    async with serving(api_key_file=str(registry.path)) as (_, client):
        await client.post("/v1/sessions", json={"id": "s"}, headers=old)
        assert (await client.get("/v1/sessions/s", headers=new)).status_code == 200
        assert (await client.get("/v1/sessions/s", headers=other)).status_code == 404


def test_the_file_holds_no_key(registry):
    """Only a hash is kept, in a file that only its owner reads; the key is 256 random bits behind a known prefix."""
    record, key = new_key("laptop")
    registry.add(record)
    assert key.startswith("hope_") and len(key) == 5 + 43
    assert key not in registry.path.read_text()
    assert os.stat(registry.path).st_mode & 0o777 == 0o600
    assert new_key("laptop")[1] != key
    assert key not in repr(record)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ('{"id": "a"}', "line 2 of the API key file"),
        (json.dumps({"id": "a", "name": "b", "hash": "SECRET" * 9, "tenant": "t", "scopes": [], "created": 1}), "hash"),
    ],
)
def test_a_bad_line_is_named_and_not_quoted(registry, line, message):
    """The start stops with the line's number; what stands there may be a key that was pasted by mistake."""
    make(registry)
    with registry.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(StartupError, match=message) as caught:
        create_app(None, Settings(api_key_file=str(registry.path)))
    assert "SECRET" not in caught.value.message


def test_a_file_that_others_may_write_is_refused(registry):
    """Who can write the file can let anyone in."""
    make(registry)
    registry.path.chmod(0o666)
    with pytest.raises(StartupError, match="chmod 600"):
        KeyBook.of_settings(Settings(api_key_file=str(registry.path)))


def test_writers_at_once_lose_nothing(registry):
    """Keys that are added at the same time are all there, and a reader never sees half a file."""
    ids: list[str] = []
    writers = [threading.Thread(target=lambda name=name: ids.append(make(registry, name)[0])) for name in "abcdefgh"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        registry.read()
    assert len(ids) == 8
    assert sorted(record.id for record in registry.read()) == sorted(ids)


async def test_the_key_of_a_request_is_named_in_the_log(serving, registry, caplog):
    """The request's log line has the key's id, which is public, so that what a leaked key did can be found."""
    caplog.set_level("INFO", logger="hope")
    key_id, headers = make(registry)
    async with serving(api_key_file=str(registry.path)) as (_, client):
        await client.get("/v1/models", headers=headers)
        await client.get("/v1/models")
    lines = [record.hope_fields["key"] for record in caplog.records if getattr(record, "hope_event", "") == "request"]
    assert lines == [key_id, None]


async def test_a_websocket_is_closed(engine):
    """No route speaks it, so nothing but http is let past the door."""
    app = create_app(engine, Settings(api_keys=("k",)))
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    await app({"type": "websocket", "path": "/v1/models", "headers": [], "query_string": b""}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_open_by_default(client):
    """A server without keys and file serves anyone, as one tenant."""
    assert isinstance(client, httpx.AsyncClient)
    assert (await client.get("/v1/models")).status_code == 200
    assert (await client.get("/metrics")).status_code == 200
