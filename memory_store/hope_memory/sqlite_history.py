"""How a session's history in the SQLite tables is read and moved on: load, commit, restore, fork, delete.

Each function is one part of its caller's transaction.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from dataclasses import dataclass, replace
from typing import Any

from hope_memory.codec import LevelRef, Manifest, decode_level, level_ref
from hope_memory.errors import (
    FingerprintMismatch,
    SessionExists,
    SessionMissing,
    SnapshotCorrupt,
    SnapshotTooLarge,
    VersionConflict,
    VersionMissing,
)
from hope_memory.protocol import CommitInfo, Loaded, SessionId, SessionRecord
from hope_memory.snapshot import Snapshot
from hope_memory.sqlite_tables import (
    SessionRow,
    StoredCommit,
    base_of,
    drop_commits,
    drop_requests,
    drop_session,
    find_request,
    find_session,
    insert_blob,
    insert_commit,
    insert_request,
    insert_session,
    last_number,
    read_commit,
    read_level,
    read_record,
)

KEEP_REQUESTS = 64


@dataclass(frozen=True, slots=True)
class Draft:
    """A commit to be: what `SnapshotStore.commit` was given, with the changed levels already encoded."""

    parent: str | None
    fingerprint: str
    meta: dict[str, Any]
    encoded: dict[str, bytes]
    unchanged: frozenset[str]
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Commits kept of each session, and the stored bytes that one commit may name."""

    keep_versions: int
    max_snapshot_bytes: int


def load(
    db: sqlite3.Connection, session: SessionId, version: str | None, fingerprint: str | None, limits: Limits
) -> Loaded:
    """Return a checked snapshot; see `SnapshotStore.load` for the rules and the errors."""
    row = find_session(db, session)
    if version is not None:
        return _load_version(db, session, row, version, fingerprint, limits)
    if row.head is None:
        raise VersionMissing(session.name, None)
    skipped: list[str] = []
    wanted: str | None = row.head
    while wanted is not None and wanted not in skipped:
        try:
            loaded = _load_version(db, session, row, wanted, fingerprint, limits)
            return loaded._replace(skipped=tuple(skipped))
        except (SnapshotCorrupt, VersionMissing):
            skipped.append(wanted)
            wanted = base_of(db, row.key, wanted)
    raise SnapshotCorrupt(f"no intact version of session {session.name!r} is left; damaged: {', '.join(skipped)}")


def commit(db: sqlite3.Connection, session: SessionId, draft: Draft, limits: Limits) -> CommitInfo:
    """Make the draft the session's head; see `SnapshotStore.commit` for the rules and the errors."""
    if draft.parent is None:
        row, _ = insert_session(db, session)
    else:
        row = find_session(db, session)
    done = find_request(db, row.key, draft.request_id)
    if done is not None:
        return done
    if row.head != draft.parent:
        raise VersionConflict(draft.parent, row.head)
    version = secrets.token_hex(16)
    levels, origins = _unchanged_levels(db, session, row, draft)
    for name, data in draft.encoded.items():
        insert_blob(db, version, name, data)
        levels[name] = level_ref(data)
        origins[name] = version
    number = last_number(db, row.key) + 1
    manifest = Manifest(
        tenant=session.tenant,
        name=session.name,
        version=version,
        parent=draft.parent,
        number=number,
        created=time.time(),
        fingerprint=draft.fingerprint,
        meta=draft.meta,
        levels=levels,
    )
    stored = StoredCommit(manifest, origins, base=draft.parent)
    insert_commit(db, row.key, stored, limits.max_snapshot_bytes)
    if draft.request_id is not None:
        insert_request(db, row.key, draft.request_id, version)
    drop_requests(db, row.key, number - KEEP_REQUESTS)
    drop_commits(db, row.key, number - limits.keep_versions)
    return stored.info


