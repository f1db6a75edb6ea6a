"""What every store promises about sessions, commits and reads."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hope_memory import (
    Array,
    CommitInfo,
    FingerprintMismatch,
    Level,
    Request,
    SessionId,
    SessionMissing,
    Snapshot,
    SnapshotStore,
    SnapshotTooLarge,
    StoreUnavailable,
    VersionConflict,
    VersionMissing,
)

if TYPE_CHECKING:
    from tests.memory_store.conftest import Backend, CommitChain, MakeSnapshot

pytestmark = pytest.mark.anyio


async def test_a_new_session_is_empty_and_made_once(store: SnapshotStore, session: SessionId) -> None:
    """Creating is idempotent: the second call finds the session of the first."""
    record, is_new = await store.create(session)
    again, is_new_again = await store.create(session)
    assert (is_new, is_new_again, again, record.head) == (True, False, record, None)
    assert await store.get(session) == record


async def test_a_commit_comes_back_whole_after_reopening(
    backend: Backend, store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """What was committed is loaded, equal and with its facts, by another store on the same storage."""
    info = await store.commit(session, None, make_snapshot(1))
    await store.close()
    reopened = backend.store()
    await reopened.open()
    loaded = await reopened.load(session)
    assert (loaded.info, loaded.snapshot, loaded.skipped) == (info, make_snapshot(1), ())
    assert (await reopened.get(session)).head == info
    await reopened.close()


async def test_commit_info_tells_the_commit(
    store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """Ids are random 128-bit hex, parents and numbers form a chain, and the public part of meta is copied."""
    first, second = await commit_chain(store, session, 2)
    assert all(re.fullmatch("[0-9a-f]{32}", info.version) for info in (first, second))
    assert (first.parent, first.number, second.parent, second.number) == (None, 1, first.version, 2)
    assert (first.meta, second.meta) == ({"turn": 1}, {"turn": 2})
    assert make_snapshot(1).num_bytes < first.num_bytes < 2000
    assert await store.versions(session) == [second, first]


async def test_a_stale_parent_is_refused_and_changes_nothing(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """Only the head may be followed: an older commit, none, or an unknown one is a conflict that names both."""
    first, head = await commit_chain(store, session, 2)
    num_blobs = backend.count_blobs()
    for stale in (first.version, None, "f" * 32):
        with pytest.raises(VersionConflict) as caught:
            await store.commit(session, stale, make_snapshot(9))
        assert (caught.value.expected, caught.value.found) == (stale, head.version)
    assert await store.versions(session) == [head, first]
    assert (backend.count_blobs(), (await store.load(session)).snapshot) == (num_blobs, make_snapshot(2))


async def test_of_two_concurrent_committers_exactly_one_wins(
    backend: Backend, store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Two stores that commit to one head at once: one commits, the other gets a conflict, in every round."""
    rival = backend.store()
    await rival.open()
    head: CommitInfo | None = None
    for turn in range(1, 31):
        parent = head and head.version
        tries = [writer.commit(session, parent, make_snapshot(turn, fill)) for fill, writer in ((1, store), (2, rival))]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, CommitInfo)]
        assert [type(outcomes[1 - winner]) for winner in winners] == [VersionConflict]
        head = outcomes[winners[0]]  # type: ignore[assignment]
        loaded = await store.load(session)
        assert (loaded.info, loaded.snapshot) == (head, make_snapshot(turn, winners[0] + 1))
    await rival.close()


