"""What every session store promises, whatever it keeps its bytes in.

A session's history is linear: each commit names the head it replaced. Safety comes from one rule: a commit wins only
while the head is still the parent that it was made from, and commit ids are random, so a head that returns after a
roll-back of the store itself is never mistaken for another. Every operation happens wholly or not at all.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from hope_memory.codec import KEEP_REQUESTS as KEEP_REQUESTS
from hope_memory.snapshot import Snapshot, check_name

MAX_ID_BYTES = 256
MAX_LIST_LIMIT = 1000
MAX_DIGEST_BYTES = 64
MAX_REPLY_BYTES = 256 << 10
MAX_PINS = 64


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
    durability: what `commit` reached for this call: "commit", "fsync", or "replicated:n", n the replicas that have it.
    is_replay: `commit` found the request done and changed nothing.
    """

    version: str
    parent: str | None
    number: int
    created: float
    num_bytes: int
    meta: dict[str, Any]
    durability: str = field(default="commit", compare=False)
    is_replay: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What is known of a session without its levels. Times are Unix seconds; `head` None: nothing committed yet.

    birth: random id of this incarnation; a session that is deleted and made again has another.
    """

    session: SessionId
    created: float
    updated: float
    head: CommitInfo | None
    birth: str = ""

    @property
    def tip(self) -> str:
        """What the next commit names as its parent: the head's version, or the birth where nothing is committed."""
        return self.birth if self.head is None else self.head.version


@dataclass(frozen=True, slots=True)
class Request:
    """What a commit answers, so that the same request again is answered without learning again.

    id: 1 to MAX_ID_BYTES bytes; digest: of the request's body, at most MAX_DIGEST_BYTES; reply: opaque bytes to give
    back, at most MAX_REPLY_BYTES. Raises ValueError when a part breaks these rules.
    """

    id: str
    digest: bytes = b""
    reply: bytes = b""

    def __post_init__(self) -> None:
        check_name("request id", self.id, MAX_ID_BYTES)
        if len(self.digest) > MAX_DIGEST_BYTES or len(self.reply) > MAX_REPLY_BYTES:
            raise ValueError(f"a request's digest has up to {MAX_DIGEST_BYTES} bytes, its reply {MAX_REPLY_BYTES:,}")


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was committed: the commit, the request's digest and reply, and whether it was acknowledged."""

    info: CommitInfo
    digest: bytes
    reply: bytes
    is_acknowledged: bool


Ancestry = Literal["head", "ancestor", "unknown"]


def check_pins(pins: frozenset[str]) -> None:
    """Raise ValueError where more versions are pinned than a session may pin."""
    if len(pins) > MAX_PINS:
        raise ValueError(f"{len(pins)} versions are pinned, the limit is {MAX_PINS}")


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
        """Make an empty session where there is none; the bool says whether this call made it. Raises SessionLost."""

    async def get(self, session: SessionId) -> SessionRecord:
        """Return what is known without reading levels. Raises SessionMissing, SessionLost."""

    async def list(self, tenant: str, limit: int = 100, after: str | None = None) -> builtins.list[SessionRecord]:
        """Return up to `limit` (1 to MAX_LIST_LIMIT) sessions, those beyond the one named `after`.

        The order is the store's own and the same for every call, so that pages follow each other.
        """

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
        request: Request | None = None,
        durability: str = "commit",
        pins: frozenset[str] = frozenset(),
    ) -> CommitInfo:
        """Make `snapshot` the session's head, durably, if the head is `parent` now.

        parent: the `SessionRecord.tip` that the snapshot was made from. None takes whatever empty session there is,
            and makes it where missing; a writer that must not bring back a session deleted meanwhile names the tip.
        unchanged: levels that are as in the parent; they are referenced, not written, and may be left out of
            `snapshot`. They are taken from the parent even if `snapshot` holds them.
        request: the same id and digest again return the first commit, `is_replay`, and change nothing, as long as the
            session has had fewer than KEEP_REQUESTS commits since.
        durability: what to wait for. "commit": the store accepted it and holds it as durably as it is set up to;
            "replicated:n": n replicas have it too; "fsync": it is on the disk.
        pins: versions, at most MAX_PINS, that this commit keeps however old they are; one that a later commit does not
            name again goes like any other. Unknown ones are ignored.
        Returns when that is reached. Older commits beyond the number to keep are removed. A caller that is cancelled
        is held until the outcome is settled, so the snapshot's buffers are free again afterwards.
        Raises: SessionMissing (a parent was given and the session is gone), VersionConflict, SnapshotTooLarge,
            RequestReused, DurabilityUnmet, StoreFull, ValueError (an unchanged level that the parent lacks, meta that
            is too large, an unknown durability, too many pins); where levels are unchanged also SnapshotCorrupt (the
            parent's manifest) and FingerprintMismatch (the parent's model).
        """

    async def find_request(self, session: SessionId, request_id: str) -> Answered | None:
        """Return what a request was answered with, None where it is unknown. Raises SessionMissing."""

    async def last_request(self, session: SessionId) -> Answered | None:
        """Return the request that made the head; None where that is not known. Raises SessionMissing."""

    async def acknowledge(self, session: SessionId, version: str) -> None:
        """Note that the answer of the commit `version` was sent whole; an unknown session or version is ignored."""

    async def ancestry(self, session: SessionId, version: str) -> Ancestry:
        """Say how `version` stands to the head. Raises SessionMissing.

        "head": it is the tip; "ancestor": one of the head's KEEP_REQUESTS latest ancestors, or the birth of a session
        no older than that; "unknown": neither, so the store went back to an older state, or it was long ago.
        """

    async def versions(self, session: SessionId) -> builtins.list[CommitInfo]:
        """Return the commits that are kept, newest first. Raises SessionMissing."""

    async def rollback(
        self,
        session: SessionId,
        version: str,
        pins: frozenset[str] = frozenset(),
        info: dict[str, Any] | None = None,
        parent: str | None = None,
    ) -> CommitInfo:
        """Make a new head with the state of a kept version, after checking every byte of it.

        The history stays linear: the new commit follows the old head. Its fall-back ancestors are those of `version`.
        pins: as for `commit`. info: takes the place of the version's `meta["info"]`; None leaves it as it is.
        parent: where given, the tip that the session must be at.
        Raises: SessionMissing, VersionMissing, VersionConflict, SnapshotCorrupt, SnapshotTooLarge, StoreFull,
            ValueError (info that is too large, too many pins).
        """

    async def fork(
        self, session: SessionId, new_name: str, version: str | None = None, info: dict[str, Any] | None = None
    ) -> SessionRecord:
        """Make a second session of the same tenant from a kept version (None: the head), sharing all stored levels.

        Takes the same short time for any size of state; later commits of either are unseen by the other.
        info: takes the place of the version's `meta["info"]` in the new session; None leaves it as it is.
        Raises: SessionMissing, SessionExists, VersionMissing, SnapshotCorrupt (manifest), StoreFull.
        """

    async def delete(self, session: SessionId) -> bool:
        """Remove a session and every level that only it used; the bool says whether there was one."""
