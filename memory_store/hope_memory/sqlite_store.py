"""The embedded store: one SQLite file, safe for several processes, whose contents are sealed with its sessions' keys.

Sealing and sealed bytes stay in the file's thread; keys come from the vault, which is another file. The two cannot
change together, so a session's key record is made before the session and destroyed after it, and each operation
checks in its own transaction that keys and session belong to the same incarnation.
"""

from __future__ import annotations

import builtins
import os
import secrets
import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hope_memory import sqlite_history as history
from hope_memory import sqlite_tables as tables
from hope_memory.codec import encode_level
from hope_memory.durability import num_replicas
from hope_memory.errors import DurabilityUnmet, SnapshotCorrupt, SnapshotTooLarge
from hope_memory.protocol import (
    MAX_LIST_LIMIT,
    Ancestry,
    Answered,
    CommitInfo,
    Loaded,
    Request,
    SessionId,
    SessionRecord,
    check_pins,
)
from hope_memory.seals import Seals, open_name
from hope_memory.snapshot import Snapshot
from hope_memory.sqlite_file import SqliteFile, schema_of, writing
from hope_memory.sqlite_migration import migrate
from hope_memory.sqlite_sessions import Held, KeyedFile, Mode
from hope_memory.vault import KeyRecord, Vault

# SQLite refuses values of a billion bytes; a level must stay below that.
MAX_SNAPSHOT_BYTES = 900_000_000


