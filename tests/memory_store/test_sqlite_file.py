"""The SQLite file: who may read it, what happens when it is full, damaged, foreign, locked or replaced."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hope_memory import (
    Array,
    CommitInfo,
    Level,
    Request,
    SessionId,
    Snapshot,
    SnapshotStore,
    SqliteStore,
    StoreFull,
    StoreUnavailable,
    open_store,
)
from hope_memory.sqlite_store import MAX_SNAPSHOT_BYTES
from hope_memory.sqlite_tables import PAGE_BYTES

if TYPE_CHECKING:
    from tests.memory_store.conftest import CommitChain, MakeSnapshot, SqliteBackend

pytestmark = pytest.mark.anyio


def snapshot_of(data: bytes, turn: int = 0) -> Snapshot:
    """Return a snapshot of one level that holds the bytes."""
    return Snapshot("toy-1", {"info": {"turn": turn}}, {"w": Level({"w": Array("uint8", (len(data),), data)})})


def stored_bytes(path: Path) -> bytes:
    """Return the bytes of the file and of its log."""
    return b"".join(part.read_bytes() for part in (path, path.with_name(path.name + "-wal")) if part.exists())


async def test_a_full_store_refuses_commits_and_keeps_what_it_has(
    tmp_path: Path, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """When no page is left, a commit is StoreFull, the old state is readable, and a delete makes room again."""
    store = SqliteStore(tmp_path / "s.db", keep_versions=100, max_file_bytes=1 << 20)
    await store.open()
    head = await store.commit(session, None, make_snapshot(1))
    other = SessionId("acme", "other")
    await store.commit(other, None, snapshot_of(bytes(100_000)))
    turn = 2
    with suppress(StoreFull):
        while turn < 100:
            head = await store.commit(session, head.version, snapshot_of(bytes(50_000), turn))
            turn += 1
    assert 5 < turn < 30
    loaded = await store.load(session)
    assert (loaded.info, loaded.info.meta, loaded.skipped) == (head, {"turn": turn - 1}, ())
    with pytest.raises(StoreFull):
        await store.commit(session, head.version, snapshot_of(bytes(200_000)))
    await store.delete(other)
    head = await store.commit(session, head.version, snapshot_of(bytes(50_000), turn))
    assert (await store.load(session)).info == head
    await store.close()
    assert (tmp_path / "s.db").stat().st_size <= 1 << 20


# What SQLite locks to read, locked by another process as it would be to write: 1 where it is held.
LOCKED_APART = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
    except OSError:
        print("held")
"""


async def test_a_second_store_on_the_file_leaves_the_first_one_its_locks(tmp_path: Path) -> None:
    """POSIX locks go with any handle that is closed: a program that opens a store twice must not lose them so."""
    path = tmp_path / "s.db"

    def is_held() -> bool:
        said = subprocess.run([sys.executable, "-c", LOCKED_APART, path], capture_output=True, text=True, check=True)
        return said.stdout == "held\n"

    store, second = SqliteStore(path), SqliteStore(path)
    await store.open()
    assert is_held()
    await second.open()
    assert is_held()
    await second.close()
    assert is_held()
    await store.close()
    assert not is_held()


async def test_nothing_is_stored_in_plain_text(sqlite_backend: SqliteBackend) -> None:
    """Neither state nor meta, neither names nor request ids, digests nor replies are in the file or in its log."""
    secret = b"violin in the red barn"
    store = sqlite_backend.store()
    await store.open()
    named = SessionId("secret-tenant", "secret-name")
    level = Level({"secret-array": Array("uint8", (len(secret),), secret)})
    snapshot = Snapshot("secret-model", {"info": {"x": secret}, "y": secret}, {"w": level})
    head = await store.commit(named, None, snapshot, request=Request("secret-request", b"secret-digest", secret))
    await store.fork(named, "secret-fork")
    await store.rollback(named, head.version)
    stored = stored_bytes(sqlite_backend.path)
    assert [word for word in (secret, b"secret") if word in stored] == []
    await store.close()


