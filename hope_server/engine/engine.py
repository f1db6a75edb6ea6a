"""The engine as the API sees it: takes requests, loads sessions, drives turns, commits them, and reports. Touches no
tensor.

A turn: enter the session's gate, find what is new in it, submit, relay events, commit, then send the last event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from hope_memory.protocol import CommitInfo, SessionRecord

from hope_server.engine.gate import SessionGate
from hope_server.engine.loop import Committed, Drop, EngineLoop, Forget, Submit
from hope_server.engine.request_plan import RequestPlanner
from hope_server.engine.run import NeedsSnapshot, Prepared, Run, RunEvent, Scored
from hope_server.engine.sessions import SessionBook, describe, describe_version
from hope_server.engine.turn import (
    ChatRequest,
    LearnRequest,
    MemoryMode,
    Receipt,
    Score,
    ScoreRequest,
    SessionInfo,
    SessionKey,
    TurnEvent,
    TurnFinished,
    Usage,
)
from hope_server.errors import (
    HopeError,
    InternalError,
    Overloaded,
    SessionConflict,
    SessionNotFound,
    ShuttingDown,
    StateCorrupt,
)
from hope_server.settings import Settings


class Engine:
    """Serves one model. Methods are called from one event loop."""

    def __init__(
        self,
        settings: Settings,
        model_id: str,
        created: int,
        book: SessionBook,
        loop: EngineLoop,
        planner: RequestPlanner,
    ) -> None:
        self.settings = settings
        self.model_id = model_id
        self.created = created
        self._book = book
        self._loop = loop
        self._planner = planner
        self._gate = SessionGate(settings.max_queued_turns_per_session)
        self._open_turns: set[object] = set()
        self._commits: set[asyncio.Task[CommitInfo]] = set()
        self._is_ready = False

    @property
    def is_ready(self) -> bool:
        """Whether turns are taken."""
        return self._is_ready

    async def start(self) -> None:
        """Open the store and start computing. Raises StartupError."""
        await self._book.open()
        self._loop.start()
        self._is_ready = True

    async def stop(self) -> None:
        """Take no new turns, let running ones finish within the drain time, then end."""
        if not self._is_ready:
            await self._book.close()
            return
        self._is_ready = False
        deadline = asyncio.get_running_loop().time() + self.settings.drain_seconds
        while self._open_turns and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if self._commits:
            await asyncio.gather(*self._commits, return_exceptions=True)
        await asyncio.to_thread(self._loop.join)
        await self._book.close()

    def stats(self) -> dict[str, float]:
        """Gauges for /metrics."""
        return {
            "slots_total": float(self.settings.num_slots),
            "slots_hot": float(self._loop.num_hot),
            "consolidation_jobs_waiting": float(self._loop.num_jobs),
            "turns_running": float(self._loop.num_running),
            "turns_waiting": float(self._loop.num_waiting),
        }

    # -- turns ---

    async def chat(self, request: ChatRequest) -> AsyncGenerator[TurnEvent]:
        """Serve a chat turn: TokenText any number of times, then exactly one TurnFinished; or raise a HopeError."""
        mode = request.memory.mode
        if request.session is None or mode == "off":
            run = await self._planner.chat(request, None, None)
            async with contextlib.aclosing(self._drive(run, mode, None)) as events:
                async for event in events:
                    yield event
            return
        async with self._session(request.session) as hold:
            record, _ = await self._book.create(request.session)
            base = await self._base_version(request, record)
            run = await self._planner.chat(request, record, base)
            async with contextlib.aclosing(self._drive(run, mode, record.head, hold)) as events:
                async for event in events:
                    yield event

    async def learn(self, request: LearnRequest) -> AsyncGenerator[TurnEvent]:
        """Learn a text, or consolidate what was read: LearnProgress, then exactly one TurnFinished; or raise."""
        async with self._session(request.session) as hold:
            if request.text is None:
                record = await self._book.get(request.session)
            else:
                record, _ = await self._book.create(request.session)
            run = await self._planner.learn(request, record)
            async with contextlib.aclosing(self._drive(run, "write", record.head, hold)) as events:
                async for event in events:
                    yield event

    async def score(self, request: ScoreRequest) -> list[Score]:
        """Score continuations under the session's memory; changes nothing."""
        record = await self._book.get(request.session) if request.session is not None else None
        run = await self._planner.score(request, record)
        async with contextlib.aclosing(self._events(run)) as events:
            async for event in events:
                if isinstance(event, Scored):
                    return list(event.scores)
        raise InternalError("the engine ended a score request without an answer")

    # -- sessions ---

    async def create_session(self, key: SessionKey) -> tuple[SessionInfo, bool]:
        """Create a session, or return the one there is."""
        record, is_new = await self._book.create(key)
        return describe(record), is_new

    async def list_sessions(self, tenant: str, limit: int, after: str | None) -> list[SessionInfo]:
        """List a tenant's sessions."""
        return await self._book.list(tenant, limit, after)

    async def get_session(self, key: SessionKey) -> SessionInfo:
        """Look a session up. Raises SessionNotFound."""
        return describe(await self._book.get(key))

    async def delete_session(self, key: SessionKey) -> bool:
        """Delete a session; a turn that runs in it will fail to commit."""
        existed = await self._book.delete(key)
        self._loop.send(Forget(key))
        return existed

    async def fork_session(self, key: SessionKey, new_id: str) -> SessionInfo:
        """Give the session's present state a second name."""
        return describe(await self._book.fork(key, new_id))

    async def session_versions(self, key: SessionKey) -> list[dict[str, Any]]:
        """Kept versions, newest first."""
        return [describe_version(info) for info in await self._book.versions(key)]

    # -- private ---

    @contextlib.asynccontextmanager
    async def _session(self, key: SessionKey) -> AsyncIterator[_Hold]:
        """Hold the session's gate until the turn, and any commit that it began, is over."""
        self._check_open()
        await self._gate.enter(key)
        hold = _Hold()
        try:
            yield hold
        finally:
            if hold.commit is not None and not hold.commit.done():
                hold.commit.add_done_callback(lambda _: self._gate.leave(key))
            else:
                self._gate.leave(key)

    def _check_open(self) -> None:
        if not self._is_ready:
            raise ShuttingDown("the server is not taking turns; retry shortly")
        waiting = self._loop.num_waiting
        if waiting >= self.settings.max_waiting_turns:
            raise Overloaded(waiting, 2.0)

    async def _base_version(self, request: ChatRequest, record: SessionRecord) -> CommitInfo | None:
        """The version a chat goes on from: the head, or the kept one at which an edited history still agrees."""
        if record.head is None or request.session is None:
            return record.head
        if not self._planner.repeats_history(request, record.head):
            for info in await self._book.versions(request.session):
                if self._planner.repeats_history(request, info):
                    return info
        return record.head

    async def _drive(
        self, run: Run, mode: MemoryMode, head: CommitInfo | None, hold: _Hold | None = None
    ) -> AsyncGenerator[TurnEvent]:
        """Relay a run's events; commit before the last one."""
        async with contextlib.aclosing(self._events(run)) as events:
            async for event in events:
                if isinstance(event, Prepared) and hold is not None and run.key is not None:
                    hold.commit = asyncio.create_task(self._commit(run, run.key, event, head))
                    self._commits.add(hold.commit)
                    hold.commit.add_done_callback(self._commits.discard)
                    info = await asyncio.shield(hold.commit)
                    usage = Usage(run.stats.prompt_tokens, run.stats.completion_tokens)
                    yield TurnFinished(run.finish_reason, usage, _receipt(run, mode, head, info))
                elif isinstance(event, TurnFinished):
                    receipt = None if run.key is None else _receipt(run, mode, head, head)
                    yield TurnFinished(event.finish_reason, event.usage, receipt)
                elif not isinstance(event, (Scored, NeedsSnapshot, Prepared)):
                    yield event

    async def _commit(self, run: Run, key: SessionKey, event: Prepared, head: CommitInfo | None) -> CommitInfo:
        parent = head.version if head is not None else None
        unchanged = event.unchanged if run.version == parent else frozenset()
        info = None
        try:
            info = await self._book.commit(key, parent, event.snapshot, unchanged)
        except (SessionConflict, SessionNotFound):
            self._loop.send(Forget(key))
            raise
        finally:
            # Whatever happened, the slot must not stay busy.
            self._loop.send(Drop(run) if info is None else Committed(run, info.version))
        return info

    async def _events(self, run: Run) -> AsyncGenerator[TurnEvent | Prepared | Scored]:
        """Submit a run and yield what it reports up to its last event; leaving early drops it."""
        self._check_open()
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[RunEvent] = asyncio.Queue()

        def emit(event: RunEvent) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, event)

        run.emit = emit
        token = object()
        self._open_turns.add(token)
        is_over = False
        try:
            self._loop.send(Submit(run))
            while not is_over:
                event = await inbox.get()
                if isinstance(event, NeedsSnapshot):
                    await self._load(run)
                    self._loop.send(Submit(run))
                elif isinstance(event, HopeError):
                    is_over = True
                    raise event
                else:
                    is_over = isinstance(event, (Prepared, Scored, TurnFinished))
                    yield event
        finally:
            self._open_turns.discard(token)
            if not is_over:
                self._loop.send(Drop(run))

    async def _load(self, run: Run) -> None:
        """Fetch the snapshot that a run goes on from; a damaged head is set aside for the newest intact version."""
        if run.key is None or run.version is None:
            raise InternalError("a turn without a session asked for a snapshot")
        try:
            loaded = await self._book.load(run.key, run.version)
        except StateCorrupt:
            await self._book.repair(run.key)
            raise SessionConflict(
                f"the newest version of session {run.key.session_id!r} failed its checks and was set aside; "
                "the session went back to the version before it, send the turn again"
            ) from None
        run.snapshot = loaded.snapshot


class _Hold:
    """What keeps a session's gate closed: the commit that its turn has begun."""

    def __init__(self) -> None:
        self.commit: asyncio.Task[CommitInfo] | None = None


def _receipt(run: Run, mode: MemoryMode, before: CommitInfo | None, after: CommitInfo | None) -> Receipt:
    stats = run.stats
    mean = stats.loss_sum / stats.num_losses if stats.num_losses else stats.loss_first
    return Receipt(
        session_id=run.key.session_id if run.key is not None else "",
        mode=mode,
        version_before=before.version if before is not None else None,
        version_after=after.version if after is not None else None,
        turn=run.log.turn,
        tokens_read=stats.tokens_read,
        tokens_learned=stats.tokens_learned,
        steps=stats.steps,
        loss_before=mean,
        loss_after=stats.loss_last,
        update_norm=stats.update_norm,
        durability="commit" if run.learns else "none",
        restored_from=stats.restored_from,
        discarded=stats.discarded,
    )
