"""What every store promises about incarnations, requests, ancestry, durability and sessions that it lost."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from hope_memory import (
    DurabilityUnmet,
    Request,
    RequestReused,
    SessionId,
    SessionLost,
    SessionMissing,
    SnapshotStore,
    VersionConflict,
)
from hope_memory.codec import KEEP_REQUESTS
from hope_memory.protocol import MAX_DIGEST_BYTES, MAX_REPLY_BYTES

if TYPE_CHECKING:
    from tests.memory_store.conftest import Backend, CommitChain, MakeSnapshot

pytestmark = pytest.mark.anyio

OTHER = SessionId("acme", "chat-2")


async def test_the_tip_is_the_birth_until_something_is_committed(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A new session's birth is the parent that its first commit names; then the head's version is."""
    record, _ = await store.create(session)
    assert re.fullmatch("[0-9a-f]{32}", record.birth)
    assert record.tip == record.birth
    first = await store.commit(session, record.tip, make_snapshot(1))
    after = await store.get(session)
    assert (first.number, after.tip, after.birth) == (1, first.version, record.birth)
    with pytest.raises(VersionConflict):
        await store.commit(session, record.birth, make_snapshot(2))
    assert (await store.commit(session, after.tip, make_snapshot(2))).parent == first.version


async def test_a_session_made_again_is_another_one(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Late writes to the old incarnation of a session are refused, whether or not there is a new one."""
    old, _ = await store.create(session)
    await store.delete(session)
    with pytest.raises(SessionMissing):
        await store.commit(session, old.tip, make_snapshot(1))
    new, is_new = await store.create(session)
    assert is_new and new.birth != old.birth
    with pytest.raises(VersionConflict) as caught:
        await store.commit(session, old.tip, make_snapshot(1))
    assert caught.value.expected == old.birth
    assert (await store.get(session)).head is None


async def test_an_answered_request_is_found_with_its_reply(
    backend: Backend, store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Digest and reply come back as they were, from another store too; unknown ids and other sessions have none."""
    request = Request("r-1", b"digest", bytes(range(256)) * 1000)
    info = await store.commit(session, None, make_snapshot(1), request=request)
    await store.commit(session, info.version, make_snapshot(2), request=Request("r-2"))
    await store.create(OTHER)
    await store.close()
    reopened = backend.store()
    await reopened.open()
    found = await reopened.find_request(session, "r-1")
    assert found is not None
    assert (found.info, found.digest, found.reply, found.is_acknowledged) == (info, b"digest", request.reply, False)
    assert await reopened.find_request(session, "r-3") is None
    assert await reopened.find_request(OTHER, "r-1") is None
    with pytest.raises(SessionMissing):
        await reopened.find_request(SessionId("acme", "nobody"), "r-1")
    await reopened.close()


async def test_a_request_id_that_returns_with_another_body_is_refused(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """The same id and digest replay the commit and say so; another digest is an error; neither changes anything."""
    first = await store.commit(session, None, make_snapshot(1), request=Request("r", b"a", b"reply"))
    assert not first.is_replay
    again = await store.commit(session, first.version, make_snapshot(2), request=Request("r", b"a", b"other reply"))
    assert (again, again.is_replay) == (first, True)
    with pytest.raises(RequestReused) as caught:
        await store.commit(session, first.version, make_snapshot(2), request=Request("r", b"b"))
    assert caught.value.request_id == "r"
    assert (await store.get(session)).head == first
    found = await store.find_request(session, "r")
    assert found is not None and found.reply == b"reply"


async def test_the_last_request_is_the_one_that_made_the_head(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """There is none in an empty session, after a commit without a request, and after a roll-back."""
    with pytest.raises(SessionMissing):
        await store.last_request(session)
    await store.create(session)
    assert await store.last_request(session) is None
    first = await store.commit(session, None, make_snapshot(1), request=Request("r-1", b"d", b"1"))
    last = await store.last_request(session)
    assert last is not None and (last.info, last.digest, last.reply) == (first, b"d", b"1")
    second = await store.commit(session, first.version, make_snapshot(2))
    assert await store.last_request(session) is None
    third = await store.commit(session, second.version, make_snapshot(3), request=Request("r-3", b"d", b"3"))
    last = await store.last_request(session)
    assert last is not None and last.info == third
    await store.rollback(session, first.version)
    assert await store.last_request(session) is None


async def test_an_acknowledged_answer_is_known_as_such(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """What was sent whole is noted of its commit only; unknown sessions and versions are ignored."""
    first = await store.commit(session, None, make_snapshot(1), request=Request("r-1"))
    for name, version in ((session, "f" * 32), (OTHER, first.version), (session, "")):
        await store.acknowledge(name, version)
    last = await store.last_request(session)
    assert last is not None and not last.is_acknowledged
    await store.acknowledge(session, first.version)
    last = await store.last_request(session)
    assert last is not None and last.is_acknowledged
    await store.commit(session, first.version, make_snapshot(2), request=Request("r-2"))
    last = await store.last_request(session)
    assert last is not None and not last.is_acknowledged


async def test_requests_have_limits(store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot) -> None:
    """The largest digest and reply are kept whole; larger ones are refused before anything is stored."""
    for wrong in ({"digest": bytes(MAX_DIGEST_BYTES + 1)}, {"reply": bytes(MAX_REPLY_BYTES + 1)}):
        with pytest.raises(ValueError, match="up to"):
            Request("r", **wrong)
    largest = Request("r" * 256, b"\xff" * MAX_DIGEST_BYTES, b"\xff" * MAX_REPLY_BYTES)
    await store.commit(session, None, make_snapshot(1), request=largest)
    found = await store.find_request(session, largest.id)
    assert found is not None and (found.digest, found.reply) == (largest.digest, largest.reply)


async def test_ancestry_tells_a_known_version_from_one_that_the_store_has_not(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot, commit_chain: CommitChain
) -> None:
    """The tip is the head; versions that are no longer kept are still ancestors; older and foreign ones are unknown."""
    with pytest.raises(SessionMissing):
        await store.ancestry(session, "f" * 32)
    birth = (await store.create(session))[0].birth
    assert (await store.ancestry(session, birth), await store.ancestry(session, "f" * 32)) == ("head", "unknown")
    chain = await commit_chain(store, session, 20)
    foreign = (await commit_chain(store, OTHER, 1))[0]
    known = [await store.ancestry(session, info.version) for info in chain]
    assert known == ["ancestor"] * 19 + ["head"]
    assert await store.ancestry(session, birth) == "ancestor"
    assert await store.ancestry(session, foreign.version) == "unknown"
    head = chain[-1]
    for turn in range(21, 21 + KEEP_REQUESTS):
        head = await store.commit(session, head.version, make_snapshot(turn))
    assert [await store.ancestry(session, info.version) for info in (chain[-1], head)] == ["unknown", "head"]
    assert await store.ancestry(session, birth) == "unknown"


async def test_ancestry_goes_through_rollbacks_and_forks(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot, commit_chain: CommitChain
) -> None:
    """A roll-back follows the head that it replaced; a fork's ancestors are those of the version it was made from."""
    chain = await commit_chain(store, session, 3)
    back = await store.rollback(session, chain[0].version)
    assert [await store.ancestry(session, info.version) for info in (*chain, back)] == ["ancestor"] * 3 + ["head"]
    await store.fork(session, OTHER.name, chain[1].version)
    later = await store.commit(session, back.version, make_snapshot(4))
    known = [await store.ancestry(OTHER, info.version) for info in (*chain, back, later)]
    assert known == ["ancestor", "ancestor", "unknown", "unknown", "unknown"]


async def test_an_unknown_durability_is_refused_before_anything_happens(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Only the named levels exist, and a replica count is a number from 1."""
    for unknown in ("", "none", "replicated", "replicated:0", "replicated:-1", "replicated:x", "fsync "):
        with pytest.raises(ValueError, match="durability"):
            await store.commit(session, None, make_snapshot(1), durability=unknown)
    with pytest.raises(SessionMissing):
        await store.get(session)


async def test_a_durability_that_is_not_reached_is_an_error_after_the_commit(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Without replicas the commit happens and is named in the error, also where the request comes again."""
    request = Request("r", b"d")
    with pytest.raises(DurabilityUnmet) as caught:
        await store.commit(session, None, make_snapshot(1), request=request, durability="replicated:2")
    head = (await store.get(session)).head
    assert (caught.value.info, caught.value.asked) == (head, "replicated:2")
    with pytest.raises(DurabilityUnmet) as again:
        await store.commit(session, None, make_snapshot(1), request=request, durability="replicated:2")
    assert (again.value.info, again.value.info.is_replay) == (head, True)
    replay = await store.commit(session, None, make_snapshot(1), request=request)
    assert (replay, replay.durability) == (head, "commit")


async def test_a_session_that_the_store_lost_is_not_taken_for_a_new_one(
    backend: Backend, store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot, commit_chain: CommitChain
) -> None:
    """Emptied storage is noticed by every call; only a delete, which says that there was one, allows a new start."""
    chain = await commit_chain(store, session, 2)
    birth = (await store.get(session)).birth
    await commit_chain(store, OTHER, 1)
    backend.lose_everything()
    for call in (store.create, store.get, store.load, store.versions, store.last_request):
        with pytest.raises(SessionLost) as caught:
            await call(session)
        assert caught.value.session == session.name
    for parent in (None, birth, chain[-1].version):
        with pytest.raises(SessionLost):
            await store.commit(session, parent, make_snapshot(3))
    third = SessionId("acme", "chat-3")
    await commit_chain(store, third, 1)
    with pytest.raises(SessionLost):
        await store.fork(third, session.name)
    assert await store.delete(session) is True
    assert await store.delete(session) is False
    record, is_new = await store.create(session)
    assert is_new and record.birth != birth
    assert [found.session.name for found in await store.list("acme")].count(session.name) == 1


async def test_a_clock_that_jumps_changes_no_history(
    store: SnapshotStore, session: SessionId, make_snapshot: MakeSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days back and decades ahead: the order of commits, what they hold and what is kept stay as they are."""
    start = time.time()
    tip, made = (await store.create(session))[0].tip, []
    for turn, jump in enumerate((0, -864_000, 10**9, -(10**9), 5, -5), 1):
        monkeypatch.setattr(time, "time", lambda jump=jump: start + jump)
        tip = (await store.commit(session, tip, make_snapshot(turn), request=Request(f"r-{turn}"))).version
        made.append(tip)
    assert [info.version for info in await store.versions(session)] == made[::-1]
    assert [info.number for info in await store.versions(session)] == [6, 5, 4, 3, 2, 1]
    assert (await store.load(session)).info.version == tip
    assert await store.ancestry(session, made[0]) == "ancestor"
    again = await store.commit(session, made[0], make_snapshot(1), request=Request("r-1"))
    assert again.is_replay and again.version == made[0]
    assert [record.session for record in await store.list(session.tenant)] == [session]
