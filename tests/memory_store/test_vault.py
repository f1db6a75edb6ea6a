"""Keys are made once, rotated under load, destroyed for good; what is lost or damaged is said, never overwritten."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import stat
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hope_memory import KeysUnavailable, SessionId, SnapshotCorrupt, SqliteStore, Vault
from hope_memory.key_file import KeyRing, new_key_id
from hope_memory.key_store import KeyStore, SqliteKeyStore
from hope_memory.seals import Seals
from hope_memory.vault import KeyRecord

if TYPE_CHECKING:
    from tests.memory_store.conftest import CommitChain, MakeSnapshot

pytestmark = pytest.mark.anyio

OTHER = SessionId("acme", "chat-2")


@pytest.fixture
async def vault(tmp_path: Path) -> AsyncIterator[Vault]:
    """An open vault with files of its own, those of the store `sessions.db`."""
    vault = Vault.beside(tmp_path / "sessions.db")
    await vault.open()
    yield vault
    await vault.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """An open store at `sessions.db`."""
    store = SqliteStore(tmp_path / "sessions.db")
    await store.open()
    yield store
    await store.close()


async def only(vault: Vault, place: str) -> KeyRecord:
    """Return the record at a place, which must be there."""
    (record,) = await vault.find(place)
    assert record is not None
    return record


def records_in(path: Path) -> dict[str, bytes]:
    """Return all records of a key store's file."""
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT place, record FROM keys").fetchall())


async def test_a_record_is_made_marked_forked_and_destroyed(vault: Vault) -> None:
    """Each step is a compare-and-swap that ends the same for everybody who does it."""
    assert isinstance(SqliteKeyStore("x.db"), KeyStore)
    first, again = await vault.admit("place"), await vault.admit("place")
    assert first == again and not first.is_live
    live = await vault.mark_live(first)
    assert live.is_live and live.keys == first.keys
    # A rival that still holds the older record ends with the same one.
    assert await vault.mark_live(first) == live == await only(vault, "place")
    newer = await vault.add_key(first)
    assert list(newer.keys.keys)[:-1] == list(first.keys.keys) and newer.is_live
    fork = await vault.inherit(newer, "fork", last=next(iter(first.keys.keys)))
    assert not fork.is_live and len(fork.keys.keys) == 2
    assert fork.keys.birth != newer.keys.birth
    with pytest.raises(KeysUnavailable, match="live key"):
        await vault.inherit(newer, "place")
    assert await vault.destroy("place", fork.keys.birth) is False
    assert await vault.destroy("place", first.keys.birth) is True
    assert await vault.destroy("place", first.keys.birth) is False
    assert await vault.find("place", "fork") == [None, fork]
    with pytest.raises(KeysUnavailable, match="deleted meanwhile"):
        await vault.mark_live(first)
    assert (await vault.erase("fork"), await vault.erase("fork")) == (True, False)


async def test_many_at_once_make_one_record(tmp_path: Path) -> None:
    """Several vaults on the same files, opened and used at once, agree on key file and keys."""
    vaults = [Vault.beside(tmp_path / "sessions.db") for _ in range(6)]
    await asyncio.gather(*(vault.open() for vault in vaults))
    assert sum(vault.made_key_file for vault in vaults) == 1
    records = await asyncio.gather(*(vault.admit("place") for vault in vaults))
    assert len({record.stored for record in records}) == 1
    await asyncio.gather(*(vault.close() for vault in vaults))


def test_a_key_file_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    """Of many that open it at once one makes it, and nobody else may read it."""
    path = tmp_path / "deep" / "hope.key"
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: KeyRing.open(path), range(8)))
    assert len({ring.text() for ring, _ in opened}) == 1
    assert sum(made for _, made in opened) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["hope.key"]
    assert KeyRing.load(path) == opened[0][0]
    assert opened[0][0].names.hex() not in repr(opened[0][0])


