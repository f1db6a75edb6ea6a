"""The way to Redis breaks: answers stay bounded in time and number, and nobody gets another's reply."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from fault_proxy import FaultProxy
from hope_memory import SessionId, StoreError, StoreUnavailable
from hope_memory.redis_breaker import Breaker
from hope_memory.redis_client import Patience
from hope_memory.redis_levels import ByteBudget
from hope_memory.redis_store import RedisOptions, RedisStore
from redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.memory_store.conftest import CommitChain, MakeSnapshot, RedisBackend

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def behind(
    proxy: FaultProxy, backend: RedisBackend, patience: Patience | None = None
) -> AsyncIterator[RedisStore]:
    """An open store whose every byte goes through the proxy."""
    options = RedisOptions(backend.prefix, patience=patience or Patience())
    store = RedisStore(f"redis://127.0.0.1:{proxy.port}", vault=backend.vault(), options=options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_a_redis_that_hangs_is_answered_within_its_deadline_then_at_once(
    redis_backend: RedisBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A black hole is StoreUnavailable in 2.5 s; after three of them at once; and when it ends, all works again."""
    async with FaultProxy(redis_backend.server.port) as proxy, behind(proxy, redis_backend) as store:
        head = await store.commit(session, None, make_snapshot(1))
        proxy.down.lose()
        begun = time.monotonic()
        calls = [store.get(session), store.load(session), store.commit(session, head.version, make_snapshot(2))]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
        assert 1.5 < time.monotonic() - begun < 2.5
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="lately"):
            await store.get(session)
        assert time.monotonic() - begun < 0.1
        proxy.heal()
        deadline = time.monotonic() + 5
        while True:
            try:
                record = await store.get(session)
                break
            except StoreUnavailable:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        assert record.tip == (await store.load(session)).info.version


async def test_connections_and_operations_are_bounded(
    redis_backend: RedisBackend, session: SessionId, commit_chain: CommitChain
) -> None:
    """A hundred loads at once, reconnects included, never have more than the allowed connections."""
    few = Patience(max_connections=4)
    async with FaultProxy(redis_backend.server.port) as proxy, behind(proxy, redis_backend, few) as store:
        (head,) = await commit_chain(store, session, 1)
        for _ in range(5):
            proxy.reset()
            loads = [asyncio.ensure_future(store.load(session)) for _ in range(100)]
            while not all(load.done() for load in loads):
                assert proxy.num_open <= 4
                await asyncio.sleep(0)
            assert all(load.result().info == head for load in loads)


async def test_readers_of_one_version_share_one_reading(
    redis_backend: RedisBackend, session: SessionId, commit_chain: CommitChain
) -> None:
    """Twenty loads of one head at once carry its levels about once, and each reader sees the newest head there was."""
    async with FaultProxy(redis_backend.server.port) as proxy, behind(proxy, redis_backend) as store:
        await commit_chain(store, session, 1)
        calls: list[str] = []
        fetch = store._loads._fetch
        store._loads._fetch = lambda member, made: (calls.append(made.version), fetch(member, made))[1]  # type: ignore
        loaded = await asyncio.gather(*(store.load(session) for _ in range(20)))
        assert len({one.info.version for one in loaded}) == 1
        assert len(calls) < 10


async def test_cancelled_calls_leave_no_replies_for_others(
    redis_backend: RedisBackend, make_snapshot: MakeSnapshot
) -> None:
    """Readers that are cancelled at random moments never make another reader see another session's state."""
    store = redis_backend.store()
    await store.open()
    try:
        sessions = [SessionId("t", f"s{n}") for n in range(8)]
        for n, session in enumerate(sessions):
            await store.commit(session, None, make_snapshot(n))
        chance, num_right, num_cancelled = random.Random(7), 0, 0

        async def read(n: int) -> int:
            return int((await store.load(sessions[n])).info.meta["turn"])

        for _ in range(150):
            wanted = [chance.randrange(8) for _ in range(8)]
            readers = [asyncio.ensure_future(read(n)) for n in wanted]
            await asyncio.sleep(chance.random() * 0.004)
            for reader in readers[::2]:
                reader.cancel()
            for n, outcome in zip(wanted, await asyncio.gather(*readers, return_exceptions=True), strict=True):
                if isinstance(outcome, asyncio.CancelledError):
                    num_cancelled += 1
                else:
                    assert outcome == n
                    num_right += 1
        assert num_right > 500 and num_cancelled > 100
    finally:
        await store.close()


async def test_a_redis_that_restarts_is_found_again(
    redis_backend: RedisBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A Redis that is killed and comes back with its log goes on where it was, without a new store."""
    with RedisServer(redis_backend.folder / "own", aof="always") as server:
        redis_backend.server = server
        store = redis_backend.store()
        await store.open()
        try:
            tip = (await store.create(session))[0].tip
            for turn in range(1, 4):
                tip = (await store.commit(session, tip, make_snapshot(turn))).version
                server.kill()
                server.start()
            assert ((await store.get(session)).tip, (await store.load(session)).snapshot) == (tip, make_snapshot(3))
        finally:
            await store.close()


async def test_the_nth_byte_cut_leaves_parent_or_child(
    redis_backend: RedisBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Wherever the connections break during a commit, the head is the parent or the commit, whole."""
    async with FaultProxy(redis_backend.server.port) as proxy:
        patience = Patience(deadline_seconds=0.0001, max_failures=1 << 30)
        plain = redis_backend.store()
        await plain.open()
        async with behind(proxy, redis_backend) as store:
            store._client.patience = patience
            head = await plain.commit(session, None, make_snapshot(0))
            outcomes = set()
            for turn in range(1, 60):
                (proxy.up if turn % 2 else proxy.down).cut_after(turn * 97)
                try:
                    await store.commit(session, head.version, make_snapshot(turn))
                    outcomes.add("answered")
                except StoreError:
                    outcomes.add("failed")
                loaded = await plain.load(session)
                if loaded.info.version == head.version:
                    assert loaded.snapshot == make_snapshot(head.meta["turn"])
                else:
                    assert (loaded.info.parent, loaded.snapshot) == (head.version, make_snapshot(turn))
                head = loaded.info
        await plain.close()
        assert "failed" in outcomes


def test_a_breaker_opens_probes_and_closes() -> None:
    """Three failures in a row open it, one operation a second may try, and a success closes it."""
    now = 0.0
    breaker = Breaker(3, 1.0, lambda: now)
    breaker.failed()
    breaker.failed()
    breaker.succeeded()
    for _ in range(3):
        assert breaker.admits()
        breaker.failed()
    assert not breaker.admits()
    now = 1.0
    assert breaker.admits() and not breaker.admits()
    breaker.failed()
    assert not breaker.admits()
    now = 2.0
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.admits() and breaker.admits()


async def test_memory_for_reading_is_bounded() -> None:
    """Holders of a budget never have more than it together; one that asks for more than all of it waits to be alone."""
    budget, held, most = ByteBudget(100), 0, 0

    async def hold(num_bytes: int) -> None:
        nonlocal held, most
        async with budget.of(num_bytes):
            held += min(num_bytes, 100)
            most = max(most, held)
            await asyncio.sleep(0)
            held -= min(num_bytes, 100)

    await asyncio.wait_for(asyncio.gather(*(hold(num_bytes) for num_bytes in [10, 60, 50, 1000, 30] * 20)), 10)
    assert (held, 60 < most <= 100) == (0, True)