class SqliteStore:
    """A `SnapshotStore` in the SQLite file at `path`, which is made, readable by its owner only, where missing.

    keep_versions: commits kept of each session, at least 1.
    max_snapshot_bytes: stored bytes that one commit may name, up to MAX_SNAPSHOT_BYTES.
    max_file_bytes: size of the file, without its log, at which commits are StoreFull; None leaves it to the disk.
    busy_seconds: how long to wait while another process writes.
    vault: where the sessions' keys are, opened and closed with the store; None is `Vault.beside(path)`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        keep_versions: int = 8,
        max_snapshot_bytes: int = 64 << 20,
        max_file_bytes: int | None = None,
        busy_seconds: float = 5.0,
        vault: Vault | None = None,
    ) -> None:
        if keep_versions < 1 or not 1 <= max_snapshot_bytes <= MAX_SNAPSHOT_BYTES:
            raise ValueError(f"keep_versions must be at least 1, max_snapshot_bytes 1 to {MAX_SNAPSHOT_BYTES:,}")
        self._limits = history.Limits(keep_versions, max_snapshot_bytes)
        self._file = SqliteFile(path, tables.LAYOUT, busy_seconds, max_file_bytes)
        self.vault = vault or Vault.beside(self._file.path)
        self._sessions = KeyedFile(self._file, self.vault)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    async def open(self) -> None:
        """As `SnapshotStore.open`; a file of an older schema is migrated. Also raises KeysUnavailable, StoreFull."""
        if self._file.is_open:
            return
        await self._file.open()
        try:
            await self.vault.open()
            if await self._file.call(schema_of) != tables.LAYOUT.schema:
                await migrate(self._file, self.vault)
            await self._sessions.check_mark()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """As `SnapshotStore.close`."""
        await self._file.close()
        await self.vault.close()

    async def ping(self) -> None:
        """As `SnapshotStore.ping`."""
        await self._file.call(lambda db: db.execute("SELECT key FROM sessions LIMIT 1").fetchall())

    async def create(self, session: SessionId) -> tuple[SessionRecord, bool]:
        """As `SnapshotStore.create`."""

        def create(_: sqlite3.Connection, held: Held) -> tuple[SessionRecord, bool]:
            return tables.record_of(held.row, held.seals), held.is_new

        return await self._sessions.run(session, Mode.MAKE, create)

    async def get(self, session: SessionId) -> SessionRecord:
        """As `SnapshotStore.get`."""

        def get(_: sqlite3.Connection, held: Held) -> SessionRecord:
            return tables.record_of(held.row, held.seals)

        return await self._sessions.run(session, Mode.READ, get)

    async def list(self, tenant: str, limit: int = 100, after: str | None = None) -> builtins.list[SessionRecord]:
        """As `SnapshotStore.list`; sessions whose key or name cannot be read any more are left out."""
        if not 1 <= limit <= MAX_LIST_LIMIT:
            raise ValueError(f"limit is {limit}; it must be 1 to {MAX_LIST_LIMIT}")
        tenant_place = self.vault.tenant_place(tenant)
        place = "" if after is None else self.vault.place(SessionId(tenant, after))
        records: builtins.list[SessionRecord] = []
        while len(records) < limit:
            wanted = limit - len(records)
            rows = await self._file.call(partial(tables.list_rows, tenant_place, place, wanted))
            found = await self.vault.find_readable(*(row.place for row in rows))
            records += [
                record
                for row, keys in zip(rows, found, strict=True)
                if (record := _listed(tenant, row, keys)) is not None
            ]
            if len(rows) < wanted:
                break
            place = rows[-1].place
        return records

    async def load(self, session: SessionId, version: str | None = None, fingerprint: str | None = None) -> Loaded:
        """As `SnapshotStore.load`."""

        def load(db: sqlite3.Connection, held: Held) -> Loaded:
            return history.load(db, held.row, held.seals, version, fingerprint, self._limits)

        return await self._sessions.run(session, Mode.READ, load)

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
        """As `SnapshotStore.commit`; a commit is on the disk when it returns, and has no replicas."""
        check_pins(pins)
        wanted_replicas = num_replicas(durability)
        changed = {name: level for name, level in snapshot.levels.items() if name not in unchanged}
        num_bytes = sum(level.num_bytes for level in changed.values())
        if num_bytes > self._limits.max_snapshot_bytes:
            raise SnapshotTooLarge(num_bytes, self._limits.max_snapshot_bytes)
        request_place = "" if request is None else self.vault.request_place(session, request.id)

        def prepare(seals: Seals) -> history.Draft:
            # Before the transaction: copying and sealing must not hold the file's only write lock.
            version = secrets.token_hex(16)
            sealed = {}
            for name, level in changed.items():
                ref, pieces = seals.seal_level(name, encode_level(level), version, snapshot.fingerprint, 1 << 40)
                sealed[name] = (ref, next(pieces))
            return history.Draft(
                *(version, parent, snapshot.fingerprint, snapshot.meta, sealed, unchanged, request, request_place, pins)
            )

        def commit(db: sqlite3.Connection, held: Held, draft: history.Draft) -> CommitInfo:
            return history.commit(db, held.row, held.seals, draft, self._limits)

        mode = Mode.WRITE if parent is not None else Mode.MAKE
        info = await self._sessions.run_prepared(session, mode, prepare, commit)
        if wanted_replicas:
            raise DurabilityUnmet(replace(info, durability="fsync"), durability)
        return replace(info, durability=durability)

    async def find_request(self, session: SessionId, request_id: str) -> Answered | None:
        """As `SnapshotStore.find_request`."""
        request_place = self.vault.request_place(session, request_id)

        def find(db: sqlite3.Connection, held: Held) -> Answered | None:
            return tables.read_answer(db, held.row, held.seals, request_place)

        return await self._sessions.run(session, Mode.READ, find)

    async def last_request(self, session: SessionId) -> Answered | None:
        """As `SnapshotStore.last_request`."""

        def last(db: sqlite3.Connection, held: Held) -> Answered | None:
            return history.last_request(db, held.row, held.seals)

        return await self._sessions.run(session, Mode.READ, last)

    async def acknowledge(self, session: SessionId, version: str) -> None:
        """As `SnapshotStore.acknowledge`."""
        place = self.vault.place(session)

        def acknowledge(db: sqlite3.Connection) -> None:
            with writing(db):
                row = tables.find_row(db, place)
                if row is not None:
                    tables.acknowledge(db, row, version)

        await self._file.call(acknowledge)

    async def ancestry(self, session: SessionId, version: str) -> Ancestry:
        """As `SnapshotStore.ancestry`."""

        def ancestry(db: sqlite3.Connection, held: Held) -> Ancestry:
            return history.ancestry(db, held.row, held.seals, version)

        return await self._sessions.run(session, Mode.READ, ancestry)

    async def versions(self, session: SessionId) -> builtins.list[CommitInfo]:
        """As `SnapshotStore.versions`."""

        def versions(db: sqlite3.Connection, held: Held) -> builtins.list[CommitInfo]:
            return tables.list_versions(db, held.row, held.seals)

        return await self._sessions.run(session, Mode.READ, versions)

    async def rollback(
        self,
        session: SessionId,
        version: str,
        pins: frozenset[str] = frozenset(),
        info: dict[str, Any] | None = None,
        parent: str | None = None,
    ) -> CommitInfo:
        """As `SnapshotStore.rollback`."""
        check_pins(pins)
        wish = history.Restoring(version, pins, info, parent)

        def rollback(db: sqlite3.Connection, held: Held) -> CommitInfo:
            return history.restore(db, held.row, held.seals, wish, self._limits)

        return await self._sessions.run(session, Mode.WRITE, rollback)

    async def fork(
        self, session: SessionId, new_name: str, version: str | None = None, info: dict[str, Any] | None = None
    ) -> SessionRecord:
        """As `SnapshotStore.fork`."""
        return await self._sessions.fork(session, SessionId(session.tenant, new_name), version, info, self._limits)

    async def delete(self, session: SessionId) -> bool:
        """As `SnapshotStore.delete`.

        The session's keys are destroyed, which makes every copy of the file unreadable for it, and its bytes leave
        the file and its log as soon as no reader needs them.
        """
        return await self._sessions.delete(session)


def _listed(tenant: str, row: tables.SessionRow, keys: KeyRecord | None) -> SessionRecord | None:
    if keys is None or keys.keys.birth != row.birth:
        return None
    try:
        # Keys that were read after the row are as new as the row needs.
        return tables.record_of(row, Seals(open_name(tenant, keys.keys, row.name), keys.keys, are_latest=True))
    except SnapshotCorrupt:
        return None
