"""Reading snapshots from Redis: checked, shared by those who want the same one at once, within a budget of memory."""

from __future__ import annotations

import asyncio

from hope_memory.codec import Manifest
from hope_memory.errors import FingerprintMismatch, SnapshotCorrupt, SnapshotTooLarge, VersionMissing
from hope_memory.protocol import Loaded, SessionId
from hope_memory.redis_client import RedisClient
from hope_memory.redis_history import Limits, base_of, commit_info, open_manifest, wanted
from hope_memory.redis_levels import ByteBudget, LevelNames, fetch_levels
from hope_memory.redis_sessions import Member, Sessions, View
from hope_memory.snapshot import Snapshot

_TRIES = 8


class Loads:
    """Reads snapshots. A version never changes, so two readers of one share one reading; each looks up its own head."""

    def __init__(
        self, client: RedisClient, sessions: Sessions, names: LevelNames, limits: Limits, budget_bytes: int
    ) -> None:
        self._client = client
        self._sessions = sessions
        self._names = names
        self._limits = limits
        self._budget = ByteBudget(budget_bytes)
        self._running: dict[tuple[str, str], asyncio.Task[Snapshot]] = {}

    async def load(self, session: SessionId, version: str | None, fingerprint: str | None) -> Loaded:
        """Return a checked snapshot; see `SnapshotStore.load` for the rules and the errors."""
        for _ in range(_TRIES):
            member, view = await self._look(session, wanted(version))
            if version is not None:
                return await self._read(member, view, fingerprint)
            loaded = await self._newest_intact(member, view, fingerprint)
            if loaded is not None:
                return loaded
        raise SnapshotCorrupt(f"session {session.name!r} changes faster than it can be read; try again")

    async def settle(self) -> None:
        """Wait for what is being read."""
        if self._running:
            await asyncio.wait(self._running.values())

    async def _newest_intact(self, member: Member, view: View, fingerprint: str | None) -> Loaded | None:
        """The head or its newest intact ancestor; None where another commit became the head meanwhile."""
        session, head = member.session, view.head
        if head is None:
            raise VersionMissing(session.name, None)
        skipped: list[str] = []
        while True:
            try:
                loaded = await self._read(member, view, fingerprint)
                return loaded._replace(skipped=tuple(skipped))
            except (SnapshotCorrupt, VersionMissing):
                # What looks damaged may only be gone: later commits drop what is old.
                _, latest = await self._look(session)
                if latest.head != head:
                    return None
            skipped.append(view.version)
            base = base_of(view)
            if base is None or base in skipped:
                raise SnapshotCorrupt(
                    f"no intact version of session {session.name!r} is left; damaged: {', '.join(skipped)}"
                )
            member, view = await self._look(session, base)

    async def _look(self, session: SessionId, version: str = "") -> tuple[Member, View]:
        async with self._client.operation() as redis:
            return await self._sessions.find(redis, session, version)

    async def _read(self, member: Member, view: View, fingerprint: str | None) -> Loaded:
        made = open_manifest(member, view)
        if fingerprint is not None and made.fingerprint != fingerprint:
            raise FingerprintMismatch(fingerprint, made.fingerprint)
        if made.level_num_bytes > self._limits.max_snapshot_bytes:
            raise SnapshotTooLarge(made.level_num_bytes, self._limits.max_snapshot_bytes)
        at = (member.key, made.version)
        task = self._running.get(at)
        if task is None:
            task = self._running[at] = asyncio.create_task(self._fetch(member, made))
            task.add_done_callback(lambda done: self._forget(at, done))
        # A reader that is cancelled leaves the reading to the others; it ends by its own deadline.
        return Loaded(commit_info(made, view), await asyncio.shield(task), ())

    async def _fetch(self, member: Member, made: Manifest) -> Snapshot:
        async with self._budget.of(made.level_num_bytes), self._client.operation() as redis:
            levels = await fetch_levels(redis, member.key, made, self._names, member.seals)
        try:
            return Snapshot(made.fingerprint, made.meta, levels)
        except ValueError as exc:
            raise SnapshotCorrupt(f"version {made.version} is no valid snapshot: {exc}") from exc

    def _forget(self, at: tuple[str, str], done: asyncio.Task[Snapshot]) -> None:
        del self._running[at]
        if not done.cancelled():
            # Read here, so that an error which nobody waits for any more is not reported as forgotten.
            done.exception()