async def test_a_repeated_request_returns_its_first_commit(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """The same request id commits once, also when later commits have moved the head or dropped the version."""
    first = await store.commit(session, None, make_snapshot(1), request=Request("r-1"))
    assert await store.commit(session, None, make_snapshot(1), request=Request("r-1")) == first
    head = first
    for turn in range(2, 12):
        head = await store.commit(session, head.version, make_snapshot(turn), request=Request(f"r-{turn}"))
    assert await store.commit(session, None, make_snapshot(1), request=Request("r-1")) == first
    assert (await store.get(session)).head == head
    assert first not in await store.versions(session)


async def test_request_ids_belong_to_their_session_and_are_forgotten_after_64_commits(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """The same id in another session commits there; an id older than 64 commits is an ordinary conflict."""
    other = SessionId("acme", "chat-2")
    head = await store.commit(session, None, make_snapshot(1), request=Request("r"))
    assert (await store.commit(other, None, make_snapshot(1), request=Request("r"))).version != head.version
    for turn in range(2, 66):
        head = await store.commit(session, head.version, make_snapshot(turn))
    with pytest.raises(VersionConflict):
        await store.commit(session, None, make_snapshot(1), request=Request("r"))


async def test_concurrent_copies_of_a_request_commit_once(
    backend: Backend, store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A request that reaches two stores at once is learned once, and both learn the same outcome."""
    rival = backend.store()
    await rival.open()
    for turn in range(10):
        name = replace(session, name=f"chat-{turn}")
        tries = [writer.commit(name, None, make_snapshot(turn), request=Request("r")) for writer in (store, rival)]
        mine, theirs = await asyncio.gather(*tries)
        assert mine == theirs
        assert await store.versions(name) == [mine]
    await rival.close()


async def test_unchanged_levels_are_referenced_not_written(
    backend: Backend, store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A level named unchanged costs no new blob and comes back as in the parent, whether or not it was passed."""
    first = await store.commit(session, None, make_snapshot(1))
    assert backend.count_blobs() == 2
    second = make_snapshot(2)
    without = Snapshot(second.fingerprint, second.meta, {"fast": second.levels["fast"]})
    info = await store.commit(session, first.version, without, frozenset({"slow"}))
    assert backend.count_blobs() == 3
    await store.commit(session, info.version, make_snapshot(3), frozenset({"slow"}))
    assert backend.count_blobs() == 4
    levels = (await store.load(session)).snapshot.levels
    assert levels == {"fast": make_snapshot(3).levels["fast"], "slow": make_snapshot(1).levels["slow"]}
    # The same levels and a manifest that also names a parent, a base and one more ancestor.
    assert 0 < info.num_bytes - first.num_bytes < 160


async def test_unchanged_levels_must_be_in_a_parent_of_the_same_model(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """An unchanged level that the parent lacks, or that another model made, is refused and nothing is kept."""
    with pytest.raises(ValueError, match="no parent"):
        await store.commit(session, None, make_snapshot(1), frozenset({"slow"}))
    with pytest.raises(SessionMissing):
        await store.get(session)
    first = await store.commit(session, None, make_snapshot(1))
    with pytest.raises(ValueError, match="no level medium"):
        await store.commit(session, first.version, make_snapshot(2), frozenset({"medium"}))
    with pytest.raises(FingerprintMismatch):
        await store.commit(session, first.version, make_snapshot(2, fingerprint="toy-2"), frozenset({"slow"}))
    assert await store.versions(session) == [first]


async def test_only_the_newest_versions_are_kept(
    backend: Backend, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """With keep_versions=3, the fourth commit drops the first and its blobs; a shared blob stays while it is named."""
    store = backend.store(keep_versions=3)
    await store.open()
    chain = await commit_chain(store, session, 5)
    assert await store.versions(session) == chain[:1:-1]
    assert backend.count_blobs() == 6
    with pytest.raises(VersionMissing):
        await store.load(session, chain[0].version)
    head = chain[-1]
    for turn in range(6, 10):
        head = await store.commit(session, head.version, make_snapshot(turn), frozenset({"slow"}))
    assert backend.count_blobs() == 3 + 1
    assert (await store.load(session)).snapshot.levels["slow"] == make_snapshot(5).levels["slow"]
    await store.close()


async def test_a_snapshot_above_the_limit_is_refused_before_it_is_encoded(
    backend: Backend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A level, the sum of levels with the unchanged ones, and a load with a lower limit are each held to it."""
    store = backend.store(max_snapshot_bytes=1200)
    await store.open()
    big = Snapshot("toy-1", {}, {"x": Level({"w": Array("uint8", (1201,), bytes(1201))})})
    with pytest.raises(SnapshotTooLarge) as caught:
        await store.commit(session, None, big)
    assert (caught.value.num_bytes, caught.value.limit) == (1201, 1200)
    first = await store.commit(session, None, make_snapshot(1))
    more = Snapshot("toy-1", {}, {"x": Level({"w": Array("uint8", (900,), bytes(900))})})
    with pytest.raises(SnapshotTooLarge):
        await store.commit(session, first.version, more, frozenset({"fast", "slow"}))
    assert backend.count_blobs() == 2
    await store.close()
    strict = backend.store(max_snapshot_bytes=300)
    await strict.open()
    with pytest.raises(SnapshotTooLarge):
        await strict.load(session)
    await strict.close()


async def test_meta_that_is_too_large_is_refused_whole(store: SnapshotStore, session: SessionId) -> None:
    """Too much meta or info is a ValueError, and the session is not made."""
    for meta in ({"x": bytes(1 << 20)}, {"info": {"x": bytes(20_000)}}):
        with pytest.raises(ValueError, match="limit"):
            await store.commit(session, None, Snapshot("toy-1", meta, {}))
    with pytest.raises(SessionMissing):
        await store.get(session)


async def test_a_snapshot_of_another_model_is_refused(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A load with another fingerprint names both; without one, or with the right one, it succeeds."""
    await store.commit(session, None, make_snapshot(1))
    with pytest.raises(FingerprintMismatch) as caught:
        await store.load(session, fingerprint="toy-2")
    assert (caught.value.expected, caught.value.found) == ("toy-2", "toy-1")
    assert (await store.load(session, fingerprint="toy-1")).snapshot == (await store.load(session)).snapshot


async def test_what_is_not_there_is_named(store: SnapshotStore, session: SessionId, commit_chain: CommitChain) -> None:
    """Unknown sessions, sessions without commits and unknown versions each have their error."""
    for call in (store.get, store.load, store.versions):
        with pytest.raises(SessionMissing):
            await call(session)
    await store.create(session)
    assert await store.versions(session) == []
    with pytest.raises(VersionMissing):
        await store.load(session)
    other = SessionId("acme", "chat-2")
    chain = await commit_chain(store, other, 1)
    for call in (store.load, store.rollback):
        with pytest.raises(VersionMissing):
            await call(session, chain[0].version)


async def test_list_goes_page_by_page_through_one_tenant(
    store: SnapshotStore, make_snapshot: MakeSnapshot, commit_chain: CommitChain
) -> None:
    """Pages follow each other without gaps or repeats, in the same order every time, and never show another tenant."""
    names = ["a", "b", "ba", "c", "ü"]
    for name in reversed(names):
        await commit_chain(store, SessionId("acme", name), 2)
        await store.create(SessionId("other", name + "!"))
    seen: list[str] = []
    while page := await store.list("acme", 2, seen[-1] if seen else None):
        seen += [record.session.name for record in page]
        assert all(record.head is not None and record.head.meta == {"turn": 2} for record in page)
    assert sorted(seen) == names
    assert [record.session.name for record in await store.list("acme")] == seen
    assert [await store.get(record.session) for record in await store.list("acme")] == await store.list("acme")
    assert [record.session.tenant for record in await store.list("other")] == ["other"] * 5
    assert await store.list("nobody") == []
    for limit in (0, -1, 1001):
        with pytest.raises(ValueError, match="limit"):
            await store.list("acme", limit)


@pytest.mark.parametrize("name", ["", "n" * 257, "a\0b", "\ud800", 7], ids=repr)
async def test_impossible_names_are_refused(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot, name: Any
) -> None:
    """Names and request ids are 1 to 256 bytes of Unicode without NUL; nothing is cut or replaced."""
    for arguments in ((name, "chat"), ("acme", name)):
        with pytest.raises(ValueError, match=r"bytes|Unicode|str"):
            SessionId(*arguments)
    with pytest.raises(ValueError, match=r"bytes|Unicode|str"):
        await store.commit(session, None, make_snapshot(1), request=Request(name))


async def test_names_are_not_joined(store: SnapshotStore, make_snapshot: MakeSnapshot) -> None:
    """Tenant and name that look alike when written together are different sessions."""
    pairs = [SessionId("a", "b/c"), SessionId("a/b", "c"), SessionId("a", "B/c"), SessionId("a%", "_")]
    for turn, pair in enumerate(pairs):
        await store.commit(pair, None, make_snapshot(turn))
    assert [(await store.load(pair)).info.meta["turn"] for pair in pairs] == [0, 1, 2, 3]


async def test_a_deleted_session_is_gone_and_does_not_come_back(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """After a delete no blob is left, a late commit is refused, and a new session of that name starts empty."""
    head = (await commit_chain(store, session, 3))[-1]
    assert await store.delete(session) is True
    assert await store.delete(session) is False
    assert backend.count_blobs() == 0
    with pytest.raises(SessionMissing):
        await store.commit(session, head.version, make_snapshot(4), frozenset({"slow"}), Request("r-4"))
    await store.create(session)
    with pytest.raises(VersionConflict):
        await store.commit(session, head.version, make_snapshot(4))
    assert await store.versions(session) == []


async def test_a_closed_store_says_so(backend: Backend, session: SessionId) -> None:
    """Before open and after close every call raises StoreUnavailable; opening or closing twice is fine."""
    store = backend.store()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.open()
    await store.open()
    await store.ping()
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.get(session)
    await store.open()
    await store.ping()
    await store.close()


async def test_a_cancelled_commit_is_settled_when_the_caller_continues(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """After cancellation the buffers are free: the commit has happened whole or will never happen."""
    head: CommitInfo | None = None
    for turn in range(1, 21):
        buffer = bytearray(200_000)
        level = Level({"w": Array("uint8", (len(buffer),), memoryview(buffer))})
        snapshot = Snapshot("toy-1", {"info": {"turn": turn}}, {"w": level})
        work = asyncio.ensure_future(store.commit(session, head and head.version, snapshot))
        await asyncio.sleep(0.0002 * turn)
        work.cancel()
        await asyncio.wait((work,))
        buffer[:] = b"x" * len(buffer)
        record, _ = await store.create(session)
        if record.head != head:
            assert record.head is not None
            assert record.head.meta == {"turn": turn}
            assert bytes((await store.load(session)).snapshot.levels["w"].arrays["w"].data) == bytes(len(buffer))
        head = record.head