SECRET = "ab" * 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs one line"),
        (f"names {SECRET}", "needs one line"),
        (f"key k {SECRET}", "needs one line"),
        (f"names {SECRET}\nnames {SECRET}\nkey k {SECRET}", "line 2"),
        (f"names {SECRET}\nkey k {SECRET}\nkey k {SECRET}", "two keys"),
        (f"names {SECRET}\nkey k {SECRET[:-2]}", "line 2"),
        (f"names {SECRET}\nkey {'k' * 33} {SECRET}", "line 2"),
        (f"names {SECRET}\nkey k/k {SECRET}", "line 2"),
        (f"names {SECRET}\nnonsense", "line 2"),
    ],
)
def test_a_key_file_that_cannot_be_right_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The error names the line and the file, never what stands there."""
    path = tmp_path / "hope.key"
    path.write_text(text)
    with pytest.raises(KeysUnavailable, match=message) as caught:
        KeyRing.load(path)
    assert str(path) in str(caught.value) and SECRET[:16] not in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(KeysUnavailable, match="not text"):
        KeyRing.load(path)


def test_comments_and_spaces_are_allowed_in_a_key_file() -> None:
    """A key file is text that people edit."""
    ring = KeyRing.parse(
        f"# mine\n\n  names   {SECRET.upper()} # hashes\nkey a {SECRET}\r\nkey {new_key_id()} {SECRET}\n", "x"
    )
    assert (ring.names.hex(), len(ring.keys)) == (SECRET, 2)
    assert KeyRing.parse(ring.text(), "x") == ring


async def test_rotation_under_load_fails_no_turn_and_leaves_the_old_key_useless(
    tmp_path: Path, store: SqliteStore, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """While the key is rotated by another process, sessions are committed to, made, forked and deleted as always."""
    old_file = Path(shutil.copy(store.vault.key_file, tmp_path / "old.key"))
    operator = Vault.beside(store.path)
    await operator.open()
    is_rotating, num_turns = True, 0
    await store.create(session)

    async def turns() -> None:
        nonlocal num_turns
        while is_rotating:
            record = await store.get(session)
            await store.commit(session, record.tip, make_snapshot(num_turns))
            num_turns += 1

    async def lives() -> None:
        number = 0
        while is_rotating:
            number += 1
            made, copy = SessionId("acme", f"s-{number}"), f"f-{number}"
            await store.commit(made, None, make_snapshot(number))
            await store.fork(made, copy)
            await store.load(SessionId("acme", copy))
            if number % 2:
                await store.delete(made)

    work = asyncio.gather(turns(), lives())
    for _ in range(3):
        assert await operator.rotate(settle_seconds=0.05) > 0
    is_rotating = False
    await work
    assert num_turns > 5
    ring = KeyRing.load(store.vault.key_file)
    assert len(ring.keys) == 1 and ring.keys.keys().isdisjoint(KeyRing.load(old_file).keys)
    await operator.close()
    await store.close()
    await store.open()
    assert (await store.load(session)).info.number == num_turns
    await store.close()
    shutil.copy(old_file, store.vault.key_file)
    with pytest.raises(KeysUnavailable, match="lacks key"):
        await store.open()


async def test_a_rotation_that_was_cut_short_is_finished_by_the_next(vault: Vault) -> None:
    """After a crash between its steps the key file has every key that is in use."""
    before = await vault.mark_live(await vault.admit("a"))
    vault.ring.with_new_key().save(vault.key_file)
    assert len(vault.ring.keys) == 2
    half = await vault.admit("b")
    assert await vault.find("a", "b") == [before, half]
    assert await vault.rotate(settle_seconds=0) == 2
    assert await vault.rewrap() == 0
    assert [record and record.keys for record in await vault.find("a", "b")] == [before.keys, half.keys]
    assert len(vault.ring.keys) == 1


async def test_a_key_file_that_goes_bad_under_a_server_changes_nothing_until_it_starts_again(vault: Vault) -> None:
    """Removed, garbled or exchanged, the file that was read at the start stays in use."""
    record = await vault.admit("a")
    text = vault.key_file.read_text()
    for wrong in ("garbage", KeyRing(b"n" * 32, {"k": b"k" * 32}).text()):
        vault.key_file.write_text(wrong)
        assert await vault.find("a") == [record]
    vault.key_file.unlink()
    assert await vault.find("a") == [record]
    vault.key_file.write_text(text)
    assert await vault.find("a") == [record]


async def test_a_lost_key_file_is_said_and_not_made_anew(
    store: SqliteStore, session: SessionId, commit_chain: CommitChain
) -> None:
    """With keys in the key store a server does not start without its key file, nor with another one."""
    await commit_chain(store, session, 1)
    await store.close()
    key_file, keys = store.vault.key_file, store.path.with_suffix(".keys.db")
    text, before = key_file.read_text(), records_in(keys)
    key_file.unlink()
    with pytest.raises(KeysUnavailable, match=r"the key store has keys but the key file .* is missing"):
        await store.open()
    assert not key_file.exists()
    assert records_in(keys) == before
    other, _ = KeyRing.open(key_file)
    with pytest.raises(KeysUnavailable, match="belongs to another store"):
        await store.open()
    assert KeyRing.load(key_file) == other
    key_file.write_text(text)
    await store.open()
    assert (await store.load(session)).info.number == 1


async def test_a_store_is_not_opened_with_the_key_file_of_another(
    tmp_path: Path, store: SqliteStore, session: SessionId, commit_chain: CommitChain
) -> None:
    """Where key file and key store are both lost, the store says so; its sessions would not be found any more."""
    await commit_chain(store, session, 1)
    await store.close()
    with pytest.raises(KeysUnavailable, match="made with another key file"):
        await SqliteStore(store.path, vault=Vault.beside(tmp_path / "fresh.db")).open()
    await store.open()
    assert (await store.load(session)).info.number == 1


async def test_a_lost_key_store_is_an_error_of_each_session_in_it(
    store: SqliteStore, session: SessionId, commit_chain: CommitChain
) -> None:
    """Sessions without keys are neither shown nor taken for new ones; they can be deleted, and others made."""
    await commit_chain(store, session, 1)
    await store.close()
    store.path.with_suffix(".keys.db").unlink()
    await store.open()
    for call in (store.create, store.get, store.load, store.versions):
        with pytest.raises(KeysUnavailable, match="no key for session 'chat-1'"):
            await call(session)
    await commit_chain(store, OTHER, 1)
    assert [record.session for record in await store.list("acme")] == [OTHER]
    assert await store.delete(session)
    assert (await store.create(session))[1]


@pytest.mark.parametrize("damage", ["garbage", "empty record", "altered record", "newer record", "text"])
async def test_a_damaged_key_store_gives_one_clear_error(
    store: SqliteStore, session: SessionId, commit_chain: CommitChain, damage: str
) -> None:
    """A file that is no key store is refused at the start; a damaged record concerns its own session only."""
    await commit_chain(store, session, 1)
    await commit_chain(store, OTHER, 1)
    place = store.vault.place(session)
    await store.close()
    keys = store.path.with_suffix(".keys.db")
    record = records_in(keys)[place]
    if damage == "garbage":
        keys.write_bytes(b"no key store, though long enough to look at " * 100)
        with pytest.raises(KeysUnavailable, match="is not a SQLite file"):
            await store.open()
        return
    wrong = {
        "empty record": b"",
        "altered record": record[:-1] + bytes([record[-1] ^ 1]),
        "newer record": b"\x93\x02" + record[2:],
        "text": "text",
    }[damage]
    with closing(sqlite3.connect(keys, isolation_level=None)) as db:
        db.execute("UPDATE keys SET record = ? WHERE place = ?", (wrong, place))
    await store.open()
    for call in (store.get, store.load):
        with pytest.raises(KeysUnavailable, match=r"damaged|altered"):
            await call(session)
    assert (await store.load(OTHER)).info.number == 1
    assert [found.session for found in await store.list("acme")] == [OTHER]
    assert await store.vault.rewrap() == 0
    assert await store.delete(session) is True
    assert (await store.create(session))[1]


async def test_a_deleted_session_is_unreadable_in_every_copy_of_the_store(
    tmp_path: Path, store: SqliteStore, session: SessionId, commit_chain: CommitChain
) -> None:
    """A backup of the store from before the delete does not bring the session back; others in it are there."""
    await commit_chain(store, session, 2)
    await commit_chain(store, OTHER, 1)
    await store.close()
    backup = shutil.copy(store.path, tmp_path / "backup.db")
    await store.open()
    await store.delete(session)
    await store.close()
    shutil.copy(backup, store.path)
    await store.open()
    for call in (store.load, store.get, store.create):
        with pytest.raises(KeysUnavailable):
            await call(session)
    assert (await store.load(OTHER)).info.number == 1


async def test_forks_read_nothing_that_is_committed_after_them(
    store: SqliteStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """With the fork's keys the source's later commits do not open, nor the fork's with the source's."""
    (first,) = await commit_chain(store, session, 1)
    await store.fork(session, OTHER.name)
    later = await store.commit(session, first.version, make_snapshot(2))
    own = await store.commit(OTHER, (await store.get(OTHER)).tip, make_snapshot(3))
    for reader, writer, version in ((OTHER, session, later.version), (session, OTHER, own.version)):
        keys = (await only(store.vault, store.vault.place(reader))).keys
        with closing(sqlite3.connect(store.path)) as db:
            sealed = db.execute("SELECT manifest FROM commits WHERE version = ?", (version,)).fetchone()[0]
        with pytest.raises(SnapshotCorrupt, match="does not have"):
            Seals(writer, keys, are_latest=True).open_manifest(sealed, version)
    await store.delete(session)
    assert (await store.load(OTHER)).snapshot == make_snapshot(3)


async def test_a_template_can_be_forked_again_and_again(
    store: SqliteStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """Keys grow with the commits that follow forks, not with the forks."""
    (first,) = await commit_chain(store, session, 1)
    for number in range(30):
        await store.fork(session, f"fork-{number}")
    assert len((await only(store.vault, store.vault.place(session))).keys.keys) == 2
    await store.commit(session, first.version, make_snapshot(2))
    await store.fork(session, "later")
    await store.fork(session, "earlier", first.version)
    assert len((await only(store.vault, store.vault.place(session))).keys.keys) == 3
    for name, turn in (("fork-29", 1), ("later", 2), ("earlier", 1)):
        assert (await store.load(SessionId("acme", name))).snapshot == make_snapshot(turn)


async def test_keys_that_a_rival_added_are_read_again(
    store: SqliteStore, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """A head under a key that was added after the keys were read is loaded, not taken for damage."""
    (first,) = await commit_chain(store, session, 1)
    stale = await only(store.vault, store.vault.place(session))
    await store.fork(session, OTHER.name)
    head = await store.commit(session, first.version, make_snapshot(2))
    find = store.vault.find
    answers = [[stale]]

    async def find_stale(*places: str) -> list[KeyRecord | None]:
        return list(answers.pop()) if answers else await find(*places)

    store.vault.find = find_stale  # type: ignore[method-assign]
    loaded = await store.load(session)
    assert (loaded.info, loaded.skipped) == (head, ())
    answers.append([stale])
    third = await store.commit(session, head.version, make_snapshot(3), frozenset({"slow"}))
    assert await store.ancestry(session, first.version) == "ancestor"
    assert (await store.load(session)).info == third
