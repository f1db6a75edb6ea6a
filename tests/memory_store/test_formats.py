"""Files of earlier formats are read, those of later ones refused: golden files, made by the builds that wrote them."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hope_memory import (
    Array,
    CommitInfo,
    Level,
    Loaded,
    Request,
    RequestReused,
    SessionId,
    Snapshot,
    SnapshotCorrupt,
    SqliteStore,
    StoreUnavailable,
    archive,
)
from hope_memory.sqlite_tables import LAYOUT

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).with_name("golden")
CHAT, FORK, EMPTY = SessionId("acme", "chat-1"), SessionId("acme", "fork ü"), SessionId("rival", "empty")


def snapshot_of(turn: int, slow_turn: int | None = None) -> Snapshot:
    """Return the state that the golden files hold after a turn; `slow_turn` wrote the level that was kept."""
    fill = bytes([turn if slow_turn is None else slow_turn])
    fast = {"w": Array("float32", (3,), bytes([turn]) * 12), "steps": Array("int64", (), turn.to_bytes(8, "little"))}
    slow = {"w": Array("bfloat16", (2, 3), fill * 12), "mask": Array("bool", (3,), b"\x00\x01\x01")}
    meta = {"info": {"turn": turn}, "rng": b"\x00\xff"}
    return Snapshot("golden-model", meta, {"fast": Level(fast), "slow": Level(slow)})


def golden_archive() -> bytes:
    """Return the archive that `archive1.hope` is."""
    info = CommitInfo("0123456789abcdef" * 2, "f" * 32, 7, 1_700_000_000.25, 999, {"turn": 7})
    return b"".join(archive.write_archive(Loaded(info, snapshot_of(7), ()), "chat ü"))


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A copy of the golden file of schema 1."""
    return Path(shutil.copy(GOLDEN / "schema1.sqlite", tmp_path / "sessions.db"))


def stored_bytes(path: Path) -> bytes:
    """Return the bytes of a file and of its log."""
    return b"".join(part.read_bytes() for part in (path, Path(f"{path}-wal")) if part.exists())


async def test_a_file_of_schema_1_is_read_whole(old_file: Path) -> None:
    """Sessions, versions, shared levels, roll-backs, forks and requests of an old file are there after opening it."""
    store = SqliteStore(old_file)
    await store.open()
    versions = await store.versions(CHAT)
    assert [(info.number, info.meta) for info in versions] == [
        (n, {"turn": t}) for n, t in ((4, 2), (3, 3), (2, 2), (1, 1))
    ]
    assert [info.parent for info in versions] == [*(info.version for info in versions[1:]), None]
    states = [(await store.load(CHAT, info.version)).snapshot for info in versions]
    assert states == [snapshot_of(2), snapshot_of(3, 2), snapshot_of(2), snapshot_of(1)]
    loaded = await store.load(CHAT)
    assert (loaded.info, loaded.skipped) == (versions[0], ())
    assert (await store.get(CHAT)).head == versions[0]
    assert (await store.load(FORK)).snapshot == snapshot_of(9, 1)
    assert [info.number for info in await store.versions(FORK)] == [3, 2]
    assert (await store.get(EMPTY)).head is None
    assert {record.session for record in await store.list("acme")} == {CHAT, FORK}
    found = await store.find_request(CHAT, "request-2")
    assert found is not None and (found.info.version, found.reply) == (versions[2].version, b"")
    assert [await store.ancestry(CHAT, info.version) for info in versions] == ["head", *["ancestor"] * 3]
    await store.close()


async def test_a_migrated_file_is_used_like_a_new_one(old_file: Path) -> None:
    """Old sessions are committed to, repeat no request, fork, go back and are deleted; a second opening finds them."""
    store = SqliteStore(old_file)
    await store.open()
    record = await store.get(CHAT)
    with pytest.raises(RequestReused):
        await store.commit(CHAT, record.tip, snapshot_of(5), request=Request("request-1", b"digest"))
    replay = await store.commit(CHAT, record.tip, snapshot_of(5), request=Request("request-1"))
    assert replay.is_replay and replay.number == 1
    head = await store.commit(CHAT, record.tip, snapshot_of(5), frozenset({"slow"}))
    await store.fork(CHAT, "again")
    assert await store.delete(FORK) and await store.delete(EMPTY)
    await store.close()
    await store.open()
    assert (await store.load(CHAT)).snapshot == snapshot_of(5, 2)
    assert (await store.load(SessionId("acme", "again"))).snapshot == snapshot_of(5, 2)
    assert (await store.rollback(CHAT, replay.version)).number == head.number + 1
    assert (await store.load(CHAT)).snapshot == snapshot_of(1)
    await store.close()


