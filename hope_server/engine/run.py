"""A turn while it runs: what it still has to read or say, where it stands, and what it has done to the memory.

Only the engine thread touches a Run once it was submitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from hope_memory.snapshot import Snapshot

from hope_server.engine.detokenizer import StreamingDetokenizer
from hope_server.engine.sampler import Sampler
from hope_server.engine.scheduler import Want
from hope_server.engine.session_log import BlockJob, SessionLog
from hope_server.engine.turn import FinishReason, Score, SessionKey, TurnEvent
from hope_server.errors import HopeError
from hope_server.model.state import LevelState, Logits

Phase = Literal["reading", "generating", "closing", "consolidating", "scoring", "done"]


@dataclass(frozen=True, slots=True)
class FeedToken:
    """A token to read. source: who wrote it (None: it does not teach); passes: how often to rehearse it."""

    token: int
    source: str | None = None
    passes: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """How a chat turn answers. closing: tokens that end the assistant's message in the session's own stream."""

    sampler: Sampler
    detokenizer: StreamingDetokenizer
    eos_ids: frozenset[int]
    max_tokens: int
    closing: tuple[int, ...]
    passes: int


@dataclass(frozen=True, slots=True)
class Scoring:
    """Continuations to score, as token ids."""

    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """An explicit consolidation at the end of the turn's reading. passes None: as each piece was given."""

    passes: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """The turn is computed; its state waits to be committed."""

    snapshot: Snapshot
    unchanged: frozenset[str]


@dataclass(frozen=True, slots=True)
class Scored:
    """Terminal event of a score request."""

    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class NeedsSnapshot:
    """The session is not resident: load its snapshot and submit the turn again."""


RunEvent = TurnEvent | Prepared | Scored | NeedsSnapshot | HopeError


@dataclass(slots=True)
class RunStats:
    """What a turn has done so far. Losses are sums in nats over `num_losses` tokens; before: when first read."""

    tokens_read: int = 0
    tokens_learned: int = 0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    num_losses: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    update_norm: dict[str, float] = field(default_factory=dict)
    discarded: str | None = None
    restored_from: Literal["new", "hot", "store"] = "new"


@dataclass(slots=True)
class Run:
    """One turn on its way through the engine."""

    emit: Callable[[RunEvent], None]
    feed: deque[FeedToken]
    key: SessionKey | None = None
    version: str | None = None
    snapshot: Snapshot | None = None
    learns: bool = False
    keep_window: bool = True
    generation: Generation | None = None
    scoring: Scoring | None = None
    rehearsal: Rehearsal | None = None
    chain: str = ""
    systems: tuple[str, ...] = ()
    # -- filled by the engine thread
    phase: Phase = "reading"
    slot: int = -1
    log: SessionLog = field(default_factory=SessionLog)
    num_pending: int = 0
    chunk_size: int = 1
    is_blocked: bool = False
    job: BlockJob | None = None
    writes_before: dict[str, int] = field(default_factory=dict)
    log_before: SessionLog | None = None
    levels_before: dict[str, LevelState] | None = None
    logits: Logits | None = None
    finish_reason: FinishReason = "stop"
    reply: str = ""
    stats: RunStats = field(default_factory=RunStats)

    @property
    def completes_chunk(self) -> bool:
        """Whether the next token is the last of an online chunk."""
        return self.learns and self.num_pending + 1 == self.chunk_size

    @property
    def wants(self) -> Want:
        """What would move the turn on."""
        if self.phase == "done":
            return "nothing"
        if self.is_blocked or self.phase == "consolidating":
            return "consolidate"
        if self.phase == "generating" and len(self.feed) == 1 and not self.completes_chunk:
            return "decode"
        return "read"
