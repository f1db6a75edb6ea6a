"""A turn while it runs: what it still has to read or say, where it stands, and what it has done to the memory.

Only the engine thread touches a Run once it was submitted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from hope_memory.snapshot import Snapshot

from hope_server.engine.detokenizer import StreamingDetokenizer
from hope_server.engine.logprobs import LogprobLog
from hope_server.engine.sampler import Sampler
from hope_server.engine.scheduler import Want
from hope_server.engine.session_card import SessionCard, TurnKind
from hope_server.engine.session_log import BlockJob, SessionLog
from hope_server.engine.transcript import Conversation
from hope_server.engine.turn import FinishReason, Restored, Score, SessionKey, TokenLogprob, TurnEvent
from hope_server.errors import HopeError
from hope_server.model.state import LevelState, Logits
from hope_server.telemetry import TurnLedger, current_ledger

Phase = Literal["reading", "generating", "closing", "consolidating", "scoring", "done"]


@dataclass(frozen=True, slots=True)
class FeedToken:
    """A token to read.

    source: who wrote it (None: it does not teach); passes: how often to rehearse it; levels: those that it may teach
    (None: all).
    """

    token: int
    source: str | None = None
    passes: int = 0
    levels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """How a turn answers.

    closing: tokens that end the assistant's message in the session's own stream.
    is_message: the reply is a message of the conversation; otherwise it is text that goes on from text.
    num_opening: how many tokens at the end of the prompt only ask for the reply.
    logprobs: where log-probabilities are asked for.
    """

    sampler: Sampler
    detokenizer: StreamingDetokenizer
    eos_ids: frozenset[int]
    max_tokens: int
    closing: tuple[int, ...]
    passes: int
    is_message: bool = True
    num_opening: int = 0
    logprobs: LogprobLog | None = None


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
    restored_from: Restored = "new"


@dataclass(slots=True)
class Run:
    """One turn on its way through the engine.

    others: the generations of further replies; such a turn is split before it is submitted (see `choices`).
    tenant: whose turn it is. snapshot_from: where the snapshot was; is_fetching: it was asked for and has not come.
    index: of its reply among several. parked_as: the name under which its slot is an idle cache of its state.
    conversation, card: of the session after the turn, as far as known before it.
    kind: what the turn is recorded as; None is no turn, only a commit of the session as it is.
    levels: those that the reply may teach (None: all); reply_source None: it teaches nothing.
    resets: levels to make new, and "journal".
    answer_id, created: as in `Attempt`; not_learned: why a turn that was to learn only reads.
    submitted: when it was handed to the engine thread, seconds of `time.perf_counter`; ledger: where its time goes.
    """

    emit: Callable[[RunEvent], None]
    feed: deque[FeedToken]
    key: SessionKey | None = None
    version: str | None = None
    snapshot: Snapshot | None = None
    snapshot_from: Restored = "store"
    tenant: str = ""
    learns: bool = False
    keep_window: bool = True
    generation: Generation | None = None
    others: tuple[Generation, ...] = ()
    index: int = 0
    scoring: Scoring | None = None
    rehearsal: Rehearsal | None = None
    conversation: Conversation = field(default_factory=Conversation)
    card: SessionCard = field(default_factory=SessionCard)
    kind: TurnKind | None = "chat"
    levels: tuple[str, ...] | None = None
    resets: tuple[str, ...] = ()
    reply_source: str | None = "assistant"
    answer_id: str = ""
    created: int = 0
    not_learned: Literal["side_request", "frozen"] | None = None
    submitted: float = field(default_factory=time.perf_counter)
    ledger: TurnLedger = field(default_factory=current_ledger)
    # -- filled by the engine thread
    is_fetching: bool = False
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
    logprobs: list[TokenLogprob] = field(default_factory=list)
    parked_as: str | None = None
    stats: RunStats = field(default_factory=RunStats)

    @property
    def is_bulk(self) -> bool:
        """Whether nobody waits for its first word: a text that is learned, or a consolidation."""
        return self.rehearsal is not None

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
