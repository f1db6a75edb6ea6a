"""The engine thread: takes commands, plans rounds, computes them. It does no I/O and sees no event loop.

Turns report through their own `emit`; everything that enters comes through one queue.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hope_server.engine.heap import give_back
from hope_server.engine.run import Run
from hope_server.engine.runner import Runner
from hope_server.engine.scheduler import Plan, Scheduler
from hope_server.engine.turn import SessionKey
from hope_server.errors import HopeError, InternalError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Submit:
    """Run a turn."""

    run: Run


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


Command = Submit | Drop | Committed | Renamed | Forget | Stop


class EngineLoop:
    """Runs a Runner in a thread of its own."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._scheduler: Scheduler[Run] = Scheduler()
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="hope-engine", daemon=True)
        self._is_stopping = False

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
                is_idle = not self._guarded(self._runner.idle, [])
                if is_idle:
                    give_back()
            else:
                is_idle = False
                self._compute(plan)

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
        while self._scheduler.waiting and self._runner.pool.has_room:
            run = self._scheduler.admit()
            # A run with nothing to compute ends where it is seated.
            if run is not None and (not self._guarded(partial(self._runner.seat, run), [run]) or run.phase == "done"):
                self._scheduler.remove(run)

    def _compute(self, plan: Plan[Run]) -> None:
        if plan.decode:
            self._guarded(partial(self._runner.decode, plan.decode), plan.decode)
            for run in [run for run in plan.decode if run.phase != "done"]:
                self._guarded(partial(self._runner.move_on, run), [run])
        if plan.read is not None:
            self._guarded(partial(self._runner.read, plan.read), [plan.read])
        if plan.consolidate is not None:
            self._guarded(partial(self._runner.consolidate, plan.consolidate), [plan.consolidate])
        for run in [run for run in self._scheduler.running if run.phase == "done"]:
            self._scheduler.remove(run)

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
