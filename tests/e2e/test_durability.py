"""What an answer waits for, what its receipt says of that, and what is left when it was not waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hope_memory import errors as store_errors
from taking import chat, chat_request, is_replay, learn, named, num_turns, stored_state, take, text_of
from toys import KEY, toy_engine

from hope_server.engine import commits
from hope_server.engine.engine import Engine
from hope_server.engine.turn import LearnRequest, SessionKey, TurnFinished
from hope_server.errors import DurabilityUnmet, StoreUnavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """A running toy engine."""
    engine = toy_engine(tmp_path / "store.db")
    await engine.start()
    yield engine
    await engine.stop()


class Outage:
    """A store whose commits fail until it is over."""

    def __init__(self, engine: Engine) -> None:
        self.is_over = False
        self.num_refused = 0
        self._commit = engine._book._store.commit
        engine._book._store.commit = self.commit

    async def commit(self, *args: Any) -> Any:
        if self.is_over:
            return await self._commit(*args)
        self.num_refused += 1
        raise store_errors.StoreUnavailable("no answer")


def _reached(end: TurnFinished) -> tuple[str | None, str, int]:
    return end.receipt.durability_requested, end.receipt.durability, end.receipt.replicas


async def test_a_commit_is_what_is_waited_for_by_default(engine: Engine) -> None:
    """The receipt says so and names the version."""
    end = await chat(engine)
    assert _reached(end) == ("commit", "commit", 0)
    assert end.receipt.version_after == (await engine.get_session(KEY)).version


async def test_a_turn_that_only_reads_has_nothing_to_keep(engine: Engine) -> None:
    """No durability was asked for and none was reached."""
    assert _reached(await chat(engine, mode="read")) == (None, "none", 0)


async def test_none_keeps_turns_in_memory_until_one_is_committed(engine: Engine) -> None:
    """The next turn goes on from it, the store does not have it, and the next commit holds all of it."""
    first = await chat(engine, "One", durability="none")
    second = await chat(engine, "Two", durability="none")
    assert [_reached(end) for end in (first, second)] == [("none", "none", 0)] * 2
    assert (second.receipt.turn, second.receipt.restored_from, second.receipt.version_after) == (2, "hot", None)
    assert (await engine.get_session(KEY)).version is None
    third = await chat(engine, "Three")
    assert (third.receipt.turn, third.receipt.version_before) == (3, None)
    assert await num_turns(engine) == 3


async def test_a_committed_chain_equals_one_that_was_committed_turn_by_turn(tmp_path: Path) -> None:
    """Going on from memory makes no difference to what the session is and says."""
    states = []
    for name, durability in (("a", "none"), ("b", "commit")):
        engine = toy_engine(tmp_path / f"{name}.db")
        await engine.start()
        await learn(engine, durability=durability)
        await chat(engine, "One", durability=durability)
        await chat(engine, "Two")
        states.append(await stored_state(engine))
        await engine.stop()
    assert states[0] == states[1]


async def test_a_session_in_memory_outlives_its_slot(tmp_path: Path) -> None:
    """Other sessions may take its place in the batch; the turn is not lost by that."""
    engine = toy_engine(tmp_path / "store.db", num_slots=1)
    await engine.start()
    await chat(engine, "One", durability="none")
    await take(engine.learn(LearnRequest(SessionKey("default", "other"), "The van is white.")))
    end = await chat(engine, "Two")
    assert (end.receipt.turn, end.receipt.restored_from) == (2, "host")
    await engine.stop()


async def test_none_is_over_with_the_process(tmp_path: Path) -> None:
    """What was never committed is gone after a restart, as the receipt said."""
    engine = toy_engine(tmp_path / "store.db")
    await engine.start()
    await chat(engine, "One")
    await chat(engine, "Two", durability="none")
    await engine.stop()
    again = toy_engine(tmp_path / "store.db")
    await again.start()
    assert await num_turns(again) == 1
    await again.stop()


async def test_async_answers_first_and_commits_at_once(engine: Engine) -> None:
    """The answer does not wait; the next turn of the session does, and follows the commit."""
    end = await chat(engine, "One", durability="async")
    assert (_reached(end), end.receipt.version_after) == (("async", "async", 0), None)
    after = await chat(engine, "Two")
    assert (after.receipt.turn, after.receipt.restored_from) == (2, "hot")
    assert after.receipt.version_before is not None


async def test_async_is_drained_when_the_server_stops(tmp_path: Path) -> None:
    """A stop right after the answer loses nothing."""
    engine = toy_engine(tmp_path / "store.db")
    await engine.start()
    await chat(engine, durability="async")
    await engine.stop()
    again = toy_engine(tmp_path / "store.db")
    await again.start()
    assert await num_turns(again) == 1
    await again.stop()


async def test_async_outlives_an_outage_of_the_store(engine: Engine, monkeypatch) -> None:
    """While the store is away the session refuses turns; once it is back the turn is committed without being asked."""
    monkeypatch.setattr(commits, "RETRY_SECONDS", 0.01)
    outage = Outage(engine)
    await chat(engine, "One", durability="async")
    with pytest.raises(StoreUnavailable):
        await chat(engine, "Two")
    outage.is_over = True
    async with asyncio.timeout(5):
        while engine.stats()["sessions_uncommitted"]:
            await asyncio.sleep(0.01)
    assert await num_turns(engine) == 1
    after = await chat(engine, "Two")
    assert (after.receipt.turn, after.receipt.restored_from) == (2, "hot")
    assert outage.num_refused >= 2


async def test_an_async_answer_is_given_again_not_learned_again(engine: Engine) -> None:
    """Retries of a turn that is queued, and of one that was committed meanwhile, find it."""
    outage = Outage(engine)
    first = await take(engine.chat(chat_request(attempt=named("k1"), durability="async")))
    outage.is_over = True
    again = await take(engine.chat(chat_request(attempt=named("k1"), durability="async")))
    assert (is_replay(again), text_of(again)) == (True, text_of(first))
    assert await num_turns(engine) == 1


async def test_an_answer_in_memory_is_given_again(engine: Engine) -> None:
    """With durability none too, as long as the process has the turn."""
    await chat(engine, "One", attempt=named("k1"), durability="none")
    await chat(engine, "Two", attempt=named("k2"), durability="none")
    again = await take(engine.chat(chat_request("One", attempt=named("k1"), durability="none")))
    assert is_replay(again)
    assert (await chat(engine, "Three")).receipt.turn == 3


async def test_an_acknowledged_async_answer_is_not_taken_for_the_next_request(engine: Engine) -> None:
    """The acknowledgement finds the commit, whichever came first."""
    for is_early in (True, False):
        await chat(engine, "Same", durability="async")
        if not is_early:
            await engine._commits.drain()
        engine.acknowledge(KEY, None)
        await engine._commits.drain()
    assert await num_turns(engine) == 2


async def test_a_durability_that_is_not_confirmed_is_an_error_after_which_the_turn_is_there(engine: Engine) -> None:
    """A SQLite file has no replicas; the retry waits again, learns nothing and is honest again."""
    for _ in range(2):
        with pytest.raises(DurabilityUnmet, match="'replicated:2' was not confirmed"):
            await chat(engine, attempt=named("k1"), durability="replicated:2")
    assert await num_turns(engine) == 1
    assert (await chat(engine, attempt=named("k1"))).receipt.replayed
    assert (await chat(engine, "Two")).receipt.restored_from == "hot"


async def test_a_lenient_server_tells_the_truth_instead(tmp_path: Path) -> None:
    """With durability_unmet=degrade the receipt says what was asked and what was reached."""
    engine = toy_engine(tmp_path / "store.db", durability="replicated:1", durability_unmet="degrade")
    await engine.start()
    assert _reached(await chat(engine, attempt=named("k1"))) == ("replicated:1", "fsync", 0)
    assert _reached(await chat(engine, attempt=named("k1"))) == ("replicated:1", "fsync", 0)
    await engine.stop()


async def test_the_disk_can_be_waited_for(engine: Engine) -> None:
    """A SQLite commit is on the disk."""
    assert _reached(await chat(engine, durability="fsync")) == ("fsync", "fsync", 0)


async def test_the_backlog_is_bounded(engine: Engine, monkeypatch) -> None:
    """Beyond it a turn is committed before it is answered, and its receipt says so."""
    monkeypatch.setattr(commits, "MAX_BACKLOG", 0)
    assert _reached(await chat(engine, "One", durability="none")) == ("none", "commit", 0)
    assert _reached(await chat(engine, "Two", durability="async")) == ("async", "commit", 0)


async def test_versions_forks_and_exports_hold_what_is_only_in_memory(engine: Engine) -> None:
    """What copies or sets back a session commits it first."""
    await chat(engine, "One", durability="none")
    fork = await engine.fork_session(KEY, "copy")
    assert fork.turn == 1
    end = await chat(engine, "Two")
    assert (end.receipt.turn, end.receipt.restored_from) == (2, "hot")