async def test_deleted_bytes_are_gone_from_the_file(sqlite_backend: SqliteBackend, session: SessionId) -> None:
    """After a delete no sealed byte of the session is left in the file or its log, and no key in the key store."""
    store = sqlite_backend.store()
    await store.open()
    named = SessionId("acme", "secret-name")
    head: CommitInfo | None = None
    for turn in range(1, 6):
        data = bytes(200 if turn % 2 else 200_000)
        request = Request(f"r-{turn}", b"", bytes(50_000))
        head = await store.commit(named, head and head.version, snapshot_of(data, turn), request=request)
    await store.commit(session, None, snapshot_of(bytes(999)))
    place = store.vault.place(named).encode()
    keys = sqlite_backend.path.with_suffix(".keys.db")
    with closing(sqlite3.connect(sqlite_backend.path)) as db:
        mine = "(SELECT key FROM sessions WHERE place = ?1)"
        sealed = [
            row[0]
            for row in db.execute(
                f"SELECT name FROM sessions WHERE key = {mine}"
                f" UNION ALL SELECT answer FROM requests WHERE session = {mine}"
                f" UNION ALL SELECT manifest FROM commits WHERE session = {mine}"
                f" UNION ALL SELECT data FROM blobs JOIN commits ON version = origin WHERE session = {mine}",
                (place.decode(),),
            )
        ]
    with closing(sqlite3.connect(keys)) as db:
        record = db.execute("SELECT record FROM keys WHERE place = ?", (place.decode(),)).fetchone()[0]
    # What fits on one page is there in one piece.
    pieces = [*(value[-100:] for value in sealed), place]
    assert len(pieces) == 1 + 5 + 5 + 5 + 1
    assert all(piece in stored_bytes(sqlite_backend.path) for piece in pieces)
    assert record in stored_bytes(keys)
    await store.delete(named)
    assert [piece for piece in pieces if piece in stored_bytes(sqlite_backend.path)] == []
    assert record[-32:] not in stored_bytes(keys)
    await store.close()


async def test_a_new_file_is_readable_by_its_owner_only(tmp_path: Path, session: SessionId) -> None:
    """Folder, file and log that the store makes, and its keys, are closed to others."""
    store = SqliteStore(tmp_path / "deep" / "er" / "s.db")
    await store.open()
    await store.create(session)
    files = [name + end for name in ("s.db", "s.keys.db") for end in ("", "-wal", "-shm")]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deep" / "er").iterdir()}
    assert modes == dict.fromkeys((*files, "s.key"), 0o600)
    assert stat.S_IMODE((tmp_path / "deep" / "er").stat().st_mode) == 0o700
    await store.close()


async def test_files_that_are_no_store_are_refused_and_left_alone(tmp_path: Path) -> None:
    """Text, another program's database, a later schema and a folder each give one clear line and stay as they are."""
    text = tmp_path / "text.db"
    text.write_bytes(b"not a database at all, though long enough to be looked at " * 40)
    foreign, later = tmp_path / "foreign.db", tmp_path / "later.db"
    for path, statements in (
        (foreign, "CREATE TABLE t (x)"),
        (later, f"PRAGMA application_id = {0x484F5045}; CREATE TABLE t (x); PRAGMA user_version = 99"),
    ):
        db = sqlite3.connect(path)
        db.executescript(statements)
        db.close()
    cases = {
        text: "is not a SQLite file",
        foreign: "of another program",
        later: "store schema 99 and was written by a newer build; this build uses 2",
        tmp_path: "cannot open",
    }
    for path, message in cases.items():
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(StoreUnavailable, match=message) as caught:
            await SqliteStore(path).open()
        assert "\n" not in str(caught.value)
        assert (path.read_bytes() if path.is_file() else b"") == before


async def test_several_stores_may_open_a_new_file_at_once(tmp_path: Path, make_snapshot: MakeSnapshot) -> None:
    """Whoever is first makes the tables; the others find them."""
    for attempt in range(5):
        stores = [SqliteStore(tmp_path / f"{attempt}.db") for _ in range(4)]
        await asyncio.gather(*(store.open() for store in stores))
        names = [SessionId("acme", str(number)) for number in range(4)]
        tries = [store.commit(name, None, make_snapshot(1)) for store, name in zip(stores, names, strict=True)]
        await asyncio.gather(*tries)
        assert {record.session for record in await stores[0].list("acme")} == set(names)
        await asyncio.gather(*(store.close() for store in stores))


