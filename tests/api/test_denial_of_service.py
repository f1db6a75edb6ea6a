"""While somebody tries to wear the server down, it goes on answering others, and is as it was when that is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from attacks import ATTACKS, CHAT, KEY, Health, Server, connected, toy_server, watch_health

pytestmark = pytest.mark.anyio

QUICK = ("half-open", "slow body", "no reader", "deep", "wide", "long prompt", "headers", "bad keys")
REFUSED = {
    "deep": {400},
    "wide": {400},
    "strings": {400},
    "escapes": {400},
    "large": {413},
    "messages": {400},
    "long prompt": {400},
    "headers": {431},
    "noise": {400},
    "bad keys": {401},
}
"""What each flood must be answered with; floods that are left out may be served, or be told to come back."""

MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory, request) -> Iterator[Server]:
    """One toy server for all attacks, so that what one leaves behind would harm the next."""
    root = Path(request.config.rootpath)
    with toy_server(tmp_path_factory.mktemp("server"), root, "--request-timeout-seconds=2") as found:
        yield found


async def _under(server: Server, name: str, seconds: float) -> tuple[Health, object]:
    """Run an attack and watch /health from its beginning to its end."""
    until = time.monotonic() + seconds
    attacking = asyncio.create_task(ATTACKS[name](server.port, until))
    await asyncio.sleep(0.2)
    health = await watch_health(server.port, seconds - 0.2)
    return health, await attacking


async def _check_serves(server: Server) -> None:
    """An ordinary turn is served."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "session_id": "after"}
        answer = await client.post(CHAT, json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200, answer.text


async def _check_recovers(server: Server, num_sockets: int) -> None:
    """An ordinary turn is served, and soon no connection of the attack is left."""
    deadline = time.monotonic() + 15
    while server.num_sockets() > num_sockets + 3:
        assert time.monotonic() < deadline, f"{server.num_sockets()} sockets are still open"
        await asyncio.sleep(0.1)
    await _check_serves(server)


def _check_statuses(name: str, statuses: object) -> None:
    if isinstance(statuses, list):
        assert statuses
        assert all(status < 500 for status in statuses), sorted(set(statuses))
        assert set(statuses) <= REFUSED.get(name, {200, 400, 409, 429})


@pytest.mark.parametrize("name", QUICK)
async def test_others_are_served_meanwhile(server, name):
    """In short, on any machine: /health goes on answering, nothing fails, and all is well afterwards."""
    num_sockets = server.num_sockets()
    health, statuses = await _under(server, name, 1.5)
    _check_statuses(name, statuses)
    assert health.num_asked >= 3
    # A shared machine may pause any process for a while; what an attack used to cost were many seconds.
    assert health.p50 < 0.3
    assert health.worst < 2.5
    await _check_recovers(server, num_sockets)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
async def test_health_answers_within_50_ms(server, name):
    """The promise: 99 of 100 answers of /health within 50 ms under each attack, and memory that stays in bounds."""
    num_sockets, rss = server.num_sockets(), server.rss_bytes()
    health, statuses = await _under(server, name, 8.0)
    _check_statuses(name, statuses)
    assert health.num_asked > 100
    assert health.p99 < 0.05, health
    assert server.rss_bytes() - rss < 600 * MIB
    await _check_recovers(server, num_sockets)


@pytest.mark.slow
async def test_half_open_connections_are_closed_within_10_seconds(tmp_path, request):
    """With default settings 500 connections that never send a request are gone in 10 s and took less than 50 MB."""
    with toy_server(tmp_path, Path(request.config.rootpath)) as server:
        await _check_serves(server)
        rss, num_sockets, opened = server.rss_bytes(), server.num_sockets(), time.monotonic()

        async def wait_for_end(first: bytes) -> float:
            async with connected(server.port) as (reader, writer):
                writer.write(first)
                await reader.read()
                return time.monotonic() - opened

        firsts = (b"", b"G", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
        waiting = [asyncio.create_task(wait_for_end(firsts[number % 3])) for number in range(500)]
        await asyncio.sleep(2)
        assert server.num_sockets() > num_sockets + 450
        assert server.rss_bytes() - rss < 50 * MIB
        assert max(await asyncio.gather(*waiting)) < 10
        await _check_recovers(server, num_sockets)


@pytest.mark.slow
async def test_a_stream_that_nobody_reads_gives_its_place_back(tmp_path, request):
    """With a bound of 2 s, streams without a reader end, and the server's sockets and memory with them."""
    with toy_server(tmp_path, Path(request.config.rootpath), "--write-timeout-seconds=2") as server:
        await _check_serves(server)
        num_sockets, rss = server.num_sockets(), server.rss_bytes()
        await _under(server, "no reader", 6.0)
        assert server.rss_bytes() - rss < 100 * MIB
        await _check_recovers(server, num_sockets)
