"""Between the event loop and the engine thread: submits runs, fetches what they need, and hands on what they report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial

from hope_memory.snapshot import Snapshot

from hope_server.engine.drafts import Visit
from hope_server.engine.loop import Deliver, Drop, EngineLoop, Submit
from hope_server.engine.run import NeedsSnapshot, Prepared, Run, RunEvent, Scored
from hope_server.engine.sessions import SessionBook
from hope_server.engine.turn import Restored, TurnEvent, TurnFinished
from hope_server.errors import HopeError, InternalError, SessionConflict, StateCorrupt, VersionNotFound

Report = tuple[int, TurnEvent | Prepared | Scored]
"""Which of the runs reports, and what."""


class Relay:
    """Follows the runs of a turn. Used from one event loop."""

    def __init__(self, loop: EngineLoop, book: SessionBook) -> None:
        self._loop = loop
        self._book = book

    async def follow(self, runs: Sequence[Run], visit: Visit | None) -> AsyncGenerator[Report]:
        """Submit runs, which go on from one version, and yield what each reports up to its last event.

        Raises the HopeError of the first that fails. A failure, and leaving early, drop those that still run.
        """
        event_loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[tuple[int, RunEvent]] = asyncio.Queue()

        def emit(index: int, event: RunEvent) -> None:
            event_loop.call_soon_threadsafe(inbox.put_nowait, (index, event))

        running = dict(enumerate(runs))
        fetched: tuple[Snapshot, Restored] | None = None
        try:
            for index, run in running.items():
                run.emit, run.submitted = partial(emit, index), time.perf_counter()
                self._loop.send(Submit(run))
            while running:
                index, event = await inbox.get()
                if isinstance(event, NeedsSnapshot):
                    found = fetched or await self._timed_fetch(running[index], visit)
                    # One that runs alone must not keep it longer than it takes to be seated.
                    fetched = found if len(runs) > 1 else None
                    self._loop.send(Deliver(running[index], *found))
                    continue
                if isinstance(event, (HopeError, Prepared, Scored, TurnFinished)):
                    del running[index]
                if isinstance(event, HopeError):
                    raise event
                yield index, event
        finally:
            for run in running.values():
                self._loop.send(Drop(run))

    async def _timed_fetch(self, run: Run, visit: Visit | None) -> tuple[Snapshot, Restored]:
        began = time.perf_counter()
        found = await self._fetch(run, visit)
        run.ledger.add("restore", began, found[0].num_bytes)
        return found

    async def _fetch(self, run: Run, visit: Visit | None) -> tuple[Snapshot, Restored]:
        """Fetch the snapshot that a run goes on from; a damaged head is set aside for the newest intact version."""
        if visit is None or run.version is None:
            raise InternalError("a turn without a session asked for a snapshot")
        if visit.draft is not None and visit.draft.info.version == run.version:
            return visit.draft.snapshot, "host"
        try:
            return await self._book.fetch(visit.key, run.version)
        except (StateCorrupt, VersionNotFound):
            await self._book.repair(visit.key)
            raise SessionConflict(
                f"the newest version of session {visit.key.session_id!r} failed its checks and was set aside; "
                "the session went back to the version before it, send the turn again"
            ) from None
