"""Sessions of a SQLite file together with their keys, which the vault keeps elsewhere.

Keys and sessions cannot change in one transaction, so their order makes every crash harmless:
a session is made as: key record (not live), row, record live; deleted as: key record, row.
    row and record of one birth         the session is there
    record not live, no row             it was about to be made: it is missing
    live record, no row                 the store lost it: SessionLost until it is deleted
    row, no record of its birth         the key store lost it, or a delete was cut short, and nothing can read it any
                                        more: KeysUnavailable until it is deleted
A state that a rival may be just passing through is looked at again before it is believed.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from hope_memory import sqlite_history as history
from hope_memory import sqlite_tables as tables
from hope_memory.errors import KeysUnavailable, SessionExists, SessionLost, SessionMissing, StoreError, StoreUnavailable
from hope_memory.protocol import SessionId, SessionRecord
from hope_memory.sealing import key_id_of
from hope_memory.seals import Seals, StaleKeys
from hope_memory.sqlite_file import SqliteFile, reading, writing
from hope_memory.vault import KeyRecord, KeysChanged, Vault

T = TypeVar("T")
P = TypeVar("P")

# Waits before a state between two steps of a rival is taken for a lasting one. A delete takes a few milliseconds, and
# more on a busy disk.
_PAUSES_SECONDS = (0.0, 0.01, 0.05, 0.2, 0.5)
# How long rivals who keep making and deleting a session are waited for, and between two looks at what they do.
_RIVALS_SECONDS = 5.0
_RIVAL_PAUSE_SECONDS = 0.01


class Mode(Enum):
    """What a job does: read, write to a session that exists, or write to one that is made where missing."""

    READ = auto()
    WRITE = auto()
    MAKE = auto()


@dataclass(frozen=True, slots=True)
class Held:
    """A session inside a transaction: its row, its keys, and whether this transaction made it."""

    row: tables.SessionRow
    seals: Seals
    is_new: bool


@dataclass(frozen=True, slots=True)
class Forking:
    """What `SnapshotStore.fork` was given."""

    session: SessionId
    copy: SessionId
    version: str | None
    info: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    value: T


class _Verdict(Enum):
    MISSING = auto()
    LOST = auto()
    UNKEYED = auto()
    STALE = auto()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a look at a session showed where the job could not be done. birth: the row's; stored: the key record."""

    verdict: _Verdict
    birth: str | None = None
    stored: bytes | None = None


class _Patience:
    """How often a call looks at a session again before it believes what it sees, or gives up on busy rivals."""

    def __init__(self, session: SessionId) -> None:
        self._session = session
        self._until = time.monotonic() + _RIVALS_SECONDS
        self._seen: _Seen | bytes | None = None
        self._num_seen = 0

    async def has_lasted(self, state: _Seen | bytes) -> bool:
        """Whether a state was the same at one look after the other; if not, wait for the next. Raises as `wait`."""
        self._num_seen = self._num_seen + 1 if state == self._seen else 0
        self._seen = state
        if self._num_seen == len(_PAUSES_SECONDS):
            return True
        await self.wait(_PAUSES_SECONDS[self._num_seen])
        return False

    async def wait(self, seconds: float | None = None) -> None:
        """Wait before the next look. seconds: None is a short while at random, so that rivals get out of step.

        Raises KeysUnavailable where rivals have kept on for too long.
        """
        if time.monotonic() > self._until:
            raise KeysUnavailable(f"the keys of session {self._session.name!r} keep changing; try again")
        await asyncio.sleep(random.uniform(0, _RIVAL_PAUSE_SECONDS) if seconds is None else seconds)


