"""Sessions as the store knows them: creating, listing, loading, committing, and the store's errors in our own words."""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import hope_memory
from hope_memory import errors as store_errors
from hope_memory.protocol import (
    Ancestry,
    Answered,
    CommitInfo,
    Loaded,
    Request,
    SessionId,
    SessionRecord,
    SnapshotStore,
)
from hope_memory.snapshot import Snapshot

from hope_server import errors
from hope_server.engine.session_card import SessionCard
from hope_server.engine.state_cache import StateCache
from hope_server.engine.state_codec import kept_apart
from hope_server.engine.stores import vault_of
from hope_server.engine.turn import Restored, SessionInfo, SessionKey
from hope_server.telemetry import log_event

# No session ever has this tip, so a commit that names it can only find that its request is done already.
_NO_TIP = "0" * 32


class Kept(NamedTuple):
    """A commit that happened, and whether the durability that was asked for was confirmed."""

    info: CommitInfo
    is_met: bool


class SessionBook:
    """Asks the store about sessions. Raises HopeErrors only."""

    def __init__(self, store: SnapshotStore, fingerprint: str, cache_bytes: int = 0) -> None:
        """cache_bytes: of snapshots that are kept in host memory, at most."""
        self._store = store
        self.fingerprint = fingerprint
        self.cache = StateCache(cache_bytes)

    async def open(self) -> None:
        """Open the store. Raises StartupError where it cannot be used."""
        try:
            await self._store.open()
        except hope_memory.StoreError as exc:
            raise errors.StartupError(str(exc)) from exc
        vault = vault_of(self._store)
        if vault.made_key_file:
            meaning = "who has it can read every session, without it none can be read again: keep a copy apart"
            log_event("key_file_made", {"path": str(vault.key_file), "meaning": meaning}, logging.WARNING)

    async def ping(self) -> None:
        """Return when the store answers. Raises StoreUnavailable, or another HopeError, where it does not."""
        with _in_our_words(None):
            await self._store.ping()

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    async def create(self, key: SessionKey) -> tuple[SessionRecord, bool]:
        """Make the session where it is missing; whether it is new. Raises MemoryEvicted."""
        with _in_our_words(key):
            record, is_new = await self._store.create(_id(key))
            if is_over(record):
                await self.delete(key)
                return await self._store.create(_id(key))
            return record, is_new

    async def get(self, key: SessionKey) -> SessionRecord:
        """Look a session up; one whose life is over is deleted now. Raises SessionNotFound, MemoryEvicted."""
        with _in_our_words(key):
            record = await self._store.get(_id(key))
            if is_over(record):
                await self.delete(key)
                raise errors.SessionNotFound(key.session_id)
            return record

    async def list(self, tenant: str, limit: int, after: str | None) -> builtins.list[SessionInfo]:
        """List a tenant's sessions in the store's order; those whose life is over are deleted now."""
        living: builtins.list[SessionInfo] = []
        with _in_our_words(None):
            while len(living) < limit:
                wanted = limit - len(living)
                found = await self._store.list(tenant, wanted, after)
                for record in found:
                    if is_over(record):
                        await self.delete(key_of(record))
                    else:
                        living.append(describe(record))
                if len(found) < wanted:
                    break
                after = found[-1].session.name
        return living

    async def versions(self, key: SessionKey) -> builtins.list[CommitInfo]:
        """Kept versions, newest first. Raises SessionNotFound."""
        with _in_our_words(key):
            return await self._store.versions(_id(key))

    async def load(self, key: SessionKey, version: str | None) -> Loaded:
        """Load a version; None is the head. Raises VersionNotFound, StateIncompatible, StateCorrupt."""
        with _in_our_words(key):
            return await self._store.load(_id(key), version, self.fingerprint)

    async def fetch(self, key: SessionKey, version: str) -> tuple[Snapshot, Restored]:
        """A version's snapshot to go on from, and where it was; it is kept in host memory. Raises as `load`."""
        kept = self.cache.find(key, version)
        if kept is not None:
            return kept, "host"
        loaded = await self.load(key, version)
        snapshot = await asyncio.to_thread(kept_apart, loaded.snapshot)
        self.cache.keep(key, version, snapshot)
        return snapshot, "store"

    async def repair(self, key: SessionKey) -> CommitInfo:
        """Go back to the newest intact version after the head failed its checks. Raises StateCorrupt if none is."""
        with _in_our_words(key):
            intact = await self._store.load(_id(key), None, self.fingerprint)
            if not intact.skipped:
                return intact.info
            head = (await self._store.get(_id(key))).head
            # What belongs to the session and not to its version must not go back with it.
            card = SessionCard.of(head.meta if head is not None and head.meta else intact.info.meta)
            info = {**intact.snapshot.info, **card.fields()}
            return await self._store.rollback(_id(key), intact.info.version, card.pins, info)

    async def commit(
        self,
        key: SessionKey,
        tip: str,
        snapshot: Snapshot,
        unchanged: frozenset[str] = frozenset(),
        request: Request | None = None,
        durability: str = "commit",
    ) -> Kept:
        """Commit a turn on top of `tip`. Where the durability is not confirmed the commit stands all the same.

        Raises SessionConflict, SessionNotFound, StoreFull, StateTooLarge, IdempotencyKeyReused.
        """
        with _in_our_words(key):
            try:
                pins = SessionCard.of(snapshot.info).pins
                info = await self._store.commit(_id(key), tip, snapshot, unchanged, request, durability, pins)
            except store_errors.DurabilityUnmet as exc:
                kept = Kept(exc.info, False)
            else:
                kept = Kept(info, True)
        # What a repeated request finds was made of another snapshot.
        if not kept.info.is_replay:
            self.cache.keep(key, kept.info.version, snapshot)
        return kept

    async def confirm(self, key: SessionKey, request: Request, durability: str) -> Kept:
        """Wait until the commit that answered `request` is as durable as asked; changes nothing.

        Raises SessionConflict where no commit of the session did.
        """
        return await self.commit(key, _NO_TIP, Snapshot(self.fingerprint, {}, {}), frozenset(), request, durability)

    async def find_request(self, key: SessionKey, request_id: str) -> Answered | None:
        """What a request was answered with; None where it is unknown."""
        with _in_our_words(key):
            return await self._store.find_request(_id(key), request_id)

    async def last_request(self, key: SessionKey) -> Answered | None:
        """The request that made the head, where that is known."""
        with _in_our_words(key):
            return await self._store.last_request(_id(key))

    async def acknowledge(self, key: SessionKey, version: str) -> None:
        """Note that a commit's answer was sent whole."""
        with _in_our_words(key):
            await self._store.acknowledge(_id(key), version)

    async def ancestry(self, key: SessionKey, version: str) -> Ancestry:
        """How a version stands to the head. Raises SessionNotFound."""
        with _in_our_words(key):
            return await self._store.ancestry(_id(key), version)

    async def restate(self, record: SessionRecord, version: str, card: SessionCard) -> CommitInfo:
        """Make a kept version's state the newest, with this card; `record` is the session as it is taken to be.

        Raises SessionNotFound, VersionNotFound, SessionConflict.
        """
        key = key_of(record)
        found = next((info for info in await self.versions(key) if info.version == version), None)
        if found is None:
            raise errors.VersionNotFound(key.session_id, version)
        # A summary can be damaged where the state is not.
        info = found.meta or (await self.load(key, version)).snapshot.info
        with _in_our_words(key):
            return await self._store.rollback(
                _id(key), version, card.pins, {**info, **card.fields()}, parent=record.tip
            )

    async def fork(self, key: SessionKey, new_id: str, info: CommitInfo | None) -> SessionRecord:
        """Give a version's state (None: of a session without any) a second name.

        Raises SessionNotFound, SessionExists, VersionNotFound.
        """
        with _in_our_words(key):
            if info is None:
                return await self._store.fork(_id(key), new_id)
            meta = {**info.meta, **SessionCard.of(info.meta).forked().fields()} if info.meta else None
            return await self._store.fork(_id(key), new_id, info.version, meta)

    async def delete(self, key: SessionKey) -> bool:
        """Delete a session; whether it existed."""
        self.cache.forget(key)
        with _in_our_words(key):
            return await self._store.delete(_id(key))


