"""The tables of the SQLite store and the statements on them: plain functions of an open connection
and, but for `reading` and `writing`, parts of their caller's transaction.

sessions        a name and its head commit
commits         what a session keeps of its history; `base` is the commit whose state it continues (a roll-back
                continues the restored commit, not the head it replaced), which is the way back when it is damaged
blobs           encoded levels, keyed level@origin: `origin` is the commit that first wrote the bytes
commit_levels   which blobs a commit names; versions and forks share blobs, and a blob goes with its last name
requests        the outcomes of a session's latest requests, so that a repeated one changes nothing
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hope_memory.codec import (
    MAX_NUMBER,
    LevelRef,
    Manifest,
    decode_info,
    decode_manifest,
    encode_info,
    encode_manifest,
    level_ref,
)
from hope_memory.errors import (
    SessionMissing,
    SnapshotCorrupt,
    SnapshotTooLarge,
    VersionMissing,
)
from hope_memory.protocol import CommitInfo, SessionId, SessionRecord

APPLICATION_ID = 0x484F5045
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    head TEXT, UNIQUE (tenant, name));
CREATE TABLE commits (
    version TEXT PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions (key), base TEXT, parent TEXT,
    number INTEGER NOT NULL, created REAL NOT NULL, num_bytes INTEGER NOT NULL, info BLOB NOT NULL,
    manifest BLOB NOT NULL, UNIQUE (session, number));
CREATE TABLE blobs (origin TEXT NOT NULL, level TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (origin, level));
CREATE TABLE commit_levels (
    version TEXT NOT NULL REFERENCES commits (version), level TEXT NOT NULL, origin TEXT NOT NULL,
    PRIMARY KEY (version, level), FOREIGN KEY (origin, level) REFERENCES blobs (origin, level)) WITHOUT ROWID;
CREATE INDEX commit_levels_by_blob ON commit_levels (origin, level);
CREATE TABLE requests (
    session INTEGER NOT NULL REFERENCES sessions (key), request TEXT NOT NULL, version TEXT NOT NULL, parent TEXT,
    number INTEGER NOT NULL, created REAL NOT NULL, num_bytes INTEGER NOT NULL, info BLOB NOT NULL,
    PRIMARY KEY (session, request)) WITHOUT ROWID;
"""
INFO_COLUMNS = "version, parent, number, created, num_bytes, info"
_SELECT_RECORD = (
    "SELECT s.name, s.created, s.updated, s.head, c.version, c.parent, c.number, c.created, c.num_bytes, c.info"
    " FROM sessions s LEFT JOIN commits c ON c.version = s.head"
)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A row of `sessions`."""

    key: int
    head: str | None


@dataclass(frozen=True, slots=True)
class StoredCommit:
    """A kept commit: its manifest, the origin of each level, and the commit whose state it continues."""

    manifest: Manifest
    origins: dict[str, str]
    base: str | None

    @property
    def num_bytes(self) -> int:
        """Bytes of the levels it names and of its manifest, as stored."""
        return self.manifest.level_num_bytes + len(encode_manifest(self.manifest))

    @property
    def info(self) -> CommitInfo:
        """The commit as its (checked) manifest tells it."""
        made = self.manifest
        public = made.meta.get("info", {})
        return CommitInfo(made.version, made.parent, made.number, made.created, self.num_bytes, public)


@contextmanager
def reading(db: sqlite3.Connection) -> Iterator[None]:
    """See one unchanging state of the file for the length of the block."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        roll_back(db)


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """Hold the file's only write lock; all changes of the block happen at its end, or none where it raises."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        roll_back(db)


def roll_back(db: sqlite3.Connection) -> None:
    """Undo the transaction that is open, if one is."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def create_tables(db: sqlite3.Connection) -> None:
    """Make the tables of an empty file, inside the caller's transaction."""
    for statement in _SCHEMA.split(";"):
        if statement.strip():
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def find_session(db: sqlite3.Connection, session: SessionId) -> SessionRow:
    """Return the session's row. Raises SessionMissing, SnapshotCorrupt."""
    sql = "SELECT key FROM sessions WHERE tenant = ? AND name = ?"
    found = db.execute(sql, (session.tenant, session.name)).fetchone()
    if found is None:
        raise SessionMissing(session.name)
    row = db.execute("SELECT tenant, name, key, head FROM sessions WHERE key = ?", found).fetchone()
    # One damaged bit in the index must not lead to the session of somebody else.
    if row is None or row[:2] != (session.tenant, session.name):
        raise SnapshotCorrupt(f"the index entry of session {session.name!r} is damaged")
    return SessionRow(*row[2:])