async def test_a_file_that_is_removed_or_replaced_is_noticed(
    sqlite_backend: SqliteBackend, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """A commit to a file that nobody can open again is refused instead of acknowledged."""
    store = sqlite_backend.store()
    await store.open()
    head = (await commit_chain(store, session, 1))[0]
    copy = sqlite_backend.path.with_name("copy.db")
    shutil.copy(sqlite_backend.path, copy)
    os.replace(copy, sqlite_backend.path)
    with pytest.raises(StoreUnavailable, match="replaced"):
        await store.commit(session, head.version, make_snapshot(2))
    sqlite_backend.path.unlink()
    with pytest.raises(StoreUnavailable, match="removed"):
        await store.ping()
    await store.close()


async def test_a_lock_that_is_not_released_ends_in_one_clear_error(
    sqlite_backend: SqliteBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A commit waits for another writer up to busy_seconds, then says so; reads do not wait."""
    store = SqliteStore(sqlite_backend.path, busy_seconds=0.2)
    await store.open()
    head = await store.commit(session, None, make_snapshot(1))
    rival = sqlite3.connect(sqlite_backend.path, isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked; nothing was changed"):
        await store.commit(session, head.version, make_snapshot(2))
    assert (await store.load(session)).info == head
    rival.execute("ROLLBACK")
    rival.close()
    assert (await store.commit(session, head.version, make_snapshot(2))).number == 2
    await store.close()


async def test_cancelling_waits_for_a_commit_that_has_begun_and_stops_one_that_has_not(
    sqlite_backend: SqliteBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A running commit settles before its cancelled caller continues, however often; a queued one never happens."""
    store = sqlite_backend.store()
    await store.open()
    await store.create(session)
    rival = sqlite3.connect(sqlite_backend.path, isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    running = asyncio.ensure_future(store.commit(session, None, make_snapshot(1)))
    await asyncio.sleep(0.05)
    queued = asyncio.ensure_future(store.commit(SessionId("acme", "queued"), None, make_snapshot(1)))
    await asyncio.sleep(0.05)
    queued.cancel()
    await asyncio.wait((queued,), timeout=1)
    assert queued.cancelled()
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0.01)
        assert not running.done()
    rival.execute("ROLLBACK")
    rival.close()
    await asyncio.wait((running,), timeout=5)
    assert running.cancelled()
    assert [record.session for record in await store.list("acme")] == [session]
    assert (await store.load(session)).snapshot == make_snapshot(1)
    await store.close()


async def test_a_failing_commit_of_a_cancelled_caller_leaves_no_noise(
    sqlite_backend: SqliteBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """An error that nobody waits for any more is not reported by the event loop."""
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    store = SqliteStore(sqlite_backend.path, busy_seconds=0.2)
    await store.open()
    rival = sqlite3.connect(sqlite_backend.path, isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    work = asyncio.ensure_future(store.commit(session, None, make_snapshot(1)))
    await asyncio.sleep(0.05)
    work.cancel()
    await asyncio.wait((work,))
    rival.close()
    assert work.cancelled()
    await store.close()
    assert reports == []


def test_open_store_takes_paths_and_sqlite_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, a path under the home directory and a percent-encoded URL name the files they say."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cases = {
        f"{tmp_path}/a.db": tmp_path / "a.db",
        "~/b.db": tmp_path / "b.db",
        f"sqlite://{tmp_path}/c%20d.db": tmp_path / "c d.db",
    }
    for url, path in cases.items():
        store = open_store(url)
        assert isinstance(store, SqliteStore)
        assert isinstance(store, SnapshotStore)
        assert store.path == path


def test_open_store_refuses_what_it_does_not_serve() -> None:
    """Other kinds of store, relative or empty URLs and impossible limits are refused, without repeating a password."""
    with pytest.raises(StoreUnavailable, match="memcached://") as caught:
        open_store("memcached://user:hunter2@host/0")
    assert "hunter2" not in str(caught.value)
    for url in ("", "sqlite://", "sqlite://relative.db", "sqlite:///s.db?mode=memory", "a\0b"):
        with pytest.raises(ValueError, match="path"):
            open_store(url)
    for limits in ((0, 1000), (1, 0), (1, MAX_SNAPSHOT_BYTES + 1)):
        with pytest.raises(ValueError, match="keep_versions"):
            open_store("s.db", *limits)


async def test_the_file_is_synchronised_and_wipes_what_it_deletes(sqlite_backend: SqliteBackend) -> None:
    """The settings that durability and erasure rest on are in force."""
    store = sqlite_backend.store()
    await store.open()
    wanted = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1, "page_size": PAGE_BYTES}

    def read(db: sqlite3.Connection) -> dict[str, object]:
        return {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted}

    assert await store._file.call(read) == wanted
    await store.close()
