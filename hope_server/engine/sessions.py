"""Sessions as the store knows them: creating, listing, loading, committing, and the store's errors in our own words."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hope_memory
from hope_memory.errors import (
    FingerprintMismatch,
    SessionExists,
    SessionMissing,
    SnapshotCorrupt,
    SnapshotTooLarge,
    StoreUnavailable,
    VersionConflict,
    VersionMissing,
)
from hope_memory.errors import StoreFull as NoSpace
from hope_memory.protocol import CommitInfo, Loaded, SessionId, SessionRecord, SnapshotStore
from hope_memory.snapshot import Snapshot

from hope_server import errors
from hope_server.engine.turn import SessionInfo, SessionKey


class SessionBook:
    """Asks the store about sessions. Raises HopeErrors only."""

    def __init__(self, store: SnapshotStore, fingerprint: str) -> None:
        self._store = store
        self._fingerprint = fingerprint

    async def open(self) -> None:
        """Open the store. Raises StartupError where it cannot be used."""
        try:
            await self._store.open()
        except hope_memory.StoreError as exc:
            raise errors.StartupError(str(exc)) from exc

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    async def create(self, key: SessionKey) -> tuple[SessionRecord, bool]:
        """Make the session where it is missing; whether it is new."""
        with _in_our_words(key):
            return await self._store.create(_id(key))

    async def get(self, key: SessionKey) -> SessionRecord:
        """Look a session up. Raises SessionNotFound."""
        with _in_our_words(key):
            return await self._store.get(_id(key))

    async def list(self, tenant: str, limit: int, after: str | None) -> builtins.list[SessionInfo]:
        """List a tenant's sessions by name."""
        with _in_our_words(None):
            return [describe(record) for record in await self._store.list(tenant, limit, after)]

    async def versions(self, key: SessionKey) -> builtins.list[CommitInfo]:
        """Kept versions, newest first. Raises SessionNotFound."""
        with _in_our_words(key):
            return await self._store.versions(_id(key))

    async def load(self, key: SessionKey, version: str) -> Loaded:
        """Load a version. Raises StateIncompatible, StateCorrupt."""
        with _in_our_words(key):
            return await self._store.load(_id(key), version, self._fingerprint)

    async def repair(self, key: SessionKey) -> CommitInfo:
        """Go back to the newest intact version after the head failed its checks. Raises StateCorrupt if none is."""
        with _in_our_words(key):
            intact = await self._store.load(_id(key), None, self._fingerprint)
            if not intact.skipped:
                return intact.info
            return await self._store.rollback(_id(key), intact.info.version)

    async def commit(
        self, key: SessionKey, parent: str | None, snapshot: Snapshot, unchanged: frozenset[str]
    ) -> CommitInfo:
        """Commit a turn. Raises SessionConflict, StoreFull, StateTooLarge, SessionNotFound."""
        with _in_our_words(key):
            return await self._store.commit(_id(key), parent, snapshot, unchanged)

    async def fork(self, key: SessionKey, new_id: str) -> SessionRecord:
        """Give the present state a second name. Raises SessionNotFound, SessionConflict if the name is taken."""
        with _in_our_words(key):
            return await self._store.fork(_id(key), new_id)

    async def delete(self, key: SessionKey) -> bool:
        """Delete a session; whether it existed."""
        with _in_our_words(key):
            return await self._store.delete(_id(key))


def describe(record: SessionRecord) -> SessionInfo:
    """What the API tells of a session."""
    head = record.head
    info: dict[str, Any] = head.meta if head is not None else {}
    return SessionInfo(
        session_id=record.session.name,
        created=int(record.created),
        updated=int(record.updated),
        version=head.version if head is not None else None,
        turn=int(info.get("turn", 0)),
        num_tokens=int(info.get("num_tokens", 0)),
        tokens_learned=int(info.get("tokens_learned", 0)),
        state_bytes=dict(info.get("state_bytes", {})),
    )


def describe_version(info: CommitInfo) -> dict[str, Any]:
    """What the API tells of a version."""
    return {
        "version": info.version,
        "parent": info.parent,
        "number": info.number,
        "created": int(info.created),
        "turn": info.meta.get("turn", 0),
        "num_tokens": info.meta.get("num_tokens", 0),
        "num_bytes": info.num_bytes,
    }


def key_of(record: SessionRecord) -> SessionKey:
    """A record's name in our own words."""
    return SessionKey(record.session.tenant, record.session.name)


def _id(key: SessionKey) -> SessionId:
    return SessionId(key.tenant, key.session_id)


@contextmanager
def _in_our_words(key: SessionKey | None) -> Iterator[None]:
    """Turn the store's errors into the service's."""
    name = key.session_id if key is not None else "?"
    try:
        yield
    except SessionMissing as exc:
        raise errors.SessionNotFound(name) from exc
    except SessionExists as exc:
        raise errors.SessionConflict("the new session id is taken; choose another") from exc
    except VersionConflict as exc:
        raise errors.SessionConflict(
            f"session {name!r} was changed by another writer during this turn; "
            "nothing of the turn was kept, send it again"
        ) from exc
    except FingerprintMismatch as exc:
        raise errors.StateIncompatible(
            f"session {name!r} was learned with another model, tokenizer or memory layout; serve it with that one, "
            "or start a new session"
        ) from exc
    except (SnapshotCorrupt, VersionMissing) as exc:
        raise errors.StateCorrupt(
            f"the stored state of session {name!r} fails its checks; older versions may be intact"
        ) from exc
    except SnapshotTooLarge as exc:
        raise errors.StateTooLarge(exc.num_bytes, exc.limit) from exc
    except NoSpace as exc:
        raise errors.StoreFull(
            "the store has no space left; the session is as it was before, free space and retry"
        ) from exc
    except StoreUnavailable as exc:
        raise errors.StoreUnavailable("the session store cannot be reached or read; see the server's log") from exc
