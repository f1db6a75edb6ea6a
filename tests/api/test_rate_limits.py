"""Requests and tokens a minute, requests at once, and the headers that tell what is left."""

from __future__ import annotations

import asyncio

import pytest

from hope_server.api import rate_limits
from hope_server.api.key_registry import KeyLimits, KeyRegistry, new_key
from hope_server.api.rate_limits import Bucket, RateLimits
from hope_server.engine.turn import TokenText
from hope_server.errors import PromptTooLong

pytestmark = pytest.mark.anyio

KEY = {"Authorization": "Bearer k1"}
OTHER = {"Authorization": "Bearer k2"}
KEYS = {"api_keys": ("k1", "k2")}


@pytest.fixture
def clock(monkeypatch):
    """Stop the clock of the limits; a test moves it by hand."""
    now = [1000.0]
    wrapped = RateLimits.__init__
    monkeypatch.setattr(
        RateLimits, "__init__", lambda self, app, defaults: wrapped(self, app, defaults, lambda: now[0])
    )
    return now


def _left(answer) -> dict[str, str]:
    start = "x-ratelimit-"
    return {name.removeprefix(start): value for name, value in answer.headers.items() if name.startswith(start)}


def test_a_bucket_fills_steadily_up_to_its_limit():
    """It holds one minute's worth, is refilled in proportion, and an overdraft is waited out."""
    bucket = Bucket(60, now=0.0)
    bucket.take(60, 0.0)
    assert bucket.level(30.0) == 30.0
    assert bucket.level(500.0) == 60.0
    bucket.take(180, 500.0)
    assert bucket.level(500.0) == -120.0
    assert bucket.seconds_until(1, 500.0) == 121.0
    assert bucket.level(499.0) == -120.0
    bucket.take(-1000, 500.0)
    assert bucket.level(500.0) == 60.0


async def test_requests_a_minute(serving, clock):
    """The one too many gets 429 with Retry-After and is let in when that has passed; other keys are not touched."""
    async with serving(**KEYS, requests_per_minute=2) as (_, client):
        seen = [await client.get("/v1/models", headers=KEY) for _ in range(3)]
        assert [answer.status_code for answer in seen] == [200, 200, 429]
        refused = seen[-1]
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "invalid_request_error")
        assert error["message"] == "the limit of this API key is 2 requests a minute; retry in 30 s"
        assert refused.headers["retry-after"] == "30"
        assert "x-should-retry" not in refused.headers
        assert [_left(answer)["remaining-requests"] for answer in seen] == ["1", "0", "0"]
        assert [_left(answer)["reset-requests"] for answer in seen] == ["30s", "1m0s", "1m0s"]
        assert (await client.get("/v1/models", headers=OTHER)).status_code == 200
        clock[0] += 29
        assert (await client.get("/v1/models", headers=KEY)).status_code == 429
        clock[0] += 1
        assert (await client.get("/v1/models", headers=KEY)).status_code == 200


async def test_the_headers_are_on_every_v1_answer(serving, engine, tools, clock):
    """Errors of all kinds and streams have them too; /health and a limit that is not set have none."""
    async with serving(**KEYS, requests_per_minute=100) as (_, client):
        answers = [
            await client.get("/v1/models", headers=KEY),
            await client.get("/v1/nothing", headers=KEY),
            await client.get("/v1/sessions/none", headers=KEY),
            await client.post("/v1/chat/completions", json={}, headers=KEY),
            await client.post("/v1/chat/completions", content=b"x" * 3_000_000, headers=KEY),
            await client.post("/v1/chat/completions", json=tools.chat_body(stream=True), headers=KEY),
        ]
        assert [answer.status_code for answer in answers] == [200, 404, 404, 400, 413, 200]
        for number, answer in enumerate(answers, 1):
            assert set(_left(answer)) == {"limit-requests", "remaining-requests", "reset-requests"}
            assert _left(answer)["remaining-requests"] == str(100 - number)
        assert _left(await client.get("/health")) == {}
        assert _left(await client.get("/v1/models")) == {}


async def test_tokens_a_minute_are_what_a_turn_took(serving, engine, tools, clock):
    """Prompt, completion and learned tokens count; once all are gone the next request waits until one is back."""
    taken = 12 + 2 + 9
    async with serving(**KEYS, tokens_per_minute=30) as (_, client):
        first = await client.post("/v1/chat/completions", json=tools.chat_body(), headers=KEY)
        assert _left(first) == {"limit-tokens": "30", "remaining-tokens": str(30 - taken), "reset-tokens": "46s"}
        second = await client.post("/v1/chat/completions", json=tools.chat_body(), headers=KEY)
        assert (second.status_code, _left(second)["remaining-tokens"]) == (200, "0")
        refused = await client.post("/v1/chat/completions", json=tools.chat_body(), headers=KEY)
        assert refused.status_code == 429
        # 46 taken of 30, and half a token comes a second.
        assert refused.headers["retry-after"] == "34"
        assert len(engine.requests) == 2
        clock[0] += 34
        assert (await client.post("/v1/chat/completions", json=tools.chat_body(), headers=KEY)).status_code == 200


