"""Everything about sessions that is no turn: making, looking at, setting back, copying, moving and deleting them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from hope_memory import SnapshotCorrupt, SnapshotTooLarge
from hope_memory.archive import read_archive, write_archive
from hope_memory.protocol import SessionRecord

from hope_server.engine.commits import Commits
from hope_server.engine.gate import SessionGate
from hope_server.engine.loop import EngineLoop, Forget
from hope_server.engine.request_plan import card_of
from hope_server.engine.sessions import SessionBook, describe, describe_version
from hope_server.engine.turn import SessionInfo, SessionKey
from hope_server.engine.witness import Witness
from hope_server.errors import (
    HopeError,
    InvalidRequest,
    SessionExists,
    StateIncompatible,
    StateTooLarge,
    VersionNotFound,
)


class SessionDesk:
    """Answers what is asked of sessions. Methods are called from one event loop and raise HopeErrors."""

    def __init__(
        self,
        book: SessionBook,
        loop: EngineLoop,
        gate: SessionGate,
        commits: Commits,
        witness: Witness,
        max_snapshot_bytes: int,
    ) -> None:
        self._book = book
        self._loop = loop
        self._gate = gate
        self._commits = commits
        self._witness = witness
        self._max_snapshot_bytes = max_snapshot_bytes

    async def create_session(self, key: SessionKey) -> tuple[SessionInfo, bool]:
        """Create a session, or return the one there is. Raises MemoryEvicted."""
        record, is_new = await self._book.create(key)
        return describe(record), is_new

    async def list_sessions(self, tenant: str, limit: int, after: str | None) -> list[SessionInfo]:
        """List a tenant's sessions."""
        return await self._book.list(tenant, limit, after)

    async def get_session(self, key: SessionKey) -> SessionInfo:
        """Look a session up. Raises SessionNotFound, MemoryEvicted."""
        return describe(await self._book.get(key))

    async def delete_session(self, key: SessionKey) -> bool:
        """Delete a session; a turn that runs in it will fail to commit."""
        self._commits.forget(key)
        existed = await self._book.delete(key)
        self._commits.forget(key)
        self._witness.forget(key)
        self._loop.send(Forget(key))
        return existed

    async def session_versions(self, key: SessionKey) -> list[dict[str, Any]]:
        """Kept versions, newest first."""
        return [describe_version(info) for info in await self._book.versions(key)]

    async def fork_session(self, key: SessionKey, new_id: str, version: str | None = None) -> SessionInfo:
        """Give a kept version or snapshot (None: the newest version) a second name.

        The fork lives as long and is labelled alike; it is not frozen and has no snapshots.
        Raises SessionExists, VersionNotFound.
        """
        async with self._settled(key):
            record = await self._book.get(key)
            if version is not None:
                version = card_of(record).tags.get(version, version)
            if version is None or (record.head is not None and version == record.head.version):
                return describe(await self._book.fork(key, new_id, record.head))
            kept = await self._book.versions(key)
            info = next((info for info in kept if info.version == version), None)
            if info is None:
                raise VersionNotFound(key.session_id, version)
            return describe(await self._book.fork(key, new_id, info))

    async def rollback_session(self, key: SessionKey, version: str, if_match: str | None = None) -> SessionInfo:
        """Make the state of a kept version or snapshot the newest; what belongs to the session stays as it is.

        Raises VersionNotFound, VersionMismatch, MemoryRolledBack.
        """
        async with self._settled(key):
            record = await self._book.get(key)
            await self._witness.check(record, if_match)
            card = card_of(record)
            await self._book.restate(record, card.tags.get(version, version), card)
            self._loop.send(Forget(key))
            return describe(await self._look_again(key))

    async def export_session(self, key: SessionKey, version: str | None = None) -> tuple[str, bytes]:
        """A kept version or snapshot (None: the newest version) as one file, and its name. Raises VersionNotFound."""
        async with self._settled(key):
            if version is not None:
                version = card_of(await self._book.get(key)).tags.get(version, version)
            loaded = await self._book.load(key, version)
        data = await asyncio.to_thread(lambda: b"".join(write_archive(loaded, key.session_id)))
        return loaded.info.version, data

    async def import_session(self, key: SessionKey, data: bytes) -> SessionInfo:
        """Make a session of an exported file. Raises InvalidRequest, StateIncompatible, SessionExists."""
        try:
            _, snapshot = await asyncio.to_thread(read_archive, data, self._max_snapshot_bytes)
        except SnapshotTooLarge as exc:
            raise StateTooLarge(exc.num_bytes, exc.limit) from exc
        except SnapshotCorrupt as exc:
            raise InvalidRequest(f"the body is not a whole, unaltered export of a session: {exc}") from exc
        if snapshot.fingerprint != self._book.fingerprint:
            raise StateIncompatible(
                "the export was learned with another model, tokenizer or memory layout; import it where that is served"
            )
        record, is_new = await self._book.create(key)
        if not is_new:
            raise SessionExists(key.session_id)
        try:
            await self._book.commit(key, record.tip, snapshot)
        except HopeError:
            with contextlib.suppress(HopeError):
                await self._book.delete(key)
            raise
        return describe(await self._book.get(key))

    async def _look_again(self, key: SessionKey) -> SessionRecord:
        """Look at a session that was changed just now."""
        record = await self._book.get(key)
        await self._witness.check(record, record.tip)
        return record

    @contextlib.asynccontextmanager
    async def _settled(self, key: SessionKey) -> AsyncIterator[None]:
        """Hold a session's gate, with everything that this process has of it in the store."""
        await self._gate.enter(key)
        try:
            await self._commits.settle(key)
            yield
        finally:
            self._gate.leave(key)
