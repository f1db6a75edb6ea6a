"""How a session in Redis moves on: commit, roll-back, fork."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hope_memory import redis_history as history
from hope_memory.codec import LevelRef, Manifest
from hope_memory.errors import (
    FingerprintMismatch,
    RequestReused,
    SessionExists,
    SessionMissing,
    SnapshotCorrupt,
    StoreFull,
    StoreUnavailable,
    VersionConflict,
    VersionMissing,
)
from hope_memory.protocol import CommitInfo, Request, SessionId
from hope_memory.redis_client import Operation
from hope_memory.redis_levels import ChangedLevels, LevelNames, encode_levels, unstage
from hope_memory.redis_sessions import Member, Sessions, View
from hope_memory.sealing import key_id_of
from hope_memory.snapshot import Level, Snapshot

_TRIES = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """What `SnapshotStore.commit` was asked. changed: the levels to write; place: the hash of the request's id."""

    session: SessionId
    parent: str | None
    snapshot: Snapshot
    changed: dict[str, Level]
    unchanged: frozenset[str]
    request: Request | None
    place: str
    pins: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Restoring:
    """What `SnapshotStore.rollback` was asked."""

    session: SessionId
    version: str
    pins: frozenset[str]
    info: dict[str, Any] | None
    parent: str | None


