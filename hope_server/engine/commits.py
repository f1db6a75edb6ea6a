"""From a computed turn to the store: at once, in the background, or not before a later turn, as the turn asked.

A draft is what a turn made of its session. It is written to the store as one commit on the tip that the turn started
from. With durability `async` the answer goes out first and the session's gate stays closed until the commit is
settled; with `none` the draft stays in memory, the next turn goes on from it, and the next commit holds both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from hope_server.engine.drafts import Draft, Pledge, Visit
from hope_server.engine.gate import SessionGate
from hope_server.engine.loop import Committed, Drop, EngineLoop, Forget, Renamed
from hope_server.engine.run import Run
from hope_server.engine.sessions import Kept, SessionBook
from hope_server.engine.turn import SessionKey
from hope_server.engine.witness import Witness
from hope_server.errors import (
    HopeError,
    MemoryEvicted,
    SessionConflict,
    SessionNotFound,
    StoreFull,
    StoreUnavailable,
)
from hope_server.telemetry import TurnLedger, current_ledger, log_event, turn_ledger

Result = TypeVar("Result")

MAX_BACKLOG = 32
"""Sessions that may have a turn which the store does not have; further ones are committed at once."""

RETRY_SECONDS = 0.5
_OUTAGES = (StoreUnavailable, StoreFull)
_MAX_PLEDGES = 1024


class Commits:
    """Writes drafts, and keeps those that are not written yet. Used from one event loop."""

    def __init__(self, book: SessionBook, loop: EngineLoop, gate: SessionGate, witness: Witness) -> None:
        self._book = book
        self._loop = loop
        self._gate = gate
        self._witness = witness
        self._drafts: dict[SessionKey, Draft] = {}
        self._pledges: dict[SessionKey, Pledge] = {}
        self._writing: set[asyncio.Task[Any]] = set()
        self._retrying: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Sessions with a turn that the store does not have."""
        return len(self._drafts)

    def draft(self, key: SessionKey) -> Draft | None:
        """What a session has that the store has not."""
        return self._drafts.get(key)

    async def visit(self, key: SessionKey, *, creates: bool) -> Visit:
        """Look at a session behind its gate, after committing what is queued. Raises HopeError."""
        draft = self._drafts.get(key)
        if draft is not None and draft.is_queued:
            await self.settle(key)
            draft = None
        record = (await self._book.create(key))[0] if creates else await self._book.get(key)
        if draft is not None and draft.tip != record.tip:
            self._lose(draft, "session_conflict")
            draft = None
        return Visit(key, record, draft)

    async def look(self, key: SessionKey) -> Visit:
        """Look at a session as it is, for what leaves it so. Raises SessionNotFound, MemoryEvicted."""
        record = await self._book.get(key)
        draft = self._drafts.get(key)
        return Visit(key, record, draft if draft is not None and draft.tip == record.tip else None)

    def begin(self, draft: Draft, run: Run, durability: str) -> asyncio.Task[Kept]:
        """Start to commit a turn; the task ends when it is settled, whoever still waits for it."""
        return self._spawn(self._commit(draft, run, durability))

    def queue(self, draft: Draft, run: Run) -> asyncio.Task[None]:
        """Start to commit a turn that was answered; the task never fails: an outage leaves the draft for later."""
        self._promise(draft)
        return self._spawn(self._commit_queued(draft, run))

    def keep(self, draft: Draft, run: Run) -> None:
        """Keep a turn in memory only."""
        self._promise(draft)
        self._drafts[draft.key] = draft
        self._loop.send(Committed(run, draft.info.version))

    def has_room(self, key: SessionKey) -> bool:
        """Whether one more session's turn may stay out of the store for now."""
        return key in self._drafts or len(self._drafts) + len(self._writing) < MAX_BACKLOG

    async def settle(self, key: SessionKey) -> None:
        """Commit what is kept of a session in memory. Raises HopeError; only an outage leaves the draft in place."""
        draft = self._drafts.get(key)
        if draft is None:
            return
        try:
            kept = await self._write(draft, "commit", current_ledger())
        except _OUTAGES:
            raise
        except HopeError as exc:
            self._lose(draft, exc.code)
            raise
        if kept.info.is_replay:
            self._loop.send(Forget(key))
        else:
            self._loop.send(Renamed(key, draft.info.version, kept.info.version))

    def forget(self, key: SessionKey) -> None:
        """Drop what is kept of a session that was deleted or set back."""
        self._drafts.pop(key, None)
        self._pledges.pop(key, None)

    def acknowledge(self, key: SessionKey, version: str | None) -> None:
        """Note that a turn's answer was sent whole; `version` as its receipt had it. Returns at once."""
        pledge = self._pledges.get(key)
        if version is None and pledge is not None:
            pledge.is_acknowledged = True
            version = pledge.version
        if version is not None:
            self._spawn(self._acknowledge(key, version))

    async def drain(self) -> None:
        """Finish every commit that has begun and every one that is queued; turns of durability none are let go."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.gather(self._retrying, return_exceptions=True)
        while self._writing:
            await asyncio.gather(*self._writing, return_exceptions=True)
        await asyncio.gather(*(self._settle_last(draft) for draft in self._drafts.values() if draft.is_queued))
        while self._writing:
            await asyncio.gather(*self._writing, return_exceptions=True)

    # -- private ---

    async def _commit(self, draft: Draft, run: Run, durability: str) -> Kept:
        kept = None
        try:
            kept = await self._write(draft, durability, run.ledger)
        except (SessionConflict, SessionNotFound, MemoryEvicted):
            # Whatever this process holds of the session is not what the store has.
            self.forget(draft.key)
            self._loop.send(Forget(draft.key))
            raise
        finally:
            # Whatever happened, the slot must not stay busy.
            self._release(run, None if kept is None or kept.info.is_replay else kept.info.version)
        return kept

    async def _commit_queued(self, draft: Draft, run: Run) -> None:
        version: str | None = None
        try:
            kept = await self._write(draft, "commit", run.ledger)
            version = None if kept.info.is_replay else kept.info.version
        except _OUTAGES:
            draft.is_queued = True
            self._drafts[draft.key] = draft
            version = draft.info.version
            if self._retrying is None or self._retrying.done():
                self._retrying = asyncio.create_task(self._retry())
        except HopeError as exc:
            self._lose(draft, exc.code)
        finally:
            self._release(run, version)

    def _release(self, run: Run, version: str | None) -> None:
        self._loop.send(Drop(run) if version is None else Committed(run, version))

    async def _write(self, draft: Draft, durability: str, ledger: TurnLedger) -> Kept:
        snapshot, unchanged = draft.snapshot, draft.unchanged
        began, num_bytes = time.perf_counter(), 0
        try:
            kept = await self._book.commit(draft.key, draft.tip, snapshot, unchanged, draft.request, durability)
            if not kept.info.is_replay:
                num_bytes = sum(each.num_bytes for name, each in snapshot.levels.items() if name not in unchanged)
        finally:
            ledger.add("commit", began, num_bytes)
        self._drafts.pop(draft.key, None)
        info = kept.info
        if not info.is_replay:
            self._witness.see(draft.key, draft.birth, info.version, info.number)
        draft.pledge.version = info.version
        if draft.pledge.is_acknowledged:
            self._spawn(self._acknowledge(draft.key, info.version))
        return kept

    async def _settle_last(self, draft: Draft) -> None:
        try:
            await self.settle(draft.key)
        except HopeError as exc:
            self._lose(draft, exc.code)

    def _lose(self, draft: Draft, code: str) -> None:
        self._drafts.pop(draft.key, None)
        self._loop.send(Forget(draft.key))
        log_event("uncommitted_turn_lost", {"code": code, "was_queued": draft.is_queued}, logging.WARNING)

    async def _retry(self) -> None:
        """Commit what an outage of the store left queued, as soon as it is back."""
        # No turn waits for these, not even the one in whose task this began.
        turn_ledger.set(None)
        while queued := [key for key, draft in self._drafts.items() if draft.is_queued]:
            await asyncio.sleep(RETRY_SECONDS)
            for key in queued:
                with contextlib.suppress(HopeError):
                    await self._gate.enter(key)
                    try:
                        draft = self._drafts.get(key)
                        if draft is not None and draft.is_queued:
                            await self.settle(key)
                    finally:
                        self._gate.leave(key)

    def _promise(self, draft: Draft) -> None:
        """Remember an answer that goes out before its commit, so that its acknowledgement finds the commit."""
        self._pledges.pop(draft.key, None)
        self._pledges[draft.key] = draft.pledge
        while len(self._pledges) > _MAX_PLEDGES:
            del self._pledges[next(iter(self._pledges))]

    async def _acknowledge(self, key: SessionKey, version: str) -> None:
        # Only an identical request within two minutes would notice that it is missing.
        with contextlib.suppress(HopeError):
            await self._book.acknowledge(key, version)

    def _spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task
