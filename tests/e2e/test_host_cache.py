"""States behind the slots in host memory: the same answers as from the store, and never an older or a deleted one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from taking import chat, stored_state
from toys import KEY, toy_engine

from hope_server.engine.turn import SessionKey
from hope_server.errors import SessionNotFound

pytestmark = pytest.mark.anyio

OTHER = SessionKey("default", "other")


async def test_a_session_without_a_slot_goes_on_from_host_memory_as_from_the_store(tmp_path: Path) -> None:
    """The same turns give the same state to the bit, wherever it was between them; the receipt says where."""
    states, found = [], []
    for name, host_cache_bytes in (("cached", 1 << 26), ("stored", 0)):
        engine = toy_engine(tmp_path / f"{name}.db", num_slots=1, host_cache_bytes=host_cache_bytes)
        await engine.start()
        await chat(engine, "One")
        await chat(engine, "Elsewhere", session=OTHER)
        found.append((await chat(engine, "Two")).receipt.restored_from)
        states.append(await stored_state(engine))
        await engine.stop()
    assert found == ["host", "store"]
    assert states[0] == states[1]


async def test_a_state_from_the_store_is_kept_without_what_was_read(tmp_path: Path) -> None:
    """A store reads whole levels as bytes of the heap, which must not stay there for as long as the state."""
    first = toy_engine(tmp_path / "one.db", num_slots=1)
    await first.start()
    version = (await chat(first, "One")).receipt.version_after
    await first.stop()
    engine = toy_engine(tmp_path / "one.db", num_slots=1)
    await engine.start()
    snapshot, source = await engine._book.fetch(KEY, version)
    kept = engine._book.cache.find(KEY, version)
    owners = [array.data.obj for level in snapshot.levels.values() for array in level.arrays.values()]
    assert (source, kept) == ("store", snapshot)
    assert owners and not any(isinstance(owner, bytes) for owner in owners)
    await engine.stop()


async def test_a_version_made_by_another_server_is_not_hidden_by_what_is_kept(tmp_path: Path) -> None:
    """A session that moved away and came back is read from the store, with what it learned there."""
    here, there = (toy_engine(tmp_path / "one.db", num_slots=1) for _ in range(2))
    await here.start()
    await there.start()
    await chat(here, "One")
    await chat(here, "Elsewhere", session=OTHER)
    await chat(there, "Two")
    end = await chat(here, "Three")
    assert (end.receipt.turn, end.receipt.restored_from) == (3, "store")
    await here.stop()
    await there.stop()


async def test_a_deleted_session_leaves_nothing_in_host_memory(tmp_path: Path) -> None:
    """A session of the same name begins anew."""
    engine = toy_engine(tmp_path / "one.db", num_slots=1)
    await engine.start()
    await chat(engine, "One")
    await chat(engine, "Elsewhere", session=OTHER)
    held = len(engine._book.cache)
    await engine.delete_session(KEY)
    assert (held, len(engine._book.cache)) == (2, 1)
    end = await chat(engine, "One")
    assert (end.receipt.turn, end.receipt.restored_from) == (1, "new")
    await engine.stop()


@pytest.mark.parametrize("how", ["looked at", "listed"])
async def test_a_session_whose_life_is_over_leaves_nothing_in_host_memory(tmp_path: Path, how: str) -> None:
    """However its end is found out."""
    engine = toy_engine(tmp_path / "one.db", num_slots=1)
    await engine.start()
    await chat(engine, "One", ttl_seconds=0.05)
    assert len(engine._book.cache) == 1
    await asyncio.sleep(0.1)
    if how == "listed":
        assert await engine.list_sessions(KEY.tenant, 10, None) == []
    else:
        with pytest.raises(SessionNotFound):
            await engine.get_session(KEY)
    assert (len(engine._book.cache), engine._book.cache.num_bytes) == (0, 0)
    await engine.stop()