def restore(db: sqlite3.Connection, session: SessionId, version: str, limits: Limits) -> CommitInfo:
    """Make a new head with the state of a kept version; see `SnapshotStore.rollback` for the rules and the errors."""
    row = find_session(db, session)
    _load_version(db, session, row, version, None, limits)
    source = read_commit(db, session, row.key, version)
    stored = _successor(source, session, row.head, last_number(db, row.key) + 1)
    insert_commit(db, row.key, stored, limits.max_snapshot_bytes)
    drop_commits(db, row.key, stored.manifest.number - limits.keep_versions)
    return stored.info


def fork(
    db: sqlite3.Connection, session: SessionId, copy: SessionId, version: str | None, limits: Limits
) -> SessionRecord:
    """Make the session `copy` from a kept version; see `SnapshotStore.fork` for the rules and the errors."""
    row = find_session(db, session)
    copy_row, is_new = insert_session(db, copy)
    if not is_new:
        raise SessionExists(copy.name)
    wanted = row.head if version is None else version
    if wanted is not None:
        source = read_commit(db, session, row.key, wanted)
        stored = _successor(source, copy, wanted, source.manifest.number + 1)
        insert_commit(db, copy_row.key, stored, limits.max_snapshot_bytes)
    return read_record(db, copy)


def delete(db: sqlite3.Connection, session: SessionId) -> bool:
    """Remove a session with all that only it used; the bool says whether there was one."""
    try:
        row = find_session(db, session)
    except SessionMissing:
        return False
    drop_commits(db, row.key, None)
    drop_requests(db, row.key, None)
    drop_session(db, row.key)
    return True


def _unchanged_levels(
    db: sqlite3.Connection, session: SessionId, row: SessionRow, draft: Draft
) -> tuple[dict[str, LevelRef], dict[str, str]]:
    if not draft.unchanged:
        return {}, {}
    if draft.parent is None:
        raise ValueError("a first commit has no parent, so no level of it can be unchanged")
    parent = read_commit(db, session, row.key, draft.parent)
    if parent.manifest.fingerprint != draft.fingerprint:
        raise FingerprintMismatch(draft.fingerprint, parent.manifest.fingerprint)
    if missing := draft.unchanged - parent.origins.keys():
        raise ValueError(f"the parent has no level {', '.join(sorted(missing))}; it cannot be unchanged")
    levels = {name: parent.manifest.levels[name] for name in draft.unchanged}
    return levels, {name: parent.origins[name] for name in draft.unchanged}


def _successor(source: StoredCommit, session: SessionId, parent: str | None, number: int) -> StoredCommit:
    manifest = replace(
        source.manifest,
        tenant=session.tenant,
        name=session.name,
        version=secrets.token_hex(16),
        parent=parent,
        number=number,
        created=time.time(),
    )
    return StoredCommit(manifest, source.origins, base=source.manifest.version)


def _load_version(
    db: sqlite3.Connection,
    session: SessionId,
    row: SessionRow,
    version: str,
    fingerprint: str | None,
    limits: Limits,
) -> Loaded:
    try:
        stored = read_commit(db, session, row.key, version)
        made = stored.manifest
        if fingerprint is not None and made.fingerprint != fingerprint:
            raise FingerprintMismatch(fingerprint, made.fingerprint)
        if made.level_num_bytes > limits.max_snapshot_bytes:
            raise SnapshotTooLarge(made.level_num_bytes, limits.max_snapshot_bytes)
        levels = {
            name: decode_level(read_level(db, stored.origins[name], name, ref)) for name, ref in made.levels.items()
        }
        return Loaded(stored.info, Snapshot(made.fingerprint, made.meta, levels), ())
    except sqlite3.DatabaseError as exc:
        # Pages of one commit can be damaged while those of its ancestors are not.
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        raise SnapshotCorrupt(f"the pages of version {version} are damaged: {exc}") from exc
    except ValueError as exc:
        raise SnapshotCorrupt(f"version {version} is no valid snapshot: {exc}") from exc
