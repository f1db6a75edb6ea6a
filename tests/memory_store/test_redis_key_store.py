"""Wrapped keys in a Redis of their own: the same promises as in a file."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING

import pytest
from hope_memory import KeysUnavailable, SessionId, SessionMissing, Vault
from hope_memory.redis_key_store import RedisKeyStore
from hope_memory.redis_store import RedisOptions, RedisStore
from redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.memory_store.conftest import MakeSnapshot

pytestmark = pytest.mark.anyio


@pytest.fixture
async def keys(redis_server: RedisServer) -> AsyncIterator[RedisKeyStore]:
    """An open, empty key store."""
    store = RedisKeyStore(redis_server.url, prefix=f"keys-{secrets.token_hex(4)}:")
    await store.open()
    yield store
    await store.close()


async def test_every_change_is_a_compare_and_swap(keys: RedisKeyStore) -> None:
    """A record is put, replaced and destroyed only over the one that is expected."""
    assert await keys.get(["a", "b"]) == [None, None]
    assert not await keys.put("a", b"1", b"0")
    assert await keys.put("a", b"1", None)
    assert not await keys.put("a", b"2", None)
    assert await keys.put("a", b"2", b"1")
    assert not await keys.destroy("a", b"1")
    assert await keys.get(["b", "a"]) == [None, b"2"]
    assert await keys.destroy("a", b"2")
    assert (await keys.get(["a"]), await keys.places("", 10)) == ([None], [])


async def test_of_rivals_one_wins(keys: RedisKeyStore) -> None:
    """Of twenty records put at once into one empty place, one is stored."""
    outcomes = await asyncio.gather(*(keys.put("a", str(n).encode(), None) for n in range(20)))
    assert sum(outcomes) == 1
    assert await keys.get(["a"]) == [str(outcomes.index(True)).encode()]


async def test_places_are_listed_page_by_page(keys: RedisKeyStore) -> None:
    """Ascending, without gaps or repeats."""
    names = [f"{n:02}" for n in range(25)]
    for name in reversed(names):
        await keys.put(name, b"x", None)
    seen: list[str] = []
    while page := await keys.places(seen[-1] if seen else "", 10):
        seen += page
    assert seen == names


async def test_a_destroyed_key_leaves_the_append_only_file(tmp_path: Path) -> None:
    """After a destroy the record is in no file of the key store."""
    canary = b"canary-key-record-3e8a"
    with RedisServer(tmp_path / "keys", aof="always") as server:
        keys = RedisKeyStore(server.url)
        await keys.open()
        try:
            await keys.put("a", canary, None)

            def is_on_disk() -> bool:
                return any(canary in path.read_bytes() for path in server.folder.rglob("*.aof"))

            assert is_on_disk()
            assert await keys.destroy("a", canary)
            deadline = time.monotonic() + 20
            while is_on_disk():
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        finally:
            await keys.close()


async def test_a_key_store_that_is_away_is_named(tmp_path: Path) -> None:
    """What fails is the key store, not the store of the sessions, and the message says so."""
    with pytest.raises(KeysUnavailable, match="key store"):
        await RedisKeyStore("redis://:secret@127.0.0.1:1").open()
    with pytest.raises(KeysUnavailable, match="key store"):
        await RedisKeyStore("redis://127.0.0.1:1").get(["a"])
    options = ["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]
    with RedisServer(tmp_path / "redis", options) as server, pytest.raises(KeysUnavailable, match="maxmemory-policy"):
        await RedisKeyStore(server.url).open()


async def test_sessions_live_with_their_keys_in_another_redis(
    redis_server: RedisServer, tmp_path: Path, make_snapshot: MakeSnapshot
) -> None:
    """Two servers share both; a session that one deletes is gone for the other, and so is its key."""
    prefix = f"{tmp_path.name}:"
    with RedisServer(tmp_path / "keys", aof="always") as server:
        stores = [
            RedisStore(
                redis_server.url,
                vault=Vault(tmp_path / "hope.key", RedisKeyStore(server.url)),
                options=RedisOptions(prefix),
            )
            for _ in range(2)
        ]
        for store in stores:
            await store.open()
        session = SessionId("acme", "chat-1")
        head = await stores[0].commit(session, None, make_snapshot(1))
        assert (await stores[1].load(session)).snapshot == make_snapshot(1)
        fork = await stores[1].fork(session, "fork")
        assert await stores[1].delete(session)
        with pytest.raises(SessionMissing):
            await stores[0].commit(session, head.version, make_snapshot(2))
        assert (await stores[0].load(fork.session)).snapshot == make_snapshot(1)
        assert len(list(server.backdoor.scan_iter("hope-keys:*"))) == 2
        for store in stores:
            await store.close()
