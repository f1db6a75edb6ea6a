"""A store that went back in time, or lost a session, is an error that says so: memory is never lost in silence."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hope_memory import SqliteStore, Vault
from taking import chat, learn, named, num_turns
from toys import KEY, toy_engine

from hope_server.engine.engine import Engine
from hope_server.engine.turn import ScoreRequest
from hope_server.errors import MemoryEvicted, MemoryRolledBack, VersionMismatch

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """A running toy engine on store.db."""
    engine = toy_engine(tmp_path / "store.db")
    await engine.start()
    yield engine
    await engine.stop()


def _copy(folder: Path, name: str) -> None:
    """Back the store up as it is now."""
    with sqlite3.connect(folder / "store.db") as source, sqlite3.connect(folder / name) as target:
        source.backup(target)
    source.close()
    target.close()


async def _restore(engine: Engine, path: Path) -> None:
    """Have the engine work on another copy of its store, with the same keys."""
    store = SqliteStore(path, vault=Vault.beside(path.with_name("store.db")))
    await store.open()
    await engine._book._store.close()
    engine._book._store = store


async def _went_back(engine: Engine, folder: Path) -> str:
    """Take two turns and put the store back to after the first; returns the version that is lost."""
    await chat(engine, "One", attempt=named("k1"))
    _copy(folder, "old.db")
    lost = (await chat(engine, "Two", attempt=named("k2"))).receipt.version_after
    await _restore(engine, folder / "old.db")
    return lost


async def test_turns_are_refused_until_somebody_takes_the_store_as_it_is(engine: Engine, tmp_path: Path) -> None:
    """Chat, learn and score say which version is missing; with if_match "*" the session goes on from what there is."""
    lost = await _went_back(engine, tmp_path)
    for _ in range(2):
        with pytest.raises(MemoryRolledBack) as caught:
            await chat(engine, "Three")
    assert caught.value.missing == lost
    with pytest.raises(MemoryRolledBack):
        await learn(engine)
    with pytest.raises(MemoryRolledBack):
        await engine.score(ScoreRequest((" x",), prompt="y", session=KEY))
    end = await chat(engine, "Three", if_match="*")
    assert (end.receipt.turn, end.receipt.restored_from) == (2, "store")
    assert (await chat(engine, "Four")).receipt.turn == 3


async def test_with_adopt_store_one_turn_is_refused(tmp_path: Path) -> None:
    """The operator chose to go on; the caller is still told once."""
    engine = toy_engine(tmp_path / "store.db", on_rollback="adopt_store")
    await engine.start()
    await _went_back(engine, tmp_path)
    with pytest.raises(MemoryRolledBack):
        await chat(engine, "Three")
    assert (await chat(engine, "Three")).receipt.turn == 2
    await engine.stop()


async def test_a_caller_finds_it_also_at_a_server_that_never_saw_the_session(engine: Engine, tmp_path: Path) -> None:
    """A version that a receipt named and that is not in the history is a roll-back, not a mere mismatch."""
    lost = await _went_back(engine, tmp_path)
    fresh = toy_engine(tmp_path / "store.db")
    await fresh.start()
    await _restore(fresh, tmp_path / "old.db")
    with pytest.raises(MemoryRolledBack) as caught:
        await chat(fresh, "Three", if_match=lost)
    assert caught.value.missing == lost
    assert (await chat(fresh, "Three")).receipt.turn == 2
    await fresh.stop()


async def test_a_request_that_was_lost_with_the_store_is_not_answered_from_nowhere(
    engine: Engine, tmp_path: Path
) -> None:
    """Its retry is told of the roll-back; the request before it is still known."""
    await _went_back(engine, tmp_path)
    with pytest.raises(MemoryRolledBack):
        await chat(engine, "Two", attempt=named("k2"))
    assert (await chat(engine, "One", attempt=named("k1"))).receipt.replayed
    assert not (await chat(engine, "Two", attempt=named("k2"), if_match="*")).receipt.replayed
    assert await num_turns(engine) == 2


async def test_another_line_that_grew_as_long_is_found_too(engine: Engine, tmp_path: Path) -> None:
    """Versions are not counted but named: a second history of the same length is another history."""
    lost = await _went_back(engine, tmp_path)
    rival = toy_engine(tmp_path / "store.db")
    await rival.start()
    await _restore(rival, tmp_path / "old.db")
    await chat(rival, "Other two")
    with pytest.raises(MemoryRolledBack) as caught:
        await chat(engine, "Three")
    assert caught.value.missing == lost
    await rival.stop()


async def test_a_lost_session_is_no_new_session(engine: Engine, tmp_path: Path) -> None:
    """A store from before the session was made does not have it: gone, until somebody deletes what is left of it."""
    await engine._book._store.ping()
    _copy(tmp_path, "empty.db")
    await chat(engine)
    await _restore(engine, tmp_path / "empty.db")
    with pytest.raises(MemoryEvicted):
        await chat(engine, "Two")
    with pytest.raises(MemoryEvicted):
        await engine.get_session(KEY)
    assert await engine.delete_session(KEY)
    assert (await chat(engine, "Anew")).receipt.turn == 1


async def test_rolling_back_on_purpose_is_no_loss(engine: Engine) -> None:
    """The session follows its own history; what came after stays among the versions, and other callers are told."""
    one = (await chat(engine, "One")).receipt.version_after
    two = (await chat(engine, "Two")).receipt.version_after
    info = await engine.rollback_session(KEY, one)
    assert info.turn == 1
    assert [each["version"] for each in await engine.session_versions(KEY)] == [info.version, two, one]
    with pytest.raises(VersionMismatch):
        await chat(engine, "Three", if_match=two)
    end = await chat(engine, "Three")
    assert (end.receipt.turn, end.receipt.version_before, end.receipt.restored_from) == (2, info.version, "store")


async def test_a_roll_back_can_insist_on_the_version_it_sets_back(engine: Engine) -> None:
    """It is refused where the session has gone on."""
    one = (await chat(engine, "One")).receipt.version_after
    await chat(engine, "Two")
    with pytest.raises(VersionMismatch):
        await engine.rollback_session(KEY, one, if_match=one)
    assert await num_turns(engine) == 2
