"""What a session remembers outside of tensors: how far it has read, its journal, its conversation, its card, its next
write.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hope_server.engine.journal import Journal
from hope_server.engine.level_job import LevelJob
from hope_server.engine.session_card import SessionCard
from hope_server.engine.transcript import Conversation


@dataclass(slots=True)
class BlockJob:
    """A completed block whose consolidation takes effect at position `effect_at`.

    start, stop: its pieces in the journal; everything before `start` is the past. seed: of its plan.
    runs: the computation, one a level, once it has begun; it can always be made anew, so it is not stored.
    """

    effect_at: int
    start: int
    stop: int
    seed: int
    runs: list[LevelJob] | None = None


@dataclass(slots=True)
class SessionLog:
    """What is remembered besides tensors.

    position: tokens read; tokens_learned: of these, taught; turn: committed turns; answer_id: of the newest of them.
    pending_levels: for each pending token the levels that it may teach (None: all).
    """

    position: int = 0
    tokens_learned: int = 0
    turn: int = 0
    answer_id: str = ""
    conversation: Conversation = field(default_factory=Conversation)
    card: SessionCard = field(default_factory=SessionCard)
    pending_levels: list[tuple[str, ...] | None] = field(default_factory=list)
    journal: Journal = field(default_factory=Journal)
    job: BlockJob | None = None

    @property
    def has_begun_study(self) -> bool:
        """Whether the pending block's consolidation has begun."""
        return self.job is not None and self.job.runs is not None

    def copy(self) -> SessionLog:
        """A working copy for one turn. A running job is shared: its outcome does not depend on who advances it."""
        return replace(self, journal=self.journal.copy(), pending_levels=list(self.pending_levels))
