"""A damaged SQLite file, however it was damaged, gives an intact version or a clear error, never a wrong state."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
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
    SnapshotCorrupt,
    SnapshotStore,
    SqliteStore,
    StoreError,
)
from hope_memory.seals import Seals
from hope_memory.sqlite_tables import PAGE_BYTES

if TYPE_CHECKING:
    from tests.memory_store.conftest import CommitChain, MakeSnapshot, SqliteBackend

pytestmark = pytest.mark.anyio


def copy_keys(path: Path, copy: Path) -> None:
    """Give a copy of a store file, at `copy`, copies of the keys of the closed store at `path`."""
    for suffix in (".key", ".keys.db"):
        shutil.copy(path.with_suffix(suffix), copy.with_suffix(suffix))


async def load_any(store: SnapshotStore, session: SessionId) -> tuple[CommitInfo, Snapshot] | None:
    """Return what the store gives out, or None where it refuses with an error of its tree; then use it further."""
    found = None
    try:
        await store.open()
        loaded = await store.load(session)
        found = loaded.info, loaded.snapshot
    except StoreError:
        found = None
    with suppress(StoreError):
        record = await store.get(session)
        head = record.head and record.head.version
        calls = (
            store.list(session.tenant),
            store.versions(session),
            store.fork(session, "fork"),
            store.rollback(session, head or ""),
            store.commit(session, head, Snapshot("toy-1", {}, {}), request=Request("r")),
            store.delete(session),
        )
        for call in calls:
            with suppress(StoreError):
                await call
    await store.close()
    return found


async def test_an_altered_file_never_yields_an_altered_state(
    sqlite_backend: SqliteBackend,
    session: SessionId,
    commit_chain: CommitChain,
    make_snapshot: MakeSnapshot,
    tmp_path: Path,
) -> None:
    """Whatever bits of the file flip, a load gives an intact version or a StoreError, never anything else."""
    store = sqlite_backend.store()
    await store.open()
    chain = await commit_chain(store, session, 4)
    await store.close()
    originals = {info.version: make_snapshot(turn) for turn, info in enumerate(chain, 1)}
    intact = sqlite_backend.path.read_bytes()
    # Flips in the zero filling of pages show nothing, so only bytes that mean something are hit.
    places = [at for at, byte in enumerate(intact) if byte]
    rng = random.Random(20_000)
    num_refused = num_older = 0
    for attempt in range(100):
        altered = bytearray(intact)
        for at in rng.sample(places, rng.choice((1, 1, 8))):
            altered[at] ^= 1 << rng.randrange(8)
        # A file of its own for each round: what one could not write back at its end must not reach the next.
        path = tmp_path / f"altered-{attempt}.db"
        path.write_bytes(altered)
        copy_keys(sqlite_backend.path, path)
        found = await load_any(SqliteStore(path), session)
        num_refused += found is None
        if found is not None:
            num_older += found[0].version != chain[-1].version
            assert found[1] == originals[found[0].version]
    # The seed is fixed; both ways out were taken, so the test does test something.
    assert num_refused > 5
    assert num_older > 5


async def test_a_damaged_index_does_not_lead_to_another_session(
    sqlite_backend: SqliteBackend, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """With one damaged byte in the index of names, a session is refused, not taken for its neighbour."""
    names = [SessionId("acme", f"chat-{number}") for number in (1, 2, 3)]
    store = sqlite_backend.store()
    await store.open()
    for name in names:
        await commit_chain(store, name, 1)
    place, tenant_place = store.vault.place(names[1]).encode(), store.vault.tenant_place("acme").encode()
    await store.close()
    # An index entry ends with the row's number, here 2; the other index has the tenant before it.
    intact = sqlite_backend.path.read_bytes()
    entries = [at for at in range(len(intact)) if intact.startswith(place + b"\x02", at)]
    (at,) = [at for at in entries if intact[at - 32 : at] != tenant_place]
    sqlite_backend.path.write_bytes(intact[: at + 32] + b"\x03" + intact[at + 33 :])
    await store.open()
    for call in (store.get, store.load, store.delete):
        with pytest.raises(SnapshotCorrupt, match="index entry"):
            await call(names[1])
    assert (await store.load(names[2])).snapshot == make_snapshot(1)
    await store.close()


async def test_commits_that_end_up_in_another_session_are_refused(
    sqlite_backend: SqliteBackend, session: SessionId, commit_chain: CommitChain
) -> None:
    """A commit says whose it is: rows that lead from one session to another's commits are damage."""
    other = SessionId("rival", session.name)
    store = sqlite_backend.store()
    await store.open()
    for name in (session, other):
        await commit_chain(store, name, 1)
    with closing(sqlite3.connect(sqlite_backend.path, isolation_level=None)) as db:
        (mine, my_head), (theirs, their_head) = db.execute("SELECT key, head FROM sessions ORDER BY key").fetchall()
        for key, head in ((mine, their_head), (theirs, my_head)):
            db.execute("UPDATE commits SET session = ?, number = number + 1 WHERE version = ?", (key, head))
            db.execute("UPDATE sessions SET head = ? WHERE key = ?", (head, key))
    for name in (session, other):
        with pytest.raises(SnapshotCorrupt):
            await store.load(name)
    await store.close()


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
async def test_a_truncated_file_is_refused_or_empty_but_never_wrong(
    sqlite_backend: SqliteBackend,
    session: SessionId,
    commit_chain: CommitChain,
    make_snapshot: MakeSnapshot,
    keep: float,
) -> None:
    """A file that lost its end gives a StoreError or an intact version; an emptied one is a new store."""
    store = sqlite_backend.store()
    await store.open()
    chain = await commit_chain(store, session, 4)
    await store.close()
    os.truncate(sqlite_backend.path, int(sqlite_backend.path.stat().st_size * keep))
    found = await load_any(sqlite_backend.store(), session)
    turns = {info.version: turn for turn, info in enumerate(chain, 1)}
    assert found is None or found[1] == make_snapshot(turns[found[0].version])


