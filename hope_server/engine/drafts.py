"""What a turn finds of its session, and what it makes of it before the store has it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field, replace

from hope_memory.protocol import Answered, CommitInfo, Request, SessionRecord
from hope_memory.snapshot import Snapshot

from hope_server.engine.run import Prepared, Run
from hope_server.engine.turn import SessionKey


@dataclass(slots=True)
class Pledge:
    """What is known of an answer that went out before its commit: was it sent whole, which version has it."""

    is_acknowledged: bool = False
    version: str | None = None


@dataclass(slots=True)
class Draft:
    """A session's newest state on its way into the store.

    birth, tip: of the session in the store; the commit names the tip as its parent.
    unchanged: levels that are as in the tip.
    request: what the newest turn in it answers; answers: of all turns in it, by request id, oldest first.
    info: as the commit will look, under a name of this process.
    is_queued: it is to be committed as soon as possible, not only with a later turn.
    """

    key: SessionKey
    birth: str
    tip: str
    snapshot: Snapshot
    unchanged: frozenset[str]
    request: Request
    info: CommitInfo
    answers: dict[str, Answered]
    pledge: Pledge = field(default_factory=Pledge)
    is_queued: bool = False


@dataclass(frozen=True, slots=True)
class Visit:
    """A session as one turn finds it: as the store has it, and what this process has beyond that."""

    key: SessionKey
    stored: SessionRecord
    draft: Draft | None = None

    @property
    def record(self) -> SessionRecord:
        """The session as the turn goes on from it: the draft, where there is one, is its head."""
        return self.stored if self.draft is None else replace(self.stored, head=self.draft.info)

    @property
    def version(self) -> str | None:
        """The store's newest version."""
        return None if self.stored.head is None else self.stored.head.version

    def draft_of(self, run: Run, event: Prepared, request: Request) -> Draft:
        """What a computed turn made of the session."""
        base, unchanged = self.draft, frozenset[str]()
        if base is not None and run.version == base.info.version:
            unchanged = base.unchanged & event.unchanged
        elif run.version == self.stored.tip:
            unchanged = event.unchanged
        # The dash tells it apart from every version of a store.
        name, tip = f"draft-{secrets.token_hex(16)}", self.stored.tip
        info = CommitInfo(name, tip, 0, time.time(), 0, event.snapshot.info)
        answers = dict(base.answers) if base is not None else {}
        answers[request.id] = Answered(replace(info, version=""), request.digest, request.reply, False)
        return Draft(self.key, self.stored.birth, tip, event.snapshot, unchanged, request, info, answers)
