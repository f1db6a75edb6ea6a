"""Who is computed next. Pure Python: it sees what each turn wants, never a tensor.

Slots go to turns that somebody waits for before bulk work, and among these to whoever has the fewest, so that one
tenant's many turns do not hold up another's. A round then decodes every turn that wants a token, or reads one chunk for
one reading turn, in rotation, and takes one consolidation step for one turn that waits for it, whose job goes on until
it is done, or in the background for a session that will need it. While anybody decodes, reading has its share of the
time: a half, and more where more turns read than decode, since those decode with the others afterwards, and a round of
many costs little more than one of few. Consolidation has its share of the time of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

Want = Literal["decode", "read", "consolidate", "nothing"]
Kind = Literal["read", "consolidate"]

READ_SHARES = (0.5, 0.8)
"""Share of the time that reading has while turns decode: at least, and at most where most turns read."""
CONSOLIDATE_SHARE = 0.15
"""Share of the time that consolidation has while turns decode or read; what it evicts from caches costs more."""
PATIENCE = 8
"""Turns that may be given a slot before one that is bulk and waited longer."""


class Task(Protocol):
    """A turn as the scheduler sees it."""

    @property
    def wants(self) -> Want:
        """What would move the turn on; `nothing` while its commit is under way."""

    @property
    def tenant(self) -> str:
        """Whose turn it is."""

    @property
    def is_bulk(self) -> bool:
        """Whether nobody waits for its first word."""


T = TypeVar("T", bound=Task)


@dataclass(slots=True)
class Plan(Generic[T]):
    """One round. `is_idle`: nothing in it. has_spare: a step of background work may be taken beside it."""

    decode: list[T] = field(default_factory=list)
    read: T | None = None
    consolidate: T | None = None
    has_spare: bool = True

    @property
    def is_idle(self) -> bool:
        """Whether the round computes nothing."""
        return not self.decode and self.read is None and self.consolidate is None


class Scheduler(Generic[T]):
    """Holds waiting and running turns and plans rounds."""

    def __init__(self) -> None:
        self.waiting: list[T] = []
        self.running: list[T] = []
        self._num_read = self._num_studied = 0
        self._served: dict[str, int] = {}
        self._num_served = 0
        self._passed_over: Counter[int] = Counter()
        self._read_share = READ_SHARES[0]
        self._credit = 0.0
        self._owed = 0.0

    def submit(self, task: T) -> None:
        """Add a turn behind those that wait."""
        self.waiting.append(task)

    def next_in_line(self, count: int) -> list[T]:
        """The waiting turns that are likely to be admitted next, at most `count`."""
        return sorted(self.waiting, key=self._rank())[:count]

    def admit(self, is_ready: Callable[[T], bool] = lambda _: True) -> T | None:
        """Move a waiting turn to the running ones and return it; None if none that is ready waits."""
        ready = [task for task in self.waiting if is_ready(task)]
        if not ready:
            return None
        task = min(ready, key=self._rank())
        self.waiting.remove(task)
        self._passed_over.pop(id(task), None)
        for other in self.waiting:
            self._passed_over[id(other)] += 1
        self.running.append(task)
        self._num_served += 1
        self._served[task.tenant] = self._num_served
        if not self.waiting:
            self._served.clear()
        return task

    def remove(self, task: T) -> bool:
        """Take a turn out, wherever it is; whether it was there."""
        for tasks in (self.running, self.waiting):
            if task in tasks:
                tasks.remove(task)
                self._passed_over.pop(id(task), None)
                return True
        return False

    def next(self) -> Plan[T]:
        """Plan a round over the running turns."""
        by_want: dict[Want, list[T]] = {"decode": [], "read": [], "consolidate": [], "nothing": []}
        for task in self.running:
            by_want[task.wants].append(task)
        decode, read = by_want["decode"], by_want["read"]
        if not decode:
            self._credit = 0.0
            if not read:
                self._owed = 0.0
        elif read:
            least, most = READ_SHARES
            self._read_share = max(least, min(most, len(read) / (len(read) + len(decode))))
            if self._credit > 0:
                return Plan(read=self._rotate(read), has_spare=False)
            read = []
        has_spare = not by_want["consolidate"] and not self._owed
        consolidate = None if self._owed else self._first(by_want["consolidate"])
        return Plan(decode, self._rotate(read), consolidate, has_spare)

    def spent(self, kind: Kind | Literal["decode"], seconds: float) -> None:
        """Note that work of a kind took so long.

        Decoding earns reading its share, which may be overdrawn by a chunk; what consolidation takes above its share is
        owed to both.
        """
        if kind == "consolidate":
            self._owed += seconds * (1 - CONSOLIDATE_SHARE) / CONSOLIDATE_SHARE
            return
        self._owed = max(0.0, self._owed - seconds)
        if kind == "decode":
            self._credit = min(0.0, self._credit) + seconds * self._read_share / (1 - self._read_share)
        else:
            self._credit -= seconds

    def _rotate(self, tasks: list[T]) -> T | None:
        if not tasks:
            return None
        self._num_read += 1
        return tasks[self._num_read % len(tasks)]

    def _first(self, tasks: list[T]) -> T | None:
        """The turn that has its slot longest; of bulk turns and others, where both are there, by turns.

        Half done, a consolidation holds several times the memory of what it writes, and nobody has its result.
        """
        lines = [line for is_bulk in (False, True) if (line := [task for task in tasks if task.is_bulk == is_bulk])]
        if not lines:
            return None
        self._num_studied += 1
        return lines[self._num_studied % len(lines)][0]

    def _rank(self) -> Callable[[T], tuple[bool, int, int, int]]:
        """What the waiting are sorted by: bulk last, then who has the fewest slots, then who was served longest ago."""
        held = Counter(task.tenant for task in self.running)
        arrivals = {id(task): place for place, task in enumerate(self.waiting)}

        def rank(task: T) -> tuple[bool, int, int, int]:
            waits_long = self._passed_over[id(task)] >= PATIENCE
            served = self._served.get(task.tenant, 0)
            return task.is_bulk and not waits_long, held[task.tenant], served, arrivals[id(task)]

        return rank
