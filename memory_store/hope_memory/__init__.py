"""Durable, versioned snapshots of sessions: bytes in, bytes out, checked on every read."""

from __future__ import annotations

import re
from urllib.parse import unquote

from hope_memory.codec import decode_level, encode_level
from hope_memory.errors import (
    FingerprintMismatch,
    SessionExists,
    SessionMissing,
    SnapshotCorrupt,
    SnapshotTooLarge,
    StoreError,
    StoreFull,
    StoreUnavailable,
    VersionConflict,
    VersionMissing,
)
from hope_memory.protocol import CommitInfo, Loaded, SessionId, SessionRecord, SnapshotStore
from hope_memory.snapshot import Array, Level, Snapshot
from hope_memory.sqlite_store import SqliteStore

__all__ = [
    "Array",
    "CommitInfo",
    "FingerprintMismatch",
    "Level",
    "Loaded",
    "SessionExists",
    "SessionId",
    "SessionMissing",
    "SessionRecord",
    "Snapshot",
    "SnapshotCorrupt",
    "SnapshotStore",
    "SnapshotTooLarge",
    "SqliteStore",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "VersionConflict",
    "VersionMissing",
    "decode_level",
    "encode_level",
    "open_store",
]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def open_store(url: str, keep_versions: int = 8, max_snapshot_bytes: int = 64 << 20) -> SnapshotStore:
    """Return the store that `url` names; `await store.open()` opens it.

    url: a path (`~` is the home directory) or `sqlite:///absolute/path`, percent-encoded.
    keep_versions: commits kept of each session, at least 1.
    max_snapshot_bytes: stored bytes that one commit may name.
    Raises: StoreUnavailable for a kind of store that this build does not serve, ValueError for other bad arguments.
    """
    path = url
    if match := _URL.fullmatch(url):
        scheme, rest = match.groups()
        if scheme.lower() != "sqlite":
            # The rest of the URL may hold a password, so it is not repeated.
            raise StoreUnavailable(f"stores of kind {scheme}:// are not served; use a path or sqlite:///path")
        if not rest.startswith("/") or "?" in rest or "#" in rest:
            raise ValueError(f"store {url!r} must be sqlite:/// and an absolute path, without options")
        path = unquote(rest)
    if not path or "\0" in path:
        raise ValueError("the store needs a path")
    return SqliteStore(path, keep_versions, max_snapshot_bytes)