def insert_session(db: sqlite3.Connection, session: SessionId) -> tuple[SessionRow, bool]:
    """Return the session's row, made where missing, and whether it was made."""
    now = time.time()
    sql = "INSERT OR IGNORE INTO sessions (tenant, name, created, updated) VALUES (?, ?, ?, ?)"
    is_new = db.execute(sql, (session.tenant, session.name, now, now)).rowcount == 1
    return find_session(db, session), is_new


def list_records(db: sqlite3.Connection, tenant: str, after: str, limit: int) -> list[SessionRecord]:
    """Return up to `limit` sessions of a tenant whose names come after `after`, in the order of their names."""
    sql = f"{_SELECT_RECORD} WHERE s.tenant = ? AND s.name > ? ORDER BY s.name LIMIT ?"
    rows = db.execute(sql, (tenant, after, limit))
    return [_record(tenant, row) for row in rows]


def read_record(db: sqlite3.Connection, session: SessionId) -> SessionRecord:
    """Return what is known of one session. Raises SessionMissing."""
    key = find_session(db, session).key
    return _record(session.tenant, db.execute(f"{_SELECT_RECORD} WHERE s.key = ?", (key,)).fetchone())


def list_versions(db: sqlite3.Connection, session: SessionId) -> list[CommitInfo]:
    """Return the kept commits, newest first. Raises SessionMissing."""
    key = find_session(db, session).key
    sql = f"SELECT {INFO_COLUMNS} FROM commits WHERE session = ? ORDER BY number DESC"
    return [commit_info(row) for row in db.execute(sql, (key,))]


def read_commit(db: sqlite3.Connection, session: SessionId, key: int, version: str) -> StoredCommit:
    """Return a kept commit without its levels. Raises VersionMissing, SnapshotCorrupt."""
    sql = "SELECT base, manifest FROM commits WHERE session = ? AND version = ?"
    row = db.execute(sql, (key, version)).fetchone()
    if row is None:
        raise VersionMissing(session.name, version)
    base, encoded = row
    manifest = decode_manifest(_as_bytes(encoded))
    origins = dict(db.execute("SELECT level, origin FROM commit_levels WHERE version = ?", (version,)))
    is_ours = (manifest.tenant, manifest.name, manifest.version) == (session.tenant, session.name, version)
    if not is_ours or origins.keys() != manifest.levels.keys():
        raise SnapshotCorrupt(f"the manifest stored for version {version} belongs to another commit")
    return StoredCommit(manifest, origins, base)


def base_of(db: sqlite3.Connection, key: int, version: str) -> str | None:
    """Return the kept commit whose state `version` continues, or None. Needs no manifest to be intact."""
    sql = "SELECT b.version FROM commits c JOIN commits b ON b.version = c.base AND b.session = c.session"
    row = db.execute(f"{sql} WHERE c.session = ? AND c.version = ?", (key, version)).fetchone()
    return None if row is None else str(row[0])


def read_level(db: sqlite3.Connection, origin: str, level: str, expected: LevelRef) -> bytes:
    """Return an encoded level, not yet decoded, whose size and checksum are the expected ones.

    Raises: SnapshotCorrupt, for a wrong size before the bytes are read.
    """
    where = "FROM blobs WHERE origin = ? AND level = ?"
    row = db.execute(f"SELECT length(data) {where}", (origin, level)).fetchone()
    if row is None or row[0] != expected.num_bytes:
        raise SnapshotCorrupt(f"level {level!r} is missing or not of the size in its manifest")
    data = _as_bytes(db.execute(f"SELECT data {where}", (origin, level)).fetchone()[0])
    if level_ref(data) != expected:
        raise SnapshotCorrupt(f"level {level!r} is not the one that its manifest names")
    return data


def find_request(db: sqlite3.Connection, key: int, request_id: str | None) -> CommitInfo | None:
    """Return the commit that a request of the session made, or None."""
    sql = f"SELECT {INFO_COLUMNS} FROM requests WHERE session = ? AND request = ?"
    row = db.execute(sql, (key, request_id)).fetchone()
    return None if row is None else commit_info(row)


def insert_request(db: sqlite3.Connection, key: int, request_id: str, version: str) -> None:
    """Remember that a request made a commit."""
    columns = f"session, request, {INFO_COLUMNS}"
    values = f"SELECT session, ?, {INFO_COLUMNS} FROM commits WHERE session = ? AND version = ?"
    db.execute(f"INSERT INTO requests ({columns}) {values}", (request_id, key, version))


