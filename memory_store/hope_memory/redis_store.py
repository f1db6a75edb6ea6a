"""The shared store: sessions in a Redis or a Redis Cluster, which any number of server processes may use at once.

What is stored is sealed with each session's own keys. Levels are staged first, seen by nobody, and one script then
makes the commit the head, if its parent still is: see `redis_scripts`.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hope_memory import redis_check
from hope_memory import redis_history as history
from hope_memory.codec import KEEP_REQUESTS, MAX_PIECES
from hope_memory.durability import num_replicas
from hope_memory.errors import KeysUnavailable, SnapshotTooLarge, StoreUnavailable
from hope_memory.key_store import SqliteKeyStore
from hope_memory.protocol import (
    MAX_LIST_LIMIT,
    Ancestry,
    Answered,
    CommitInfo,
    Loaded,
    Request,
    SessionId,
    SessionRecord,
    check_pins,
)
from hope_memory.redis_client import Operation, Patience, RedisClient
from hope_memory.redis_commits import Commits, Restoring, Wish
from hope_memory.redis_durability import reach
from hope_memory.redis_layout import PIECE_BYTES, mark_key
from hope_memory.redis_levels import LevelNames
from hope_memory.redis_loads import Loads
from hope_memory.redis_scripts import ACKNOWLEDGE
from hope_memory.redis_sessions import Member, Sessions, View
from hope_memory.snapshot import Snapshot
from hope_memory.vault import Vault

T = TypeVar("T")

MAX_SNAPSHOT_BYTES = MAX_PIECES * PIECE_BYTES
KEY_FOLDER = Path("~/.local/share/hope")


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """What may be chosen of a Redis store.

    prefix: begins the names of all its keys. session_ttl_seconds: a session goes so long after its last commit; 0:
    never. allow_eviction: use a Redis that throws sessions away when its memory is full. max_loading_bytes: of all
    snapshots that are read at once.
    """

    prefix: str = "hope:"
    session_ttl_seconds: float = 0
    allow_eviction: bool = False
    max_loading_bytes: int = 256 << 20
    patience: Patience = field(default_factory=Patience)


class RedisStore:
    """A `SnapshotStore` in the Redis that `url` names: redis, rediss, redis+cluster, rediss+cluster or unix.

    keep_versions: commits kept of each session, at least 1.
    max_snapshot_bytes: stored bytes that one commit may name, up to MAX_SNAPSHOT_BYTES.
    vault: where the sessions' keys are, opened and closed with the store; None is one in KEY_FOLDER.
    Raises ValueError for a URL or a limit that cannot be.
    """

    def __init__(
        self,
        url: str,
        keep_versions: int = 8,
        max_snapshot_bytes: int = 64 << 20,
        vault: Vault | None = None,
        options: RedisOptions | None = None,
    ) -> None:
        options = options or RedisOptions()
        if keep_versions < 1 or not 1 <= max_snapshot_bytes <= MAX_SNAPSHOT_BYTES:
            raise ValueError(f"keep_versions must be at least 1, max_snapshot_bytes 1 to {MAX_SNAPSHOT_BYTES:,}")
        if not options.prefix or any(mark in options.prefix for mark in "{} \r\n") or options.session_ttl_seconds < 0:
            raise ValueError("prefix needs a character and none of braces and spaces, session_ttl_seconds 0 or more")
        ttl_ms = round(options.session_ttl_seconds * 1000)
        self.options = options
        self.vault = vault or _default_vault()
        self._limits = history.Limits(keep_versions, max_snapshot_bytes, ttl_ms)
        self._client = RedisClient(url, options.patience)
        self._sessions = Sessions(self.vault, options.prefix, ttl_ms, self._client.where)
        self._names = LevelNames(lambda name: self.vault.ring.place("level", name)[:16])
        self._commits = Commits(self._sessions, self._names, self._limits)
        self._loads = Loads(self._client, self._sessions, self._names, self._limits, options.max_loading_bytes)
        self._facts: redis_check.ServerFacts | None = None

    async def open(self) -> None:
        """As `SnapshotStore.open`; also raises KeysUnavailable."""
        if self._client.is_open:
            return
        self._client.open()
        try:
            await self.vault.open()
            async with self._client.operation() as redis:
                facts = await redis_check.read_facts(redis, self._client.is_cluster, self._client.where)
                redis_check.check(facts, self._client.where, self._client.is_cluster, self.options.allow_eviction)
                await self._check_mark(redis)
            self._facts = facts
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """As `SnapshotStore.close`."""
        await self._loads.settle()
        await self._client.close()
        await self.vault.close()

    async def ping(self) -> None:
        """As `SnapshotStore.ping`."""
        async with self._client.operation() as redis:
            await redis.call("EXISTS", mark_key(self.options.prefix))

    async def create(self, session: SessionId) -> tuple[SessionRecord, bool]:
        """As `SnapshotStore.create`."""
        async with self._client.operation() as redis:
            member, view, is_new = await _settled(self._sessions.find_or_make(redis, session))
        return _record(member, view), is_new

    async def get(self, session: SessionId) -> SessionRecord:
        """As `SnapshotStore.get`."""
        return _record(*await self._find(session))

    async def list(self, tenant: str, limit: int = 100, after: str | None = None) -> builtins.list[SessionRecord]:
        """As `SnapshotStore.list`; sessions whose key or name cannot be read any more are left out."""
        if not 1 <= limit <= MAX_LIST_LIMIT:
            raise ValueError(f"limit is {limit}; it must be 1 to {MAX_LIST_LIMIT}")
        async with self._client.operation() as redis:
            return [_record(*found) for found in await self._sessions.list(redis, tenant, limit, after)]

    async def load(self, session: SessionId, version: str | None = None, fingerprint: str | None = None) -> Loaded:
        """As `SnapshotStore.load`."""
        return await self._loads.load(session, version, fingerprint)

    async def commit(
        self,
        session: SessionId,
        parent: str | None,
        snapshot: Snapshot,
        unchanged: frozenset[str] = frozenset(),
        request: Request | None = None,
        durability: str = "commit",
        pins: frozenset[str] = frozenset(),
    ) -> CommitInfo:
        """As `SnapshotStore.commit`."""
        check_pins(pins)
        num_replicas(durability)
        changed = {name: level for name, level in snapshot.levels.items() if name not in unchanged}
        num_bytes = sum(level.num_bytes for level in changed.values())
        if num_bytes > self._limits.max_snapshot_bytes:
            raise SnapshotTooLarge(num_bytes, self._limits.max_snapshot_bytes)
        place = "" if request is None else self.vault.request_place(session, request.id)
        wish = Wish(session, parent, snapshot, changed, unchanged, request, place, pins)
        return await _settled(self._commit(wish, durability))

    async def find_request(self, session: SessionId, request_id: str) -> Answered | None:
        """As `SnapshotStore.find_request`."""
        place = self.vault.request_place(session, request_id)
        member, view = await self._find(session, request=place)
        return history.open_answer(member, view, place)

    async def last_request(self, session: SessionId) -> Answered | None:
        """As `SnapshotStore.last_request`."""
        for _ in range(8):
            _, view = await self._find(session)
            place = dict(view.requests).get(view.number, "")
            if not place:
                return None
            member, again = await self._find(session, request=place)
            if again.head == view.head:
                return history.open_answer(member, again, place)
        raise StoreUnavailable(f"session {session.name!r} keeps changing; try again")

    async def acknowledge(self, session: SessionId, version: str) -> None:
        """As `SnapshotStore.acknowledge`."""
        async with self._client.operation() as redis:
            key, birth = await self._sessions.locate(redis, session)
            if birth:
                await redis.run(ACKNOWLEDGE, key, birth, version)

    async def ancestry(self, session: SessionId, version: str) -> Ancestry:
        """As `SnapshotStore.ancestry`."""
        member, view = await self._find(session)
        if version == (view.head or member.birth):
            return "head"
        known = {known for known, _ in history.lineage_of(history.manifest_or_none(member, view), view)}
        is_young = version == member.birth and view.number <= KEEP_REQUESTS
        return "ancestor" if version in known or is_young else "unknown"

    async def versions(self, session: SessionId) -> builtins.list[CommitInfo]:
        """As `SnapshotStore.versions`."""
        for _ in range(8):
            async with self._client.operation() as redis:
                member, view = await self._sessions.find(redis, session)
                if not view.kept:
                    return []
                wanted = [f"{kind}:{version}" for version in view.kept for kind in "fi"]
                found = await redis.call("HMGET", member.key, *wanted)
                _, again = await self._sessions.find(redis, session)
            if again.kept == view.kept:
                pairs = zip(view.kept, found[::2], found[1::2], strict=True)
                return [history.listed_info(member, version, *stored) for version, *stored in pairs]
        raise StoreUnavailable(f"session {session.name!r} keeps changing; try again")

    async def rollback(
        self,
        session: SessionId,
        version: str,
        pins: frozenset[str] = frozenset(),
        info: dict[str, Any] | None = None,
        parent: str | None = None,
    ) -> CommitInfo:
        """As `SnapshotStore.rollback`."""
        check_pins(pins)
        await self._loads.load(session, version, None)
        async with self._client.operation() as redis:
            return await _settled(self._commits.restore(redis, Restoring(session, version, pins, info, parent)))

    async def fork(
        self, session: SessionId, new_name: str, version: str | None = None, info: dict[str, Any] | None = None
    ) -> SessionRecord:
        """As `SnapshotStore.fork`."""
        copy = SessionId(session.tenant, new_name)
        async with self._client.operation() as redis:
            await _settled(self._commits.fork(redis, session, copy, version, info))
        return await self.get(copy)

    async def delete(self, session: SessionId) -> bool:
        """As `SnapshotStore.delete`."""
        async with self._client.operation() as redis:
            return await _settled(self._sessions.delete(redis, session))

    async def _find(self, session: SessionId, version: str = "", request: str = "") -> tuple[Member, View]:
        async with self._client.operation() as redis:
            return await self._sessions.find(redis, session, version, request)

    async def _commit(self, wish: Wish, durability: str) -> CommitInfo:
        async with self._client.operation() as redis:
            member, info = await self._commits.commit(redis, wish)
            await self._sessions.keep_name(redis, member)
            assert self._facts is not None
            return await reach(redis, member.key, info, durability, self._facts)

    async def _check_mark(self, redis: Operation) -> None:
        key, mark = mark_key(self.options.prefix), self.vault.mark().encode()
        found = await redis.call("GET", key)
        if found is None:
            await redis.call("SET", key, mark, "NX")
            found = await redis.call("GET", key)
        if found != mark:
            raise KeysUnavailable(
                f"{self._client.where} was used with another key file than {self.vault.key_file} under the prefix "
                f"{self.options.prefix!r}; name that key file, or choose another prefix"
            )


async def _settled(work: Coroutine[Any, Any, T]) -> T:
    """Finish what has begun: a caller that is cancelled is held until the work has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()
        raise


def _record(member: Member, view: View) -> SessionRecord:
    head = None
    if view.head is not None:
        head = history.listed_info(member, view.head, view.head_facts, view.summary)
    return SessionRecord(member.session, view.created, view.updated, head, member.birth)


def _default_vault() -> Vault:
    folder = KEY_FOLDER.expanduser()
    return Vault(folder / "hope.key", SqliteKeyStore(folder / "keys.db"))
