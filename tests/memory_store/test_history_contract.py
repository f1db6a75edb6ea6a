"""What every store promises about forks, roll-backs and damaged versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hope_memory import (
    SessionExists,
    SessionId,
    SessionMissing,
    SnapshotCorrupt,
    SnapshotStore,
    VersionMissing,
)

if TYPE_CHECKING:
    from tests.memory_store.conftest import Backend, CommitChain, MakeSnapshot

pytestmark = pytest.mark.anyio

FORK = SessionId("acme", "fork")


async def test_a_fork_shares_blobs_and_goes_its_own_way(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """A fork has the head's state at no cost in blobs, and neither session sees the other's later commits."""
    head = (await commit_chain(store, session, 3))[-1]
    num_blobs = backend.count_blobs()
    record = await store.fork(session, FORK.name)
    assert backend.count_blobs() == num_blobs
    assert record.head is not None
    assert (record.session, record.head.parent, record.head.number) == (FORK, head.version, head.number + 1)
    assert record.head.version != head.version
    assert (await store.load(FORK)).snapshot == make_snapshot(3)
    await store.commit(FORK, record.head.version, make_snapshot(40), frozenset({"slow"}))
    await store.commit(session, head.version, make_snapshot(4))
    forked = (await store.load(FORK)).snapshot
    assert (forked.levels["fast"], forked.levels["slow"]) == (
        make_snapshot(40).levels["fast"],
        make_snapshot(3).levels["slow"],
    )
    assert (await store.load(session)).snapshot == make_snapshot(4)


async def test_a_fork_can_start_from_any_kept_version_or_from_nothing(
    store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """A named version is forked as it was; a session without commits gives an empty fork."""
    chain = await commit_chain(store, session, 3)
    await store.fork(session, FORK.name, chain[0].version)
    assert (await store.load(FORK)).snapshot == make_snapshot(1)
    await store.create(SessionId("acme", "empty"))
    assert (await store.fork(SessionId("acme", "empty"), "empty-2")).head is None


async def test_a_fork_that_cannot_be_is_refused_whole(
    store: SnapshotStore, session: SessionId, commit_chain: CommitChain
) -> None:
    """A taken name, a missing source and an unknown version have their errors and leave no session behind."""
    with pytest.raises(SessionMissing):
        await store.fork(session, FORK.name)
    await commit_chain(store, session, 1)
    with pytest.raises(SessionExists):
        await store.fork(session, session.name)
    for unknown in ("f" * 32, ""):
        with pytest.raises(VersionMissing):
            await store.fork(session, FORK.name, unknown)
    assert [record.session for record in await store.list("acme")] == [session]


async def test_blobs_go_with_the_last_session_that_names_them(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """Deleting a session, or its commits falling out of the kept ones, leaves what a fork still needs, and no more."""
    await commit_chain(store, session, 2)
    await store.fork(session, FORK.name)
    second = SessionId("acme", "fork-of-fork")
    await store.fork(FORK, second.name)
    assert backend.count_blobs() == 4
    await store.delete(session)
    assert backend.count_blobs() == 2
    head = (await store.get(FORK)).head
    for turn in range(3, 12):
        assert head is not None
        head = await store.commit(FORK, head.version, make_snapshot(turn))
    assert backend.count_blobs() == 8 * 2 + 2
    assert (await store.load(second)).snapshot == make_snapshot(2)
    await store.delete(FORK)
    assert backend.count_blobs() == 2
    await store.delete(second)
    assert backend.count_blobs() == 0


async def test_rollback_makes_a_new_head_with_the_old_state(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """History stays linear: the restored state follows the old head, costs no blobs and can be committed on."""
    chain = await commit_chain(store, session, 3)
    num_blobs = backend.count_blobs()
    info = await store.rollback(session, chain[0].version)
    assert (info.parent, info.number, info.meta) == (chain[2].version, 4, {"turn": 1})
    assert backend.count_blobs() == num_blobs
    loaded = await store.load(session)
    assert (loaded.info, loaded.snapshot) == (info, make_snapshot(1))
    assert await store.versions(session) == [info, *reversed(chain)]
    last = await store.commit(session, info.version, make_snapshot(5), frozenset({"slow"}))
    assert (last.number, (await store.load(session)).snapshot.levels["slow"]) == (5, make_snapshot(1).levels["slow"])
    assert (await store.load(session, chain[2].version)).snapshot == make_snapshot(3)


async def test_rollback_keeps_only_the_newest_versions(
    backend: Backend, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """A roll-back counts as a version: the oldest goes, even where it is the one restored, and its blobs stay."""
    store = backend.store(keep_versions=2)
    await store.open()
    chain = await commit_chain(store, session, 2)
    info = await store.rollback(session, chain[0].version)
    assert await store.versions(session) == [info, chain[1]]
    assert (await store.load(session)).snapshot == make_snapshot(1)
    assert backend.count_blobs() == 4
    await store.close()


@pytest.mark.parametrize("damage", ["level", "manifest"])
async def test_a_damaged_head_falls_back_to_its_newest_intact_ancestor(
    backend: Backend,
    store: SnapshotStore,
    session: SessionId,
    commit_chain: CommitChain,
    make_snapshot: MakeSnapshot,
    damage: str,
) -> None:
    """Damaged versions are passed over and named, newest first; asked for by name they are refused."""
    chain = await commit_chain(store, session, 4)
    for info in chain[2:]:
        if damage == "level":
            backend.damage_level(info.version, "slow")
        else:
            backend.damage_manifest(info.version)
    loaded = await store.load(session)
    assert (loaded.info, loaded.snapshot) == (chain[1], make_snapshot(2))
    assert loaded.skipped == (chain[3].version, chain[2].version)
    with pytest.raises(SnapshotCorrupt):
        await store.load(session, chain[3].version)
    with pytest.raises(SnapshotCorrupt):
        await store.rollback(session, chain[2].version)
    info = await store.rollback(session, loaded.info.version)
    await store.commit(session, info.version, make_snapshot(5), frozenset({"slow"}))
    assert (await store.load(session)).skipped == ()


async def test_damage_to_a_shared_level_reaches_every_version_that_names_it(
    backend: Backend, store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A version is used only if all its levels are intact, those of its ancestors included."""
    first = await store.commit(session, None, make_snapshot(1))
    second = await store.commit(session, first.version, make_snapshot(2))
    third = await store.commit(session, second.version, make_snapshot(3), frozenset({"slow"}))
    backend.damage_level(third.version, "slow")
    loaded = await store.load(session)
    assert (loaded.snapshot, loaded.skipped) == (make_snapshot(1), (third.version, second.version))


