"""The tables of the SQLite store and the statements on them: plain functions of an open connection
and parts of their caller's transaction.

keyring         the mark of the key file that the store was made with
sessions        a session's birth, head and sealed name; `tenant` and `place` are keyed hashes of its names
commits         what a session keeps of its history; `base` is the commit whose state it continues (a roll-back
                continues the restored commit, not the head it replaced), which is the way back when it is damaged
blobs           sealed levels, keyed level@origin: `origin` is the commit that first wrote the bytes
commit_levels   which blobs a commit names; versions and forks share blobs, and a blob goes with its last name
requests        the sealed outcomes of a session's latest requests, so that a repeated one changes nothing
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from hope_memory.codec import KEEP_REQUESTS, MAX_NUMBER, LevelRef, Manifest
from hope_memory.errors import SessionMissing, SnapshotCorrupt, SnapshotTooLarge, VersionMissing
from hope_memory.protocol import Answered, CommitInfo, Request, SessionRecord
from hope_memory.seals import Seals
from hope_memory.sqlite_file import Layout

APPLICATION_ID = 0x484F5045
# Measured: commits of 1.2 MB take half as long as with 4 KB pages; still larger pages gain nothing more.
PAGE_BYTES = 16_384

LAYOUT = Layout(
    what="store",
    application_id=APPLICATION_ID,
    schema=2,
    older=(1,),
    page_bytes=PAGE_BYTES,
    statements="""
CREATE TABLE keyring (mark TEXT NOT NULL);
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY, tenant TEXT NOT NULL, place TEXT NOT NULL UNIQUE, birth TEXT NOT NULL UNIQUE,
    created REAL NOT NULL, updated REAL NOT NULL, head TEXT, name BLOB NOT NULL);
CREATE INDEX sessions_by_tenant ON sessions (tenant, place);
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
    session INTEGER NOT NULL REFERENCES sessions (key), request TEXT NOT NULL, version TEXT NOT NULL,
    number INTEGER NOT NULL, answer BLOB NOT NULL, is_acknowledged INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (session, request)) WITHOUT ROWID;
CREATE INDEX requests_by_version ON requests (session, version)
""",
)

_SESSION_COLUMNS = "s.key, s.place, s.birth, s.created, s.updated, s.head, s.name"
_INFO_COLUMNS = "version, parent, number, created, num_bytes, info"
_HEAD_COLUMNS = "c.version, c.parent, c.number, c.created, c.num_bytes, c.info"
_SELECT = f"SELECT {_SESSION_COLUMNS}, {_HEAD_COLUMNS} FROM sessions s LEFT JOIN commits c ON c.version = s.head"


class SessionRow(NamedTuple):
    """A row of `sessions` with its head's columns, which are all None where nothing is committed."""

    key: int
    place: str
    birth: str
    created: float
    updated: float
    head: str | None
    name: bytes
    head_info: tuple[Any, ...]

    @property
    def tip(self) -> str:
        """As `SessionRecord.tip`."""
        return self.birth if self.head is None else self.head


@dataclass(frozen=True, slots=True)
class StoredCommit:
    """A kept commit: its manifest, and the bytes of its levels and of the manifest as stored."""

    manifest: Manifest
    num_bytes: int

    @property
    def info(self) -> CommitInfo:
        """The commit as its (checked) manifest tells it."""
        made = self.manifest
        public = made.meta.get("info", {})
        return CommitInfo(made.version, made.parent, made.number, made.created, self.num_bytes, public)


def read_mark(db: sqlite3.Connection) -> str | None:
    """Return the mark of the key file that the store was made with, None where none is noted yet."""
    row = db.execute("SELECT mark FROM keyring").fetchone()
    return None if row is None else str(row[0])


def write_mark(db: sqlite3.Connection, mark: str) -> None:
    """Note the key file's mark where none is noted."""
    db.execute("INSERT INTO keyring (mark) SELECT ? WHERE NOT EXISTS (SELECT 1 FROM keyring)", (mark,))


