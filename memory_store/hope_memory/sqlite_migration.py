"""From schema 1 of the SQLite file, which was not sealed, to schema 2: in place, in one transaction.

What was damaged stays damaged: a commit whose manifest or levels fail the checks of schema 1 is kept as one that
`load` passes over. Levels that several sessions shared are stored once for each, sealed with its keys.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hope_memory import sqlite_tables as tables
from hope_memory.codec import KEEP_REQUESTS, LevelRef, Manifest, encode_level
from hope_memory.errors import SnapshotCorrupt
from hope_memory.protocol import CommitInfo, Request, SessionId
from hope_memory.schema1 import Manifest1, decode_info_1, decode_level_1, decode_manifest_1
from hope_memory.seals import Seals
from hope_memory.sqlite_file import SqliteFile, create_tables, schema_of, writing
from hope_memory.vault import KeyRecord, Vault

_TABLES = ("requests", "commit_levels", "commits", "blobs", "sessions")


@dataclass(frozen=True, slots=True)
class _Session:
    """A session of schema 1: its old row's number, and its seals."""

    key: int
    seals: Seals
    row: tables.SessionRow


async def migrate(file: SqliteFile, vault: Vault) -> None:
    """Bring an open file of schema 1 to the present one; safe when several processes do it at once."""
    records: dict[SessionId, KeyRecord] = {}
    while missing := await file.call(lambda db: _migrate(db, vault, records)):
        for session in missing:
            records[session] = await vault.admit(vault.place(session))
    # The log still has pages of the old, readable file.
    await file.empty_log()
    for record in records.values():
        await vault.mark_live(record)


def _migrate(db: sqlite3.Connection, vault: Vault, records: Mapping[SessionId, KeyRecord]) -> list[SessionId]:
    """Migrate, or return the sessions for which keys are missing. Returns none too where a rival has done it."""
    with writing(db):
        if schema_of(db) == tables.LAYOUT.schema:
            return []
        old = [(key, SessionId(*names)) for key, *names in db.execute("SELECT key, tenant, name FROM sessions")]
        if missing := [session for _, session in old if session not in records]:
            return missing
        db.execute("DROP INDEX commit_levels_by_blob")
        for table in _TABLES:
            db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
        create_tables(db, tables.LAYOUT)
        tables.write_mark(db, vault.mark())
        for key, name in old:
            _move_session(db, vault, key, Seals(name, records[name].keys, are_latest=True))
        for table in _TABLES:
            db.execute(f"DROP TABLE old_{table}")
        return []


def _move_session(db: sqlite3.Connection, vault: Vault, key: int, seals: Seals) -> None:
    name = seals.session
    place = vault.place(name)
    tables.insert_session(db, place, vault.tenant_place(name.tenant), seals)
    row = tables.find_row(db, place)
    assert row is not None
    requests = {
        version: vault.request_place(name, request)
        for version, request in db.execute("SELECT version, request FROM old_requests WHERE session = ?", (key,))
    }
    session = _Session(key, seals, row)
    refs: dict[tuple[str, str], LevelRef] = {}
    for (version,) in db.execute(
        "SELECT version FROM old_commits WHERE session = ? ORDER BY number", (key,)
    ).fetchall():
        _move_commit(db, session, version, requests, refs)
    _move_requests(db, session, requests)
    times = db.execute("SELECT head, created, updated FROM old_sessions WHERE key = ?", (key,)).fetchone()
    db.execute("UPDATE sessions SET head = ?, created = ?, updated = ? WHERE key = ?", (*times, row.key))


