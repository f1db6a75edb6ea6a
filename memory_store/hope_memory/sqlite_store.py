"""The embedded store: one SQLite file, safe for several processes, with every statement in one thread of its own.

The file is in WAL mode with full synchronisation, so a commit that returned survives a crash of the process and of
the machine. Deleted bytes are overwritten (`secure_delete`), which costs a second write of what older commits used.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from hope_memory import sqlite_history as history
from hope_memory import sqlite_tables as tables
from hope_memory.codec import encode_level
from hope_memory.errors import SnapshotTooLarge, StoreError, StoreFull, StoreUnavailable
from hope_memory.protocol import MAX_ID_BYTES, MAX_LIST_LIMIT, CommitInfo, Loaded, SessionId, SessionRecord
from hope_memory.snapshot import Snapshot, check_name

T = TypeVar("T")

# Measured: commits of 1.2 MB take half as long as with 4 KB pages; still larger pages gain nothing more.
PAGE_BYTES = 16_384
WAL_KEPT_BYTES = 64 << 20
# SQLite refuses values of a billion bytes; a level must stay below that.
MAX_SNAPSHOT_BYTES = 900_000_000


class SqliteStore:
    """A `SnapshotStore` in the SQLite file at `path`, which is made, readable by its owner only, where missing.

    keep_versions: commits kept of each session, at least 1.
    max_snapshot_bytes: stored bytes that one commit may name, up to MAX_SNAPSHOT_BYTES.
    max_file_bytes: size of the file, without its log, at which commits are StoreFull; None leaves it to the disk.
    busy_seconds: how long to wait while another process writes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        keep_versions: int = 8,
        max_snapshot_bytes: int = 64 << 20,
        max_file_bytes: int | None = None,
        busy_seconds: float = 5.0,
    ) -> None:
        if keep_versions < 1 or not 1 <= max_snapshot_bytes <= MAX_SNAPSHOT_BYTES:
            raise ValueError(f"keep_versions must be at least 1, max_snapshot_bytes 1 to {MAX_SNAPSHOT_BYTES:,}")
        self.path = Path(path).expanduser().absolute()
        self._limits = history.Limits(keep_versions, max_snapshot_bytes)
        self._max_file_bytes = max_file_bytes
        self._busy_seconds = busy_seconds
        self._thread: ThreadPoolExecutor | None = None
        self._db: sqlite3.Connection | None = None
        self._inode = (0, 0)

    async def open(self) -> None:
        """As `SnapshotStore.open`; also raises StoreFull."""
        if self._thread is not None:
            return
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hope-store")
        try:
            await self._run(self._connect)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """As `SnapshotStore.close`."""
        thread, self._thread = self._thread, None
        if thread is not None:
            # Jobs that wait already run first; the connection closes even where this caller is cancelled.
            closed = thread.submit(self._disconnect)
            thread.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closed))

    async def ping(self) -> None:
        """As `SnapshotStore.ping`."""
        await self._call(lambda db: db.execute("SELECT key FROM sessions LIMIT 1").fetchall())

    async def create(self, session: SessionId) -> tuple[SessionRecord, bool]:
        """As `SnapshotStore.create`."""

        def create(db: sqlite3.Connection) -> tuple[SessionRecord, bool]:
            with tables.writing(db):
                _, is_new = tables.insert_session(db, session)
                return tables.read_record(db, session), is_new

        return await self._call(create)

    async def get(self, session: SessionId) -> SessionRecord:
        """As `SnapshotStore.get`."""
        return await self._call(lambda db: tables.read_record(db, session))

    async def list(self, tenant: str, limit: int = 100, after: str | None = None) -> list[SessionRecord]:
        """As `SnapshotStore.list`."""
        if not 1 <= limit <= MAX_LIST_LIMIT:
            raise ValueError(f"limit is {limit}; it must be 1 to {MAX_LIST_LIMIT}")
        return await self._call(lambda db: tables.list_records(db, tenant, after or "", limit))

    async def load(self, session: SessionId, version: str | None = None, fingerprint: str | None = None) -> Loaded:
        """As `SnapshotStore.load`."""

        def load(db: sqlite3.Connection) -> Loaded:
            with tables.reading(db):
                return history.load(db, session, version, fingerprint, self._limits)

        return await self._call(load)

    async def commit(
        self,
        session: SessionId,
        parent: str | None,
        snapshot: Snapshot,
        unchanged: frozenset[str] = frozenset(),
        request_id: str | None = None,
    ) -> CommitInfo:
        """As `SnapshotStore.commit`."""
        if request_id is not None:
            check_name("request id", request_id, MAX_ID_BYTES)
        changed = {name: level for name, level in snapshot.levels.items() if name not in unchanged}
        num_bytes = sum(level.num_bytes for level in changed.values())
        if num_bytes > self._limits.max_snapshot_bytes:
            raise SnapshotTooLarge(num_bytes, self._limits.max_snapshot_bytes)

        def commit(db: sqlite3.Connection) -> CommitInfo:
            # Encoded before the transaction: copying and hashing must not hold the file's only write lock.
            encoded = {name: encode_level(level) for name, level in changed.items()}
            draft = history.Draft(parent, snapshot.fingerprint, snapshot.meta, encoded, unchanged, request_id)
            with tables.writing(db):
                return history.commit(db, session, draft, self._limits)

        return await self._call(commit)

    async def versions(self, session: SessionId) -> builtins.list[CommitInfo]:
        """As `SnapshotStore.versions`."""

        def versions(db: sqlite3.Connection) -> builtins.list[CommitInfo]:
            with tables.reading(db):
                return tables.list_versions(db, session)

        return await self._call(versions)

    async def rollback(self, session: SessionId, version: str) -> CommitInfo:
        """As `SnapshotStore.rollback`."""

        def rollback(db: sqlite3.Connection) -> CommitInfo:
            with tables.writing(db):
                return history.restore(db, session, version, self._limits)

        return await self._call(rollback)

    async def fork(self, session: SessionId, new_name: str, version: str | None = None) -> SessionRecord:
        """As `SnapshotStore.fork`."""
        copy = SessionId(session.tenant, new_name)

        def fork(db: sqlite3.Connection) -> SessionRecord:
            with tables.writing(db):
                return history.fork(db, session, copy, version, self._limits)

        return await self._call(fork)

    async def delete(self, session: SessionId) -> bool:
        """As `SnapshotStore.delete`; the deleted bytes leave the file and its log as soon as no reader needs them."""

        def delete(db: sqlite3.Connection) -> bool:
            with tables.writing(db):
                existed = history.delete(db, session)
            # The deletion is durable by now; where the log cannot be emptied at once, a later checkpoint does it.
            with suppress(sqlite3.OperationalError):
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return existed

        return await self._call(delete)

    async def _call(self, job: Callable[[sqlite3.Connection], T]) -> T:
        def call() -> T:
            if self._db is None or _inode_of(self.path) != self._inode:
                # Writing on would commit to a file that nobody can open again.
                raise StoreUnavailable(f"{self.path} was removed or replaced while open; restart to open it anew")
            # A transaction whose own roll-back failed must be neither seen nor continued.
            tables.roll_back(self._db)
            return job(self._db)

        return await self._run(call)

    async def _run(self, job: Callable[[], T]) -> T:
        if self._thread is None:
            raise StoreUnavailable(f"the store {self.path} is not open")
        try:
            return await _settled(self._thread, job)
        except sqlite3.Error as exc:
            raise _store_error(exc, self.path) from exc
        except UnicodeDecodeError as exc:
            # SQLite quotes what it found in a damaged file, and Python cannot make a message of it.
            raise StoreUnavailable(f"{self.path} is damaged (unreadable text); restore a backup") from exc

    def _connect(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as exc:
            raise StoreUnavailable(f"cannot open the store {self.path}: {exc.strerror}") from exc
        db = sqlite3.connect(self.path, timeout=self._busy_seconds, isolation_level=None)
        try:
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA cell_size_check = ON")
            with tables.reading(db):
                is_empty = _is_empty(db, self.path)
            if is_empty:
                db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            _use_wal(db, time.monotonic() + self._busy_seconds)
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA temp_store = MEMORY")
            db.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
            if self._max_file_bytes is not None:
                page_bytes = db.execute("PRAGMA page_size").fetchone()[0]
                db.execute(f"PRAGMA max_page_count = {max(1, self._max_file_bytes // page_bytes)}")
            if is_empty:
                with tables.writing(db):
                    # Another process may have made the tables since the first look.
                    if _is_empty(db, self.path):
                        tables.create_tables(db)
        except BaseException:
            db.close()
            raise
        self._db = db
        self._inode = _inode_of(self.path)

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


async def _settled(thread: ThreadPoolExecutor, job: Callable[[], T]) -> T:
    """Run a job in the thread. A caller that is cancelled waits for a job that has begun, so that none outlives it."""
    work = thread.submit(job)
    future = asyncio.wrap_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if not work.cancel():
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((future,))
        raise


def _is_empty(db: sqlite3.Connection, path: Path) -> bool:
    """Return, inside a transaction, whether the file has no tables yet.

    Raises: StoreUnavailable unless it is empty or a store of ours.
    """
    application_id = db.execute("PRAGMA application_id").fetchone()[0]
    schema = db.execute("PRAGMA user_version").fetchone()[0]
    num_tables = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if num_tables == 0 and application_id in (0, tables.APPLICATION_ID):
        return True
    if application_id != tables.APPLICATION_ID:
        raise StoreUnavailable(f"{path} is a SQLite file of another program; choose another path")
    if schema != tables.SCHEMA_VERSION:
        raise StoreUnavailable(f"{path} has store schema {schema}, this build uses {tables.SCHEMA_VERSION}")
    return False


def _use_wal(db: sqlite3.Connection, deadline: float) -> None:
    while True:
        try:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as exc:
            # SQLite does not always wait here by itself when several processes open a new file at once.
            if _primary_code(exc) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise StoreUnavailable(f"this file system allows only journal mode {mode!r}; put the store on a local disk")
        return


def _inode_of(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _primary_code(exc: sqlite3.Error) -> int:
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF


def _store_error(exc: sqlite3.Error, path: Path) -> StoreError:
    code = _primary_code(exc)
    is_shm_full = getattr(exc, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE
    if code == sqlite3.SQLITE_FULL or is_shm_full:
        return StoreFull(f"no space is left for {path}; free some or delete sessions; nothing was changed")
    if code == sqlite3.SQLITE_NOTADB:
        return StoreUnavailable(f"{path} is not a SQLite file; choose another path or restore a backup")
    if code == sqlite3.SQLITE_CORRUPT:
        return StoreUnavailable(f"{path} is damaged ({exc}); restore a backup")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnavailable(f"another process keeps {path} locked; nothing was changed, try again")
    return StoreUnavailable(f"cannot use the store {path}: {exc}")
