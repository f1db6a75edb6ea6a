"""A Redis Cluster whose nodes fail: the store goes on, and what a replica has confirmed is kept."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

import pytest
from hope_memory import SessionId, StoreUnavailable
from redis_server import RedisCluster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.memory_store.conftest import MakeSnapshot

from tests.memory_store.conftest import RedisBackend

pytestmark = pytest.mark.anyio

MAX_RECOVERY_SECONDS = 8.0
T = TypeVar("T")


async def recovered(ask: Callable[[], Awaitable[T]]) -> T:
    """What the store answers as soon as it does."""
    begun = time.monotonic()
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            assert time.monotonic() - begun < MAX_RECOVERY_SECONDS
            await asyncio.sleep(0.05)


async def test_a_failover_loses_nothing_that_was_replicated(tmp_path: Path, make_snapshot: MakeSnapshot) -> None:
    """The owner of a session is killed: its replica takes over with every commit, and the same store writes on."""
    session = SessionId("acme", "chat-1")
    with RedisCluster(tmp_path / "cluster") as cluster:
        backend = RedisBackend(cluster, tmp_path)
        store = backend.store()
        await store.open()
        try:
            head = await store.commit(session, None, make_snapshot(0))
            for turn in range(1, 4):
                head = await store.commit(session, head.version, make_snapshot(turn), durability="replicated:1")
            assert head.durability == "replicated:1"
            fork = await store.fork(session, "fork")
            ((_, key), *_) = [(n, k) for n, k in backend.hashes() if f"t:{fork.birth}" in backend.fields(k)]
            cluster.owner_of(key).kill()
            newer = await recovered(lambda: store.commit(session, head.version, make_snapshot(9)))
            assert newer.parent == head.version
            assert [info.number for info in await store.versions(session)] == [5, 4, 3, 2, 1]
            assert (await store.load(session)).snapshot == make_snapshot(9)
        finally:
            await store.close()


async def test_a_cluster_with_lost_slots_answers_nothing_and_loses_nothing(
    tmp_path: Path, make_snapshot: MakeSnapshot
) -> None:
    """Slots that nobody has: sessions elsewhere are refused with the reason, not begun anew, and are there again."""
    session = SessionId("acme", "chat-1")
    with RedisCluster(tmp_path / "cluster") as cluster:
        backend = RedisBackend(cluster, tmp_path)
        store = backend.store()
        await store.open()
        try:
            head = await store.commit(session, None, make_snapshot(1))
            ((_, key),) = backend.hashes()
            other = next(node for node in cluster.primary_nodes() if node is not cluster.owner_of(key))
            own = next(
                (start, end)
                for start, end, primary, *_ in other.backdoor.execute_command("CLUSTER", "SLOTS")
                if primary[1] == other.port
            )
            for node in cluster.nodes:
                node.backdoor.execute_command("CLUSTER", "DELSLOTSRANGE", *own)
            begun = time.monotonic()
            while True:
                try:
                    assert (await store.load(session)).info.version == head.version
                except StoreUnavailable as exc:
                    refusal = str(exc)
                    break
                assert time.monotonic() - begun < MAX_RECOVERY_SECONDS
                await asyncio.sleep(0.05)
            assert "CLUSTERDOWN" in refusal or "slot" in refusal
            other.backdoor.execute_command("CLUSTER", "ADDSLOTSRANGE", *own)
            loaded = await recovered(lambda: store.load(session))
            assert loaded.snapshot == make_snapshot(1)
        finally:
            await store.close()
