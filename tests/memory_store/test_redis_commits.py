"""What a commit leaves in Redis, and what becomes of it when writers race, crash or lose replies."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fault_proxy import FaultProxy
from hope_memory import (
    Answered,
    Array,
    Level,
    Request,
    RequestReused,
    SessionId,
    SessionMissing,
    Snapshot,
    StoreUnavailable,
    Vault,
    VersionConflict,
)
from hope_memory.redis_commits import Wish
from hope_memory.redis_history import Draft, flip
from hope_memory.redis_layout import PIECE_BYTES
from hope_memory.redis_levels import ChangedLevels, stage
from hope_memory.redis_scripts import FLIP
from hope_memory.redis_store import RedisOptions, RedisStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.memory_store.conftest import MakeSnapshot, RedisBackend

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(redis_backend: RedisBackend) -> AsyncIterator[RedisStore]:
    """An open store that keeps 8 versions of at most 8 MiB."""
    store = redis_backend.store(max_snapshot_bytes=8 << 20)
    await store.open()
    yield store
    await store.close()


def large(num_bytes: int, fill: bytes = b"x") -> Snapshot:
    """A snapshot of one level of so many bytes."""
    return Snapshot("toy-1", {}, {"w": Level({"w": Array("uint8", (num_bytes,), fill * num_bytes)})})


async def prepared(
    store: RedisStore, session: SessionId, parent: str, snapshot: Snapshot
) -> tuple[Draft, ChangedLevels]:
    """A commit that is sealed, but neither staged nor made the head."""
    async with store._client.operation() as redis:
        member, view = await store._sessions.find(redis, session)
    wish = Wish(session, parent, snapshot, snapshot.levels, frozenset(), None, "")
    return await store._commits._prepare(member, view, parent, wish)


def level_fields(backend: RedisBackend) -> list[str]:
    """All fields that hold a piece of a level."""
    return [field for _, key in backend.hashes() for field in backend.fields(key) if field.startswith("l:")]


async def test_levels_are_stored_in_pieces_of_at_most_1_mib(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId
) -> None:
    """A level of 3 MB is four fields, none above the limit, and comes back whole."""
    info = await store.commit(session, None, large(3 << 20))
    sizes = [len(redis_backend.get(field)) for field in level_fields(redis_backend)]
    assert (len(sizes), max(sizes)) == (4, PIECE_BYTES)
    loaded = await store.load(session)
    assert (loaded.info, loaded.snapshot) == (info, large(3 << 20))


async def test_names_and_states_are_not_readable_in_redis(redis_backend: RedisBackend, store: RedisStore) -> None:
    """No tenant, session name, request id, level name or state is in any key, field or value."""
    canary = "canary-6f1d"
    level = Level({canary: Array("uint8", (len(canary),), canary.encode())})
    snapshot = Snapshot(canary, {"info": {canary: canary}}, {canary: level})
    request = Request(canary, canary.encode(), canary.encode())
    await store.commit(SessionId(canary, canary), None, snapshot, request=request)
    stored = [
        b" ".join((key.encode(), *(word for pair in node.hgetall(key).items() for word in pair)))
        for node, key in redis_backend.hashes()
    ]
    assert stored and not any(canary.encode() in words for words in stored)


async def test_what_crashed_writers_staged_goes_with_the_next_commit(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Pieces without a manifest are seen by nobody, and the session's next commit removes them."""
    head = await store.commit(session, None, make_snapshot(1))
    draft, sealed = await prepared(store, session, head.version, large(3 << 20))
    async with store._client.operation() as redis:
        await stage(redis, draft.member.key, sealed)
    assert redis_backend.count_blobs() == 3
    assert (await store.load(session)).snapshot == make_snapshot(1)
    await store.commit(session, head.version, make_snapshot(2))
    assert redis_backend.count_blobs() == 4