async def test_after_migration_nothing_is_left_in_plain_text(old_file: Path) -> None:
    """Names, fingerprints, requests and states of the old file are gone from it and from its log."""
    words = (b"chat-1", b"golden-model", b"request-1", b"acme", b"rival", bytes([9]) * 12)
    before = stored_bytes(old_file)
    assert all(word in before for word in words)
    store = SqliteStore(old_file)
    await store.open()
    assert [word for word in words if word in stored_bytes(old_file)] == []
    with closing(sqlite3.connect(old_file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'old%'").fetchall() == []
    await store.close()


class Failing(sqlite3.Connection):
    """A connection whose n-th statement fails."""

    at = 0
    num_statements = 0

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        Failing.num_statements += 1
        if Failing.num_statements == Failing.at:
            raise sqlite3.OperationalError("injected")
        return super().execute(*arguments)


async def test_a_migration_that_is_cut_short_happens_wholly_at_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever statement of it fails, the file stays of schema 1 or is migrated; the next opening has all of it."""
    connect = sqlite3.connect

    def connect_failing(path: Path, **options: Any) -> sqlite3.Connection:
        return connect(path, **options) if path.name.endswith(".keys.db") else connect(path, factory=Failing, **options)

    monkeypatch.setattr(sqlite3, "connect", connect_failing)
    num_failed = 0
    for statement in count(1, 4):
        path = Path(shutil.copy(GOLDEN / "schema1.sqlite", tmp_path / f"{statement}.db"))
        store = SqliteStore(path)
        Failing.at, Failing.num_statements = statement, 0
        try:
            await store.open()
        except StoreUnavailable:
            num_failed += 1
        if Failing.num_statements < statement:
            break
        Failing.at = 0
        await store.close()
        await store.open()
        assert [(await store.load(session)).snapshot for session in (CHAT, FORK)] == [snapshot_of(2), snapshot_of(9, 1)]
        await store.close()
    await store.close()
    assert num_failed > 20


async def test_two_processes_may_migrate_at_once(old_file: Path) -> None:
    """One of them does it, and both go on."""
    stores = [SqliteStore(old_file) for _ in range(3)]
    await asyncio.gather(*(store.open() for store in stores))
    for store in stores:
        assert (await store.load(CHAT)).snapshot == snapshot_of(2)
    await asyncio.gather(*(store.close() for store in stores))


@pytest.mark.parametrize("damage", ["level", "manifest"])
async def test_what_was_damaged_before_stays_damaged(old_file: Path, damage: str) -> None:
    """A version of schema 1 that fails its checks is passed over after the migration as it was before."""
    with closing(sqlite3.connect(old_file, isolation_level=None)) as db:
        ((head,),) = db.execute("SELECT head FROM sessions WHERE name = 'fork ü'").fetchall()
        if damage == "level":
            db.execute("UPDATE blobs SET data = CAST(x'00' || substr(data, 2) AS BLOB) WHERE origin = ?", (head,))
        else:
            db.execute("UPDATE commits SET manifest = substr(manifest, 1, 100) WHERE version = ?", (head,))
    store = SqliteStore(old_file)
    await store.open()
    loaded = await store.load(FORK)
    assert (loaded.snapshot, loaded.skipped) == (snapshot_of(1), (head,))
    with pytest.raises(SnapshotCorrupt):
        await store.load(FORK, head)
    assert (await store.load(CHAT)).snapshot == snapshot_of(2)
    await store.commit(FORK, head, snapshot_of(6))
    assert (await store.load(FORK)).snapshot == snapshot_of(6)
    await store.close()


async def test_a_newer_schema_is_refused_with_the_reason(old_file: Path) -> None:
    """A file that a later build wrote is left as it is, and the error names both schemas."""
    with closing(sqlite3.connect(old_file)) as db:
        db.execute(f"PRAGMA user_version = {LAYOUT.schema + 1}")
    before = old_file.read_bytes()
    with pytest.raises(StoreUnavailable, match="schema 3 and was written by a newer build; this build uses 2"):
        await SqliteStore(old_file).open()
    assert old_file.read_bytes() == before
    assert not old_file.with_suffix(".key").exists()


def test_the_golden_archive_is_read_and_written_alike() -> None:
    """Format 1 of the archive stays what it is."""
    data = (GOLDEN / "archive1.hope").read_bytes()
    header, snapshot = archive.read_archive(data, 1 << 20)
    assert (header.format, header.name, header.number, header.created) == (1, "chat ü", 7, 1_700_000_000.25)
    assert (header.version, header.fingerprint) == ("0123456789abcdef" * 2, "golden-model")
    assert snapshot == snapshot_of(7)
    assert golden_archive() == data