async def test_a_torn_log_loses_only_the_commits_that_it_lost(
    sqlite_backend: SqliteBackend, session: SessionId, make_snapshot: MakeSnapshot, tmp_path: Path
) -> None:
    """Cutting the log anywhere, as a crash of the machine would, leaves exactly one of the committed states."""
    store = sqlite_backend.store()
    await store.open()
    await store.create(session)
    head: CommitInfo | None = None
    for turn in range(1, 4):
        head = await store.commit(session, head and head.version, make_snapshot(turn))
    names = [sqlite_backend.path.name, sqlite_backend.path.name + "-wal"]
    contents = [(sqlite_backend.path.parent / name).read_bytes() for name in names]
    await store.close()
    seen = []
    for step in range(41):
        crashed = tmp_path / f"crash-{step}"
        crashed.mkdir()
        log = contents[1][: len(contents[1]) * step // 40]
        for name, content in zip(names, (contents[0], log), strict=True):
            (crashed / name).write_bytes(content)
        copy_keys(sqlite_backend.path, crashed / names[0])
        copy = SqliteStore(crashed / names[0])
        await copy.open()
        records = await copy.list("acme")
        turn = records[0].head.number if records and records[0].head else 0
        if turn:
            assert (await copy.load(session)).snapshot == make_snapshot(turn)
        seen.append(turn)
        await copy.close()
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3}


async def test_damaged_pages_of_one_version_leave_its_ancestors_readable(
    sqlite_backend: SqliteBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Where SQLite itself cannot read a version any more, its ancestor is loaded and the version is named."""
    store = sqlite_backend.store()
    await store.open()
    first = await store.commit(session, None, make_snapshot(1))
    big = Level({"w": Array("uint8", (100_000,), b"Z" * 100_000)})
    head = await store.commit(session, first.version, Snapshot("toy-1", {}, {"w": big}))
    await store.close()
    with closing(sqlite3.connect(sqlite_backend.path)) as db:
        sealed = db.execute("SELECT data FROM blobs WHERE origin = ? AND level = 'w'", (head.version,)).fetchone()[0]
    data = bytearray(sqlite_backend.path.read_bytes())
    # A page of a large value is the number of the next such page, then bytes of the value.
    pages = [at for at in range(0, len(data), PAGE_BYTES) if data[at + 4 : at + PAGE_BYTES] in sealed]
    data[pages[1] : pages[1] + 4] = b"\xff\xff\xff\xff"
    sqlite_backend.path.write_bytes(data)
    await store.open()
    loaded = await store.load(session)
    assert (loaded.info, loaded.snapshot, loaded.skipped) == (first, make_snapshot(1), (head.version,))
    await store.close()


async def test_a_valid_manifest_of_an_impossible_snapshot_is_damage(
    sqlite_backend: SqliteBackend, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """A manifest that is sealed with the right key, but breaks the rules of a snapshot, is passed over."""
    store = sqlite_backend.store()
    await store.open()
    head = (await commit_chain(store, session, 2))[-1]
    (record,) = await store.vault.find(store.vault.place(session))
    assert record is not None
    seals = Seals(session, record.keys)
    with closing(sqlite3.connect(sqlite_backend.path, isolation_level=None)) as db:
        where = "WHERE version = ?"
        sealed = db.execute(f"SELECT manifest FROM commits {where}", (head.version,)).fetchone()[0]
        forged = seals.seal_manifest(replace(seals.open_manifest(sealed, head.version), meta={"info": 3}))
        db.execute(f"UPDATE commits SET manifest = ? {where}", (forged, head.version))
    loaded = await store.load(session)
    assert (loaded.snapshot, loaded.skipped) == (make_snapshot(1), (head.version,))
    await store.close()


async def test_ancestors_that_form_a_circle_end(
    sqlite_backend: SqliteBackend, session: SessionId, commit_chain: CommitChain
) -> None:
    """The way back through damaged versions ends, also where rows were altered so that it leads in a circle."""
    store = sqlite_backend.store()
    await store.open()
    chain = await commit_chain(store, session, 3)
    for info in chain:
        sqlite_backend.damage_manifest(info.version)
    with closing(sqlite3.connect(sqlite_backend.path, isolation_level=None)) as db:
        db.execute("UPDATE commits SET base = ? WHERE version = ?", (chain[2].version, chain[0].version))
    with pytest.raises(SnapshotCorrupt, match="no intact version"):
        await asyncio.wait_for(store.load(session), 5)
    await store.close()


async def test_a_damaged_summary_hides_nothing_else(
    sqlite_backend: SqliteBackend, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """Where the copy of the public part is damaged, get and list show it empty, and load shows it from the manifest."""
    store = sqlite_backend.store()
    await store.open()
    head = (await commit_chain(store, session, 1))[0]
    with closing(sqlite3.connect(sqlite_backend.path, isolation_level=None)) as db:
        db.execute("UPDATE commits SET info = x'00'")
    assert (await store.get(session)).head == replace(head, meta={})
    assert [record.head for record in await store.list("acme")] == [replace(head, meta={})]
    loaded = await store.load(session)
    assert (loaded.info, loaded.snapshot) == (head, make_snapshot(1))
    await store.close()
