"""What web pages may do: origins, preflights, foreign names, and the headers that browsers go by."""

from __future__ import annotations

import pytest

from hope_server.errors import SettingsError
from hope_server.settings import Settings

pytestmark = pytest.mark.anyio

APP = "https://app.example.org"
EVIL = "https://evil.example.org"


def _ask_first(method: str, origin: str = APP) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,x-session-id,x-stainless-lang",
    }


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
async def test_without_origins_no_page_may_call(serving, method):
    """By default a browser is told nothing that would let another site's page call the server."""
    async with serving() as (_, client):
        asked = await client.options("/v1/sessions/x", headers=_ask_first(method))
        called = await client.request(method, "/v1/sessions/x", headers={"Origin": APP})
    for answer in (asked, called):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert asked.status_code == 405


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
@pytest.mark.parametrize("keys", [(), ("k1",)], ids=["open", "keyed"])
async def test_a_listed_origin_may_call(serving, method, keys):
    """Its preflight passes without a key, which browsers do not send then; every answer, errors too, names it."""
    async with serving(cors_origins=(APP,), api_keys=keys) as (_, client):
        asked = await client.options("/v1/sessions/x", headers=_ask_first(method))
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == APP
        assert method in asked.headers["access-control-allow-methods"]
        assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
        called = await client.request(method, "/v1/sessions/x", headers={"Origin": APP})
        assert called.status_code == 401 if keys else called.status_code in (404, 405)
        assert called.headers["access-control-allow-origin"] == APP
        assert "x-ratelimit-remaining-tokens" in called.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in {**asked.headers, **called.headers}


@pytest.mark.parametrize("origin", [EVIL, "null", "http://app.example.org", f"{APP}:8443", f"{APP}.evil.org"])
async def test_other_origins_may_not(serving, origin):
    """An origin is a whole: scheme, name and port."""
    async with serving(cors_origins=(APP,)) as (_, client):
        asked = await client.options("/v1/sessions/x", headers=_ask_first("DELETE", origin))
        called = await client.get("/v1/models", headers={"Origin": origin})
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in {**asked.headers, **called.headers}


async def test_every_origin_never_comes_with_credentials(serving):
    """`*` opens the server to all pages, and to none with a cookie."""
    async with serving(cors_origins=("*",)) as (_, client):
        for answer in (
            await client.options("/v1/sessions/x", headers=_ask_first("DELETE", EVIL)),
            await client.get("/v1/models", headers={"Origin": EVIL, "Cookie": "a=b"}),
        ):
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers


async def test_a_fault_is_readable_for_a_page(serving, engine):
    """An unexpected fault carries the origin as well, so that the page sees the error and not a network failure."""
    engine.get_session = lambda key: 1 / 0
    async with serving(cors_origins=(APP,)) as (_, client):
        answer = await client.get("/v1/sessions/x", headers={"Origin": APP})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, APP)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("app.example.org", "like https://app.example.org"),
        (f"{APP}/", "without a path"),
        ("null", "like https"),
        (f"*,{APP}", "list none beside it"),
        ("https://*.example.org", "like https"),
    ],
)
def test_origins_are_checked_at_the_start(text, message):
    """A wrong origin would silently match nothing, or more than was meant."""
    with pytest.raises(SettingsError, match=message):
        Settings.load(environ={"HOPE_CORS_ORIGINS": text})
    with pytest.raises(SettingsError, match="without a port"):
        Settings.load(environ={"HOPE_ALLOWED_HOSTS": "chat.example.org:80"})


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("192.168.1.7", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("app.localhost", True),
        ("hope", True),
        ("box.local:8000", True),
        ("evil.example.org", False),
        ("evil.example.org:8000", False),
        ("127.0.0.1.evil.org", False),
        ("localhost.evil.org", False),
        ("127.0.0.1.", True),
        ("evil.org.", False),
    ],
)
async def test_a_server_without_keys_answers_to_its_own_names_only(serving, engine, host, is_ours):
    """A page whose name was pointed at this machine (DNS rebinding) cannot read, teach or delete sessions."""
    async with serving() as (_, client):
        for method, path in (("GET", "/v1/sessions"), ("DELETE", "/v1/sessions/x"), ("GET", "/metrics")):
            answer = await client.request(method, path, headers={"Host": host})
            if is_ours:
                assert answer.status_code in (200, 404)
            else:
                assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host_not_allowed")
                assert answer.headers["x-should-retry"] == "false"
        assert (await client.get("/health", headers={"Host": host})).status_code == 200


async def test_listed_names_and_keyed_servers_answer(serving):
    """A name may be listed; with keys no page can do anything, so every name will do."""
    async with serving(allowed_hosts=("chat.example.org",)) as (_, client):
        assert (await client.get("/v1/models", headers={"Host": "Chat.Example.org:80"})).status_code == 200
        assert (await client.get("/v1/models", headers={"Host": "other.example.org"})).status_code == 421
    async with serving(api_keys=("k1",)) as (_, client):
        headers = {"Host": "any.example.org", "Authorization": "Bearer k1"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_every_answer_has_the_headers_of_an_api(serving, engine, tools):
    """Nothing is guessed, framed, run or cached; a stream keeps its own words about caching and buffering."""
    async with serving(api_keys=("k1",)) as (_, client):
        key = {"Authorization": "Bearer k1"}
        answers = [
            await client.get("/health"),
            await client.get("/v1/models"),
            await client.get("/v1/models", headers=key),
            await client.get("/nothing", headers=key),
            await client.post("/v1/chat/completions", json=tools.chat_body(stream=True), headers=key),
        ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers
    assert [answer.headers["cache-control"] for answer in answers] == ["no-store"] * 4 + ["no-cache"]
    assert answers[-1].headers["x-accel-buffering"] == "no"
