"""Users and servers in simulated time: what a number of servers does under a load that answers back.

Users take a turn, wait for its end, think, and take the next one, as Locust's do. Servers on one machine share its
cores: where more compute than there are cores, each goes on so much slower.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from hope_server.capacity.constants import Constants
from hope_server.capacity.simulated_server import Clock, SimulatedServer, SimulatedSession, SimulatedTurn

__all__ = ["Outcome", "TurnSize", "Users", "simulate"]

HOST_BYTES = 256 * 2**20
"""What `host_cache_bytes` is by default."""


@dataclass(frozen=True, slots=True)
class TurnSize:
    """Tokens of a turn. taught: of its prompt, those that are studied."""

    prompt_tokens: int
    reply_tokens: int
    taught: float = 0.0


@dataclass(frozen=True, slots=True)
class Users:
    """Some users who are alike. sessions: of each; turns: sizes, of which every turn draws one; think_seconds: mean
    pause; is_in_order: whether they go through their sessions one after the other, not at random; first_turns: sizes of
    the first turn of each session, which reads the system's message too (none: as of the others).
    """

    count: int
    sessions: int
    turns: Sequence[TurnSize]
    think_seconds: float
    is_in_order: bool = False
    first_turns: Sequence[TurnSize] = ()


@dataclass(slots=True)
class Outcome:
    """What was seen after the warm-up. ttft_seconds, answer_seconds: of each turn, to its first token and its end."""

    seconds: float
    num_turns: int = 0
    num_tokens: int = 0
    ttft_seconds: list[float] = field(default_factory=list)
    answer_seconds: list[float] = field(default_factory=list)
    restores: dict[str, int] = field(default_factory=dict)
    busy: float = 0.0

    @property
    def turns_per_second(self) -> float:
        """Turns that ended, by time."""
        return self.num_turns / self.seconds

    @property
    def mean_answer_seconds(self) -> float:
        """From a turn's request to its end."""
        return sum(self.answer_seconds) / max(1, len(self.answer_seconds))


def simulate(
    users: Sequence[Users],
    constants: Constants,
    *,
    num_servers: int = 1,
    num_cores: float | None = None,
    seconds: float = 600.0,
    warm_up: float = 60.0,
    host_bytes: float = HOST_BYTES,
    seed: int = 1,
) -> Outcome:
    """Return what users see. num_cores: that the servers share, on the average; None: each has its own."""
    clock = Clock()
    chance = random.Random(seed)
    servers = [SimulatedServer(constants, clock, host_bytes) for _ in range(num_servers)]
    outcome = Outcome(seconds - warm_up)
    number = 0
    for kind in users:
        for _ in range(kind.count):
            # A session stays on one server, as routers keep it.
            sessions = [SimulatedSession(number + index) for index in range(kind.sessions)]
            number += kind.sessions
            homes = [chance.choice(servers) for _ in sessions]
            user = _User(kind, sessions, homes, clock, chance, outcome, warm_up)
            clock.after(chance.random() * max(1.0, kind.think_seconds), user.begin)
    _run(servers, clock, num_cores, constants.num_threads, seconds)
    for server in servers:
        for place, count in server.restores.items():
            outcome.restores[place] = outcome.restores.get(place, 0) + count
    outcome.busy = sum(server.busy_seconds for server in servers) / (num_servers * seconds)
    return outcome


class _User:
    """Takes turns in its sessions, one after the other."""

    def __init__(
        self,
        kind: Users,
        sessions: list[SimulatedSession],
        homes: list[SimulatedServer],
        clock: Clock,
        chance: random.Random,
        outcome: Outcome,
        warm_up: float,
    ) -> None:
        self._kind = kind
        self._places = list(zip(sessions, homes, strict=True))
        self._clock = clock
        self._chance = chance
        self._outcome = outcome
        self._warm_up = warm_up
        self._num_turns = 0

    def begin(self) -> None:
        """Send the next turn."""
        places = self._places
        session, home = places[self._num_turns % len(places)] if self._kind.is_in_order else self._chance.choice(places)
        self._num_turns += 1
        kind = self._kind
        size = self._chance.choice(kind.first_turns if kind.first_turns and not session.turns else kind.turns)
        ended = partial(self._ended, size)
        turn = SimulatedTurn(session, size.prompt_tokens, size.reply_tokens, size.taught, self._clock.now, end=ended)
        home.submit(turn)

    def _ended(self, size: TurnSize, turn: SimulatedTurn) -> None:
        if self._clock.now >= self._warm_up:
            self._outcome.num_turns += 1
            self._outcome.num_tokens += size.reply_tokens
            self._outcome.answer_seconds.append(self._clock.now - turn.begun)
            if turn.first is not None:
                self._outcome.ttft_seconds.append(turn.first - turn.begun)
        think = self._kind.think_seconds
        self._clock.after(self._chance.expovariate(1 / think) if think > 0 else 0.0, self.begin)


def _run(
    servers: Sequence[SimulatedServer], clock: Clock, num_cores: float | None, num_threads: int, seconds: float
) -> None:
    """Let time go on: each server is in a part of a round or has nothing to do; those in one share the cores."""
    left = dict.fromkeys(range(len(servers)), 0.0)
    while clock.now < seconds:
        for index, server in enumerate(servers):
            if left[index] <= 0:
                left[index] = server.begin()
        active = [index for index, rest in left.items() if rest > 0]
        wanted = len(active) * num_threads
        speed = 1.0 if num_cores is None or wanted <= num_cores else num_cores / wanted
        soonest = min((left[index] for index in active), default=float("inf")) / speed
        step = min(soonest, clock.next_at - clock.now, seconds - clock.now)
        clock.now += step
        for index in active:
            left[index] -= step * speed
            if left[index] <= 1e-12:
                left[index] = 0.0
                servers[index].end()
        clock.run_due()
