"""Who is computed next. Pure Python: it sees what each turn wants, never a tensor.

Waiting turns are admitted in order while slots are free. Each round then decodes every turn that wants a token, reads
one chunk for one reading turn, and takes one consolidation step for one turn that waits for it; turns of a kind take
rounds in rotation. Idle consolidation runs only in a round with nothing else to do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

Want = Literal["decode", "read", "consolidate", "nothing"]


class Task(Protocol):
    """A turn as the scheduler sees it."""

    @property
    def wants(self) -> Want:
        """What would move the turn on; `nothing` while its commit is under way."""


T = TypeVar("T", bound=Task)


@dataclass(slots=True)
class Plan(Generic[T]):
    """One round. `is_idle`: nothing in it, so that background work may run."""

    decode: list[T] = field(default_factory=list)
    read: T | None = None
    consolidate: T | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the round computes nothing."""
        return not self.decode and self.read is None and self.consolidate is None


class Scheduler(Generic[T]):
    """Holds waiting and running turns and plans rounds."""

    def __init__(self) -> None:
        self.waiting: deque[T] = deque()
        self.running: list[T] = []
        self._turns = 0

    def submit(self, task: T) -> None:
        """Add a turn behind those that wait."""
        self.waiting.append(task)

    def admit(self) -> T | None:
        """Move the first waiting turn to the running ones and return it; None if none waits."""
        if not self.waiting:
            return None
        task = self.waiting.popleft()
        self.running.append(task)
        return task

    def remove(self, task: T) -> bool:
        """Take a turn out, wherever it is; whether it was there."""
        for tasks in (self.running, self.waiting):
            if task in tasks:
                tasks.remove(task)
                return True
        return False

    def next(self) -> Plan[T]:
        """Plan a round over the running turns."""
        self._turns += 1
        return Plan(
            [task for task in self.running if task.wants == "decode"],
            self._rotate([task for task in self.running if task.wants == "read"]),
            self._rotate([task for task in self.running if task.wants == "consolidate"]),
        )

    def _rotate(self, tasks: list[T]) -> T | None:
        return tasks[self._turns % len(tasks)] if tasks else None
