"""Sessions that Redis loses, forgets or refuses: eviction, expiry, an older copy restored, memory that is full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hope_memory import (
    Array,
    DurabilityUnmet,
    KeysUnavailable,
    Level,
    SessionExists,
    SessionId,
    SessionLost,
    SessionMissing,
    Snapshot,
    StoreFull,
    Vault,
    VersionConflict,
)
from hope_memory.redis_store import RedisOptions, RedisStore
from redis_server import RedisServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.memory_store.conftest import CommitChain, MakeSnapshot, RedisBackend

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(redis_backend: RedisBackend) -> AsyncIterator[RedisStore]:
    """An open store."""
    store = redis_backend.store()
    await store.open()
    yield store
    await store.close()


@asynccontextmanager
async def store_on(server: RedisServer, folder: Path, options: RedisOptions | None = None) -> AsyncIterator[RedisStore]:
    """An open store on a server of the test's own; it keeps 2 versions."""
    store = RedisStore(server.url, 2, 64 << 20, Vault.beside(folder / "sessions.db"), options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def large(num_bytes: int, fill: int = 1) -> Snapshot:
    """A snapshot of one level of so many bytes."""
    return Snapshot("toy-1", {}, {"w": Level({"w": Array("uint8", (num_bytes,), bytes([fill]) * num_bytes)})})


async def test_an_evicted_session_is_lost_not_new(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId, commit_chain: CommitChain
) -> None:
    """What Redis has thrown away is told from what never was, is not made anew by itself, and can be deleted."""
    head = (await commit_chain(store, session, 2))[-1]
    ((node, key),) = redis_backend.hashes()
    node.delete(key)
    for call in (store.get, store.load, store.versions, store.create):
        with pytest.raises(SessionLost):
            await call(session)
    for parent in (None, head.version):
        with pytest.raises(SessionLost):
            await store.commit(session, parent, large(10))
    assert await store.list(session.tenant) == []
    assert await store.delete(session)
    assert not await store.delete(session)
    _, is_new = await store.create(session)
    assert is_new


async def test_the_index_of_a_tenant_heals_itself(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId
) -> None:
    """Entries of sessions that are gone are dropped, and pages stay whole."""
    sessions = [SessionId(session.tenant, f"chat-{n}") for n in range(12)]
    for one in sessions:
        await store.create(one)
    listed = [record.session for record in await store.list(session.tenant)]
    assert sorted(listed, key=lambda one: int(one.name[5:])) == sessions
    for node, key in redis_backend.hashes()[:6]:
        node.delete(key)
    left = [record.session for record in await store.list(session.tenant)]
    assert len(left) == 6 and left == [one for one in listed if one in left]
    assert [record.session for record in await store.list(session.tenant, 4)] == left[:4]
    assert [record.session for record in await store.list(session.tenant, 4, left[3].name)] == left[4:]


async def test_an_older_copy_of_redis_is_noticed(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId, commit_chain: CommitChain
) -> None:
    """After a restore the newer head is no ancestor, a commit on it is a conflict, and the old state can be used."""
    chain = await commit_chain(store, session, 2)
    ((node, key),) = redis_backend.hashes()
    older = node.dump(key)
    newer = await store.commit(session, chain[-1].version, large(10))
    node.restore(key, 0, older, replace=True)
    assert await store.ancestry(session, newer.version) == "unknown"
    assert await store.ancestry(session, chain[0].version) == "ancestor"
    with pytest.raises(VersionConflict):
        await store.commit(session, newer.version, large(10))
    assert (await store.load(session)).info == chain[-1]


async def test_a_deleted_session_that_a_backup_brings_back_cannot_be_read(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId, commit_chain: CommitChain
) -> None:
    """The key is destroyed, so what returns from a backup of Redis is refused, and a new session takes the name."""
    await commit_chain(store, session, 2)
    ((node, key),) = redis_backend.hashes()
    backup = node.dump(key)
    await store.delete(session)
    node.restore(key, 0, backup, replace=True)
    with pytest.raises(Exception, match="no key for session"):
        await store.load(session)
    assert await store.list(session.tenant) == []
    await store.delete(session)
    assert (await store.create(session))[1]


async def test_a_session_lives_as_long_as_its_last_commit_says(
    redis_server: RedisServer, tmp_path: Path, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """The whole hash expires, a commit by any member of the family begins its time anew, and the name is free then."""
    options = RedisOptions(prefix=f"{tmp_path.name}:", session_ttl_seconds=100)
    async with store_on(redis_server, tmp_path, options) as store:
        head = await store.commit(session, None, make_snapshot(1))
        fork = await store.fork(session, "fork")
        node = redis_server.backdoor
        keys = list(node.scan_iter(f"{options.prefix}*:s"))
        assert len(keys) == 2 and all(95 <= node.ttl(key) <= 100 for key in keys)
        for key in keys:
            node.pexpire(key, 5000)
        await store.commit(fork.session, fork.tip, make_snapshot(2))
        assert all(95 <= node.ttl(key) <= 100 for key in keys)
        for key in keys:
            node.pexpire(key, 1)
        await asyncio.sleep(0.02)
        with pytest.raises(SessionMissing):
            await store.commit(session, head.version, make_snapshot(2))
        assert (await store.create(session))[1]


async def test_full_memory_tears_nothing(tmp_path: Path, session: SessionId) -> None:
    """However little memory is left, a commit happens whole or is StoreFull, and the head can be read and deleted."""
    with RedisServer(tmp_path / "redis", ["--maxmemory", "40mb", "--maxmemory-policy", "noeviction"]) as server:
        async with store_on(server, tmp_path) as store:
            state, head = large(3 << 20), (await store.create(session))[0].tip
            num_full = 0
            used = server.backdoor.info("memory")["used_memory"]
            for step in range(24):
                server.backdoor.config_set("maxmemory", used + (step << 19))
                try:
                    head = (await store.commit(session, head, state)).version
                except StoreFull:
                    num_full += 1
                    assert (await store.get(session)).tip == head
                    if step and (await store.get(session)).head:
                        assert (await store.load(session)).snapshot == state
                used = used if num_full else server.backdoor.info("memory")["used_memory"]
            assert 2 <= num_full < 24
            server.backdoor.config_set("maxmemory", 1)
            with pytest.raises(StoreFull):
                await store.create(SessionId("acme", "another"))
            assert (await store.load(session)).snapshot == state
            assert await store.delete(session)
            fields = [f for key in server.backdoor.scan_iter("*:s") for f in server.backdoor.hkeys(key)]
            assert sorted(fields) == [b"tomb", b"v"]


async def test_eviction_takes_whole_sessions(tmp_path: Path) -> None:
    """Where eviction is allowed, every session is either whole or SessionLost, never in parts."""
    with RedisServer(tmp_path / "redis", ["--maxmemory", "20mb", "--maxmemory-policy", "allkeys-lru"]) as server:
        async with store_on(server, tmp_path, RedisOptions(allow_eviction=True)) as store:
            outcomes: dict[str, int] = {"whole": 0, "lost": 0}
            for n in range(30):
                try:
                    await store.commit(SessionId("t", f"s{n}"), None, large(1 << 20, n))
                except (SessionLost, SessionMissing, StoreFull):
                    continue
            for n in range(30):
                try:
                    assert (await store.load(SessionId("t", f"s{n}"))).snapshot == large(1 << 20, n)
                    outcomes["whole"] += 1
                except (SessionLost, SessionMissing):
                    outcomes["lost"] += 1
            assert outcomes["whole"] >= 5 and outcomes["lost"] >= 5


async def test_a_commit_waits_for_a_replica_where_it_is_asked_to(tmp_path: Path, session: SessionId) -> None:
    """`replicated:1` is reached with a replica and says so; without, the commit stands and the error tells it."""
    with RedisServer(
        tmp_path / "primary", ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
    ) as primary:
        async with store_on(primary, tmp_path) as store:
            with pytest.raises(DurabilityUnmet) as caught:
                await store.commit(session, None, large(1000), durability="replicated:1")
            head = caught.value.info
            assert (head.durability, (await store.get(session)).head) == ("commit", head)
            with RedisServer(tmp_path / "replica", ["--replicaof", "127.0.0.1", str(primary.port)]) as replica:
                deadline = time.monotonic() + 20
                while not primary.has_replica():
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.02)
                head = await store.commit(session, head.version, large(1 << 20), durability="replicated:1")
                assert head.durability == "replicated:1"
                (key,) = replica.backdoor.scan_iter("*:s")
                assert f"m:{head.version}".encode() in replica.backdoor.hkeys(key)


async def test_fsync_is_reached_only_where_redis_writes_before_it_answers(tmp_path: Path, session: SessionId) -> None:
    """Without WAITAOF, `appendfsync always` is what reaches it, and everysec does not."""
    with RedisServer(tmp_path / "redis", aof="always") as server:
        async with store_on(server, tmp_path) as store:
            head = await store.commit(session, None, large(1000), durability="fsync")
            assert head.durability == "fsync"
            server.kill()
            server.start()
            assert (await store.load(session)).info == head
            if server.backdoor.info("server")["redis_version"] < "7.2":
                server.backdoor.config_set("appendfsync", "everysec")
                with pytest.raises(DurabilityUnmet):
                    await store.commit(session, head.version, large(1000), durability="fsync")


async def test_a_fork_that_was_never_finished_goes_away(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A fork whose maker crashed before its name was taken neither blocks the name nor stays in the family."""
    head = await store.commit(session, None, make_snapshot(1))
    fork = await store.fork(session, "fork")
    with pytest.raises(SessionExists):
        await store.fork(session, "fork")
    ((node, key),) = [(n, k) for n, k in redis_backend.hashes() if f"t:{fork.birth}" in redis_backend.fields(k)]
    (other,) = [k for _, k in redis_backend.hashes() if k != key]
    # As it was between the first two steps, more than a minute ago.
    node.delete(other)
    node.hset(key, f"p:{fork.birth}", str(int(time.time()) - 100))
    await store.commit(session, head.version, make_snapshot(2))
    assert not any(fork.birth in field for field in redis_backend.fields(key))
    assert redis_backend.count_blobs() == 4


async def test_a_session_whose_key_is_gone_can_be_deleted(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId, commit_chain: CommitChain
) -> None:
    """Without its key a session cannot be read, is left out of lists, and makes room for a new one when deleted."""
    await commit_chain(store, session, 1)
    await store.vault.erase(store.vault.place(session))
    with pytest.raises(KeysUnavailable):
        await store.load(session)
    assert await store.list(session.tenant) == []
    assert await store.delete(session)
    assert redis_backend.count_blobs() == 0
    assert (await store.create(session))[1]


async def test_a_delete_leaves_the_keys_of_a_session_that_is_being_made(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId
) -> None:
    """A record without a session that was never live is somebody's creation under way, not something left over."""
    record = await store.vault.admit(store.vault.place(session))
    assert not await store.delete(session)
    (found,) = await store.vault.find(record.place)
    assert found is not None
    created, is_new = await store.create(session)
    assert (created.birth, is_new) == (record.keys.birth, True)


@pytest.mark.parametrize("is_live", [False, True])
async def test_a_session_made_while_an_older_one_is_deleted_has_a_birth_of_its_own(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId, is_live: bool
) -> None:
    """A delete that has its tombstone but not yet the keys must not take those of the session made after it."""
    place = store.vault.place(session)
    older = await store.vault.admit(place)
    created, _ = await store.create(session)
    assert created.birth == older.keys.birth
    (live,) = await store.vault.find(place)
    assert live is not None
    await store.delete(session)
    # As if that delete had not come to the keys yet, the record as it was before or after it became live.
    assert await store.vault.key_store.put(place, live.stored if is_live else older.stored, None)
    newer, is_new = await store.create(session)
    assert is_new
    assert newer.birth != older.keys.birth
    assert not await store.vault.destroy(place, older.keys.birth)
    assert (await store.get(session)).birth == newer.birth


@pytest.mark.parametrize("first", ["create", "commit"])
async def test_a_session_that_another_server_makes_at_the_same_moment_is_not_lost(
    redis_backend: RedisBackend,
    store: RedisStore,
    session: SessionId,
    make_snapshot: MakeSnapshot,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
) -> None:
    """Between the look that finds nothing and the keys that are there already stands a rival, not an eviction."""
    rival = redis_backend.store()
    await rival.open()
    plan, made = store._sessions.plan, []

    async def plan_late(*args: Any) -> Any:
        if not made:
            made.append((await rival.create(session))[0])
        return await plan(*args)

    monkeypatch.setattr(store._sessions, "plan", plan_late)
    if first == "create":
        record, is_new = await store.create(session)
        assert (record.birth, is_new) == (made[0].birth, False)
    else:
        info = await store.commit(session, None, make_snapshot(1))
        assert (await rival.get(session)).tip == info.version
    assert (await rival.get(session)).birth == made[0].birth
    await rival.close()
