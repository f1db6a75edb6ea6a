"""Sessions and their keys are two files: whatever rivals do to a session at once, the two end up together."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hope_memory import (
    KeysUnavailable,
    SessionExists,
    SessionId,
    SessionLost,
    SessionMissing,
    SqliteStore,
    VersionConflict,
    VersionMissing,
)
from hope_memory.vault import KeyRecord

if TYPE_CHECKING:
    from tests.memory_store.conftest import MakeSnapshot, SqliteBackend

pytestmark = pytest.mark.anyio

NAMES = [SessionId("acme", name) for name in ("a", "b")]
# What a caller may be told while rivals make, fork and delete the session that it uses.
EXPECTED = (SessionMissing, SessionExists, VersionConflict, VersionMissing)


async def live_a_little(store: SqliteStore, rng: random.Random, make_snapshot: MakeSnapshot) -> list[Exception]:
    """Do random things to two sessions and return the errors that nobody should see."""
    wrong: list[Exception] = []
    for turn in range(40):
        one, other = rng.sample(NAMES, 2)
        try:
            match rng.randrange(6):
                case 0:
                    await store.create(one)
                case 1:
                    await store.commit(one, None, make_snapshot(turn))
                case 2:
                    await store.commit(one, (await store.get(one)).tip, make_snapshot(turn))
                case 3:
                    await store.fork(one, other.name)
                case 4:
                    await store.delete(one)
                case _:
                    assert (await store.load(one)).skipped == ()
        except EXPECTED:
            pass
        except (KeysUnavailable, SessionLost) as exc:
            exc.add_note(f"turn {turn} on {one.name}")
            wrong.append(exc)
    return wrong


@pytest.mark.parametrize("seed", range(6))
async def test_keys_and_sessions_end_up_together(
    sqlite_backend: SqliteBackend, make_snapshot: MakeSnapshot, seed: int
) -> None:
    """Four stores make, fork and delete two sessions; then each is there and whole, or missing with its keys."""
    stores = [sqlite_backend.store(keep_versions=3) for _ in range(4)]
    for store in stores:
        await store.open()
    rngs = [random.Random(100 * seed + number) for number in range(4)]
    lives = [live_a_little(store, rng, make_snapshot) for store, rng in zip(stores, rngs, strict=True)]
    wrong = [exc for found in await asyncio.gather(*lives) for exc in found]
    for exc in wrong:
        raise exc
    store = stores[0]
    for name in NAMES:
        (record,) = await store.vault.find(store.vault.place(name))
        try:
            found = await store.get(name)
        except SessionMissing:
            assert record is None or not record.is_live
            continue
        assert record is not None and record.is_live and record.keys.birth == found.birth
        if found.head is not None:
            loaded = await store.load(name)
            assert (loaded.info, loaded.skipped) == (found.head, ())
    for name in NAMES:
        await store.delete(name)
        assert (await store.create(name))[1]
    for store in stores:
        await store.close()
    with closing(sqlite3.connect(sqlite_backend.path)) as db:
        named = db.execute("SELECT COUNT(*) FROM (SELECT DISTINCT origin, level FROM commit_levels)").fetchone()
        assert db.execute("SELECT COUNT(*) FROM blobs").fetchone() == named == (0,)


async def test_a_session_that_is_deleted_while_it_is_made_is_made_again(
    sqlite_backend: SqliteBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Deletes between the making of the session and of its live key cost more rounds, however many, not the session."""
    store = sqlite_backend.store()
    await store.open()
    mark_live, num_deletes = store.vault.mark_live, 0

    async def delete_first(record: KeyRecord) -> KeyRecord:
        nonlocal num_deletes
        if num_deletes < 20:
            num_deletes += 1
            await store.vault.destroy(record.place, record.keys.birth)
        return await mark_live(record)

    store.vault.mark_live = delete_first  # type: ignore[method-assign]
    info = await store.commit(session, None, make_snapshot(1))
    loaded = await store.load(session)
    assert (num_deletes, loaded.info, loaded.snapshot) == (20, info, make_snapshot(1))
    assert await store.versions(session) == [info]
    await store.close()


async def test_a_crash_between_the_two_files_leaves_what_the_next_call_settles(
    sqlite_backend: SqliteBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """A key without a session is used for it; a session whose key is not live yet is there, and then it is live."""
    store = sqlite_backend.store()
    await store.open()
    place = store.vault.place(session)
    admitted = await store.vault.admit(place)
    for call in (store.get, store.load):
        with pytest.raises(SessionMissing):
            await call(session)
    assert await store.delete(session) is False
    assert await store.vault.find(place) == [None]
    admitted = await store.vault.admit(place)
    record, is_new = await store.create(session)
    assert (is_new, record.birth) == (True, admitted.keys.birth)
    # As a crash before the last step leaves it.
    (live,) = await store.vault.find(place)
    assert live is not None and await store.vault.key_store.put(place, admitted.stored, live.stored)
    assert [found.session for found in await store.list("acme")] == [session]
    assert await store.create(session) == (record, False)
    (found,) = await store.vault.find(place)
    assert found is not None and found.is_live
    await store.close()
