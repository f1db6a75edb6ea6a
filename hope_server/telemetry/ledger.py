"""Where a turn's time goes: its stages, measured where the work is done and added up until the turn ends.

Times are seconds of `time.perf_counter`. The engine's thread and the event loop both write, each its own stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["STAGES", "Stage", "StageTime", "TurnLedger", "current_ledger", "turn_ledger"]

Stage = Literal["gate", "queue", "restore", "prefill", "decode", "learn", "commit"]
"""gate: behind other turns of its session; queue: until it has a slot; restore: fetching its session's state and
putting it there; prefill: reading; decode: drawing tokens; learn: online writes, and consolidation that it waits for;
commit: writing to the store."""

STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(slots=True)
class StageTime:
    """When a stage first began and last ended, the seconds spent in it between these, and the bytes it moved."""

    began: float
    ended: float
    seconds: float
    num_bytes: int = 0


class TurnLedger:
    """The stages of one turn."""

    __slots__ = ("_late", "_stages")

    def __init__(self) -> None:
        self._stages: dict[Stage, StageTime] = {}
        self._late: Callable[[Stage, StageTime], None] | None = None

    def add(self, stage: Stage, began: float, num_bytes: int = 0) -> None:
        """Add the time from `began` until now to a stage, and bytes that it moved.

        Of a closed ledger only a commit is still of interest: with durability `async` it comes after the answer.
        """
        ended = time.perf_counter()
        if self._late is not None:
            if stage == "commit":
                self._late(stage, StageTime(began, ended, ended - began, num_bytes))
            return
        found = self._stages.get(stage)
        if found is None:
            self._stages[stage] = StageTime(began, ended, ended - began, num_bytes)
        else:
            found.ended = ended
            found.seconds += ended - began
            found.num_bytes += num_bytes

    def close(self, late: Callable[[Stage, StageTime], None]) -> dict[Stage, StageTime]:
        """Return the stages that the turn had, in their order; a commit after this goes to `late`, in its thread."""
        self._late = late
        return {stage: found for stage in STAGES if (found := self._stages.get(stage)) is not None}


turn_ledger: ContextVar[TurnLedger | None] = ContextVar("hope_turn_ledger", default=None)
"""The ledger of the turn that the current task reads; None where nobody will look at it."""


def current_ledger() -> TurnLedger:
    """Return the current turn's ledger, or one that nobody will look at."""
    return turn_ledger.get() or TurnLedger()