def find_row(db: sqlite3.Connection, place: str) -> SessionRow | None:
    """Return the session at a place, None where there is none. Raises SnapshotCorrupt."""
    found = db.execute("SELECT key FROM sessions WHERE place = ?", (place,)).fetchone()
    if found is None:
        return None
    row = db.execute(f"{_SELECT} WHERE s.key = ?", found).fetchone()
    # One damaged bit in the index must not lead to the session of somebody else.
    if row is None or row[1] != place:
        raise SnapshotCorrupt("the index entry of a session is damaged")
    return _session_row(row)


def list_rows(tenant_place: str, after: str, limit: int, db: sqlite3.Connection) -> list[SessionRow]:
    """Return up to `limit` sessions of a tenant whose places come after `after`, in the order of their places."""
    sql = f"{_SELECT} WHERE s.tenant = ? AND s.place > ? ORDER BY s.place LIMIT ?"
    return [_session_row(row) for row in db.execute(sql, (tenant_place, after, limit))]


def insert_session(db: sqlite3.Connection, place: str, tenant_place: str, seals: Seals) -> None:
    """Make the row of an empty session, for which there must be none."""
    now = time.time()
    columns = "tenant, place, birth, created, updated, name"
    row = (tenant_place, place, seals.keys.birth, now, now, seals.seal_name())
    db.execute(f"INSERT INTO sessions ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row)


def record_of(row: SessionRow, seals: Seals) -> SessionRecord:
    """Return what a row says of its session. Raises SnapshotCorrupt."""
    head = None
    if row.head is not None:
        if row.head_info[0] is None:
            raise SnapshotCorrupt(f"the head {row.head} of a session names a commit that is not in the store")
        head = _commit_info(row.head_info, seals)
    return SessionRecord(seals.session, row.created, row.updated, head, row.birth)


def list_versions(db: sqlite3.Connection, row: SessionRow, seals: Seals) -> list[CommitInfo]:
    """Return the kept commits, newest first."""
    sql = f"SELECT {_INFO_COLUMNS} FROM commits WHERE session = ? ORDER BY number DESC"
    return [_commit_info(found, seals) for found in db.execute(sql, (row.key,))]


def read_sealed_manifest(db: sqlite3.Connection, row: SessionRow, seals: Seals, version: str) -> bytes:
    """Return the sealed manifest of a kept commit. Raises VersionMissing, SnapshotCorrupt."""
    sql = "SELECT manifest FROM commits WHERE session = ? AND version = ?"
    found = db.execute(sql, (row.key, version)).fetchone()
    if found is None:
        raise VersionMissing(seals.session.name, version)
    return _as_bytes(found[0])


def read_commit(db: sqlite3.Connection, row: SessionRow, seals: Seals, version: str) -> StoredCommit:
    """Return a kept commit without its levels. Raises VersionMissing, SnapshotCorrupt."""
    sealed = read_sealed_manifest(db, row, seals, version)
    manifest = seals.open_manifest(sealed, version)
    origins = dict(db.execute("SELECT level, origin FROM commit_levels WHERE version = ?", (version,)))
    if origins != {name: ref.origin for name, ref in manifest.levels.items()}:
        raise SnapshotCorrupt(f"the levels stored for version {version} are not those of its manifest")
    return StoredCommit(manifest, manifest.level_num_bytes + len(sealed))


def base_of(db: sqlite3.Connection, row: SessionRow, version: str) -> str | None:
    """Return the kept commit whose state `version` continues, or None. Needs no manifest to be intact."""
    sql = "SELECT b.version FROM commits c JOIN commits b ON b.version = c.base AND b.session = c.session"
    found = db.execute(f"{sql} WHERE c.session = ? AND c.version = ?", (row.key, version)).fetchone()
    return None if found is None else str(found[0])


def read_level(db: sqlite3.Connection, name: str, ref: LevelRef) -> bytes:
    """Return a sealed level. Raises SnapshotCorrupt, for a wrong size before the bytes are read."""
    where = "FROM blobs WHERE origin = ? AND level = ?"
    found = db.execute(f"SELECT length(data) {where}", (ref.origin, name)).fetchone()
    if found is None or found[0] != ref.num_bytes:
        raise SnapshotCorrupt(f"level {name!r} is missing or not of the size in its manifest")
    return _as_bytes(db.execute(f"SELECT data {where}", (ref.origin, name)).fetchone()[0])


def insert_blob(db: sqlite3.Connection, origin: str, level: str, data: bytes) -> None:
    """Store a sealed level under the commit that made it."""
    db.execute("INSERT INTO blobs (origin, level, data) VALUES (?, ?, ?)", (origin, level, data))


def insert_commit(
    db: sqlite3.Connection, row: SessionRow, seals: Seals, manifest: Manifest, max_bytes: int
) -> CommitInfo:
    """Store a commit over blobs that exist and make it the session's head. Raises SnapshotTooLarge, ValueError."""
    sealed = seals.seal_manifest(manifest)
    info = StoredCommit(manifest, manifest.level_num_bytes + len(sealed)).info
    if info.num_bytes > max_bytes:
        raise SnapshotTooLarge(info.num_bytes, max_bytes)
    columns = f"session, base, manifest, {_INFO_COLUMNS}"
    values = (row.key, manifest.base, sealed, info.version, info.parent, info.number, info.created, info.num_bytes)
    summary = seals.seal_info(info.version, info.meta)
    db.execute(f"INSERT INTO commits ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, summary))
    names = [(info.version, level, ref.origin) for level, ref in manifest.levels.items()]
    db.executemany("INSERT INTO commit_levels (version, level, origin) VALUES (?, ?, ?)", names)
    db.execute("UPDATE sessions SET head = ?, updated = ? WHERE key = ?", (info.version, info.created, row.key))
    return info


def read_answer(db: sqlite3.Connection, row: SessionRow, seals: Seals, request_place: str) -> Answered | None:
    """Return what a request of the session was answered with, or None. Raises SnapshotCorrupt."""
    sql = "SELECT answer, is_acknowledged, version FROM requests WHERE session = ? AND request = ?"
    found = db.execute(sql, (row.key, request_place)).fetchone()
    if found is None:
        return None
    info, digest, reply = seals.open_answer(_as_bytes(found[0]), request_place)
    return Answered(info, digest, reply, found[1] == 1)


def request_of(db: sqlite3.Connection, row: SessionRow, version: str) -> str | None:
    """Return the hash of the remembered request that made a commit, or None."""
    sql = "SELECT request FROM requests WHERE session = ? AND version = ?"
    found = db.execute(sql, (row.key, version)).fetchone()
    return None if found is None else str(found[0])


def insert_request(
    db: sqlite3.Connection, row: SessionRow, seals: Seals, request_place: str, request: Request, info: CommitInfo
) -> None:
    """Remember what a request was answered with."""
    sql = "INSERT INTO requests (session, request, version, number, answer) VALUES (?, ?, ?, ?, ?)"
    answer = seals.seal_answer(request_place, request, info)
    db.execute(sql, (row.key, request_place, info.version, info.number, answer))


def acknowledge(db: sqlite3.Connection, row: SessionRow, version: str) -> None:
    """Note that the answer of a commit was sent whole; nothing happens where no request made it."""
    db.execute("UPDATE requests SET is_acknowledged = 1 WHERE session = ? AND version = ?", (row.key, version))


def drop_commits(db: sqlite3.Connection, key: int, up_to: int | None, pins: frozenset[str] = frozenset()) -> None:
    """Drop a session's commits up to a number (None: all) and the blobs that no commit of any session names now.

    pins: versions that stay.
    """
    marks = ", ".join("?" * len(pins))
    rule = f"session = ? AND (? IS NULL OR number <= ?) AND version NOT IN ({marks})"
    values = (key, up_to, up_to, *pins)
    doomed = f"SELECT version FROM commits WHERE {rule}"
    blobs = db.execute(f"SELECT DISTINCT origin, level FROM commit_levels WHERE version IN ({doomed})", values)
    candidates = blobs.fetchall()
    db.execute(f"DELETE FROM commit_levels WHERE version IN ({doomed})", values)
    db.execute(f"DELETE FROM commits WHERE {rule}", values)
    db.executemany(
        "DELETE FROM blobs WHERE origin = ?1 AND level = ?2"
        " AND NOT EXISTS (SELECT 1 FROM commit_levels WHERE origin = ?1 AND level = ?2)",
        candidates,
    )


def drop_requests(db: sqlite3.Connection, key: int, up_to: int | None) -> None:
    """Forget a session's requests up to a commit number (None: all)."""
    db.execute("DELETE FROM requests WHERE session = ?1 AND (?2 IS NULL OR number <= ?2)", (key, up_to))


def drop_session(db: sqlite3.Connection, key: int) -> None:
    """Remove a session with all that only it used."""
    drop_commits(db, key, None)
    drop_requests(db, key, None)
    db.execute("DELETE FROM sessions WHERE key = ?", (key,))


def kept_lineage(db: sqlite3.Connection, row: SessionRow) -> tuple[tuple[str, str], ...]:
    """Return what the rows, not the head's manifest, tell of the latest commits and their requests, newest first."""
    sql = (
        "SELECT version, MAX(request) FROM (SELECT version, number, '' AS request FROM commits WHERE session = ?1"
        " UNION ALL SELECT version, number, request FROM requests WHERE session = ?1)"
        " GROUP BY version ORDER BY MAX(number) DESC LIMIT ?2"
    )
    return tuple((str(version), str(request)) for version, request in db.execute(sql, (row.key, KEEP_REQUESTS)))


def last_number(db: sqlite3.Connection, row: SessionRow) -> int:
    """Return the number of a session's newest commit; 0 where it has none. Raises SnapshotCorrupt."""
    number = db.execute("SELECT MAX(number) FROM commits WHERE session = ?", (row.key,)).fetchone()[0]
    number = 0 if number is None else number
    if type(number) is not int or not 0 <= number < MAX_NUMBER:
        raise SnapshotCorrupt(f"a stored commit has the impossible number {number!r}")
    return number


def require_row(row: SessionRow | None, name: str) -> SessionRow:
    """Return the row. Raises SessionMissing where there is none."""
    if row is None:
        raise SessionMissing(name)
    return row


def _session_row(values: tuple[Any, ...]) -> SessionRow:
    key, place, birth, created, updated, head, name, *head_info = values
    kinds = (int, str, str, float, float, str | None, bytes)
    if not all(isinstance(value, kind) for value, kind in zip(values, kinds, strict=False)):
        raise SnapshotCorrupt("the row of a session holds values of wrong types")
    return SessionRow(key, place, birth, created, updated, head, name, tuple(head_info))


def _commit_info(values: tuple[Any, ...], seals: Seals) -> CommitInfo:
    version, parent, number, created, num_bytes, summary = values
    if type(version) is not str or type(number) is not int or type(created) is not float or type(num_bytes) is not int:
        raise SnapshotCorrupt(f"the row of commit {version!r} holds values of wrong types")
    try:
        meta = seals.open_info(_as_bytes(summary), version)
    except SnapshotCorrupt:
        # A damaged summary must not hide the session: `load` does not need it, and `delete` and `rollback` still work.
        meta = {}
    return CommitInfo(version, parent, number, created, num_bytes, meta)


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise SnapshotCorrupt(f"a stored value is a {type(value).__name__}, not bytes")
    return value
