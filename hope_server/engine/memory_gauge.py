"""How much a stored session remembers: writes, bytes and norms by level, what waits, and how far it has read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from hope_server.engine.memory_writer import JOURNAL
from hope_server.engine.state_codec import TITANS, StoredState
from hope_server.model.levels import BlockMemory, LevelLayout
from hope_server.model.state import FastState, LevelState, Memory


@dataclass(frozen=True, slots=True)
class LevelGauge:
    """One level, or all Titans memories, whose `schedule` is `chunk`.

    num_writes: updates so far; num_bytes: as stored, 0 where it was never written; norm: Frobenius norm of what the
    level adds to the slow weights.
    """

    schedule: str
    num_writes: int
    num_bytes: int
    norm: float


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """A session's memory.

    position: tokens read; pending_tokens: of these, since the last online write; window_used, window_size: tokens that
    attention sees and can see, 0 without attention. journal_pieces, journal_tokens: the session's own text that is kept
    for rehearsal; journal_waiting: pieces that no consolidation has taken yet. job_due_at: position at which a
    consolidation that was begun takes effect, None where there is none.
    """

    levels: dict[str, LevelGauge]
    position: int
    tokens_learned: int
    pending_tokens: int
    window_used: int
    window_size: int
    journal_pieces: int
    journal_tokens: int
    journal_waiting: int
    job_due_at: int | None
    num_bytes: dict[str, int]


class MemoryGauge:
    """Measures states that were read out of snapshots; any thread may call it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    @property
    def resettable(self) -> tuple[str, ...]:
        """What can be made new: the levels, the Titans memories where there are any, and the journal."""
        titans = () if self._memory.titans is None else (TITANS,)
        return (*self._memory.layouts, *titans, JOURNAL)

    def measure(self, stored: StoredState) -> MemoryReport:
        """Return what a session remembers."""
        state, log, sizes = stored.state, stored.log, stored.num_bytes
        levels = {
            name: LevelGauge(
                self._memory.layouts[name].spec.schedule,
                int(level.num_writes[0]),
                sizes.get(name, 0),
                self._norm(name, level),
            )
            for name, level in state.levels.items()
        }
        if state.titans:
            written = int(state.window.positions[0]) // self._memory.config.chunk_size
            levels[TITANS] = LevelGauge("chunk", written, sizes.get(TITANS, 0), self._titans_norm(state))
        config = self._memory.config
        size = config.window.size if config.attention_blocks else 0
        return MemoryReport(
            levels=levels,
            position=log.position,
            tokens_learned=log.tokens_learned,
            pending_tokens=int(state.num_pending[0]),
            window_used=min(log.position, size),
            window_size=size,
            journal_pieces=len(log.journal.pieces),
            journal_tokens=sum(len(piece.tokens) for piece in log.journal.pieces) + len(log.journal.open_tokens),
            journal_waiting=len(log.journal.unconsolidated()),
            job_due_at=None if log.job is None else log.job.effect_at,
            num_bytes=sizes,
        )

    def _titans_norm(self, state: FastState) -> float:
        """Frobenius norm of how far all Titans memories have moved from their initial weights."""
        total = 0.0
        for block, titans in state.titans.items():
            for name, tensor in titans.memories.items():
                total += float((tensor[0] - self._memory.titans_initial[block][name]).double().square().sum())
        return math.sqrt(total)

    def _norm(self, name: str, level: LevelState) -> float:
        layout: LevelLayout = self._memory.layouts[name]
        return math.sqrt(sum(_squared(block) for block in layout.views(level.weights.double()).values()))


def as_object(report: MemoryReport) -> dict[str, Any]:
    """The report as a JSON-ready object."""
    return {
        "levels": {
            name: {
                "schedule": level.schedule,
                "num_writes": level.num_writes,
                "num_bytes": level.num_bytes,
                "norm": level.norm if math.isfinite(level.norm) else None,
            }
            for name, level in report.levels.items()
        },
        "position": report.position,
        "tokens_learned": report.tokens_learned,
        "pending_tokens": report.pending_tokens,
        "window": {"used": report.window_used, "size": report.window_size},
        "journal": {
            "pieces": report.journal_pieces,
            "tokens": report.journal_tokens,
            "waiting": report.journal_waiting,
            "job_due_at": report.job_due_at,
        },
        "state_bytes": report.num_bytes,
    }


def _squared(block: BlockMemory) -> float:
    """Squared norm of what a block's matrices [1, rows, columns] add to its slow weights."""
    if "in_gate_up" in block:
        in_gate, in_up = block["in_gate_up"][0].chunk(2)
        pairs = [
            (in_gate, block["out_gate"][0]),
            (in_up, block["out_up"][0]),
            (block["in_down"][0], block["out_down"][0]),
        ]
        return sum(_squared_product(*pair) for pair in pairs)
    if "in_residual" in block:
        return _squared_product(block["in_residual"][0], block["out_residual"][0])
    return float(block["delta_down"].square().sum())


def _squared_product(inner: torch.Tensor, outer: torch.Tensor) -> float:
    """Squared norm of outer [m, r] times inner [r, n], at the cost of r by r."""
    return float(((outer.T @ outer) * (inner @ inner.T)).sum())