async def test_a_stream_says_what_is_left_beside_a_guess_and_pays_what_it_took(serving, engine, tools, clock):
    """When a stream begins only its body is known; when it has ended the true figure is charged."""
    gate = asyncio.Event()
    engine.script = [TokenText("a"), gate, tools.FINISHED]
    async with serving(**KEYS, tokens_per_minute=1000) as (app, client):
        content = b'{"stream": true, "messages": [{"role": "user", "content": "' + b"x" * 400 + b'"}]}'
        call = tools.RawCall(app, "/v1/chat/completions", content, {"authorization": "Bearer k1"})
        await tools.eventually(lambda: bool(call.sent))
        headers = dict(call.sent[0]["headers"])
        assert headers[b"x-ratelimit-remaining-tokens"] == str(1000 - len(content) // 4 - 1).encode()
        gate.set()
        await call.task
        after = await client.get("/v1/models", headers=KEY)
        assert _left(after)["remaining-tokens"] == str(1000 - 23)


async def test_a_refused_turn_is_free_and_an_abandoned_one_is_not(serving, engine, tools, clock):
    """Nothing was computed for a turn that was refused; a client that hangs up pays its prompt and the text it got."""
    async with serving(**KEYS, tokens_per_minute=1000) as (app, client):
        engine.script = [PromptTooLong(9, 8)]
        await client.post("/v1/chat/completions", json=tools.chat_body(), headers=KEY)
        assert _left(await client.get("/v1/models", headers=KEY))["remaining-tokens"] == "1000"
        engine.script = [TokenText("a"), TokenText("b"), asyncio.Event()]
        content = b'{"stream": true, "messages": [{"role": "user", "content": "hello"}]}'
        call = tools.RawCall(app, "/v1/chat/completions", content, {"authorization": "Bearer k1"})
        await tools.eventually(lambda: call.body.count(b'"content"') >= 3)
        call.hang_up()
        await call.task
        left = int(_left(await client.get("/v1/models", headers=KEY))["remaining-tokens"])
        assert left == 1000 - len(content) // 4 - 2


async def test_scoring_is_charged_by_its_size(serving, clock):
    """Scores have no tokens of their own to report; what was sent for them counts."""
    body = {"prompt": "x" * 4000, "continuations": ["y"]}
    async with serving(**KEYS, tokens_per_minute=10_000) as (_, client):
        answer = await client.post("/v1/sessions/s1/score", json=body, headers=KEY)
    assert answer.status_code == 200
    assert 8_900 < int(_left(answer)["remaining-tokens"]) < 9_000


async def test_requests_at_once(serving, engine, tools):
    """A key's open requests are bounded; the one too many is told to come back, and may when one has ended."""
    gate = asyncio.Event()
    engine.script = [gate, tools.FINISHED]
    async with serving(**KEYS, max_open_requests=2) as (_, client):
        asking = [
            asyncio.create_task(client.post("/v1/chat/completions", json=tools.chat_body(), headers=KEY))
            for _ in range(2)
        ]
        await tools.eventually(lambda: engine.num_open == 2)
        refused = await client.post("/v1/chat/completions", json=tools.chat_body(), headers=KEY)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "2 open requests" in refused.json()["error"]["message"]
        assert (await client.get("/v1/models", headers=OTHER)).status_code == 200
        assert (await client.get("/health")).status_code == 200
        gate.set()
        assert [(await each).status_code for each in asking] == [200, 200]
        assert (await client.get("/v1/models", headers=KEY)).status_code == 200


async def test_a_key_has_limits_of_its_own(serving, tmp_path, clock):
    """What the registry says of a key goes before the settings: more, fewer, or none at all."""
    registry = KeyRegistry(tmp_path / "keys.jsonl")
    headers = {}
    for name, limits in (
        ("default", KeyLimits()),
        ("fewer", KeyLimits(requests_per_minute=1)),
        ("none", KeyLimits(requests_per_minute=0)),
    ):
        record, key = new_key(name, limits=limits)
        registry.add(record)
        headers[name] = {"Authorization": f"Bearer {key}"}
    async with serving(api_key_file=str(registry.path), requests_per_minute=2) as (_, client):
        statuses = {
            name: [(await client.get("/v1/models", headers=given)).status_code for _ in range(3)]
            for name, given in headers.items()
        }
    assert statuses == {"default": [200, 200, 429], "fewer": [200, 429, 429], "none": [200, 200, 200]}


async def test_strangers_take_no_memory_and_no_allowance(serving, clock, monkeypatch):
    """Unknown keys get no bucket however many there are, and buckets that are full again are dropped at a bound."""
    monkeypatch.setattr(rate_limits, "_MAX_BUCKETS", 3)
    accounts = None

    def find(app):
        layer = app.middleware_stack
        while not isinstance(layer, RateLimits):
            layer = layer.app
        return layer

    keys = tuple(f"key-{number}" for number in range(8))
    async with serving(api_keys=keys, requests_per_minute=2) as (app, client):
        for number in range(50):
            answer = await client.get("/v1/models", headers={"Authorization": f"Bearer guess-{number}"})
            assert answer.status_code == 401
            assert _left(answer) == {}
        accounts = find(app)._accounts
        assert accounts == {}
        for key in keys:
            await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            clock[0] += 60
        assert len(find(app)._accounts) <= 3


async def test_an_open_server_has_one_allowance(serving, clock):
    """Without keys all callers are one."""
    async with serving(requests_per_minute=2) as (_, client):
        assert [(await client.get("/v1/models")).status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0ms"), (0.0204, "21ms"), (1, "1s"), (4.45, "4.5s"), (60, "1m0s"), (366, "6m6s")]
)
def test_times_are_written_as_openai_does(seconds, shown):
    """Clients parse them."""
    assert rate_limits._duration(seconds) == shown
