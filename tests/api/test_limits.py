"""Caps of one request: depth and number of its values, its headers, and how slowly it may come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hope_server.api.json_shape import MAX_DEPTH, MAX_VALUES, JsonShape
from hope_server.errors import InvalidRequest

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
CHAT = "/v1/chat/completions"


def _shape(text: bytes, cuts: list[int] | None = None) -> str:
    """What the scan says of a text that comes in pieces: `ok`, `deep` or `full`."""
    shape = JsonShape()
    ends = sorted({cut % (len(text) + 1) for cut in cuts or []} | {len(text)})
    try:
        for start, end in zip([0, *ends], ends, strict=False):
            shape.feed(text[start:end])
    except InvalidRequest as exc:
        return "deep" if "deep" in exc.message else "full"
    return "ok"


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


# Strings that are hard to tell from structure: quotes, brackets, and backslashes in rows.
hard_text = st.text(st.sampled_from('"\\[]{},:a\n'), max_size=12)
values = st.recursive(hard_text | st.integers() | st.none(), lambda v: st.lists(v) | st.dictionaries(hard_text, v))


@given(values, st.integers(0, 70), st.lists(st.integers(0, 2000), max_size=8))
def test_depth_is_what_a_parser_finds(value, extra, cuts):
    """For any JSON, cut into any pieces: refused exactly if it is nested deeper than the limit."""
    for _ in range(extra):
        value = [value]
    text = json.dumps(value).encode()
    assert _shape(text, cuts) == ("deep" if _depth(value) > MAX_DEPTH else "ok")


@given(values, st.lists(st.integers(0, 2000), max_size=8))
def test_pieces_count_as_the_whole(value, cuts):
    """Where a body is cut on its way does not change the count of its values, nor whether it ends inside a string."""
    text = json.dumps(value).encode()
    whole, pieces = JsonShape(), JsonShape()
    whole.feed(text)
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {len(text)})
    for start, end in zip([0, *ends], ends, strict=False):
        pieces.feed(text[start:end])
    assert vars(pieces) == vars(whole)
    assert (whole._depth, whole._is_in_string, whole._held) == (0, False, b"")


@given(st.binary(max_size=300))
def test_any_bytes_are_counted_without_a_fault(data):
    """What is no JSON at all is left to the parser."""
    JsonShape().feed(data)


def test_the_edges_of_the_counts():
    """Exactly the limit passes, one more does not."""
    assert _shape(b"[" * MAX_DEPTH) == "ok"
    assert _shape(b"[" * (MAX_DEPTH + 1)) == "deep"
    assert _shape(b'{"a":' * MAX_DEPTH + b'"' + b"[" * 1000) == "ok"
    assert _shape(b"[" + b"0," * (MAX_VALUES - 1) + b"0]") == "ok"
    assert _shape(b"[" + b"0," * MAX_VALUES + b"0]") == "full"
    assert _shape(b'{"a": "' + b"," * 10 * MAX_VALUES + b'"}') == "ok"


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", [b"[", b"[],", b"{},", b'"",', b'\\"', b"\\\\", b"0,", b'{"a":1},', b'"\\u0041",'], ids=repr
)
def test_counting_takes_no_time(piece):
    """A piece of 64 KiB, as it comes from the socket, is counted in milliseconds whatever stands in it."""
    data = piece * (65536 // len(piece))
    seconds = []
    for _ in range(5):
        shape, started = JsonShape(), time.perf_counter()
        with contextlib.suppress(InvalidRequest):
            shape.feed(data)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.03


HEAVY = {
    "deep list": (b'{"messages": ' + b"[" * 100_000, "nested too deeply"),
    "deep object": (b'{"a":' * 100_000, "nested too deeply"),
    "65 deep": (b'{"metadata": ' + b"[" * 64 + b"]" * 64 + b"}", "nested too deeply"),
    "empty objects": (b'{"messages": [' + b"{}," * 600_000 + b"{}]}", "50,000 values"),
    "numbers": (b'{"stop": [' + b"1," * 900_000 + b"1]}", "50,000 values"),
    "messages": (json.dumps({"messages": [{"role": "user", "content": "x"}] * 2049}).encode(), "2,048 items"),
    "n": (json.dumps({"messages": [{"role": "user", "content": "x"}], "n": 10**6}).encode(), "n "),
    "long number": (b'{"messages": [], "seed": ' + b"9" * 100_000 + b"}", "digits"),
}


@pytest.mark.parametrize("name", HEAVY)
async def test_a_heavy_body_is_refused_at_once(client, engine, name):
    """Each answers 400 with what is too much, in less time than it took to send, and never reaches the engine."""
    content, fact = HEAVY[name]
    started = time.perf_counter()
    answer = await client.post(CHAT, content=content, headers=JSON)
    assert time.perf_counter() - started < 1.0
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert fact in answer.json()["error"]["message"]
    assert engine.requests == []


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/s1/learn", "/v1/sessions/s1/fork"])
async def test_every_route_that_takes_json_looks_at_its_shape(client, path):
    """The scan comes before all routes, so that none can be forgotten."""
    answer = await client.post(path, content=b"[" * 1000, headers=JSON)
    assert (answer.status_code, "nested too deeply" in answer.text) == (400, True)


async def test_an_archive_is_not_read_as_json(client, engine):
    """An exported file may hold any bytes."""
    headers = {"Content-Type": "application/octet-stream"}
    answer = await client.post("/v1/sessions/import?id=a", content=b"[" * 1000, headers=headers)
    assert answer.status_code == 201


@pytest.mark.parametrize(
    "headers",
    [[(f"x-{number}", "1") for number in range(120)], [("x-long", "a" * 40_000)]],
    ids=["many", "long"],
)
async def test_heaps_of_headers_are_refused(client, headers):
    """Too many headers, or too long ones, answer 431."""
    answer = await client.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("has_length", [False, True], ids=["chunked", "too large anyway"])
async def test_a_slow_body_is_given_up(serving, engine, has_length):
    """A body that trickles in answers 408 after the allowed time, also while it is only read to be dropped."""

    async def trickle():
        for _ in range(100):
            yield b" "
            await asyncio.sleep(0.02)

    headers = {**JSON, "Content-Length": "5000000"} if has_length else JSON
    async with serving(request_timeout_seconds=0.2) as (_, client):
        started = time.monotonic()
        answer = await client.post(CHAT, content=trickle(), headers=headers)
        assert 0.15 < time.monotonic() - started < 1.0
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"
    assert engine.requests == []


async def test_a_large_body_has_more_time(serving, engine, tools):
    """What keeps coming fast enough is not cut off by the time that a small body gets."""
    body = json.dumps(tools.chat_body(metadata={"x": "y" * 60_000})).encode()

    async def steadily():
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]
            await asyncio.sleep(0.1)

    async with serving(request_timeout_seconds=0.25) as (_, client):
        assert (await client.post(CHAT, content=steadily(), headers=JSON)).status_code == 200


async def test_an_answer_may_take_longer_than_a_request(serving, engine, tools):
    """The deadline is the body's; a turn that computes is not cut off by it."""
    gate = asyncio.Event()
    engine.script = [gate, tools.FINISHED]
    async with serving(request_timeout_seconds=0.1) as (_, client):
        asking = asyncio.create_task(client.post(CHAT, json=tools.chat_body()))
        await asyncio.sleep(0.4)
        gate.set()
        assert (await asking).status_code == 200
