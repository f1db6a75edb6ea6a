"""The slot pool: rows of one batched state, each running a turn, keeping an idle session warm, or free.

A resident session is a cache of its newest commit; it may be evicted whenever no turn runs in its slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hope_server.engine.session_log import SessionLog
from hope_server.engine.turn import SessionKey
from hope_server.model.state import FastState, Memory, empty_state


@dataclass(slots=True)
class Resident:
    """A session whose slot holds its state exactly as it is known under `version`."""

    key: SessionKey
    version: str
    log: SessionLog
    writes: dict[str, int]
    last_used: int


class SlotPool:
    """Allocates the rows of a FastState. Not thread-safe: one thread owns the tensors."""

    def __init__(self, memory: Memory, num_slots: int, dtype: torch.dtype) -> None:
        self.state: FastState = empty_state(memory, num_slots, dtype)
        self.residents: list[Resident | None] = [None] * num_slots
        self._busy = [False] * num_slots
        self._clock = 0

    @property
    def num_slots(self) -> int:
        """Slots in all."""
        return len(self._busy)

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots' states."""
        return sum(tensor.nbytes for tensor in self.state.tensors().values())

    @property
    def num_busy(self) -> int:
        """Slots in which a turn runs."""
        return sum(self._busy)

    @property
    def has_room(self) -> bool:
        """Whether a turn can be seated now."""
        return self.num_busy < len(self._busy)

    def row(self, slot: int) -> FastState:
        """A one-row view of a slot."""
        return self.state.rows(slot, slot + 1)

    def find(self, key: SessionKey) -> int | None:
        """The idle slot in which a session is resident."""
        for slot, resident in enumerate(self.residents):
            if resident is not None and resident.key == key and not self._busy[slot]:
                return slot
        return None

    def take(self, keep: int | None = None) -> int:
        """Seat a turn: a free slot, else the longest idle resident's, near busy slots. The row is as its last user
        left it.

        keep: an idle slot that is taken only if there is no other.
        """
        idle = [slot for slot, busy in enumerate(self._busy) if not busy and slot != keep]
        if not idle and keep is not None and not self._busy[keep]:
            idle = [keep]
        if not idle:
            raise RuntimeError("no slot is free; ask has_room first")
        slot = min(idle, key=self._cost)
        self.residents[slot] = None
        self._busy[slot] = True
        return slot

    def occupy(self, slot: int) -> Resident:
        """Seat a turn in the slot where its session is resident; the slot is no longer a cache of a commit."""
        resident = self.residents[slot]
        if resident is None or self._busy[slot]:
            raise RuntimeError(f"slot {slot} holds no idle session")
        self.residents[slot] = None
        self._busy[slot] = True
        return resident

    def settle(self, slot: int, resident: Resident | None) -> None:
        """End a turn: keep the slot as a session's cache, or free it."""
        self._busy[slot] = False
        if resident is not None:
            self._clock += 1
            resident.last_used = self._clock
            self.forget(resident.key)
        self.residents[slot] = resident

    def forget(self, key: SessionKey, version: str | None = None) -> None:
        """Drop every idle cache of a session, or only that of a version."""
        for slot, resident in enumerate(self.residents):
            if resident is not None and resident.key == key and version in (None, resident.version):
                self.residents[slot] = None

    def rename(self, key: SessionKey, name: str, version: str) -> None:
        """Give an idle cache of a session's state `name` the name that the store has for that state."""
        for resident in self.residents:
            if resident is not None and resident.key == key and resident.version == name:
                resident.version = version

    def _cost(self, slot: int) -> tuple[int, int, int]:
        """Order of preference: empty before resident, near the busy rows, least recently used."""
        resident = self.residents[slot]
        busy = [other for other, is_busy in enumerate(self._busy) if is_busy]
        distance = min((abs(slot - other) for other in busy), default=slot)
        return (int(resident is not None), resident.last_used if resident else distance, distance)