async def test_without_an_intact_version_the_load_fails(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """When every version is damaged, nothing is returned, all of them are named, and the session can be deleted."""
    chain = await commit_chain(store, session, 2)
    for info in chain:
        backend.damage_level(info.version, "fast")
    with pytest.raises(SnapshotCorrupt, match=f"{chain[1].version}, {chain[0].version}"):
        await store.load(session)
    assert (await store.get(session)).head == chain[1]
    assert await store.delete(session)


async def test_a_damaged_rollback_does_not_bring_back_what_was_rolled_back(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """The way back from a roll-back leads to the ancestors of the restored version, not to the head it replaced."""
    chain = await commit_chain(store, session, 3)
    info = await store.rollback(session, chain[1].version)
    backend.damage_level(info.version, "fast")
    loaded = await store.load(session)
    assert (loaded.snapshot, loaded.skipped) == (make_snapshot(1), (info.version, chain[1].version))


async def test_a_level_of_another_commit_is_refused(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """Intact bytes in the wrong place are damage: exchanged levels of two commits are used by neither."""
    chain = await commit_chain(store, session, 3)
    backend.swap_levels(chain[1].version, chain[2].version, "fast")
    loaded = await store.load(session)
    assert (loaded.snapshot, loaded.skipped) == (make_snapshot(1), (chain[2].version, chain[1].version))


async def test_a_manifest_of_another_commit_or_session_is_refused(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """A manifest says whose and which it is: neither another version's nor another session's is used."""
    chain = await commit_chain(store, session, 3)
    backend.swap_manifests(chain[1].version, chain[2].version)
    assert (await store.load(session)).snapshot == make_snapshot(1)
    record = await store.fork(session, FORK.name, chain[0].version)
    assert record.head is not None
    backend.swap_manifests(chain[0].version, record.head.version)
    for name in (session, FORK):
        with pytest.raises(SnapshotCorrupt):
            await store.load(name)


async def test_unchanged_levels_need_an_intact_parent_manifest(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """Over a damaged manifest a commit may not refer to levels, but a whole snapshot heals the session."""
    head = (await commit_chain(store, session, 1))[0]
    backend.damage_manifest(head.version)
    with pytest.raises(SnapshotCorrupt):
        await store.commit(session, head.version, make_snapshot(2), frozenset({"slow"}))
    await store.commit(session, head.version, make_snapshot(2))
    loaded = await store.load(session)
    assert (loaded.snapshot, loaded.skipped) == (make_snapshot(2), ())
