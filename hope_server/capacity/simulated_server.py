"""A server without tensors: the engine's own scheduler, with time that is reckoned in place of time that passes."""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from hope_server.capacity.constants import Constants
from hope_server.engine.scheduler import Scheduler, Want

__all__ = ["Clock", "SimulatedServer", "SimulatedSession", "SimulatedTurn"]

_SHORTEST = 1e-6


class Clock:
    """Simulated time and what is to happen in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._number = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._number), what))

    @property
    def next_at(self) -> float:
        """When the next thing happens; infinity where nothing is to."""
        return self._events[0][0] if self._events else float("inf")

    def run_due(self) -> None:
        """Let everything happen whose time has come."""
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()


@dataclass(slots=True)
class SimulatedSession:
    """A session. position: tokens read; taught: of the present block, to be studied; study: seconds that the pending
    study still takes, None without one; due: position at which it must be done.
    """

    number: int
    position: int = 0
    taught: float = 0.0
    whole_study: float = 0.0
    study: float | None = None
    due: int = 0
    turns: int = 0


@dataclass(slots=True)
class SimulatedTurn:
    """One turn of a session, as the scheduler sees it. begun, first: when it was sent and when its first token came;
    chunk_tokens: as the server was set.
    """

    session: SimulatedSession
    prompt: int
    reply: int
    taught: float
    begun: float
    end: Callable[[SimulatedTurn], None]
    tenant: str = ""
    is_bulk: bool = False
    first: float | None = None
    is_near: bool = False
    is_fetching: bool = False
    is_committing: bool = False
    read: int = 0
    chunk_tokens: int = 64
    restored_from: str = "new"

    @property
    def wants(self) -> Want:
        """What would move it on."""
        if self.is_committing:
            return "nothing"
        if self.session.study is not None and self.session.position >= self.session.due:
            return "consolidate"
        return "read" if self.read < self.prompt or self.room == 1 else "decode"

    @property
    def room(self) -> int:
        """Tokens that complete the chunk."""
        return self.chunk_tokens - self.session.position % self.chunk_tokens


class SimulatedServer:
    """One server: its slots, its host memory, its engine's rounds."""

    def __init__(self, constants: Constants, clock: Clock, host_bytes: float) -> None:
        """host_bytes: of states kept behind the slots."""
        self._constants = constants
        self._clock = clock
        self._scheduler: Scheduler[SimulatedTurn] = Scheduler()
        self._idle: OrderedDict[int, SimulatedSession] = OrderedDict()
        self._host: OrderedDict[int, None] = OrderedDict()
        self._parts: deque[tuple[float, Callable[[], None]]] = deque()
        self._num_host = int(host_bytes // max(1.0, constants.state_bytes))
        self.restores: dict[str, int] = {"new": 0, "hot": 0, "host": 0, "store": 0}
        self.busy_seconds = 0.0

    def submit(self, turn: SimulatedTurn) -> None:
        """A turn arrives. What it takes before the engine has it, other threads do."""
        turn.chunk_tokens = self._constants.chunk_tokens
        self._clock.after(self._constants.turn_seconds, partial(self._scheduler.submit, turn))

    def begin(self) -> float:
        """Begin the next part of a round; return the seconds that it takes, 0 with nothing to do."""
        if not self._parts:
            self._seat()
            self._plan()
        seconds = self._parts[0][0] if self._parts else 0.0
        self.busy_seconds += seconds
        return seconds

    def end(self) -> None:
        """The part that was begun is over: who has a first token has it now, and who has the last is committed."""
        self._parts.popleft()[1]()

    def _plan(self) -> None:
        """Line up a round's parts, as the engine goes through them."""
        plan = self._scheduler.next()
        if plan.decode:
            step = self._constants.decode(len(plan.decode))
            self._scheduler.spent("decode", step)
            self._add(step, partial(self._written, plan.decode))
        if plan.read is not None:
            count, chunk = self._chunk(plan.read)
            self._scheduler.spent("read", chunk)
            self._add(chunk, partial(self._has_read, plan.read, count))
        if plan.consolidate is not None:
            self._add(self._study(plan.consolidate.session))
        elif plan.has_spare:
            seconds = self._study_idle()
            if seconds:
                self._add(seconds)

    def _add(self, seconds: float, effect: Callable[[], None] = lambda: None) -> None:
        # Work that takes no time would never be over.
        self._parts.append((max(seconds, _SHORTEST), effect))

    # -- seats ---

    def _seat(self) -> None:
        for waiting in self._scheduler.next_in_line(self._constants.num_slots):
            self._fetch(waiting)
        while len(self._scheduler.running) < self._constants.num_slots:
            turn = self._scheduler.admit(lambda turn: turn.is_near or turn.session.number in self._idle)
            if turn is None:
                return
            session = turn.session
            if self._idle.pop(session.number, None) is not None:
                turn.restored_from = "hot"
            elif len(self._idle) + len(self._scheduler.running) > self._constants.num_slots:
                _, evicted = self._idle.popitem(last=False)
                # What was studied of a block is lost with the slot; it is begun anew when the session is back.
                if evicted.study is not None:
                    evicted.study = evicted.whole_study
            self.restores[turn.restored_from] += 1

    def _fetch(self, turn: SimulatedTurn) -> None:
        session = turn.session
        if turn.is_near or turn.is_fetching or session.number in self._idle:
            return
        if session.turns == 0:
            turn.is_near = True
            return
        turn.is_fetching = True
        is_at_host = session.number in self._host
        turn.restored_from = "host" if is_at_host else "store"
        seconds = self._constants.host_restore_seconds if is_at_host else self._constants.restore_seconds

        def arrive() -> None:
            turn.is_near = True

        self._clock.after(seconds, arrive)

    def _committed(self, turn: SimulatedTurn) -> None:
        self._scheduler.remove(turn)
        session = turn.session
        session.turns += 1
        self._idle[session.number] = session
        self._idle.move_to_end(session.number)
        self._host.pop(session.number, None)
        self._host[session.number] = None
        while len(self._host) > self._num_host:
            self._host.popitem(last=False)
        turn.end(turn)

    # -- what a round does ---

    def _chunk(self, turn: SimulatedTurn) -> tuple[int, float]:
        """Tokens of the turn's next chunk, one of the reply's where that completes it; the seconds that they take."""
        count = min(turn.room, max(1, turn.prompt - turn.read))
        seconds = self._constants.chunk() if count == turn.room else self._constants.part(count)
        return count, seconds

    def _has_read(self, turn: SimulatedTurn, count: int) -> None:
        if turn.read >= turn.prompt:
            self._written([turn])
            return
        turn.read += count
        turn.session.taught += turn.taught * count / turn.prompt
        self._move_on(turn.session, count)
        if turn.read >= turn.prompt:
            # The last chunk's logits are the first token's.
            turn.first = self._clock.now
            self._written([turn])

    def _written(self, turns: Sequence[SimulatedTurn]) -> None:
        for turn in turns:
            turn.reply -= 1
            self._move_on(turn.session, 1)
            if turn.reply <= 0:
                turn.is_committing = True
                self._clock.after(self._constants.commit_seconds, partial(self._committed, turn))

    def _move_on(self, session: SimulatedSession, count: int) -> None:
        block = self._constants.block_tokens
        ends = (session.position + count) // block > session.position // block
        session.position += count
        seconds = session.taught * self._constants.study_token_seconds
        if ends and session.study is None and seconds > 0:
            session.whole_study = session.study = seconds
            session.due = session.position // block * block + self._constants.delay_tokens
            session.taught = 0.0

    def _study(self, session: SimulatedSession) -> float:
        """One part of a session's study; the seconds that it took."""
        if session.study is None:
            return 0.0
        seconds = min(session.study, self._constants.study_part(session.whole_study))
        session.study -= seconds
        if session.study <= 1e-9:
            session.study = 0.0
            if session.position >= session.due:
                session.study = None
        self._scheduler.spent("consolidate", seconds)
        return seconds

    def _study_idle(self) -> float:
        def has_begun(session: SimulatedSession) -> bool:
            return session.study != session.whole_study

        # As the engine does: one that has begun comes before others, and in a turn's slot none begins.
        running = [turn.session for turn in self._scheduler.running if has_begun(turn.session)]
        waiting = [session for session in [*running, *self._idle.values()] if session.study]
        return self._study(max(waiting, key=has_begun)) if waiting else 0.0
