"""The engine as the API sees it: takes requests, loads sessions, drives turns, commits them, and reports. Touches no
tensor.

A turn: enter the session's gate, see whether the request was answered before and whether the store is where it was,
find what is new in it, submit, relay events, commit as durably as asked, then send the last event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from hope_memory.protocol import CommitInfo, Request

from hope_server.engine.commits import Commits
from hope_server.engine.desk import SessionDesk
from hope_server.engine.drafts import Visit
from hope_server.engine.gate import SessionGate
from hope_server.engine.loop import Drop, EngineLoop, Submit
from hope_server.engine.receipts import receipt_of
from hope_server.engine.replay import Answer, Ask, Replays, ask_of, request_id
from hope_server.engine.request_plan import RequestPlanner
from hope_server.engine.run import NeedsSnapshot, Prepared, Run, RunEvent, Scored
from hope_server.engine.sessions import SessionBook
from hope_server.engine.turn import (
    ChatRequest,
    LearnRequest,
    MemoryMode,
    Score,
    ScoreRequest,
    SessionKey,
    TurnEvent,
    TurnFinished,
    Usage,
)
from hope_server.engine.witness import ANY_VERSION, Witness
from hope_server.errors import (
    HopeError,
    InternalError,
    Overloaded,
    SessionConflict,
    ShuttingDown,
    StateCorrupt,
    VersionNotFound,
)
from hope_server.settings import Settings


class Engine(SessionDesk):
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
        gate = SessionGate(settings.max_queued_turns_per_session)
        witness = Witness(book, settings.on_rollback)
        commits = Commits(book, loop, gate, witness)
        super().__init__(book, loop, gate, commits, witness, settings.max_snapshot_bytes)
        self.settings = settings
        self.model_id = model_id
        self.created = created
        self._planner = planner
        self._replays = Replays(book, is_lenient=settings.durability_unmet == "degrade")
        self._open_turns: set[object] = set()
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
        await self._commits.drain()
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
            "sessions_uncommitted": float(self._commits.num_waiting),
        }

    # -- turns ---

    async def chat(self, request: ChatRequest) -> AsyncGenerator[TurnEvent]:
        """Serve a chat turn: TokenText any number of times, then exactly one TurnFinished; or raise a HopeError.

        A request that was answered before gives Replay first, and its text and end again.
        """
        memory = request.memory
        if request.session is None or memory.mode == "off":
            run = await self._planner.chat(request, None, None)
            async with contextlib.aclosing(self._drive(run, memory.mode, None)) as events:
                async for event in events:
                    yield event
            return
        async with self._session(request.session) as hold:
            # A caller that expects a version must not be given an empty session instead.
            visit = await self._commits.visit(request.session, creates=memory.if_match in (None, ANY_VERSION))
            ticket = None
            if memory.mode == "write":
                ticket = await self._ticket(request, visit, memory.durability, hold)
                if ticket.answer is not None:
                    for event in ticket.answer.events:
                        yield event
                    return
            await self._witness.check(visit.stored, memory.if_match)
            base = await self._base_version(request, visit)
            run = await self._planner.chat(request, visit.record, base)
            async with contextlib.aclosing(self._drive(run, memory.mode, visit, ticket)) as events:
                async for event in events:
                    yield event

    async def learn(self, request: LearnRequest) -> AsyncGenerator[TurnEvent]:
        """Learn a text, or consolidate what was read: LearnProgress, then exactly one TurnFinished; or raise."""
        async with self._session(request.session) as hold:
            creates = request.text is not None and request.if_match in (None, ANY_VERSION)
            visit = await self._commits.visit(request.session, creates=creates)
            ticket = await self._ticket(request, visit, request.durability, hold)
            if ticket.answer is not None:
                for event in ticket.answer.events:
                    yield event
                return
            await self._witness.check(visit.stored, request.if_match)
            run = await self._planner.learn(request, visit.record)
            async with contextlib.aclosing(self._drive(run, "write", visit, ticket)) as events:
                async for event in events:
                    yield event

    async def score(self, request: ScoreRequest) -> list[Score]:
        """Score continuations under the session's memory; changes nothing."""
        visit = None
        if request.session is not None:
            visit = await self._commits.look(request.session)
            await self._witness.check(visit.stored)
        run = await self._planner.score(request, None if visit is None else visit.record)
        async with contextlib.aclosing(self._events(run, visit)) as events:
            async for event in events:
                if isinstance(event, Scored):
                    return list(event.scores)
        raise InternalError("the engine ended a score request without an answer")

    def acknowledge(self, key: SessionKey, version: str | None) -> None:
        """Note that the answer of a turn was sent whole; `version` as its receipt has it. Returns at once."""
        self._commits.acknowledge(key, version)

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

    async def _ticket(
        self, request: ChatRequest | LearnRequest, visit: Visit, durability: str | None, hold: _Hold
    ) -> _Ticket:
        """Name a turn that may teach, or find the answer that it had before."""
        ask = await ask_of(request)
        name = request_id(visit.key, visit.record.tip, ask)
        ticket = _Ticket(hold, ask, name, durability or self.settings.durability)
        ticket.answer = await self._replays.find(visit, ask, ticket.durability)
        return ticket

    async def _base_version(self, request: ChatRequest, visit: Visit) -> CommitInfo | None:
        """The version a chat goes on from: the newest, or the kept one at which an edited history still agrees."""
        head = visit.record.head
        if head is None or self._planner.repeats_history(request, head):
            return head
        for info in await self._book.versions(visit.key):
            if self._planner.repeats_history(request, info):
                return info
        return head

    async def _drive(
        self, run: Run, mode: MemoryMode, visit: Visit | None, ticket: _Ticket | None = None
    ) -> AsyncGenerator[TurnEvent]:
        """Relay a run's events; commit before the last one."""
        async with contextlib.aclosing(self._events(run, visit)) as events:
            async for event in events:
                if isinstance(event, Prepared) and visit is not None and ticket is not None:
                    yield await self._finish(run, visit, ticket, event)
                elif isinstance(event, TurnFinished):
                    receipt = None if visit is None else receipt_of(run, mode, visit.version, visit.version)
                    yield TurnFinished(event.finish_reason, event.usage, receipt)
                elif not isinstance(event, (Scored, NeedsSnapshot, Prepared)):
                    yield event

    async def _finish(self, run: Run, visit: Visit, ticket: _Ticket, event: Prepared) -> TurnFinished:
        """Keep a computed turn as durably as asked and return its last event."""
        asked = ticket.durability
        usage = Usage(run.stats.prompt_tokens, run.stats.completion_tokens)
        receipt = replace(receipt_of(run, "write", visit.version, None), durability_requested=asked)
        attempt = ticket.ask.attempt
        answer = Answer(attempt.answer_id, attempt.created, run.reply, run.finish_reason, usage, receipt)
        draft = visit.draft_of(run, event, Request(ticket.name, ticket.ask.digest, answer.encode()))
        if asked in ("none", "async") and not self._commits.has_room(visit.key):
            asked = "commit"
        if asked == "none":
            self._commits.keep(draft, run)
            return answer.kept(None, "none").finished
        if asked == "async":
            ticket.hold.commit = self._commits.queue(draft, run)
            return answer.kept(None, "async").finished
        ticket.hold.commit = commit = self._commits.begin(draft, run, asked)
        kept = await asyncio.shield(commit)
        if kept.info.is_replay:
            return await self._replays.settle_race(visit, ticket.name, answer.text)
        self._replays.check_durability(kept, asked)
        return answer.kept(kept.info.version, kept.info.durability).finished

    async def _events(self, run: Run, visit: Visit | None) -> AsyncGenerator[TurnEvent | Prepared | Scored]:
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
                    await self._load(run, visit)
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

    async def _load(self, run: Run, visit: Visit | None) -> None:
        """Fetch the snapshot that a run goes on from; a damaged head is set aside for the newest intact version."""
        if visit is None or run.version is None:
            raise InternalError("a turn without a session asked for a snapshot")
        if visit.draft is not None and visit.draft.info.version == run.version:
            run.snapshot = visit.draft.snapshot
            return
        try:
            loaded = await self._book.load(visit.key, run.version)
        except (StateCorrupt, VersionNotFound):
            await self._book.repair(visit.key)
            raise SessionConflict(
                f"the newest version of session {visit.key.session_id!r} failed its checks and was set aside; "
                "the session went back to the version before it, send the turn again"
            ) from None
        run.snapshot = loaded.snapshot


@dataclass(slots=True)
class _Hold:
    """What keeps a session's gate closed: the commit that its turn has begun."""

    commit: asyncio.Task[Any] | None = None


@dataclass(slots=True)
class _Ticket:
    """A turn that may teach: the name its commit records, how durable it must be, the answer it had before if any."""

    hold: _Hold
    ask: Ask
    name: str
    durability: str
    answer: Answer | None = None
