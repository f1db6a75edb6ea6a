"""Durable, versioned snapshots of sessions: bytes in, bytes out, checked on every read."""

from __future__ import annotations

import re
from urllib.parse import unquote

from hope_memory.codec import decode_level, encode_level
from hope_memory.errors import (
    DurabilityUnmet,
    FingerprintMismatch,
    KeysUnavailable,
    RequestReused,
    SessionExists,
    SessionLost,
    SessionMissing,
    SnapshotCorrupt,
    SnapshotTooLarge,
    StoreError,
    StoreFull,
    StoreUnavailable,
    VersionConflict,
    VersionMissing,
)
from hope_memory.protocol import Answered, CommitInfo, Loaded, Request, SessionId, SessionRecord, SnapshotStore
from hope_memory.snapshot import Array, Level, Snapshot
from hope_memory.sqlite_store import SqliteStore
from hope_memory.vault import Vault

__all__ = [
    "Answered",
    "Array",
    "CommitInfo",
    "DurabilityUnmet",
    "FingerprintMismatch",
    "KeysUnavailable",
    "Level",
    "Loaded",
    "Request",
    "RequestReused",
    "SessionExists",
    "SessionId",
    "SessionLost",
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
    "Vault",
    "VersionConflict",
    "VersionMissing",
    "decode_level",
    "encode_level",
    "open_store",
]

_REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster", "unix")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def open_store(
    url: str,
    keep_versions: int = 8,
    max_snapshot_bytes: int = 64 << 20,
    *,
    vault: Vault | None = None,
    session_ttl_seconds: float = 0,
) -> SnapshotStore:
    """Return the store that `url` names; `await store.open()` opens it.

    url: a path (`~` is the home directory), `sqlite:///absolute/path`, percent-encoded, or a Redis: redis, rediss,
        redis+cluster, rediss+cluster or unix (`redis_store.RedisStore` has more options).
    keep_versions: commits kept of each session, at least 1.
    max_snapshot_bytes: stored bytes that one commit may name.
    vault: where the sessions' keys are; None is beside a file, and in `redis_store.KEY_FOLDER` for a Redis.
    session_ttl_seconds: a session of a Redis goes so long after its last commit; 0: never.
    Raises: StoreUnavailable for a kind of store that this build does not serve, ValueError for other bad arguments.
    """
    path = url
    if match := _URL.fullmatch(url):
        scheme, rest = match.groups()
        if scheme.lower() in _REDIS_SCHEMES:
            # Imported late: only who uses Redis waits for its client.
            from hope_memory.redis_store import RedisOptions, RedisStore

            options = RedisOptions(session_ttl_seconds=session_ttl_seconds)
            return RedisStore(f"{scheme.lower()}://{rest}", keep_versions, max_snapshot_bytes, vault, options)
        if scheme.lower() != "sqlite":
            # The rest of the URL may hold a password, so it is not repeated.
            raise StoreUnavailable(f"stores of kind {scheme}:// are not served; use a path, sqlite:///path or redis://")
        if not rest.startswith("/") or "?" in rest or "#" in rest:
            raise ValueError(f"store {url!r} must be sqlite:/// and an absolute path, without options")
        path = unquote(rest)
    if not path or "\0" in path:
        raise ValueError("the store needs a path")
    if session_ttl_seconds:
        raise ValueError("a SQLite file keeps sessions until they are deleted; session_ttl_seconds needs a Redis")
    return SqliteStore(path, keep_versions, max_snapshot_bytes, vault=vault)