def insert_blob(db: sqlite3.Connection, origin: str, level: str, data: bytes) -> None:
    """Store an encoded level under the commit that made it."""
    db.execute("INSERT INTO blobs (origin, level, data) VALUES (?, ?, ?)", (origin, level, data))


def insert_commit(db: sqlite3.Connection, key: int, stored: StoredCommit, max_bytes: int) -> None:
    """Store a commit over blobs that exist and make it the session's head. Raises SnapshotTooLarge, ValueError."""
    made, info = stored.manifest, stored.info
    if info.num_bytes > max_bytes:
        raise SnapshotTooLarge(info.num_bytes, max_bytes)
    columns = f"session, base, manifest, {INFO_COLUMNS}"
    row = (key, stored.base, encode_manifest(made), made.version, made.parent, made.number, made.created)
    blob = encode_info(info.meta)
    db.execute(f"INSERT INTO commits ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, info.num_bytes, blob))
    names = [(made.version, level, origin) for level, origin in stored.origins.items()]
    db.executemany("INSERT INTO commit_levels (version, level, origin) VALUES (?, ?, ?)", names)
    db.execute("UPDATE sessions SET head = ?, updated = ? WHERE key = ?", (made.version, made.created, key))


def drop_commits(db: sqlite3.Connection, key: int, up_to: int | None) -> None:
    """Drop a session's commits up to a number (None: all) and the blobs that no commit of any session names now."""
    doomed = "SELECT version FROM commits WHERE session = ?1 AND (?2 IS NULL OR number <= ?2)"
    blobs = db.execute(f"SELECT DISTINCT origin, level FROM commit_levels WHERE version IN ({doomed})", (key, up_to))
    candidates = blobs.fetchall()
    db.execute(f"DELETE FROM commit_levels WHERE version IN ({doomed})", (key, up_to))
    db.execute("DELETE FROM commits WHERE session = ?1 AND (?2 IS NULL OR number <= ?2)", (key, up_to))
    db.executemany(
        "DELETE FROM blobs WHERE origin = ?1 AND level = ?2"
        " AND NOT EXISTS (SELECT 1 FROM commit_levels WHERE origin = ?1 AND level = ?2)",
        candidates,
    )


def drop_requests(db: sqlite3.Connection, key: int, up_to: int | None) -> None:
    """Forget a session's requests up to a commit number (None: all)."""
    db.execute("DELETE FROM requests WHERE session = ?1 AND (?2 IS NULL OR number <= ?2)", (key, up_to))


def drop_session(db: sqlite3.Connection, key: int) -> None:
    """Remove the row of a session that has no commits and no requests any more."""
    db.execute("DELETE FROM sessions WHERE key = ?", (key,))


def last_number(db: sqlite3.Connection, key: int) -> int:
    """Return the number of a session's newest commit; 0 where it has none."""
    row = db.execute("SELECT MAX(number) FROM commits WHERE session = ?", (key,)).fetchone()
    number = 0 if row[0] is None else row[0]
    if type(number) is not int or not 0 <= number < MAX_NUMBER:
        raise SnapshotCorrupt(f"a stored commit has the impossible number {number!r}")
    return number


def commit_info(row: tuple[Any, ...]) -> CommitInfo:
    """Return the commit in a row of INFO_COLUMNS. Raises SnapshotCorrupt."""
    version, parent, number, created, num_bytes, info = row
    if type(version) is not str or type(number) is not int or type(created) is not float or type(num_bytes) is not int:
        raise SnapshotCorrupt(f"the row of commit {version!r} holds values of wrong types")
    try:
        meta = decode_info(_as_bytes(info))
    except SnapshotCorrupt:
        # A damaged summary must not hide the session: `load` does not need it, and `delete` and `rollback` still work.
        meta = {}
    return CommitInfo(version, parent, number, created, num_bytes, meta)


def _record(tenant: str, row: tuple[Any, ...]) -> SessionRecord:
    name, created, updated, head = row[:4]
    if head is not None and row[4] is None:
        raise SnapshotCorrupt(f"the head {head} of session {name!r} names a commit that is not in the store")
    try:
        session = SessionId(tenant, name)
    except ValueError as exc:
        raise SnapshotCorrupt(f"a stored session has an impossible name: {exc}") from exc
    return SessionRecord(session, created, updated, None if head is None else commit_info(row[4:]))


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise SnapshotCorrupt(f"a stored value is a {type(value).__name__}, not bytes")
    return value
