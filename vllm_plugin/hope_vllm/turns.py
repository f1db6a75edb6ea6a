"""The turns of sessions in one engine: one at a time in each session, from the first look at its state to its commit.

A turn waits behind others of its session; then its state is fetched, before it is given a place in a batch; it reads
and writes; its last token is read, too; its state is committed; then its reply may end. Pure Python.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum, auto
from threading import Event
from typing import Any, Protocol

from hope_server.errors import HopeError, InternalError, SessionBusy

BUSY_SECONDS = 1.0
"""When a client whose session has too many turns waiting may come again."""


class Phase(Enum):
    """Where a turn is."""

    WAITING = auto()
    LOADING = auto()
    READY = auto()
    ABSORBING = auto()
    SAVING = auto()
    COMMITTING = auto()


class Sessions(Protocol):
    """Who loads and commits: a Keeper. Futures raise HopeError."""

    def load(self, session_id: str, ask: Any) -> Future[Any]:
        """A session's Start."""

    def commit(self, session_id: str, start: Any, shards: Sequence[Any], num_read: int, reply: Any) -> Future[Any]:
        """What became of a commit."""


@dataclass(slots=True)
class Turn:
    """One request in one session.

    learns: whether its state is committed. ask: its own name, where it has one, and answer: what is kept of its reply
    then. start: what it goes on from, None until it is loaded. slots: pages of its
    state by layer. num_read: tokens that its state has read. outcome: why it stopped (the engine's own words), once its
    last token was sampled. held: what of its reply is kept back. committing: the commit under way.
    """

    request_id: str
    session_id: str
    learns: bool = True
    ask: Any = None
    answer: Any = None
    phase: Phase = Phase.WAITING
    loading: Future[Any] | None = None
    start: Any = None
    slots: dict[str, int] = field(default_factory=dict)
    num_read: int = 0
    outcome: tuple[Any, Any] | None = None
    held: Any = None
    committing: Future[Any] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A turn that ends before its first token, and why."""

    request_id: str
    error: HopeError


class TurnBook:
    """The turns under way. Used from the engine's one thread."""

    def __init__(self, sessions: Sessions, max_queued: int) -> None:
        """max_queued: turns that may wait behind the one that runs in each session."""
        self._sessions = sessions
        self._max_queued = max_queued
        self._turns: dict[str, Turn] = {}
        self._queues: dict[str, deque[Turn]] = {}
        self._refusals: list[Refusal] = []
        self._answered: list[Turn] = []
        self._has_news = Event()

    def begin(self, request_id: str, session_id: str, *, learns: bool = True, ask: Any = None) -> None:
        """Take a request in: its state is fetched as soon as no other turn of its session runs."""
        queue = self._queues.setdefault(session_id, deque())
        if len(queue) > self._max_queued:
            self.refuse(request_id, SessionBusy(session_id, BUSY_SECONDS))
            return
        turn = Turn(request_id, session_id, learns, ask)
        self._turns[request_id] = turn
        queue.append(turn)
        if len(queue) == 1:
            self._load(turn)

    def refuse(self, request_id: str, error: HopeError) -> None:
        """End a request before its first token."""
        self._refusals.append(Refusal(request_id, error))

    def find(self, request_id: str) -> Turn | None:
        """The turn of a request; None for a request without a session, and for one that has ended."""
        return self._turns.get(request_id)

    def is_ready(self, turn: Turn) -> bool:
        """Whether a turn's state is here, so that its first token may be computed."""
        if turn.phase is Phase.LOADING and turn.loading is not None and turn.loading.done():
            error = _error_of(turn.loading)
            if error is None:
                turn.start, turn.phase, turn.loading = turn.loading.result(), Phase.READY, None
                # A frozen session is used as it is.
                turn.learns = turn.learns and not turn.start.card.is_frozen
                if turn.start.answer is not None:
                    turn.phase = Phase.WAITING
                    self._answered.append(turn)
            else:
                turn.phase, turn.loading = Phase.WAITING, None
                self.refuse(turn.request_id, error)
        return turn.phase not in (Phase.WAITING, Phase.LOADING)

    def commit(self, turn: Turn, shards: Sequence[Any]) -> None:
        """Begin to commit what the ranks made of a turn's state."""
        turn.phase = Phase.COMMITTING
        reply = None if turn.ask is None else (turn.ask, turn.answer)
        turn.committing = self._sessions.commit(turn.session_id, turn.start, shards, turn.num_read, reply)
        turn.committing.add_done_callback(self._tell)

    def fail(self, turn: Turn, error: HopeError) -> None:
        """Have a turn end with an error where its commit would have been."""
        turn.phase = Phase.COMMITTING
        turn.committing = Future()
        turn.committing.set_exception(error)

    def end(self, turn: Turn) -> None:
        """Forget a turn, whatever became of it, and let the next of its session begin."""
        self._turns.pop(turn.request_id, None)
        queue = self._queues[turn.session_id]
        was_first = queue[0] is turn
        queue.remove(turn)
        if not queue:
            del self._queues[turn.session_id]
        elif was_first:
            self._load(queue[0])

    def wait(self, seconds: float) -> None:
        """Return when a load or a commit has ended since the last call, at most so long after now."""
        self._has_news.wait(seconds)
        self._has_news.clear()

    def take_refusals(self) -> list[Refusal]:
        """The requests to end now."""
        for turn in list(self._turns.values()):
            self.is_ready(turn)
        refusals, self._refusals = self._refusals, []
        return refusals

    def take_answered(self) -> list[Turn]:
        """The turns that were answered before, to be answered so again now."""
        answered, self._answered = self._answered, []
        return answered

    def take_settled(self) -> list[tuple[Turn, Any | HopeError]]:
        """Turns whose commit has ended, and what became of it; they are ended."""
        settled: list[tuple[Turn, Any | HopeError]] = []
        for turn in list(self._turns.values()):
            if turn.phase is Phase.COMMITTING and turn.committing is not None and turn.committing.done():
                error = _error_of(turn.committing)
                settled.append((turn, turn.committing.result() if error is None else error))
                self.end(turn)
        return settled

    @property
    def is_waiting(self) -> bool:
        """Whether a load or a commit is under way."""
        return any(turn.phase in (Phase.LOADING, Phase.COMMITTING) for turn in self._turns.values())

    @property
    def is_settling(self) -> bool:
        """Whether replies wait for commits, or refusals to be told."""
        ending = (Phase.SAVING, Phase.COMMITTING)
        return bool(self._refusals or self._answered) or any(turn.phase in ending for turn in self._turns.values())

    def _load(self, turn: Turn) -> None:
        turn.phase, turn.loading = Phase.LOADING, self._sessions.load(turn.session_id, turn.ask)
        turn.loading.add_done_callback(self._tell)

    def _tell(self, _: Future[Any]) -> None:
        self._has_news.set()


def _error_of(future: Future[Any]) -> HopeError | None:
    error = future.exception()
    if error is None or isinstance(error, HopeError):
        return error
    internal = InternalError(f"{type(error).__name__} in the keeper of sessions; the session is as it was")
    internal.__cause__ = error
    return internal
