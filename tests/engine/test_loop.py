"""The engine thread: a fault ends the turn it happened in and nothing else, and commands are carried out in order."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hope_memory.snapshot import Snapshot

from hope_server.engine import loop as engine_loop
from hope_server.engine.loop import Committed, Deliver, Drop, EngineLoop, Forget, Submit
from hope_server.engine.run import FeedToken, NeedsSnapshot, Run, RunEvent
from hope_server.engine.turn import SessionKey, TokenText
from hope_server.errors import HopeError, InternalError, StateCorrupt

PATIENCE = 10.0
SNAPSHOT = Snapshot("toy", {}, {})


@dataclass
class Pool:
    """Counts seats."""

    num_free: int = 3
    num_slots: int = 3

    @property
    def has_room(self) -> bool:
        """Whether a turn can be seated."""
        return self.num_free > 0


@dataclass
class FakeRunner:
    """Reads a token a round and breaks where it is told to; `done` is what it did, in order."""

    faults: dict[tuple[str, str], Exception] = field(default_factory=dict)
    pool: Pool = field(default_factory=Pool)
    done: queue.SimpleQueue[tuple[str, str]] = field(default_factory=queue.SimpleQueue)
    idle_steps: int = 0

    def _do(self, what: str, run: Run) -> None:
        self.done.put((what, run.answer_id))
        fault = self.faults.get((what, run.answer_id))
        if fault is not None:
            raise fault

    def lacks_state(self, run: Run) -> bool:
        """A run with a version needs its snapshot first."""
        return run.version is not None and run.snapshot is None

    def seat(self, run: Run) -> None:
        """Take a seat."""
        self.pool.num_free -= 1
        run.slot = 0
        self._do("seat", run)

    def read(self, run: Run) -> None:
        """Read one token; the last one ends the turn, unless it goes on for ever."""
        self._do("read", run)
        run.feed.popleft()
        if run.kind is None:
            run.feed.append(FeedToken(1))
        if not run.feed:
            run.emit(TokenText("end"))
            self.drop(run)

    def decode(self, runs: list[Run]) -> None:
        """Decode a batch."""
        for run in runs:
            self._do("decode", run)

    def move_on(self, run: Run) -> None:
        """Say the decoded token, the turn's last."""
        self._do("move_on", run)
        run.emit(TokenText("said"))
        self.drop(run)

    def consolidate(self, run: Run) -> None:
        """Take the only step."""
        self._do("consolidate", run)
        run.is_blocked = False

    def idle(self, running: Sequence[Run]) -> bool:
        """Take a background step beside the running turns, or break."""
        if self.idle_steps == 0:
            return False
        self.idle_steps -= 1
        self.done.put(("idle", "".join(run.answer_id for run in running)))
        fault = self.faults.get(("idle", ""))
        if fault is not None:
            raise fault
        return True

    def drop(self, run: Run) -> None:
        """Give the seat back."""
        if run.slot >= 0:
            self.pool.num_free += 1
            run.slot = -1
        run.phase = "done"

    def commit(self, run: Run, version: str) -> None:
        """Keep the state."""
        self.done.put(("commit", version))

    def forget(self, key: SessionKey) -> None:
        """Drop a cache."""
        self.done.put(("forget", key.session_id))


class Turn:
    """A run and what it was told."""

    def __init__(self, name: str, num_tokens: int = 3, **changes: object) -> None:
        self.events: queue.SimpleQueue[RunEvent] = queue.SimpleQueue()
        feed = deque(FeedToken(1) for _ in range(num_tokens))
        self.run = Run(emit=self.events.put, feed=feed, answer_id=name, **changes)

    def told(self) -> RunEvent:
        """The next event; fails where none comes."""
        return self.events.get(timeout=PATIENCE)


@pytest.fixture
def runner() -> FakeRunner:
    """A runner without faults."""
    return FakeRunner()


@pytest.fixture
def loop(runner: FakeRunner) -> Iterator[EngineLoop]:
    """A running loop around the runner."""
    engine = EngineLoop(runner)  # type: ignore[arg-type]
    engine.start()
    yield engine
    engine.join()


def submit(loop: EngineLoop, *turns: Turn) -> None:
    """Hand turns in."""
    for turn in turns:
        loop.send(Submit(turn.run))