def describe(record: SessionRecord) -> SessionInfo:
    """What the API tells of a session."""
    head = record.head
    info: dict[str, Any] = head.meta if head is not None else {}
    card = SessionCard.of(info)
    ends = None if head is None else card.expires(head.created)
    return SessionInfo(
        session_id=record.session.name,
        created=int(record.created),
        updated=int(record.updated),
        version=head.version if head is not None else None,
        turn=int(info.get("turn", 0)),
        num_tokens=int(info.get("num_tokens", 0)),
        tokens_learned=int(info.get("tokens_learned", 0)),
        state_bytes=dict(info.get("state_bytes", {})),
        is_frozen=card.is_frozen,
        ttl_seconds=card.ttl_seconds,
        expires=None if ends is None else int(ends),
        metadata=card.metadata,
        tags=card.tags,
    )


def is_over(record: SessionRecord) -> bool:
    """Whether a session's life has ended."""
    head = record.head
    return head is not None and SessionCard.of(head.meta).is_expired(head.created)


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
    try:
        yield
    except store_errors.StoreError as exc:
        raise _translated(exc, key.session_id if key is not None else "?") from exc


def _translated(error: store_errors.StoreError, name: str) -> errors.HopeError:
    match error:
        case store_errors.SessionMissing():
            return errors.SessionNotFound(name)
        case store_errors.SessionExists():
            return errors.SessionExists(error.session)
        case store_errors.SessionLost():
            return errors.MemoryEvicted(name)
        case store_errors.VersionMissing():
            return errors.VersionNotFound(name, error.version)
        case store_errors.VersionConflict():
            return errors.SessionConflict(
                f"session {name!r} was changed by another writer during this turn; "
                "nothing of the turn was kept, send it again"
            )
        case store_errors.RequestReused():
            return errors.IdempotencyKeyReused()
        case store_errors.FingerprintMismatch():
            return errors.StateIncompatible(
                f"session {name!r} was learned with another model, tokenizer or memory layout; serve it with that one, "
                "or start a new session"
            )
        case store_errors.SnapshotCorrupt():
            return errors.StateCorrupt(
                f"the stored state of session {name!r} fails its checks; older versions may be intact"
            )
        case store_errors.SnapshotTooLarge():
            return errors.StateTooLarge(error.num_bytes, error.limit)
        case store_errors.StoreFull():
            return errors.StoreFull(
                "the store has no space left; the session is as it was before, free space and retry"
            )
    # The reason is for the operator: it can name addresses and files.
    log_event("store_unavailable", {"code": error.code, "reason": str(error)}, logging.WARNING)
    if isinstance(error, store_errors.KeysUnavailable):
        return errors.StoreUnavailable("the keys of stored sessions cannot be used; see the server's log")
    return errors.StoreUnavailable("the session store cannot be reached or read; see the server's log")
