"""How a session's history in the SQLite tables is read and moved on: load, commit, restore, fork, ancestry.

Each function is one part of its caller's transaction; `row` is the session's row in it, and `seals` has its keys.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from dataclasses import dataclass, replace
from typing import Any

from hope_memory.codec import KEEP_REQUESTS, LevelRef, Manifest
from hope_memory.errors import (
    FingerprintMismatch,
    RequestReused,
    SnapshotCorrupt,
    SnapshotTooLarge,
    VersionConflict,
    VersionMissing,
)
from hope_memory.protocol import Ancestry, Answered, CommitInfo, Loaded, Request
from hope_memory.seals import Seals
from hope_memory.snapshot import Snapshot
from hope_memory.sqlite_tables import (
    SessionRow,
    StoredCommit,
    base_of,
    drop_commits,
    drop_requests,
    insert_blob,
    insert_commit,
    insert_request,
    kept_lineage,
    last_number,
    read_answer,
    read_commit,
    read_level,
    request_of,
)

Lineage = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A commit to be: what `SnapshotStore.commit` was given, with the changed levels sealed for `version` already.

    request_place: the hash of the request's id; empty without a request.
    """

    version: str
    parent: str | None
    fingerprint: str
    meta: dict[str, Any]
    sealed: dict[str, tuple[LevelRef, bytes]]
    unchanged: frozenset[str]
    request: Request | None
    request_place: str
    pins: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Limits:
    """Commits kept of each session, and the stored bytes that one commit may name."""

    keep_versions: int
    max_snapshot_bytes: int


def load(
    db: sqlite3.Connection,
    row: SessionRow,
    seals: Seals,
    version: str | None,
    fingerprint: str | None,
    limits: Limits,
) -> Loaded:
    """Return a checked snapshot; see `SnapshotStore.load` for the rules and the errors."""
    if version is not None:
        return _load_version(db, row, seals, version, fingerprint, limits)
    if row.head is None:
        raise VersionMissing(seals.session.name, None)
    skipped: list[str] = []
    wanted: str | None = row.head
    while wanted is not None and wanted not in skipped:
        try:
            loaded = _load_version(db, row, seals, wanted, fingerprint, limits)
            return loaded._replace(skipped=tuple(skipped))
        except (SnapshotCorrupt, VersionMissing):
            skipped.append(wanted)
            wanted = base_of(db, row, wanted)
    raise SnapshotCorrupt(f"no intact version of session {seals.session.name!r} is left; damaged: {', '.join(skipped)}")


def commit(db: sqlite3.Connection, row: SessionRow, seals: Seals, draft: Draft, limits: Limits) -> CommitInfo:
    """Make the draft the session's head; see `SnapshotStore.commit` for the rules and the errors."""
    if draft.request is not None:
        done = read_answer(db, row, seals, draft.request_place)
        if done is not None:
            if done.digest != draft.request.digest:
                raise RequestReused(draft.request.id)
            return replace(done.info, is_replay=True)
    is_expected = row.head is None if draft.parent is None else draft.parent == row.tip
    if not is_expected:
        raise VersionConflict(draft.parent, row.tip)
    levels = _unchanged_levels(db, row, seals, draft)
    lineage = _lineage(db, row, seals)
    if draft.request_place and draft.request_place in (request for _, request in lineage):
        raise SnapshotCorrupt("this request was answered before, and what it was answered with is lost")
    for name, (ref, data) in draft.sealed.items():
        insert_blob(db, draft.version, name, data)
        levels[name] = ref
    number = last_number(db, row) + 1
    manifest = Manifest(
        tenant=seals.session.tenant,
        name=seals.session.name,
        version=draft.version,
        parent=row.head,
        number=number,
        created=time.time(),
        fingerprint=draft.fingerprint,
        meta=draft.meta,
        base=row.head,
        lineage=_grown(lineage, draft.version, draft.request_place),
        levels=levels,
    )
    info = insert_commit(db, row, seals, manifest, limits.max_snapshot_bytes)
    if draft.request is not None:
        insert_request(db, row, seals, draft.request_place, draft.request, info)
    _drop_old(db, row, number, limits, draft.pins)
    return info


@dataclass(frozen=True, slots=True)
class Restoring:
    """What `SnapshotStore.rollback` was given."""

    version: str
    pins: frozenset[str]
    info: dict[str, Any] | None
    parent: str | None


def restore(db: sqlite3.Connection, row: SessionRow, seals: Seals, wish: Restoring, limits: Limits) -> CommitInfo:
    """Make a new head with the state of a kept version; see `SnapshotStore.rollback` for the rules and the errors."""
    if wish.parent is not None and wish.parent != row.tip:
        raise VersionConflict(wish.parent, row.tip)
    _load_version(db, row, seals, wish.version, None, limits)
    source = with_info(read_commit(db, row, seals, wish.version).manifest, wish.info)
    manifest = _successor(source, seals, row.head, last_number(db, row) + 1, _lineage(db, row, seals))
    info = insert_commit(db, row, seals, manifest, limits.max_snapshot_bytes)
    _drop_old(db, row, info.number, limits, wish.pins)
    return info