@pytest.mark.parametrize("what", ["seat", "read", "consolidate"])
def test_a_runner_that_raises_ends_only_its_turn(loop: EngineLoop, runner: FakeRunner, what: str) -> None:
    """The turn gets one InternalError that tells nothing of the fault, its seat is free, and its neighbours finish."""
    runner.faults[what, "bad"] = RuntimeError("secret detail")
    good, bad, late = Turn("good"), Turn("bad"), Turn("late")
    if what == "consolidate":
        bad.run.is_blocked = True
    submit(loop, good, bad)
    error = bad.told()
    assert isinstance(error, InternalError)
    assert "secret" not in error.message
    assert good.told() == TokenText("end")
    submit(loop, late)
    assert late.told() == TokenText("end")
    assert bad.events.empty()
    loop.join()
    assert (runner.pool.num_free, loop.num_running, loop.num_waiting) == (3, 0, 0)


def test_an_error_of_our_own_reaches_the_turn_as_it_is(loop: EngineLoop, runner: FakeRunner) -> None:
    """A HopeError keeps its class and its message."""
    runner.faults["seat", "bad"] = StateCorrupt("the snapshot is damaged")
    bad = Turn("bad")
    submit(loop, bad)
    error = bad.told()
    assert isinstance(error, HopeError)
    assert (error.code, error.message) == ("state_corrupt", "the snapshot is damaged")


def test_a_fault_while_decoding_ends_the_batch_and_no_other_turn(loop: EngineLoop, runner: FakeRunner) -> None:
    """Turns that were decoded together get an error each; one that was reading does not."""
    runner.faults["decode", "a"] = RuntimeError("broken")
    speaking = [Turn(name, 1, phase="generating", chunk_size=9) for name in "ab"]
    reading = Turn("c", 1)
    submit(loop, *speaking, reading)
    assert reading.told() == TokenText("end")
    assert isinstance(speaking[0].told(), InternalError)
    loop.join()
    assert runner.pool.num_free == 3


def test_a_fault_in_what_one_turn_says_ends_only_that_turn(loop: EngineLoop, runner: FakeRunner) -> None:
    """Turns that were decoded together move on apart."""
    runner.faults["move_on", "a"] = RuntimeError("broken")
    broken, fine = (Turn(name, 1, phase="generating", chunk_size=9) for name in "ab")
    submit(loop, broken, fine)
    assert isinstance(broken.told(), InternalError)
    assert fine.told() == TokenText("said")
    loop.join()
    assert runner.pool.num_free == 3


def test_a_fault_in_idle_work_neither_ends_the_loop_nor_spins(loop: EngineLoop, runner: FakeRunner) -> None:
    """Background work that breaks is tried again after the next command at the earliest."""
    runner.faults["idle", ""] = RuntimeError("broken")
    runner.idle_steps = 1000
    for _ in range(2):
        turn = Turn("good", 1)
        submit(loop, turn)
        assert turn.told() == TokenText("end")
    # Long enough for a loop that spins to take hundreds of steps.
    time.sleep(0.2)
    loop.join()
    assert runner.idle_steps >= 1000 - 6


def test_idle_work_goes_on_until_there_is_none(runner: FakeRunner) -> None:
    """With nothing to compute for turns, every background step is taken without being asked."""
    runner.idle_steps = 5
    loop = EngineLoop(runner)  # type: ignore[arg-type]
    loop.start()
    assert [runner.done.get(timeout=PATIENCE) for _ in range(5)] == [("idle", "")] * 5
    loop.join()
    assert runner.idle_steps == 0


def test_background_work_goes_on_beside_turns(loop: EngineLoop, runner: FakeRunner) -> None:
    """A step between the rounds of a turn that never ends, told which turns run: it need not wait until none does."""
    runner.idle_steps = 1
    turn = Turn("a", 1, kind=None)
    submit(loop, turn)
    while runner.done.get(timeout=PATIENCE) != ("idle", "a"):
        pass
    assert runner.done.get(timeout=PATIENCE) == ("read", "a")
    loop.send(Drop(turn.run))
    loop.join()
    assert loop.num_idle_steps == 1


