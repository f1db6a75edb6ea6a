"""When a store's word about a session is taken, and when it contradicts what it said before."""

from __future__ import annotations

import pytest
from hope_memory.codec import KEEP_REQUESTS
from hope_memory.protocol import CommitInfo, SessionId, SessionRecord

from hope_server.engine.turn import SessionKey
from hope_server.engine.witness import Witness
from hope_server.errors import MemoryRolledBack, VersionMismatch

pytestmark = pytest.mark.anyio
ADA = SessionKey("t", "ada")


class FakeBook:
    """Knows the ancestors it is told, and counts questions."""

    def __init__(self, *ancestors: str) -> None:
        self.ancestors = ancestors
        self.num_asked = 0

    async def ancestry(self, _key: SessionKey, version: str) -> str:
        self.num_asked += 1
        return "ancestor" if version in self.ancestors else "unknown"


def record(version: str | None, number: int = 1, birth: str = "b") -> SessionRecord:
    """Ada's session with this head."""
    head = None if version is None else CommitInfo(version, None, number, 0.0, 0, {})
    return SessionRecord(SessionId("t", "ada"), 0.0, 0.0, head, birth)


def witness(book: FakeBook, **fields: object) -> Witness:
    """A witness that fails on a roll-back unless told otherwise."""
    return Witness(book, **({"on_rollback": "fail"} | fields))  # type: ignore[arg-type]


async def test_an_unchanged_head_is_not_asked_about() -> None:
    """The usual turn costs nothing here."""
    book = FakeBook()
    watching = witness(book)
    await watching.check(record("v1"))
    await watching.check(record("v1"))
    await watching.check(record("v1"), "v1")
    assert book.num_asked == 0


async def test_a_head_that_another_server_moved_is_taken() -> None:
    """As long as what was seen is among its ancestors."""
    watching = witness(FakeBook("v1"))
    await watching.check(record("v1", 1))
    await watching.check(record("v2", 2))
    watching.see(ADA, "b", "v3", 3)
    with pytest.raises(MemoryRolledBack):
        await watching.check(record("v2", 2))


async def test_an_empty_session_that_was_not_empty_went_back() -> None:
    """Its birth is its tip; a session that was made anew has another birth and owes nothing."""
    watching = witness(FakeBook())
    await watching.check(record("v1"))
    with pytest.raises(MemoryRolledBack):
        await watching.check(record(None))
    await watching.check(record(None, birth="c"))


async def test_what_is_out_of_reach_is_not_held_against_the_store() -> None:
    """Where others committed more often than a history is kept, the version seen last is missing for that reason."""
    watching = witness(FakeBook())
    await watching.check(record("v1", 1))
    with pytest.raises(MemoryRolledBack):
        await watching.check(record("v9", KEEP_REQUESTS))
    await watching.check(record("v9", 1 + KEEP_REQUESTS))


async def test_any_version_adopts_the_store() -> None:
    """From then on its line is the one that is watched."""
    watching = witness(FakeBook())
    await watching.check(record("v1"))
    await watching.check(record("w1"), "*")
    await watching.check(record("w1"))
    with pytest.raises(MemoryRolledBack):
        await watching.check(record("v1"))


async def test_a_version_that_the_caller_names_is_asked_about() -> None:
    """An ancestor is a mismatch, an unknown one a roll-back; neither changes what is remembered."""
    watching = witness(FakeBook("v1"))
    with pytest.raises(VersionMismatch):
        await watching.check(record("v2", 2), "v1")
    with pytest.raises(MemoryRolledBack):
        await watching.check(record("v2", 2), "x")
    await watching.check(record("v2", 2), "v2")


async def test_sessions_that_were_not_seen_for_long_are_forgotten() -> None:
    """Memory is bounded; a deleted session is forgotten at once."""
    watching = witness(FakeBook(), max_sessions=1)
    await watching.check(record("v1"))
    watching.see(SessionKey("t", "bob"), "b", "v1", 1)
    await watching.check(record("w1"))
    watching.forget(ADA)
    await watching.check(record("x1"))
