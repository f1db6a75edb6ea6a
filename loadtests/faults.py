"""What goes wrong during a run with several servers, and when: a plan, and a thread that carries it out."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

KINDS = {
    "kill server": "a server's process is killed and started again",
    "kill primary": "a primary of the Redis Cluster is killed, and comes back when a replica has taken over",
    "stop server": "a server is told to end, as in an upgrade, and started again",
    "pause server": "a server's process stands still, then goes on with what it had in memory",
    "move slots": "some of a primary's hash slots move to another, with the sessions in them",
}
OF_STORE = {"kill primary", "move slots"}
"""Those that need a cluster."""

_FIRST, _LAST = 0.08, 0.85
_SPACING_SECONDS = 13.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. at, down: seconds since the load began, and until it is mended.

    index: which server, or which of the primaries that there are then.
    """

    at: float
    kind: str
    index: int
    down: float


def plan_faults(seconds: float, num_servers: int, num_primaries: int, seed: int) -> list[Fault]:
    """Return faults one after the other over a run, each kind in its turn, each mended before the next; pure.

    None begins in the first moments of a run or so late that it would not be mended in it. Of `num_primaries` 0, none
    is of the store.
    """
    chance = random.Random(f"{seed} faults")
    kinds = [kind for kind in KINDS if num_primaries or kind not in OF_STORE]
    num_faults = max(1, int(seconds * (_LAST - _FIRST) / _SPACING_SECONDS))
    step = seconds * (_LAST - _FIRST) / num_faults
    found = []
    for number in range(num_faults):
        kind = kinds[number % len(kinds)]
        at = seconds * _FIRST + step * number
        among = num_primaries if kind in OF_STORE else num_servers
        # A primary stays away until its replica has taken over: one that comes back at once would go on as primary.
        down = chance.uniform(0.4, 0.6) * step
        found.append(Fault(at, kind, chance.randrange(among), down))
    return found


@dataclass(frozen=True, slots=True)
class Noted:
    """A fault as it happened: seconds since the load began, what was done to what, seconds until it was up again."""

    at: float
    kind: str
    what: str
    away: float


Begin = Callable[[Fault], tuple[str, Callable[[], None]]]
"""Does something wrong; returns its name, and what mends it and waits until it is up."""


class FaultThread:
    """Carries a plan out while a `with` block runs; at its end everything is mended."""

    def __init__(self, plan: Sequence[Fault], begin: Begin) -> None:
        """begin: called in this thread. What it or its mending raises is kept in `error`, and ends the plan."""
        self._plan = plan
        self._begin = begin
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)
        self.noted: list[Noted] = []
        self.error: Exception | None = None

    def __enter__(self) -> FaultThread:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            for fault in self._plan:
                if self._ending.wait(max(0.0, fault.at - (time.monotonic() - began))):
                    return
                self._carry_out(fault, began)
        except Exception as exc:  # noqa: BLE001  a thread has nobody to raise to; the driver asks for it
            self.error = exc

    def _carry_out(self, fault: Fault, began: float) -> None:
        at = time.monotonic()
        what, mend = self._begin(fault)
        try:
            self._ending.wait(fault.down)
        finally:
            mend()
        self.noted.append(Noted(at - began, fault.kind, what, time.monotonic() - at))