def with_info(made: Manifest, info: dict[str, Any] | None) -> Manifest:
    """The manifest with another public part; None leaves it as it is."""
    return made if info is None else replace(made, meta={**made.meta, "info": info})


def fork(db: sqlite3.Connection, row: SessionRow, seals: Seals, source: Manifest, limits: Limits) -> None:
    """Make the state of another session's commit the first commit of the new session in `row`."""
    manifest = _successor(source, seals, source.version, source.number + 1, source.lineage)
    insert_commit(db, row, seals, manifest, limits.max_snapshot_bytes)


def last_request(db: sqlite3.Connection, row: SessionRow, seals: Seals) -> Answered | None:
    """Return the request that made the head; None where that is not known."""
    request = None if row.head is None else request_of(db, row, row.head)
    return None if request is None else read_answer(db, row, seals, request)


def ancestry(db: sqlite3.Connection, row: SessionRow, seals: Seals, version: str) -> Ancestry:
    """Say how a version stands to the head; see `SnapshotStore.ancestry`."""
    if version == row.tip:
        return "head"
    if row.head is None:
        return "unknown"
    is_young = version == row.birth and last_number(db, row) <= KEEP_REQUESTS
    lineage = read_commit(db, row, seals, row.head).manifest.lineage
    return "ancestor" if is_young or version in (known for known, _ in lineage) else "unknown"


def _unchanged_levels(db: sqlite3.Connection, row: SessionRow, seals: Seals, draft: Draft) -> dict[str, LevelRef]:
    if not draft.unchanged:
        return {}
    if row.head is None:
        raise ValueError("a first commit has no parent, so no level of it can be unchanged")
    parent = read_commit(db, row, seals, row.head).manifest
    if parent.fingerprint != draft.fingerprint:
        raise FingerprintMismatch(draft.fingerprint, parent.fingerprint)
    if missing := draft.unchanged - parent.levels.keys():
        raise ValueError(f"the parent has no level {', '.join(sorted(missing))}; it cannot be unchanged")
    return {name: parent.levels[name] for name in draft.unchanged}


def _lineage(db: sqlite3.Connection, row: SessionRow, seals: Seals) -> Lineage:
    """The head's lineage; where its manifest is damaged, what the rows tell of it, so that a commit can heal it."""
    if row.head is None:
        return ()
    try:
        return read_commit(db, row, seals, row.head).manifest.lineage
    except (SnapshotCorrupt, VersionMissing):
        return kept_lineage(db, row)


def _grown(lineage: Lineage, version: str, request_place: str) -> Lineage:
    return ((version, request_place), *lineage)[:KEEP_REQUESTS]


def _successor(source: Manifest, seals: Seals, parent: str | None, number: int, lineage: Lineage) -> Manifest:
    version = secrets.token_hex(16)
    return replace(
        source,
        tenant=seals.session.tenant,
        name=seals.session.name,
        version=version,
        parent=parent,
        number=number,
        created=time.time(),
        base=source.version,
        lineage=_grown(lineage, version, ""),
    )


def _drop_old(db: sqlite3.Connection, row: SessionRow, number: int, limits: Limits, pins: frozenset[str]) -> None:
    drop_requests(db, row.key, number - KEEP_REQUESTS)
    drop_commits(db, row.key, number - limits.keep_versions, pins)


def _load_version(
    db: sqlite3.Connection, row: SessionRow, seals: Seals, version: str, fingerprint: str | None, limits: Limits
) -> Loaded:
    try:
        stored: StoredCommit = read_commit(db, row, seals, version)
        made = stored.manifest
        if fingerprint is not None and made.fingerprint != fingerprint:
            raise FingerprintMismatch(fingerprint, made.fingerprint)
        if made.level_num_bytes > limits.max_snapshot_bytes:
            raise SnapshotTooLarge(made.level_num_bytes, limits.max_snapshot_bytes)
        levels = {
            name: seals.open_level(name, ref, made.fingerprint, [read_level(db, name, ref)])
            for name, ref in made.levels.items()
        }
        return Loaded(stored.info, Snapshot(made.fingerprint, made.meta, levels), ())
    except sqlite3.DatabaseError as exc:
        # Pages of one commit can be damaged while those of its ancestors are not.
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        raise SnapshotCorrupt(f"the pages of version {version} are damaged: {exc}") from exc
    except ValueError as exc:
        raise SnapshotCorrupt(f"version {version} is no valid snapshot: {exc}") from exc
