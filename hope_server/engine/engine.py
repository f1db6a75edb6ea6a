"""The engine as the API sees it: takes requests, loads sessions, drives turns, commits them, and reports. Touches no
tensor.

A turn: enter the session's gate, see whether the request was answered before and whether the store is where it was,
find what is new in it, submit, relay events, commit as durably as asked, then send the last event.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hope_memory.protocol import CommitInfo, Request

from hope_server.engine.admission import Admission, admitted, bytes_of
from hope_server.engine.choices import Replies, each_reading, reply_of, usage_of
from hope_server.engine.commits import Commits
from hope_server.engine.drafts import Visit
from hope_server.engine.gate import SessionGate
from hope_server.engine.loop import Committed, Drop, EngineLoop
from hope_server.engine.memory_gauge import MemoryGauge
from hope_server.engine.paths import find_path
from hope_server.engine.pulse import Pulse
from hope_server.engine.receipts import receipt_of
from hope_server.engine.replay import Answer, AnyRequest, Ask, Replays, Reply, ask_of, request_id
from hope_server.engine.request_plan import RequestPlanner
from hope_server.engine.run import Prepared, Run, Scored
from hope_server.engine.sessions import SessionBook
from hope_server.engine.state_codec import StateReader
from hope_server.engine.turn import (
    ChatRequest,
    LearnRequest,
    MemoryMode,
    ReplyFinished,
    Score,
    ScoreRequest,
    SessionKey,
    TextRequest,
    TokenText,
    TurnEvent,
    TurnFinished,
    Usage,
)
from hope_server.engine.verbs import SessionVerbs, check_unfrozen
from hope_server.engine.witness import ANY_VERSION, Witness
from hope_server.errors import (
    InternalError,
    Overloaded,
    ShuttingDown,
)
from hope_server.settings import Settings
from hope_server.telemetry import current_ledger


class Engine(SessionVerbs):
    """Serves one model. Methods are called from one event loop."""

    def __init__(
        self,
        settings: Settings,
        model_id: str,
        created: int,
        book: SessionBook,
        loop: EngineLoop,
        planner: RequestPlanner,
        reader: StateReader,
        gauge: MemoryGauge,
    ) -> None:
        gate = SessionGate(settings.max_queued_turns_per_session)
        witness = Witness(book, settings.on_rollback)
        commits = Commits(book, loop, gate, witness)
        super().__init__(book, loop, gate, commits, witness, settings.max_snapshot_bytes, reader, gauge)
        self.settings = settings
        self.model_id = model_id
        self.created = created
        self._planner = planner
        self._replays = Replays(book, is_lenient=settings.durability_unmet == "degrade")
        self._admission = Admission(settings.max_open_bytes)
        self._open_turns: set[object] = set()
        self._pulse = Pulse(book.ping)
        self._is_ready = False

    @property
    def is_ready(self) -> bool:
        """Whether turns are taken."""
        return self._is_ready

    @property
    def reaches_store(self) -> bool:
        """Whether the store answered lately."""
        return self._pulse.is_felt

    async def start(self) -> None:
        """Open the store and start computing. Raises StartupError."""
        await self._book.open()
        self._loop.start()
        self._pulse.start()
        self._is_ready = True

    async def stop(self) -> None:
        """Take no new turns, let running ones finish within the drain time, then end."""
        if not self._is_ready:
            await self._book.close()
            return
        self._is_ready = False
        await self._pulse.stop()
        deadline = asyncio.get_running_loop().time() + self.settings.drain_seconds
        while self._open_turns and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        await self._commits.drain()
        await asyncio.to_thread(self._loop.join)
        await self._book.close()

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics; those whose names end with _total only ever grow."""
        return {
            "slots_total": float(self.settings.num_slots),
            "slots_hot": float(self._loop.num_hot),
            "slots_busy": float(self._loop.num_busy),
            "slot_state_bytes": float(self._loop.num_state_bytes),
            "consolidation_jobs_waiting": float(self._loop.num_jobs),
            "engine_busy_seconds_total": self._loop.busy_seconds,
            "idle_consolidation_seconds_total": self._loop.idle_seconds,
            "idle_consolidation_steps_total": float(self._loop.num_idle_steps),
            "turns_running": float(self._loop.num_running),
            "turns_waiting": float(self._loop.num_waiting),
            "sessions_uncommitted": float(self._commits.num_waiting),
            "open_request_bytes": float(self._admission.num_bytes),
            "host_cache_bytes": float(self._book.cache.num_bytes),
            "host_cache_sessions": float(len(self._book.cache)),
        }

    # -- turns ---

    @admitted
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
            path = await find_path(request, visit.record, lambda: self._versions(visit))
            run = await self._planner.chat(request, visit.record, path)
            async with contextlib.aclosing(self._drive(run, memory.mode, visit, ticket)) as events:
                async for event in events:
                    yield event

    @admitted
    async def complete(self, request: TextRequest) -> AsyncGenerator[TurnEvent]:
        """Go on from plain text, which is the user's; events as of `chat`. The conversation stays as it was."""
        memory = request.memory
        if request.session is None or memory.mode == "off":
            run = await self._planner.text(request, None)
            async with contextlib.aclosing(self._drive(run, memory.mode, None)) as events:
                async for event in events:
                    yield event
            return
        async with self._session(request.session) as hold:
            visit = await self._commits.visit(request.session, creates=memory.if_match in (None, ANY_VERSION))
            ticket = None
            if memory.mode == "write":
                ticket = await self._ticket(request, visit, memory.durability, hold)
                if ticket.answer is not None:
                    for event in ticket.answer.events:
                        yield event
                    return
            await self._witness.check(visit.stored, memory.if_match)
            run = await self._planner.text(request, visit.record)
            async with contextlib.aclosing(self._drive(run, memory.mode, visit, ticket)) as events:
                async for event in events:
                    yield event

    @admitted
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
            check_unfrozen(visit.record)
            run = await self._planner.learn(request, visit.record)
            async with contextlib.aclosing(self._drive(run, "write", visit, ticket)) as events:
                async for event in events:
                    yield event

    async def score(self, request: ScoreRequest) -> list[Score]:
        """Score continuations under the session's memory; changes nothing."""
        with self._admission.hold(bytes_of(request)):
            visit = None
            if request.session is not None:
                visit = await self._commits.look(request.session)
                await self._witness.check(visit.stored)
            run = await self._planner.score(request, None if visit is None else visit.record)
            with self._counted():
                async with contextlib.aclosing(self._relay.follow([run], visit)) as reports:
                    async for _, event in reports:
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
        began = time.perf_counter()
        await self._gate.enter(key)
        current_ledger().add("gate", began)
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

    async def _ticket(self, request: AnyRequest, visit: Visit, durability: str | None, hold: _Hold) -> _Ticket:
        """Name a turn that may teach, or find the answer that it had before."""
        ask = await ask_of(request)
        name = request_id(visit.key, visit.record.tip, ask)
        ticket = _Ticket(hold, ask, name, durability or self.settings.durability)
        ticket.answer = await self._replays.find(visit, ask, ticket.durability)
        return ticket

    async def _versions(self, visit: Visit) -> list[CommitInfo]:
        """The versions that a turn can go on from, newest first; a draft is one too."""
        drafts = [visit.draft.info] if visit.draft is not None else []
        return drafts + await self._book.versions(visit.key)

    def _drive(
        self, run: Run, mode: MemoryMode, visit: Visit | None, ticket: _Ticket | None = None
    ) -> AsyncGenerator[TurnEvent]:
        """Run a turn and relay its events; commit before the last one."""
        drive = self._drive_choices if run.others else self._drive_one
        return drive(run, "read" if run.not_learned else mode, visit, ticket)

    async def _drive_one(
        self, run: Run, mode: MemoryMode, visit: Visit | None, ticket: _Ticket | None
    ) -> AsyncGenerator[TurnEvent]:
        with self._counted():
            async with contextlib.aclosing(self._relay.follow([run], visit)) as reports:
                async for _, event in reports:
                    if isinstance(event, Prepared):
                        yield await self._finish(run, visit, ticket, event)
                    elif isinstance(event, TurnFinished):
                        receipt = None if visit is None else receipt_of(run, mode, visit.version, visit.version)
                        yield TurnFinished(event.finish_reason, event.usage, receipt)
                    elif not isinstance(event, Scored):
                        yield event

    async def _drive_choices(
        self, run: Run, mode: MemoryMode, visit: Visit | None, ticket: _Ticket | None
    ) -> AsyncGenerator[TurnEvent]:
        """Relay a turn of several replies; where it learns, what it read is prepared first and committed last."""
        prepared: Prepared | None = None
        with self._counted():
            try:
                runs, num_prompt = each_reading(run), len(run.feed)
                if run.learns:
                    replies = Replies(run)
                    async with contextlib.aclosing(self._relay.follow([run], visit)) as reports:
                        async for _, event in reports:
                            prepared = event if isinstance(event, Prepared) else None
                    if prepared is None:
                        raise InternalError("a turn that learns ended without a state to keep")
                    self._loop.send(Committed(run, replies.name))
                    runs = replies.runs(prepared)
                async with contextlib.aclosing(self._relay.follow(runs, visit)) as reports:
                    async for index, event in reports:
                        if isinstance(event, TurnFinished):
                            yield ReplyFinished(index, event.finish_reason)
                        elif isinstance(event, TokenText):
                            yield event
                said, usage = tuple(map(reply_of, runs)), usage_of(num_prompt, runs)
                if prepared is not None:
                    state, prepared = prepared, None
                    yield await self._finish(run, visit, ticket, state, said, usage)
                else:
                    receipt = None if visit is None else receipt_of(runs[0], mode, visit.version, visit.version)
                    yield TurnFinished(said[0].finish_reason, usage, receipt)
            finally:
                if prepared is not None:
                    self._loop.send(Drop(run))

    async def _finish(
        self,
        run: Run,
        visit: Visit | None,
        ticket: _Ticket | None,
        event: Prepared,
        said: tuple[Reply, ...] = (),
        usage: Usage | None = None,
    ) -> TurnFinished:
        """Keep a computed turn as durably as asked and return its last event; `said`: where not by the run itself."""
        if visit is None or ticket is None:
            self._loop.send(Drop(run))
            raise InternalError("a turn that was not to learn left a state to keep")
        asked = ticket.durability
        receipt = replace(receipt_of(run, "write", visit.version, None), durability_requested=asked)
        attempt = ticket.ask.attempt
        usage = usage or usage_of(run.stats.prompt_tokens, [run])
        answer = Answer(attempt.answer_id, attempt.created, said or (reply_of(run),), usage, receipt)
        try:
            encoded = await answer.encoded()
        except asyncio.CancelledError:
            self._loop.send(Drop(run))
            raise
        draft = visit.draft_of(run, event, Request(ticket.name, ticket.ask.digest, encoded))
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
            return await self._replays.settle_race(visit, ticket.name, answer.texts)
        self._replays.check_durability(kept, asked)
        return answer.kept(kept.info.version, kept.info.durability).finished

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a turn as open, so that stopping waits for it."""
        self._check_open()
        token = object()
        self._open_turns.add(token)
        try:
            yield
        finally:
            self._open_turns.discard(token)


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