async def test_a_fork_leaves_what_its_source_has_staged(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Members of a family share a hash, but a commit of one does not disturb a commit of another that is under way."""
    head = await store.commit(session, None, make_snapshot(1))
    fork = await store.fork(session, "fork")
    draft, sealed = await prepared(store, session, head.version, make_snapshot(2))
    async with store._client.operation() as redis:
        await stage(redis, draft.member.key, sealed)
        await store.commit(fork.session, fork.tip, make_snapshot(3))
        assert await flip(redis, draft, None, store._limits) == ("done", "")
    assert (await store.load(session)).snapshot == make_snapshot(2)
    assert len([key for _, key in redis_backend.hashes() if any(f[:2] == "t:" for f in redis_backend.fields(key))]) == 1


async def test_a_manifest_is_never_made_the_head_without_its_levels(
    store: RedisStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A flip whose pieces are gone says so; with the pieces at hand they are staged again."""
    head = await store.commit(session, None, make_snapshot(1))
    draft, sealed = await prepared(store, session, head.version, make_snapshot(2))
    async with store._client.operation() as redis:
        assert await flip(redis, draft, None, store._limits) == ("incomplete", "")
        assert (await store.get(session)).head == head
        assert await flip(redis, draft, sealed, store._limits) == ("done", "")
    assert (await store.load(session)).snapshot == make_snapshot(2)


async def test_a_flip_that_is_repeated_has_happened_once(
    store: RedisStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """The same flip again is "done", also after another commit followed, and adds nothing."""
    head = await store.commit(session, None, make_snapshot(1))
    draft, sealed = await prepared(store, session, head.version, make_snapshot(2))
    async with store._client.operation() as redis:
        for _ in range(2):
            assert await flip(redis, draft, sealed, store._limits) == ("done", "")
        third = await store.commit(session, draft.info.version, make_snapshot(3))
        assert await flip(redis, draft, sealed, store._limits) == ("done", "")
    assert [info.version for info in await store.versions(session)] == [third.version, draft.info.version, head.version]


async def test_a_losing_writer_leaves_nothing(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A flip that finds another head drops what it staged and names that head."""
    head = await store.commit(session, None, make_snapshot(1))
    draft, sealed = await prepared(store, session, head.version, make_snapshot(2))
    winner = await store.commit(session, head.version, make_snapshot(3))
    async with store._client.operation() as redis:
        assert await flip(redis, draft, sealed, store._limits) == ("conflict", winner.version)
    assert redis_backend.count_blobs() == 4


async def test_late_pieces_do_not_bring_a_deleted_session_back(
    redis_backend: RedisBackend, store: RedisStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A writer that staged before a delete and flips after it finds the session missing; the tombstone expires."""
    head = await store.commit(session, None, make_snapshot(1))
    draft, sealed = await prepared(store, session, head.version, make_snapshot(2))
    assert await store.delete(session)
    async with store._client.operation() as redis:
        await stage(redis, draft.member.key, sealed)
        ((node, key),) = redis_backend.hashes()
        assert 0 < node.ttl(key) <= 24 * 3600
        assert await flip(redis, draft, sealed, store._limits) == ("missing", "")
    assert sorted(redis_backend.fields(key)) == ["tomb", "v"]
    with pytest.raises(SessionMissing):
        await store.get(session)
    record, is_new = await store.create(session)
    assert is_new and node.ttl(key) == -1
    with pytest.raises(VersionConflict):
        await store.commit(session, head.version, make_snapshot(2))
    assert (await store.get(session)) == record


async def test_an_empty_session_made_anew_refuses_the_writers_of_the_old_one(
    store: RedisStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Before its first commit a session is named by its birth, which a session made anew does not share."""
    old, _ = await store.create(session)
    await store.delete(session)
    new, _ = await store.create(session)
    with pytest.raises(VersionConflict):
        await store.commit(session, old.tip, make_snapshot(1))
    assert (await store.commit(session, new.tip, make_snapshot(1))).number == 1


async def test_a_lost_reply_is_settled(
    redis_backend: RedisBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Whichever reply of a commit is lost, the commit happens once and is returned."""
    async with FaultProxy(redis_backend.server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        store = RedisStore(url, vault=redis_backend.vault(), options=RedisOptions(prefix=redis_backend.prefix))
        await store.open()
        head, _ = await store.create(session)
        tip = head.tip
        for number in range(1, 21):
            await asyncio.sleep(0)
            proxy.cut_next_reply()
            info = await store.commit(session, tip, make_snapshot(number))
            assert (info.number, (await store.load(session)).info) == (number, info)
            tip = info.version
        assert proxy.num_resets >= 20
        await store.close()


@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_a_lost_reply_of_the_flip_is_settled(
    redis_backend: RedisBackend,
    session: SessionId,
    make_snapshot: MakeSnapshot,
    monkeypatch: pytest.MonkeyPatch,
    nth: int,
) -> None:
    """The flip whose reply is lost, once or several times, is asked again and found done."""
    async with FaultProxy(redis_backend.server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        store = RedisStore(url, vault=redis_backend.vault(), options=RedisOptions(prefix=redis_backend.prefix))
        await store.open()
        head = await store.commit(session, None, make_snapshot(1))
        left = nth
        draft, sealed = await prepared(store, session, head.version, make_snapshot(2))
        async with store._client.operation() as redis:
            send = redis._redis.execute_command

            async def cutting(*words: object) -> object:
                nonlocal left
                if FLIP.sha in words and left:
                    left -= 1
                    proxy.cut_next_reply()
                return await send(*words)

            monkeypatch.setattr(redis._redis, "execute_command", cutting)
            assert await flip(redis, draft, sealed, store._limits) == ("done", "")
        assert (left, proxy.num_resets >= nth) == (0, True)
        assert [info.number for info in await store.versions(session)] == [2, 1]
        await store.close()


async def test_a_request_is_answered_once_and_its_id_names_one_body(
    store: RedisStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A replay tells so and changes nothing; another body is refused; the reply and its acknowledgement are kept."""
    request = Request("r", b"digest", b"reply")
    info = await store.commit(session, None, make_snapshot(1), request=request)
    again = await store.commit(session, None, make_snapshot(1), request=request)
    assert (again, info.is_replay, again.is_replay) == (info, False, True)
    with pytest.raises(RequestReused):
        await store.commit(session, info.version, make_snapshot(2), request=replace(request, digest=b"other"))
    answered = await store.find_request(session, "r")
    assert answered is not None and answered == await store.last_request(session)
    assert answered == Answered(info, b"digest", b"reply", is_acknowledged=False)
    await store.acknowledge(session, info.version)
    answered = await store.last_request(session)
    assert answered is not None and answered.is_acknowledged
    head = await store.commit(session, info.version, make_snapshot(2))
    assert await store.last_request(session) is None
    assert await store.find_request(session, "unknown") is None
    assert [await store.ancestry(session, tip) for tip in (head.version, info.version, "f" * 32)] == [
        "head", "ancestor", "unknown"
    ]  # fmt: skip


async def test_another_key_file_is_refused(redis_backend: RedisBackend, store: RedisStore, session: SessionId) -> None:
    """A store that would find none of the sessions, because its key file is another, does not open."""
    other = RedisStore(
        redis_backend.server.url,
        vault=Vault.beside(redis_backend.folder / "other.db"),
        options=RedisOptions(prefix=redis_backend.prefix),
    )
    with pytest.raises(StoreUnavailable, match="another key file"):
        await other.open()
