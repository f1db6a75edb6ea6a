"""One SQLite file and the thread that all statements on it run in: opened with care, and every failure in plain words.

The file is in WAL mode with full synchronisation, so a transaction that returned survives a crash of the process and of
the machine. Deleted bytes are overwritten (`secure_delete`), which costs a second write of what older rows used.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hope_memory.errors import StoreError, StoreFull, StoreUnavailable

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

WAL_KEPT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """What a kind of file holds.

    what: its name in errors. application_id, schema: as stored in the file's header. older: schemas that its owner
    turns into `schema` once the file is open. statements: make the tables of an empty file.
    """

    what: str
    application_id: int
    schema: int
    statements: str
    older: tuple[int, ...] = ()
    page_bytes: int = 4096


class SqliteFile:
    """The file at `path`, made, readable by its owner only, where missing; safe for several processes.

    busy_seconds: how long to wait while another process writes.
    max_file_bytes: size of the file, without its log, at which writes are StoreFull; None leaves it to the disk.
    """

    def __init__(
        self, path: str | os.PathLike[str], layout: Layout, busy_seconds: float, max_file_bytes: int | None = None
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self._layout = layout
        self._busy_seconds = busy_seconds
        self._max_file_bytes = max_file_bytes
        self._thread: ThreadPoolExecutor | None = None
        self._db: sqlite3.Connection | None = None
        self._inode = (0, 0)

    @property
    def is_open(self) -> bool:
        """Whether `open` was called last, not `close`."""
        return self._thread is not None

    async def open(self) -> None:
        """Open or create the file; nothing happens where it is open. Raises StoreUnavailable, StoreFull."""
        if self._thread is not None:
            return
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hope-store")
        try:
            await self._run(self._connect)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish what has begun and close; closing twice is fine."""
        thread, self._thread = self._thread, None
        if thread is not None:
            # Jobs that wait already run first; the connection closes even where this caller is cancelled.
            closed = thread.submit(self._disconnect)
            thread.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closed))

    async def call(self, job: Job[T]) -> T:
        """Run a job in the file's thread. A caller that is cancelled waits for a job that has begun.

        Raises: StoreUnavailable, StoreFull, and what the job raises.
        """

        def call() -> T:
            if self._db is None or _inode_of(self.path) != self._inode:
                # Writing on would commit to a file that nobody can open again.
                raise StoreUnavailable(f"{self.path} was removed or replaced while open; restart to open it anew")
            # A transaction whose own roll-back failed must be neither seen nor continued.
            roll_back(self._db)
            return job(self._db)

        return await self._run(call)

    async def empty_log(self) -> None:
        """Move the log into the file; where a reader keeps it in use, a later checkpoint does it."""

        def checkpoint(db: sqlite3.Connection) -> None:
            with suppress(sqlite3.OperationalError):
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

        await self.call(checkpoint)

    async def _run(self, job: Callable[[], T]) -> T:
        if self._thread is None:
            raise StoreUnavailable(f"the {self._layout.what} {self.path} is not open")
        try:
            return await _settled(self._thread, job)
        except sqlite3.Error as exc:
            raise _store_error(exc, self._layout.what, self.path) from exc
        except UnicodeDecodeError as exc:
            # SQLite quotes what it found in a damaged file, and Python cannot make a message of it.
            raise StoreUnavailable(f"{self.path} is damaged (unreadable text); restore a backup") from exc

    def _connect(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make(self.path)
        except OSError as exc:
            raise StoreUnavailable(f"cannot open the {self._layout.what} {self.path}: {exc.strerror}") from exc
        db = sqlite3.connect(self.path, timeout=self._busy_seconds, isolation_level=None)
        try:
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA cell_size_check = ON")
            with reading(db):
                is_empty = self._is_empty(db)
            if is_empty:
                db.execute(f"PRAGMA page_size = {self._layout.page_bytes}")
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
                with writing(db):
                    # Another process may have made the tables since the first look.
                    if self._is_empty(db):
                        create_tables(db, self._layout)
        except BaseException:
            db.close()
            raise
        self._db = db
        self._inode = _inode_of(self.path)

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _is_empty(self, db: sqlite3.Connection) -> bool:
        """Return, inside a transaction, whether the file has no tables yet. Raises StoreUnavailable if not ours."""
        layout = self._layout
        application_id = db.execute("PRAGMA application_id").fetchone()[0]
        schema = schema_of(db)
        num_tables = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if num_tables == 0 and application_id in (0, layout.application_id):
            return True
        if application_id != layout.application_id:
            raise StoreUnavailable(f"{self.path} is a SQLite file of another program; choose another path")
        if schema != layout.schema and schema not in layout.older:
            reason = "was written by a newer build" if schema > layout.schema else "cannot be read any more"
            raise StoreUnavailable(
                f"{self.path} has {layout.what} schema {schema} and {reason}; this build uses {layout.schema}"
            )
        return False


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


def schema_of(db: sqlite3.Connection) -> int:
    """Return the schema number in the file's header."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def create_tables(db: sqlite3.Connection, layout: Layout) -> None:
    """Make the tables of a layout, inside the caller's transaction."""
    for statement in layout.statements.split(";"):
        if statement.strip():
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {layout.application_id}")
    db.execute(f"PRAGMA user_version = {layout.schema}")


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
            raise StoreUnavailable(f"this file system allows only journal mode {mode!r}; put the file on a local disk")
        return


def _make(path: Path) -> None:
    """Make an empty file where there is none. Raises OSError where it cannot be made, read or written."""
    # A file that is there is not touched: to close it would take the locks of this process's other connections to it.
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    elif path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    elif not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _inode_of(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _primary_code(exc: sqlite3.Error) -> int:
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF


def _store_error(exc: sqlite3.Error, what: str, path: Path) -> StoreError:
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
    return StoreUnavailable(f"cannot use the {what} {path}: {exc}")