def test_memory_goes_back_while_there_is_always_work(runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then, not only where nothing is left to do."""
    given: queue.SimpleQueue[int] = queue.SimpleQueue()
    monkeypatch.setattr(engine_loop, "give_back", lambda: given.put(runner.done.qsize()))
    monkeypatch.setattr(engine_loop, "TIDY_SECONDS", 0.01)
    loop = EngineLoop(runner)  # type: ignore[arg-type]
    turn = Turn("a", 1, kind=None)
    submit(loop, turn)
    loop.start()
    first, second = (given.get(timeout=PATIENCE) for _ in range(2))
    assert second > first > 0
    loop.send(Drop(turn.run))
    loop.join()


def test_turns_wait_for_a_seat_in_order(loop: EngineLoop, runner: FakeRunner) -> None:
    """With one seat, turns run one after the other as they came."""
    runner.pool.num_free = 1
    turns = [Turn(name, 2) for name in "abc"]
    submit(loop, *turns)
    for turn in turns:
        assert turn.told() == TokenText("end")
    loop.join()
    seen = [runner.done.get_nowait() for _ in range(9)]
    assert seen == [(what, name) for name in "abc" for what in ("seat", "read", "read")]


def test_a_turn_whose_state_is_missing_waits_for_its_snapshot(loop: EngineLoop, runner: FakeRunner) -> None:
    """It is told once what it needs, holds no seat meanwhile, and runs when that is delivered."""
    turn = Turn("a", 1, version="v1")
    submit(loop, turn)
    assert turn.told() == NeedsSnapshot()
    other = Turn("b", 1)
    submit(loop, other)
    assert other.told() == TokenText("end")
    loop.send(Deliver(turn.run, SNAPSHOT, "host"))
    assert turn.told() == TokenText("end")
    assert turn.run.snapshot_from == "host"
    found = [runner.done.get(timeout=PATIENCE) for _ in range(4)]
    assert found == [("seat", "b"), ("read", "b"), ("seat", "a"), ("read", "a")]


def test_states_are_fetched_while_turns_wait_in_line(loop: EngineLoop, runner: FakeRunner) -> None:
    """As many as there are slots, whoever holds them; a turn keeps its place until its state is there."""
    runner.pool.num_free, runner.pool.num_slots = 1, 2
    running = Turn("a", kind=None)
    waiting = [Turn(name, 1, version="v1") for name in "bcd"]
    submit(loop, running, *waiting)
    assert [turn.told() for turn in waiting[:2]] == [NeedsSnapshot()] * 2
    for turn in reversed(waiting[:2]):
        loop.send(Deliver(turn.run, SNAPSHOT, "store"))
    assert waiting[2].events.empty()
    loop.send(Drop(running.run))
    assert waiting[2].told() == NeedsSnapshot()
    assert [turn.told() for turn in waiting[:2]] == [TokenText("end")] * 2
    loop.join()
    names = [runner.done.get_nowait() for _ in range(runner.done.qsize())]
    assert [name for what, name in names if what == "seat"] == ["a", "b", "c"]
    assert all(turn.events.empty() for turn in waiting)


def test_a_dropped_turn_gives_its_seat_back_and_says_nothing_more(loop: EngineLoop, runner: FakeRunner) -> None:
    """Dropping works while a turn runs and while it waits."""
    runner.pool.num_free = 1
    running, waiting, last = Turn("a", 1, kind=None), Turn("b"), Turn("c", 1)
    submit(loop, running, waiting, last)
    loop.send(Drop(waiting.run))
    loop.send(Drop(running.run))
    assert last.told() == TokenText("end")
    assert running.events.empty()
    assert waiting.events.empty()


def test_commands_are_carried_out_in_order(loop: EngineLoop, runner: FakeRunner) -> None:
    """Commits and deletions reach the runner as they were sent, also when nothing is computed."""
    turn = Turn("a")
    loop.send(Committed(turn.run, "v1"))
    loop.send(Forget(SessionKey("t", "ada")))
    loop.send(Committed(turn.run, "v2"))
    found = [runner.done.get(timeout=PATIENCE) for _ in range(3)]
    assert found == [("commit", "v1"), ("forget", "ada"), ("commit", "v2")]


def test_stopping_ends_the_thread_with_turns_in_it(runner: FakeRunner) -> None:
    """A turn that would never end does not hold the stop up."""
    loop = EngineLoop(runner)  # type: ignore[arg-type]
    loop.start()
    submit(loop, Turn("a", 1, kind=None))
    runner.done.get(timeout=PATIENCE)
    loop.join()
    assert loop.num_running == 1
