"""Servers that share a Redis: what they answer when it hangs, is emptied, is full, or comes back from the past."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from fault_proxy import FaultProxy
from redis_server import RedisServer
from taking import chat, learn, named, num_turns
from toys import KEY, toy_engine

from hope_server.engine.engine import Engine
from hope_server.engine.turn import TurnFinished
from hope_server.errors import DurabilityUnmet, MemoryEvicted, MemoryRolledBack, StoreFull, StoreUnavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(on_redis: dict[str, str]) -> AsyncIterator[Engine]:
    """A running toy engine on Redis."""
    engine = toy_engine(**on_redis)
    await engine.start()
    yield engine
    await engine.stop()


def _saved(server: RedisServer, prefix: str) -> dict[bytes, bytes]:
    """Every key of a store as Redis dumps it."""
    return {key: server.backdoor.dump(key) for key in server.backdoor.scan_iter(f"{prefix}*")}


def _restored(server: RedisServer, saved: dict[bytes, bytes]) -> None:
    for key, value in saved.items():
        server.backdoor.restore(key, 0, value, replace=True)


async def _insist(engine: Engine) -> TurnFinished:
    """Learn as soon as the store is back."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await learn(engine)
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_an_older_dump_is_noticed(engine: Engine, redis_server: RedisServer, on_redis: dict[str, str]) -> None:
    """After RESTORE of an older DUMP the next turn is told which version is missing, and goes on when told to."""
    await chat(engine, "One")
    saved = _saved(redis_server, on_redis["store_prefix"])
    lost = (await chat(engine, "Two")).receipt.version_after
    _restored(redis_server, saved)
    with pytest.raises(MemoryRolledBack) as caught:
        await chat(engine, "Three")
    assert caught.value.missing == lost
    assert (await chat(engine, "Three", if_match="*")).receipt.turn == 2


async def test_an_evicted_session_is_gone_not_new(
    engine: Engine, redis_server: RedisServer, on_redis: dict[str, str]
) -> None:
    """Whatever took the keys away, the session is told to be lost until it is deleted."""
    await chat(engine, "One")
    redis_server.backdoor.delete(*_saved(redis_server, on_redis["store_prefix"]))
    for _ in range(2):
        with pytest.raises(MemoryEvicted):
            await chat(engine, "Two")
    assert await engine.delete_session(KEY)
    assert (await chat(engine, "Anew")).receipt.turn == 1


async def test_a_full_redis_leaves_the_session_as_it_was(engine: Engine, redis_server: RedisServer) -> None:
    """The turn is refused and not learned; with room again it is."""
    await chat(engine, "One")
    redis_server.backdoor.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreFull):
            await chat(engine, "Two", attempt=named("k2"))
        assert await num_turns(engine) == 1
    finally:
        redis_server.backdoor.config_set("maxmemory", "0")
    assert (await chat(engine, "Two", attempt=named("k2"))).receipt.turn == 2


async def test_replicas_and_disk_that_are_not_there_are_not_confirmed(engine: Engine) -> None:
    """A lone Redis without an append-only file says so; the turn is there and is not learned again."""
    for durability in ("replicated:1", "fsync"):
        for _ in range(2):
            with pytest.raises(DurabilityUnmet):
                await chat(engine, attempt=named(durability), durability=durability)
    assert await num_turns(engine) == 2


async def test_a_redis_that_hangs_is_answered_in_time(redis_server: RedisServer, on_redis: dict[str, str]) -> None:
    """Within two and a half seconds the turn is refused; when Redis answers again, so does the server."""
    async with FaultProxy(redis_server.port) as proxy:
        engine = toy_engine(**(on_redis | {"store": f"redis://127.0.0.1:{proxy.port}/0"}))
        await engine.start()
        await chat(engine, "One")
        proxy.up.lose()
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await learn(engine)
        assert time.monotonic() - started < 2.5
        proxy.heal()
        assert (await _insist(engine)).receipt.turn == 2
        await engine.stop()