class Commits:
    """Makes commits of the sessions of one Redis."""

    def __init__(self, sessions: Sessions, names: LevelNames, limits: history.Limits) -> None:
        self._sessions = sessions
        self._names = names
        self._limits = limits

    async def commit(self, redis: Operation, wish: Wish) -> tuple[Member, CommitInfo]:
        """Make the snapshot the head; see `SnapshotStore.commit` for the rules and the errors."""
        for _ in range(_TRIES):
            member, view, is_there = await self._find_or_plan(redis, wish)
            if (replay := _replay(member, view, wish)) is not None:
                return member, replay
            tip = view.head or member.birth
            is_expected = view.head is None if wish.parent is None else wish.parent == tip
            if not is_expected:
                raise VersionConflict(wish.parent, tip)
            draft, changed = await self._prepare(member, view, tip, wish)
            if not is_there:
                await self._sessions.make(redis, member)
            status, found = await self._flip(redis, draft, changed)
            if status == "done":
                return member, draft.info
            if status == "conflict":
                # Where no parent was named, an empty session that was deleted and made again is as good.
                raise VersionConflict(wish.parent, found)
            if status == "missing" and wish.parent is not None:
                raise SessionMissing(wish.session.name)
            # A replay is answered by the next look, which reads the keys that open the answer.
        raise StoreUnavailable(f"session {wish.session.name!r} keeps changing, or loses what is staged; try again")

    async def restore(self, redis: Operation, wish: Restoring) -> CommitInfo:
        """Make a new head with the state of a kept version, which the caller has checked."""
        session, version = wish.session, wish.version
        for _ in range(_TRIES):
            member, view = await self._sessions.find(redis, session, history.wanted(version))
            source = history.open_manifest(member, view)
            _, head_view = await self._sessions.find(redis, session)
            tip = head_view.head or member.birth
            if wish.parent is not None and wish.parent != tip:
                raise VersionConflict(wish.parent, tip)
            head = history.manifest_or_none(member, head_view)
            made = replace(source, version=history.new_version(), parent=head_view.head, base=version)
            made = history.placed(made, head_view.number + 1, history.lineage_of(head, head_view))
            made = history.with_info(made, wish.info)
            draft = history.seal_commit(member, tip, made, self._names, self._limits)
            draft = replace(draft, pins=wish.pins)
            status, _ = await self._flip(redis, draft, None)
            if status == "done":
                return draft.info
        raise StoreUnavailable(f"session {session.name!r} keeps changing; try again")

    async def fork(
        self,
        redis: Operation,
        session: SessionId,
        copy: SessionId,
        version: str | None,
        info: dict[str, Any] | None,
    ) -> None:
        """Make `copy` from a kept version; see `SnapshotStore.fork` for the rules and the errors."""
        source, view = await self._sessions.find(redis, session, history.wanted(version))
        made: Manifest | None = None
        last: bytes | None = None
        if version is not None or view.head is not None:
            made = history.open_manifest(source, view)
            assert view.manifest is not None
            last = key_id_of(view.manifest)
        if await self._sessions.is_there(redis, copy):
            raise SessionExists(copy.name)
        member = await self._sessions.plan_fork(redis, source, copy, last)
        fields: tuple[str | bytes, ...] = ("", b"", b"", b"")
        if made is not None:
            first = replace(made, name=copy.name, version=history.new_version(), parent=made.version, base=made.version)
            first = history.with_info(history.placed(first, made.number + 1, made.lineage), info)
            draft = history.seal_commit(member, member.birth, first, self._names, self._limits)
            fields = (first.version, draft.manifest, draft.facts, draft.summary)
        status = await self._sessions.make_fork(redis, source, view.version, member, fields)
        if status == "missing":
            raise SessionMissing(session.name)
        if status in ("version", "incomplete"):
            raise VersionMissing(session.name, version)
        if status == "exists":
            raise SessionExists(copy.name)

    async def _find_or_plan(self, redis: Operation, wish: Wish) -> tuple[Member, View, bool]:
        try:
            member, view = await self._sessions.find(redis, wish.session, request=wish.place)
            return member, view, True
        except SessionMissing:
            if wish.parent is not None:
                raise
        try:
            return await self._sessions.plan(redis, wish.session), View.empty(), False
        except SessionExists:
            member, view = await self._sessions.find(redis, wish.session, request=wish.place)
            return member, view, True

    async def _prepare(self, member: Member, view: View, tip: str, wish: Wish) -> tuple[history.Draft, ChangedLevels]:
        snapshot, head = wish.snapshot, history.manifest_or_none(member, view)
        earlier = history.lineage_of(head, view)
        if wish.place and wish.place in (place for _, place in earlier):
            raise SnapshotCorrupt("this request was answered before, and what it was answered with is lost")
        levels = self._unchanged_levels(member, view, wish)
        version = history.new_version()
        encoded = await encode_levels(wish.changed)
        changed = ChangedLevels(member.seals, self._names, version, snapshot.fingerprint, encoded)
        made = Manifest(
            tenant=wish.session.tenant,
            name=wish.session.name,
            version=version,
            parent=view.head,
            number=1,
            created=0.0,
            fingerprint=snapshot.fingerprint,
            meta=snapshot.meta,
            base=view.head,
            lineage=(),
            levels=levels | changed.refs,
        )
        made = history.placed(made, view.number + 1, earlier, wish.place)
        request = None if wish.request is None else (wish.place, wish.request)
        draft = history.seal_commit(member, tip, made, self._names, self._limits, request)
        return replace(draft, pins=wish.pins), changed

    def _unchanged_levels(self, member: Member, view: View, wish: Wish) -> dict[str, LevelRef]:
        if not wish.unchanged:
            return {}
        if view.head is None:
            raise ValueError("a first commit has no parent, so no level of it can be unchanged")
        parent = history.open_manifest(member, view)
        if parent.fingerprint != wish.snapshot.fingerprint:
            raise FingerprintMismatch(wish.snapshot.fingerprint, parent.fingerprint)
        if missing := wish.unchanged - parent.levels.keys():
            raise ValueError(f"the parent has no level {', '.join(sorted(missing))}; it cannot be unchanged")
        return {name: parent.levels[name] for name in wish.unchanged}

    async def _flip(self, redis: Operation, draft: history.Draft, changed: ChangedLevels | None) -> tuple[str, str]:
        try:
            return await history.flip(redis, draft, changed, self._limits)
        except StoreFull:
            # What was staged is what fills the memory.
            if changed is not None:
                await unstage(redis, draft.member.key, changed)
            raise


def _replay(member: Member, view: View, wish: Wish) -> CommitInfo | None:
    if wish.request is None:
        return None
    answered = history.open_answer(member, view, wish.place)
    if answered is None:
        return None
    if answered.digest != wish.request.digest:
        raise RequestReused(wish.request.id)
    return replace(answered.info, is_replay=True)
