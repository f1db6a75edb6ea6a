"""What every session store promises, whatever it keeps its bytes in.

A session's history is linear: each commit names the head it replaced. Safety comes from one rule: a commit wins only
while the head is still the parent that it was made from, and commit ids are random, so a head that returns after a
roll-back of the store itself is never mistaken for another. Every operation happens wholly or not at all.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from hope_memory.snapshot import Snapshot, check_name

MAX_ID_BYTES = 256
MAX_LIST_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class SessionId:
    """A session's full name: `name` is unique within `tenant`; each has 1 to MAX_ID_BYTES bytes of UTF-8."""

    tenant: str
    name: str

    def __post_init__(self) -> None:
        check_name("tenant", self.tenant, MAX_ID_BYTES)
        check_name("session name", self.name, MAX_ID_BYTES)


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """One commit of a session.

    version: its random id, 128 bits in hex.
    parent: the commit it follows; for the first commit of a fork that is a commit of the session forked from.
    number: the parent's number plus one; 1 where there is no parent.
    created: Unix seconds by the writer's clock; nothing depends on it.
    num_bytes: stored bytes of all levels it names and of its manifest, whether or not they are shared.
    meta: the snapshot's `meta["info"]`; empty where that summary, which `load` does not use, is damaged.
    """

    version: str
    parent: str | None
    number: int
    created: float
    num_bytes: int
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What is known of a session without its levels. Times are Unix seconds; `head` None: nothing committed yet."""

    session: SessionId
    created: float
    updated: float
    head: CommitInfo | None


class Loaded(NamedTuple):
    """A snapshot, the commit it comes from, and the newer versions that were damaged and passed over, newest first."""

    info: CommitInfo
    snapshot: Snapshot
    skipped: tuple[str, ...]


@runtime_checkable
class SnapshotStore(Protocol):
    """Sessions and their snapshots, kept durably. Every method may raise StoreUnavailable; none blocks the loop."""

    async def open(self) -> None:
        """Open or create the store. Raises StoreUnavailable with one line that says why it cannot be used."""

    async def close(self) -> None:
        """Finish what has begun and close; closing twice is fine."""

    async def ping(self) -> None:
        """Return when the store answers a read, else raise StoreUnavailable."""

    async def create(self, session: SessionId) -> tuple[SessionRecord, bool]:
        """Make an empty session where there is none; the bool says whether this call made it."""

    async def get(self, session: SessionId) -> SessionRecord:
        """Return what is known without reading levels. Raises SessionMissing."""

    async def list(self, tenant: str, limit: int = 100, after: str | None = None) -> builtins.list[SessionRecord]:
        """Return up to `limit` (1 to MAX_LIST_LIMIT) sessions in the order of their names, those beyond `after`."""

    async def load(self, session: SessionId, version: str | None = None, fingerprint: str | None = None) -> Loaded:
        """Return a snapshot after checking every byte of it.

        version: None takes the head, or where that is damaged its newest intact ancestor, and names what was
            skipped; to go on from an ancestor, `rollback` to it first. A given version is never substituted.
        fingerprint: where given, a snapshot of another model is refused before its levels are read.
        Raises: SessionMissing, VersionMissing, SnapshotCorrupt, SnapshotTooLarge, FingerprintMismatch.
        """

    async def commit(
        self,
        session: SessionId,
        parent: str | None,
        snapshot: Snapshot,
        unchanged: frozenset[str] = frozenset(),
        request_id: str | None = None,
    ) -> CommitInfo:
        """Make `snapshot` the session's head, durably, if the head is `parent` now.

        parent: the commit the snapshot was made from. None commits to an empty session and makes it where missing.
        unchanged: levels that are as in the parent; they are referenced, not written, and may be left out of
            `snapshot`. They are taken from the parent even if `snapshot` holds them.
        request_id: 1 to MAX_ID_BYTES bytes; the same id again returns the first commit and changes nothing, as long
            as the session has had fewer than 64 commits since.
        Returns when the commit survives a crash. Older commits beyond the number to keep are removed. A caller that
        is cancelled is held until the outcome is settled, so the snapshot's buffers are free again afterwards.
        Raises: SessionMissing (a parent was given and the session is gone), VersionConflict, SnapshotTooLarge,
            StoreFull, ValueError (an unchanged level that the parent lacks, or meta that is too large); where levels
            are unchanged also SnapshotCorrupt (the parent's manifest) and FingerprintMismatch (the parent's model).
        """

    async def versions(self, session: SessionId) -> builtins.list[CommitInfo]:
        """Return the commits that are kept, newest first. Raises SessionMissing."""

    async def rollback(self, session: SessionId, version: str) -> CommitInfo:
        """Make a new head with the state of a kept version, after checking every byte of it.

        The history stays linear: the new commit follows the old head. Its fall-back ancestors are those of `version`.
        Raises: SessionMissing, VersionMissing, SnapshotCorrupt, SnapshotTooLarge, StoreFull.
        """

    async def fork(self, session: SessionId, new_name: str, version: str | None = None) -> SessionRecord:
        """Make a second session of the same tenant from a kept version (None: the head), sharing all stored levels.

        Takes the same short time for any size of state; later commits of either are unseen by the other.
        Raises: SessionMissing, SessionExists, VersionMissing, SnapshotCorrupt (manifest), StoreFull.
        """

    async def delete(self, session: SessionId) -> bool:
        """Remove a session and every level that only it used; the bool says whether there was one."""