class KeyedFile:
    """Runs jobs on sessions of a file with the keys that belong to them."""

    def __init__(self, file: SqliteFile, vault: Vault) -> None:
        self._file = file
        self._vault = vault

    async def check_mark(self) -> None:
        """Raise KeysUnavailable where the file was made with another key file than the vault's."""
        mark = self._vault.mark()

        def noted(db: sqlite3.Connection) -> str | None:
            found = tables.read_mark(db)
            if found is None:
                with writing(db):
                    tables.write_mark(db, mark)
                    found = tables.read_mark(db)
            return found

        if await self._file.call(noted) != mark:
            raise KeysUnavailable(
                f"{self._file.path} was made with another key file than {self._vault.key_file}; restore that one"
            )

    async def run(self, session: SessionId, mode: Mode, job: Callable[[sqlite3.Connection, Held], T]) -> T:
        """Run a job in a transaction. Raises SessionMissing, SessionLost, KeysUnavailable and what the job raises."""
        return await self.run_prepared(session, mode, lambda _: None, lambda db, held, _: job(db, held))

    async def run_prepared(
        self,
        session: SessionId,
        mode: Mode,
        prepare: Callable[[Seals], P],
        job: Callable[[sqlite3.Connection, Held, P], T],
    ) -> T:
        """As `run`, where `prepare` does its part with the session's keys before the transaction begins."""
        place, patience = self._vault.place(session), _Patience(session)
        seen: bytes | None = None
        while True:
            (record,) = await self._vault.find(place)
            if record is None and mode is Mode.MAKE:
                try:
                    record = await self._vault.admit(place)
                except KeysChanged:
                    await patience.wait()
                    continue
            # Bytes under an unknown key are damage once the keys that were read after them lack it too.
            are_latest = record is not None and record.stored == seen

            def attempt(
                db: sqlite3.Connection, record: KeyRecord | None = record, are_latest: bool = are_latest
            ) -> _Done[T] | _Seen:
                if record is None:
                    with reading(db):
                        row = tables.find_row(db, place)
                        return _Seen(_Verdict.MISSING) if row is None else _Seen(_Verdict.UNKEYED, row.birth)
                seals = Seals(session, record.keys, are_latest)
                prepared = prepare(seals)
                try:
                    with reading(db) if mode is Mode.READ else writing(db):
                        held = self._hold(db, record, seals, mode)
                        return held if isinstance(held, _Seen) else _Done(job(db, held, prepared))
                except StaleKeys:
                    return _Seen(_Verdict.STALE)

            outcome = await self._file.call(attempt)
            if isinstance(outcome, _Done):
                if record is None or record.is_live or await self._is_settled(record):
                    return outcome.value
                await patience.wait()
            elif outcome.verdict is _Verdict.MISSING:
                raise SessionMissing(session.name)
            elif outcome.verdict is _Verdict.STALE:
                seen = None if record is None else record.stored
                await patience.wait()
            elif await patience.has_lasted(outcome):
                raise _trouble(outcome.verdict, session)

    async def delete(self, session: SessionId) -> bool:
        """Destroy a session's keys and remove it; see `SnapshotStore.delete`.

        Keys first: whoever makes the session at the same time then either fails to mark its keys as live, or has made
        a row that is removed here.
        """
        place, patience = self._vault.place(session), _Patience(session)
        existed, gone = False, set()
        while True:
            try:
                (record,) = await self._vault.find(place)
            except KeysUnavailable:
                existed, record = await self._vault.erase(place) or existed, None
            if record is not None:
                try:
                    await self._vault.destroy(place, record.keys.birth)
                except KeysChanged:
                    await patience.wait()
                    continue
                existed = existed or record.is_live
                gone.add(record.keys.birth)
            birth = await self._file.call(lambda db: _drop(db, place))
            existed = existed or birth is not None
            if birth is None or birth in gone:
                break
            await patience.wait()
        if existed:
            await self._file.empty_log()
        return existed

    async def fork(
        self,
        session: SessionId,
        copy: SessionId,
        version: str | None,
        info: dict[str, Any] | None,
        limits: history.Limits,
    ) -> SessionRecord:
        """Make the session `copy` from a kept version; see `SnapshotStore.fork` for the rules and the errors.

        The copy reads with the keys up to the one that sealed the version. Where that is the newest, the source gets
        another one first, so that the copy cannot read what the source commits later.
        """
        place, copy_place = self._vault.place(session), self._vault.place(copy)

        def key_of_version(db: sqlite3.Connection, held: Held) -> bytes | None:
            if tables.find_row(db, copy_place) is not None:
                raise SessionExists(copy.name)
            wanted = held.row.head if version is None else version
            return None if wanted is None else key_id_of(_sealed(db, held.row, held.seals, wanted))

        patience = _Patience(session)
        while True:
            last = await self.run(session, Mode.READ, key_of_version)
            source, there = await self._vault.find(place, copy_place)
            if there is not None and there.is_live:
                if await patience.has_lasted(there.stored):
                    raise SessionLost(copy.name)
                continue
            if source is not None:
                try:
                    made = await self._fork_keys(source, copy_place, last)
                    record = await self._fork_with(source, Forking(session, copy, version, info), made, limits)
                    if record is not None and await self._is_settled(made):
                        return record
                except KeysChanged:
                    pass
            await patience.wait()

    async def _fork_keys(self, source: KeyRecord, copy_place: str, last: bytes | None) -> KeyRecord:
        known = list(source.keys.keys)
        if last is None:
            return await self._vault.renew(copy_place)
        if last not in known:
            raise KeysChanged("the session has newer keys by now")
        if last == known[-1]:
            source = await self._vault.add_key(source)
        return await self._vault.inherit(source, copy_place, last)

    async def _fork_with(
        self, source: KeyRecord, wish: Forking, made: KeyRecord, limits: history.Limits
    ) -> SessionRecord | None:
        """Make the fork with the keys `made` for it; None where they do not fit what is stored by now."""
        session, copy, version = wish.session, wish.copy, wish.version
        tenant_place = self._vault.tenant_place(copy.tenant)

        def fork(db: sqlite3.Connection) -> SessionRecord:
            with writing(db):
                row = tables.require_row(tables.find_row(db, source.place), session.name)
                if tables.find_row(db, made.place) is not None:
                    raise SessionExists(copy.name)
                seals, copy_seals = Seals(session, source.keys), Seals(copy, made.keys)
                wanted = row.head if version is None else version
                tables.insert_session(db, made.place, tenant_place, copy_seals)
                copy_row = _row_at(db, made.place)
                if wanted is not None:
                    if key_id_of(_sealed(db, row, seals, wanted)) not in made.keys.keys:
                        raise StaleKeys
                    stored = tables.read_commit(db, row, seals, wanted)
                    history.fork(db, copy_row, copy_seals, history.with_info(stored.manifest, wish.info), limits)
                return tables.record_of(_row_at(db, made.place), copy_seals)

        try:
            return await self._file.call(fork)
        except StaleKeys:
            await self._vault.withdraw(made)
            return None
        except StoreUnavailable:
            # It may have happened; a record that is not live does no harm.
            raise
        except StoreError:
            await self._vault.withdraw(made)
            raise

    def _hold(self, db: sqlite3.Connection, record: KeyRecord, seals: Seals, mode: Mode) -> Held | _Seen:
        row = tables.find_row(db, record.place)
        if row is not None and row.birth == record.keys.birth:
            return Held(row, seals, False)
        if row is not None:
            return _Seen(_Verdict.UNKEYED, row.birth, record.stored)
        if record.is_live:
            return _Seen(_Verdict.LOST, None, record.stored)
        if mode is not Mode.MAKE:
            return _Seen(_Verdict.MISSING)
        tables.insert_session(db, record.place, self._vault.tenant_place(seals.session.tenant), seals)
        return Held(_row_at(db, record.place), seals, True)

    async def _is_settled(self, record: KeyRecord) -> bool:
        """Mark a session's keys as live. Where they were destroyed meanwhile the session goes too: it was deleted."""
        try:
            await self._vault.mark_live(record)
        except KeysChanged:
            (found,) = await self._vault.find(record.place)
            if found is None or found.keys.birth != record.keys.birth:
                await self._file.call(lambda db: _drop(db, record.place, record.keys.birth))
                return False
        return True


def _drop(db: sqlite3.Connection, place: str, birth: str | None = None) -> str | None:
    """Remove the session at a place, where it is of the given birth (None: any), and return its birth."""
    with writing(db):
        row = tables.find_row(db, place)
        if row is None or birth not in (None, row.birth):
            return None
        tables.drop_session(db, row.key)
        return row.birth


def _row_at(db: sqlite3.Connection, place: str) -> tables.SessionRow:
    row = tables.find_row(db, place)
    assert row is not None
    return row


def _sealed(db: sqlite3.Connection, row: tables.SessionRow, seals: Seals, version: str) -> bytes:
    return tables.read_sealed_manifest(db, row, seals, version)


def _trouble(verdict: _Verdict, session: SessionId) -> StoreError:
    if verdict is _Verdict.LOST:
        return SessionLost(session.name)
    return KeysUnavailable(
        f"the key store has no key for session {session.name!r}; restore the key store, or delete the session"
    )
