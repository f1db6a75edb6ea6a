"""The engine thread: takes commands, plans rounds, computes them. It does no I/O and sees no event loop.

Turns report through their own `emit`; everything that enters comes through one queue.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from hope_memory.snapshot import Snapshot

from hope_server.engine.heap import give_back
from hope_server.engine.run import NeedsSnapshot, Run
from hope_server.engine.runner import Runner
from hope_server.engine.scheduler import Kind, Plan, Scheduler
from hope_server.engine.turn import Restored, SessionKey
from hope_server.errors import HopeError, InternalError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Submit:
    """Run a turn."""

    run: Run


@dataclass(frozen=True, slots=True)
class Deliver:
    """A waiting turn asked for its session's snapshot: here it is, and where it was."""

    run: Run
    snapshot: Snapshot
    source: Restored


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a turn, wherever it is."""

    run: Run


@dataclass(frozen=True, slots=True)
class Committed:
    """A prepared turn is kept under `version`."""

    run: Run
    version: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """What was kept under a name of this process is durable as `version`."""

    key: SessionKey
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Forget:
    """A session was deleted or changed elsewhere: its cache is void."""

    key: SessionKey


@dataclass(frozen=True, slots=True)
class Stop:
    """End the thread."""


Command = Submit | Deliver | Drop | Committed | Renamed | Forget | Stop


TIDY_SECONDS = 30.0
"""How often freed memory goes back to the system where the loop is never idle: else as much again lies in fragments."""


class EngineLoop:
    """Runs a Runner in a thread of its own.

    busy_seconds: spent on computing turns; idle_seconds, num_idle_steps: of consolidation that no turn waited for.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._scheduler: Scheduler[Run] = Scheduler()
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="hope-engine", daemon=True)
        self._is_stopping = False
        self._tidied = time.monotonic()
        self.busy_seconds = 0.0
        self.idle_seconds = 0.0
        self.num_idle_steps = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def send(self, command: Command) -> None:
        """Hand over a command; from any thread, never blocks."""
        self._inbox.put(command)

    def join(self) -> None:
        """Stop after the present round and wait for the thread to end."""
        self.send(Stop())
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Turns that have no slot yet."""
        return len(self._scheduler.waiting)

    @property
    def num_running(self) -> int:
        """Turns that have one."""
        return len(self._scheduler.running)

    @property
    def num_busy(self) -> int:
        """Slots in which a turn runs."""
        return self._runner.pool.num_busy

    @property
    def num_state_bytes(self) -> int:
        """Bytes of the states of all slots."""
        return self._runner.pool.num_bytes

    @property
    def num_hot(self) -> int:
        """Idle sessions that are resident."""
        return sum(resident is not None for resident in self._runner.pool.residents)

    @property
    def num_jobs(self) -> int:
        """Resident sessions with a block whose consolidation has not taken effect."""
        residents = self._runner.pool.residents
        return sum(resident is not None and resident.log.job is not None for resident in residents)

    def _main(self) -> None:
        is_idle = False
        while not self._is_stopping:
            self._take_commands(block=is_idle)
            self._admit()
            plan = self._scheduler.next()
            if plan.is_idle:
                is_idle = not self._consolidate_idly()
            else:
                is_idle = False
                self._compute(plan)
            if is_idle or time.monotonic() - self._tidied >= TIDY_SECONDS:
                give_back()
                self._tidied = time.monotonic()

    def _take_commands(self, *, block: bool) -> None:
        """Carry out every waiting command; with nothing to compute, wait for one."""
        while not self._is_stopping:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            self._guarded(partial(self._carry_out, command), [])

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Submit):
            self._scheduler.submit(command.run)
        elif isinstance(command, Deliver):
            command.run.snapshot, command.run.snapshot_from = command.snapshot, command.source
            command.run.is_fetching = False
        elif isinstance(command, Drop):
            self._scheduler.remove(command.run)
            self._runner.drop(command.run)
        elif isinstance(command, Committed):
            self._runner.commit(command.run, command.version)
        elif isinstance(command, Renamed):
            self._runner.pool.rename(command.key, command.name, command.version)
        elif isinstance(command, Forget):
            self._runner.forget(command.key)
        else:
            self._is_stopping = True

    def _admit(self) -> None:
        self._prefetch()
        while self._runner.pool.has_room:
            run = self._scheduler.admit(lambda run: not self._runner.lacks_state(run))
            if run is None:
                return
            self._guarded(partial(self._runner.seat, run), [run])
            # A run with nothing to compute ends where it is seated.
            if run.phase == "done":
                self._scheduler.remove(run)

    def _prefetch(self) -> None:
        """Let the states of those who are next be fetched while they wait; of all who wait they could fill memory."""
        if not self._scheduler.waiting:
            return
        for run in self._scheduler.next_in_line(self._runner.pool.num_slots):
            if not run.is_fetching and self._runner.lacks_state(run):
                run.is_fetching = True
                run.emit(NeedsSnapshot())

    def _compute(self, plan: Plan[Run]) -> None:
        if plan.decode:
            with self._timed("decode"):
                self._guarded(partial(self._runner.decode, plan.decode), plan.decode)
                for run in [run for run in plan.decode if run.phase != "done"]:
                    self._guarded(partial(self._runner.move_on, run), [run])
        if plan.read is not None:
            with self._timed("read"):
                self._guarded(partial(self._runner.read, plan.read), [plan.read])
        if plan.consolidate is not None:
            with self._timed("consolidate"):
                self._guarded(partial(self._runner.consolidate, plan.consolidate), [plan.consolidate])
        elif plan.has_spare:
            self._consolidate_idly()
        for run in [run for run in self._scheduler.running if run.phase == "done"]:
            self._scheduler.remove(run)

    def _consolidate_idly(self) -> bool:
        """Take a step that no turn waits for; whether there was one."""
        began = time.perf_counter()
        has_stepped = self._guarded(partial(self._runner.idle, self._scheduler.running), [])
        if has_stepped:
            seconds = time.perf_counter() - began
            self._scheduler.spent("consolidate", seconds)
            self.idle_seconds += seconds
            self.num_idle_steps += 1
        return has_stepped

    @contextmanager
    def _timed(self, kind: Kind | Literal["decode"]) -> Iterator[None]:
        """Count how long work of a kind took, and tell the scheduler."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self.busy_seconds += seconds
            self._scheduler.spent(kind, seconds)

    def _guarded(self, work: Callable[[], bool | None], runs: list[Run]) -> bool:
        """Do some work for turns; a fault ends these turns, with an error each, and nothing else."""
        try:
            return bool(work())
        except HopeError as error:
            self._fail(runs, error)
        except Exception:  # noqa: BLE001 - the top of the loop: the turn ends with an error, the loop goes on
            _log.exception("engine_fault")
            self._fail(runs, InternalError("the engine failed; nothing of this turn was kept"))
        return False

    def _fail(self, runs: list[Run], error: HopeError) -> None:
        for run in runs:
            self._scheduler.remove(run)
            self._runner.drop(run)
            run.emit(error)
