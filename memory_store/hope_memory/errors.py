"""Every error a session store can raise, in one tree.

StoreError
├── SessionMissing        session_missing        no session of that name: `session`
├── SessionExists         session_exists         the name of a fork is taken: `session`
├── VersionMissing        version_missing        the session keeps no such commit: `session`, `version`
├── VersionConflict       version_conflict       the head is not the expected parent: `expected`, `found`
├── SessionLost           session_lost           its keys are here, its state is gone: `session`
├── RequestReused         request_reused         a request id came back with another body: `request_id`
├── DurabilityUnmet       durability_unmet       committed, but not as durably as asked: `info`, `asked`
├── SnapshotCorrupt       snapshot_corrupt       stored bytes fail their checks and are not used
├── SnapshotTooLarge      snapshot_too_large     `num_bytes`, `limit`
├── FingerprintMismatch   fingerprint_mismatch   learned with another model: `expected`, `found`
├── StoreFull             store_full             no space left; every session is as it was
└── StoreUnavailable      store_unavailable      the store cannot be opened, reached or read
    └── KeysUnavailable   keys_unavailable       a key file, a key store or a session's key cannot be used
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hope_memory.protocol import CommitInfo


class StoreError(Exception):
    """A store operation failed and changed nothing; `code` is stable."""

    code = "store_error"


class SessionMissing(StoreError):
    """No session of that name exists (or it was deleted)."""

    code = "session_missing"

    def __init__(self, session: str) -> None:
        super().__init__(f"no session {session!r} in the store")
        self.session = session


class SessionExists(StoreError):
    """A fork was asked for under a name that is taken."""

    code = "session_exists"

    def __init__(self, session: str) -> None:
        super().__init__(f"session {session!r} exists already; choose another name or delete it first")
        self.session = session


class VersionMissing(StoreError):
    """The session does not keep that commit; `version` None means that it has no commit at all."""

    code = "version_missing"

    def __init__(self, session: str, version: str | None) -> None:
        what = "has no commit yet" if version is None else f"keeps no version {version!r}"
        super().__init__(f"session {session!r} {what}; versions() lists what there is")
        self.session = session
        self.version = version


class VersionConflict(StoreError):
    """Another commit moved the head first; nothing was written."""

    code = "version_conflict"

    def __init__(self, expected: str | None, found: str | None) -> None:
        super().__init__(f"the head is {found}, not the expected parent {expected}; load the head and try again")
        self.expected = expected
        self.found = found


class SessionLost(StoreError):
    """The session was made and not deleted, yet the store has nothing of it: evicted, expired, or rolled back."""

    code = "session_lost"

    def __init__(self, session: str) -> None:
        super().__init__(
            f"the store lost session {session!r} (evicted, or an older copy of the store was restored); "
            "restore the store, or delete the session to start anew"
        )
        self.session = session


class RequestReused(StoreError):
    """The id of a request that was answered came back with another body."""

    code = "request_reused"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request id {request_id!r} was used for another request; ids name one request each")
        self.request_id = request_id


class DurabilityUnmet(StoreError):
    """The commit happened, under `info`, but the asked durability was not confirmed in time.

    The one error after which something did change; asking again with the same request id waits again.
    """

    code = "durability_unmet"

    def __init__(self, info: CommitInfo, asked: str) -> None:
        super().__init__(f"committed as {info.version}, but {asked!r} was not confirmed; {info.durability!r} was")
        self.info = info
        self.asked = asked


class SnapshotCorrupt(StoreError):
    """Stored bytes are truncated, altered or of an unknown format; none of them was used."""

    code = "snapshot_corrupt"


class SnapshotTooLarge(StoreError):
    """A snapshot exceeds the store's limit; sizes are bytes as stored."""

    code = "snapshot_too_large"

    def __init__(self, num_bytes: int, limit: int) -> None:
        super().__init__(f"the snapshot has {num_bytes:,} bytes, the limit is {limit:,}")
        self.num_bytes = num_bytes
        self.limit = limit


class FingerprintMismatch(StoreError):
    """The snapshot belongs to another model, tokenizer or layout."""

    code = "fingerprint_mismatch"

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"the snapshot was made with model {found!r}, this one is {expected!r}")
        self.expected = expected
        self.found = found


class StoreFull(StoreError):
    """No space is left; every session is as it was before the operation."""

    code = "store_full"


class StoreUnavailable(StoreError):
    """The store cannot be opened, reached or read; the message is one line that says why."""

    code = "store_unavailable"


class KeysUnavailable(StoreUnavailable):
    """A key file or key store cannot be used, or lacks a key that a session needs; the message says which."""

    code = "keys_unavailable"