def _move_commit(
    db: sqlite3.Connection,
    session: _Session,
    version: str,
    requests: Mapping[str, str],
    refs: dict[tuple[str, str], LevelRef],
) -> None:
    columns = "base, parent, number, created, num_bytes, info, manifest"
    base, parent, number, created, num_bytes, info, encoded = db.execute(
        f"SELECT {columns} FROM old_commits WHERE version = ?", (version,)
    ).fetchone()
    sealed, summary, levels = b"", b"", {}
    try:
        made = decode_manifest_1(encoded)
        if (made.tenant, made.name, made.version) != (
            session.seals.session.tenant,
            session.seals.session.name,
            version,
        ):
            raise SnapshotCorrupt("the manifest of another commit")
        levels = _move_levels(db, session, made, refs)
        lineage = _lineage_up_to(db, session.key, number, requests)
        manifest = Manifest(**_shared_fields(made), base=base, lineage=lineage, levels=levels)
        sealed = session.seals.seal_manifest(manifest)
        num_bytes = manifest.level_num_bytes + len(sealed)
    except (SnapshotCorrupt, ValueError, TypeError):
        levels = {}
    try:
        summary = session.seals.seal_info(version, decode_info_1(info))
    except (SnapshotCorrupt, ValueError, TypeError):
        summary = b""
    db.execute(
        f"INSERT INTO commits (version, session, {columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (version, session.row.key, base, parent, number, created, num_bytes, summary, sealed),
    )
    names = [(version, level, ref.origin) for level, ref in levels.items()]
    db.executemany("INSERT INTO commit_levels (version, level, origin) VALUES (?, ?, ?)", names)


def _move_levels(
    db: sqlite3.Connection, session: _Session, made: Manifest1, refs: dict[tuple[str, str], LevelRef]
) -> dict[str, LevelRef]:
    """Seal the levels of a commit that an earlier one of the session did not have, and refer to all of them."""
    where = "WHERE version = ?"
    origins = dict(db.execute(f"SELECT level, origin FROM old_commit_levels {where}", (made.version,)))
    if origins.keys() != made.levels.keys():
        raise SnapshotCorrupt("the levels stored for a version are not those of its manifest")
    for name, origin in origins.items():
        if (name, origin) not in refs:
            refs[name, origin] = _move_level(db, session, made, name, origin)
    return {name: refs[name, origin] for name, origin in origins.items()}


def _move_level(db: sqlite3.Connection, session: _Session, made: Manifest1, name: str, origin: str) -> LevelRef:
    sql = "SELECT data FROM old_blobs WHERE origin = ? AND level = ?"
    row = db.execute(sql, (origin, name)).fetchone()
    taken = db.execute("SELECT 1 FROM blobs WHERE origin = ? AND level = ?", (origin, name)).fetchone()
    own = origin if taken is None else secrets.token_hex(16)
    try:
        encoded = encode_level(decode_level_1(b"" if row is None else row[0], made.levels[name]))
        ref, pieces = session.seals.seal_level(name, encoded, own, made.fingerprint, 1 << 40)
        sealed = next(pieces)
    except (SnapshotCorrupt, TypeError):
        # No level has this size, so readers find it damaged, as it was.
        ref, sealed = LevelRef(own, session.seals.keys.birth, 1, 1), b""
    tables.insert_blob(db, own, name, sealed)
    return ref


def _lineage_up_to(
    db: sqlite3.Connection, key: int, number: int, requests: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    sql = (
        "SELECT version FROM (SELECT version, number FROM old_commits WHERE session = ?1"
        " UNION SELECT version, number FROM old_requests WHERE session = ?1)"
        " WHERE number <= ?2 ORDER BY number DESC LIMIT ?3"
    )
    versions = [row[0] for row in db.execute(sql, (key, number, KEEP_REQUESTS))]
    return tuple((version, requests.get(version, "")) for version in versions)


def _move_requests(db: sqlite3.Connection, session: _Session, requests: Mapping[str, str]) -> None:
    columns = "request, version, parent, number, created, num_bytes, info"
    found = db.execute(f"SELECT {columns} FROM old_requests WHERE session = ?", (session.key,)).fetchall()
    for request, version, parent, number, created, num_bytes, info in found:
        try:
            meta = decode_info_1(info)
        except (SnapshotCorrupt, TypeError):
            meta = {}
        done = CommitInfo(version, parent, number, created, num_bytes, meta)
        tables.insert_request(db, session.row, session.seals, requests[version], Request(request), done)


def _shared_fields(made: Manifest1) -> dict[str, Any]:
    names = ("tenant", "name", "version", "parent", "number", "created", "fingerprint", "meta")
    return {name: getattr(made, name) for name in names}
