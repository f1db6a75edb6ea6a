"""What every store promises about versions that are kept however old they are, and about restating a version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hope_memory import SessionId, SnapshotStore, VersionConflict, VersionMissing
from hope_memory.protocol import MAX_PINS

if TYPE_CHECKING:
    from tests.memory_store.conftest import Backend, CommitChain, MakeSnapshot

pytestmark = pytest.mark.anyio

KEPT = 8
FORK = SessionId("acme", "fork")


async def test_a_pinned_version_outlives_three_times_the_kept_versions(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """Its levels load, also those shared with versions that are gone; unpinned again, it goes with its blobs."""
    chain = await commit_chain(store, session, 2)
    pinned = await store.commit(session, chain[-1].version, make_snapshot(3), frozenset({"slow"}))
    head, pins = pinned, frozenset({pinned.version})
    for turn in range(4, 4 + 3 * KEPT):
        head = await store.commit(session, head.version, make_snapshot(turn), pins=pins)
    versions = await store.versions(session)
    assert [info.number for info in versions] == [*range(27, 19, -1), 3]
    loaded = await store.load(session, pinned.version)
    assert (loaded.info, loaded.skipped) == (pinned, ())
    assert loaded.snapshot.levels == {
        "fast": make_snapshot(3).levels["fast"],
        "slow": make_snapshot(2).levels["slow"],
    }
    assert backend.count_blobs() == KEPT * 2 + 2
    with pytest.raises(VersionMissing):
        await store.load(session, chain[0].version)
    await store.commit(session, head.version, make_snapshot(40))
    assert pinned.version not in {info.version for info in await store.versions(session)}
    assert backend.count_blobs() == KEPT * 2


async def test_a_pin_among_the_newest_versions_changes_nothing(
    store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """The newest versions are counted with and without pins alike; unknown pins are ignored."""
    chain = await commit_chain(store, session, KEPT)
    pins = frozenset({chain[-2].version, "f" * 32})
    await store.commit(session, chain[-1].version, make_snapshot(9), pins=pins)
    assert [info.number for info in await store.versions(session)] == [*range(KEPT + 1, 1, -1)]


async def test_a_pinned_version_can_be_restored_and_forked(
    store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """Both find its state long after its neighbours are gone; the fork needs no pin for its own first version."""
    chain = await commit_chain(store, session, 1)
    head, pins = chain[0], frozenset({chain[0].version})
    for turn in range(2, 2 + 3 * KEPT):
        head = await store.commit(session, head.version, make_snapshot(turn), pins=pins)
    await store.fork(session, FORK.name, chain[0].version)
    back = await store.rollback(session, chain[0].version, pins)
    assert (await store.load(session)).snapshot == make_snapshot(1)
    assert (await store.load(FORK)).snapshot == make_snapshot(1)
    await store.rollback(session, back.version)
    assert chain[0].version not in {info.version for info in await store.versions(session)}
    assert (await store.load(FORK)).snapshot == make_snapshot(1)
    assert (await store.load(session)).snapshot == make_snapshot(1)


async def test_a_version_is_restated_with_another_public_part(
    backend: Backend, store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """The head itself or an older version becomes the head with other info, all the rest as it was, and no new blob."""
    chain = await commit_chain(store, session, 3)
    num_blobs = backend.count_blobs()
    restated = await store.rollback(session, chain[2].version, info={"turn": 3, "tag": "x"}, parent=chain[2].version)
    assert (restated.parent, restated.number, restated.meta) == (chain[2].version, 4, {"turn": 3, "tag": "x"})
    loaded = await store.load(session)
    assert loaded.snapshot.meta == {"info": {"turn": 3, "tag": "x"}, "rng": b"\x00\x01"}
    assert loaded.snapshot.levels == make_snapshot(3).levels
    assert (await store.get(session)).head == restated
    assert backend.count_blobs() == num_blobs
    assert (await store.load(session, chain[2].version)).snapshot == make_snapshot(3)


async def test_a_restatement_can_insist_on_its_parent(
    store: SnapshotStore, session: SessionId, commit_chain: CommitChain
) -> None:
    """Over another tip it is refused, and nothing changes."""
    chain = await commit_chain(store, session, 2)
    with pytest.raises(VersionConflict):
        await store.rollback(session, chain[0].version, info={}, parent=chain[0].version)
    assert (await store.get(session)).head == chain[1]


async def test_a_fork_can_have_another_public_part(
    store: SnapshotStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """What belongs to the session that was forked need not go along."""
    await commit_chain(store, session, 1)
    record = await store.fork(session, FORK.name, info={"turn": 7})
    assert record.head is not None and record.head.meta == {"turn": 7}
    loaded = await store.load(FORK)
    assert (loaded.snapshot.meta["info"], loaded.snapshot.levels) == ({"turn": 7}, make_snapshot(1).levels)
    assert (await store.load(session)).snapshot == make_snapshot(1)


async def test_too_many_pins_are_refused(store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot) -> None:
    """The limit is named."""
    pins = frozenset(f"{number:032x}" for number in range(MAX_PINS + 1))
    with pytest.raises(ValueError, match="65 versions are pinned, the limit is 64"):
        await store.commit(session, None, make_snapshot(1), pins=pins)
