"""Sessions in Redis as their store sees them: found, made, listed and deleted, together with their keys.

A session's key record is made, not live, before the session, and destroyed after it; live, it says that the session
was there. So a session whose hash was evicted or lost in a roll-back of Redis is told from one that never was.
"""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from hope_memory.errors import (
    KeysUnavailable,
    SessionExists,
    SessionLost,
    SessionMissing,
    SnapshotCorrupt,
    StoreUnavailable,
)
from hope_memory.protocol import SessionId
from hope_memory.redis_client import Operation
from hope_memory.redis_layout import TOMB_MS, Facts, index_key, session_key
from hope_memory.redis_scripts import CONFIRM, CREATE, DELETE, FORK, LOOK, POINT
from hope_memory.seals import Seals, open_name
from hope_memory.vault import KeyRecord, Vault

_TRIES = 8


@dataclass(frozen=True, slots=True)
class Member:
    """A session and where it is. key: of its family's hash; record: its keys, and the birth of this incarnation."""

    session: SessionId
    place: str
    key: str
    record: KeyRecord

    @property
    def seals(self) -> Seals:
        """Seals and opens its fields. The keys are read after the fields, so they are the latest for those."""
        return Seals(self.session, self.record.keys, are_latest=True)

    @property
    def birth(self) -> str:
        """The id of this incarnation."""
        return self.record.keys.birth


@dataclass(frozen=True, slots=True)
class View:
    """What one look at a member showed; fields as in `redis_layout`. The commit is the one asked for, or the head.

    requests: (number of the commit, request's hash) of those that are remembered, newest last.
    """

    name: bytes
    created: float
    updated: float
    head: str | None
    kept: tuple[str, ...]
    version: str
    manifest: bytes | None
    facts: bytes | None
    summary: bytes | None
    head_facts: bytes | None
    requests: tuple[tuple[int, str], ...]
    acknowledged: str
    answered: bytes | None

    @classmethod
    def empty(cls) -> View:
        """What a look would show of a session that was only just made."""
        return cls(b"", 0.0, 0.0, None, (), "", None, None, None, None, (), "", None)

    @property
    def number(self) -> int:
        """The head's number; 0 where nothing is committed. Raises SnapshotCorrupt."""
        return 0 if self.head is None else Facts.decode(self.head_facts).number


@dataclass(frozen=True, slots=True)
class _Look:
    """What is at a place. birth: who has the name, "" nobody; view None: there is nothing of that session."""

    key: str
    birth: str = ""
    view: View | None = None
    tomb: str = ""


class Sessions:
    """Finds and makes the sessions of one Redis. All methods raise StoreUnavailable, KeysUnavailable and StoreFull.

    ttl_ms: how long a session stays after its last commit; 0: for ever.
    """

    def __init__(self, vault: Vault, prefix: str, ttl_ms: int, where: str) -> None:
        self._vault = vault
        self._prefix = prefix
        self._where = where
        self.ttl_ms = ttl_ms

    async def find(
        self, redis: Operation, session: SessionId, version: str = "", request: str = ""
    ) -> tuple[Member, View]:
        """Return a session and a look at it. Raises SessionMissing, SessionLost."""
        place = self._vault.place(session)
        for attempt in range(_TRIES):
            # Between two looks a delete that is under way ends; a session made anew has both its keys and its hash.
            await asyncio.sleep(0.005 * attempt)
            look = await self._look(redis, place, version, request)
            (record,) = await self._vault.find(place)
            if look.view is None:
                if record is None or not record.is_live or self.ttl_ms or look.tomb == record.keys.birth:
                    raise SessionMissing(session.name)
            elif record is not None and record.keys.birth == look.birth:
                return Member(session, place, look.key, await self._vault.mark_live(record)), look.view
        if look.view is None:
            raise SessionLost(session.name)
        raise KeysUnavailable(f"the key store has no key for session {session.name!r}; was it restored or replaced?")

    async def plan(self, redis: Operation, session: SessionId) -> Member:
        """Return a member for a session that is not there, with new keys; nothing is made.

        Raises: SessionLost; SessionExists where somebody has made it meanwhile.
        """
        place = self._vault.place(session)
        (record,) = await self._vault.find(place)
        if record is not None:
            look = await self._look(redis, place)
            if look.view is not None:
                raise SessionExists(session.name)
            # A record whose session was deleted is about to be destroyed: its birth must not be used again.
            is_deleted = look.tomb == record.keys.birth
            if record.is_live and not is_deleted and not self.ttl_ms:
                raise SessionLost(session.name)
            if record.is_live or is_deleted:
                await self._vault.destroy(place, record.keys.birth)
                record = None
        if record is None:
            record = await self._vault.admit(place)
        return Member(session, place, session_key(self._prefix, place), record)

    async def make(self, redis: Operation, member: Member) -> bool:
        """Make the planned session, empty; whether it was this call.

        Raises: StoreUnavailable where the name has another session by now.
        """
        look = await self._look(redis, member.place)
        replaced = look.birth if look.view is None else ""
        arguments = (member.birth, repr(time.time()), member.seals.seal_name(), self.ttl_ms, replaced)
        status, *rest = await redis.run(CREATE, session_key(self._prefix, member.place), *arguments)
        if status == b"foreign":
            raise self._foreign(member.place)
        if rest[0].decode() != member.birth:
            raise StoreUnavailable(f"session {member.session.name!r} was made and deleted meanwhile; try again")
        await self._vault.mark_live(member.record)
        await self.enlist(redis, member)
        return bool(status == b"made")

    async def find_or_make(self, redis: Operation, session: SessionId) -> tuple[Member, View, bool]:
        """Return a session, made where missing, and whether it was made. Raises SessionLost."""
        for _ in range(_TRIES):
            try:
                member, view = await self.find(redis, session)
                await self.enlist(redis, member)
                return member, view, False
            except SessionMissing:
                with suppress(SessionExists):
                    is_new = await self.make(redis, await self.plan(redis, session))
                    return *await self.find(redis, session), is_new
        raise StoreUnavailable(f"session {session.name!r} keeps being made and deleted; try again")

    async def locate(self, redis: Operation, session: SessionId) -> tuple[str, str]:
        """Return the key of a session's family and its birth, "" where there is none, without its keys."""
        look = await self._look(redis, self._vault.place(session))
        return look.key, look.birth if look.view is not None else ""

    async def is_there(self, redis: Operation, session: SessionId) -> bool:
        """Whether there is such a session."""
        return (await self._look(redis, self._vault.place(session))).view is not None

    async def plan_fork(self, redis: Operation, source: Member, copy: SessionId, last: bytes | None) -> Member:
        """Return a member in the source's family with keys that read what `last` and older keys sealed.

        Raises: SessionLost, SessionExists.
        """
        # What lies at the name in the way of a fork is in the way of any new session.
        place = (await self.plan(redis, copy)).place
        return Member(copy, place, source.key, await self._vault.inherit(source.record, place, last))

    async def make_fork(
        self, redis: Operation, source: Member, version: str, member: Member, commit: Sequence[str | bytes]
    ) -> str:
        """Make the planned fork with its first commit (version, manifest, facts, summary; version "" none).

        Returns "made"; "missing" (the source), "version" or "incomplete" (what is to be forked), "exists" (the name).
        """
        own = session_key(self._prefix, member.place)
        named = (member.birth, repr(time.time()), member.seals.seal_name())
        (status,) = await redis.run(FORK, member.key, source.birth, version, *named, *commit)
        if status != b"made":
            return str(status.decode())
        look = await self._look(redis, member.place)
        replaced = look.birth if look.view is None else ""
        status, *_ = await redis.run(POINT, own, member.birth, member.key, self.ttl_ms, replaced)
        if status != b"made":
            await redis.run(DELETE, member.key, member.birth, TOMB_MS)
            if status == b"foreign":
                raise self._foreign(member.place)
            return "exists"
        try:
            if not await redis.run(CONFIRM, member.key, member.birth):
                raise StoreUnavailable(f"making session {member.session.name!r} took too long; try again")
            await self._vault.mark_live(member.record)
        except KeysUnavailable:
            # Another fork to this name has put its own keys there; without its keys a session is of no use.
            for key in dict.fromkeys((member.key, own)):
                await redis.run(DELETE, key, member.birth, TOMB_MS)
            raise
        await self._vault.add_key(source.record)
        await self.enlist(redis, member)
        return "made"

    async def keep_name(self, redis: Operation, member: Member) -> None:
        """Let the name of a fork, which is in another hash, live as long as its family."""
        own = session_key(self._prefix, member.place)
        if self.ttl_ms and own != member.key:
            await redis.call("PEXPIRE", own, self.ttl_ms)

    async def enlist(self, redis: Operation, member: Member) -> None:
        """Put a session into its tenant's index."""
        await redis.call("ZADD", self._index(member.session.tenant), 0, member.place)

    async def delete(self, redis: Operation, session: SessionId) -> bool:
        """Remove a session and what only it used, its keys last; whether there was one."""
        place = self._vault.place(session)
        look = await self._look(redis, place)
        if look.birth:
            # The family first: from then on no commit can succeed, while the name still leads to what is left.
            for target in dict.fromkeys((look.key, session_key(self._prefix, place))):
                await redis.run(DELETE, target, look.birth, TOMB_MS)
        (record,) = await self._vault.find_readable(place)
        existed = look.view is not None
        if record is None and existed:
            # Nothing, or a record that cannot be read and would be in the way of a new session.
            await self._vault.erase(place)
        elif record is not None and await self._is_left_over(redis, place, look, record):
            existed = existed or record.is_live
            await self._vault.destroy(place, record.keys.birth)
        await redis.call("ZREM", self._index(session.tenant), place)
        return existed

    async def list(
        self, redis: Operation, tenant: str, limit: int, after: str | None
    ) -> builtins.list[tuple[Member, View]]:
        """Return up to `limit` sessions in the order of their places, beyond that of `after`.

        Those whose key or name cannot be read any more are left out.
        """
        index = self._index(tenant)
        start = "-" if after is None else f"({self._vault.place(SessionId(tenant, after))}"
        found: builtins.list[tuple[Member, View]] = []
        while len(found) < limit:
            wanted = limit - len(found)
            members = await redis.call("ZRANGEBYLEX", index, start, "+", "LIMIT", 0, wanted)
            places = [member.decode() for member in members]
            looks = [await self._look(redis, place) for place in places]
            # Keys after what they open: a fork may have given a session a new key in between.
            records = await self._vault.find_readable(*places)
            for place, look, record in zip(places, looks, records, strict=True):
                if look.view is None:
                    await self._delist(redis, index, place)
                elif record is not None and record.keys.birth == look.birth:
                    with suppress(SnapshotCorrupt):
                        named = open_name(tenant, record.keys, look.view.name)
                        found.append((Member(named, place, look.key, record), look.view))
            if len(places) < wanted:
                break
            start = f"({places[-1]}"
        return found

    async def _is_left_over(self, redis: Operation, place: str, look: _Look, record: KeyRecord) -> bool:
        """Whether a key record belongs to what a delete just removed, or to a session that was lost or half deleted."""
        if record.keys.birth in (look.birth, look.tomb):
            return True
        # Not live: somebody is making the session now. Live: somebody may have made it since the look.
        return not look.birth and record.is_live and not (await self._look(redis, place)).birth

    async def _delist(self, redis: Operation, index: str, place: str) -> None:
        await redis.call("ZREM", index, place)
        # It may have been made since the look.
        if (await self._look(redis, place)).view is not None:
            await redis.call("ZADD", index, 0, place)

    async def _look(self, redis: Operation, place: str, version: str = "", request: str = "") -> _Look:
        own = session_key(self._prefix, place)
        status, *rest = await redis.run(LOOK, own, "", version, request)
        if status == b"foreign":
            raise self._foreign(place)
        if status == b"none":
            return _Look(own, tomb=rest[0].decode() if rest else "")
        if status == b"at":
            return _Look(own, rest[0].decode(), _view(rest[1:], version))
        key, birth = (own, rest[0].decode()) if status == b"gone" else (rest[1].decode(), rest[0].decode())
        if key != own:
            status, *rest = await redis.run(LOOK, key, birth, version, request)
            if status == b"at":
                return _Look(key, birth, _view(rest[1:], version))
        return _Look(key, birth)

    def _foreign(self, place: str) -> StoreUnavailable:
        key = session_key(self._prefix, place)
        return StoreUnavailable(
            f"{self._where} has a hash {key} that is another program's or of a newer layout; choose another prefix"
        )

    def _index(self, tenant: str) -> str:
        return index_key(self._prefix, self._vault.tenant_place(tenant))


def _view(reply: list[bytes | None], version: str) -> View:
    times, head, kept, manifest, facts, summary, name, head_facts, requests, acknowledged, answered = reply
    assert times is not None and head is not None and kept is not None
    try:
        created, updated = map(float, times.split())
        shown = head.decode("ascii")
        return View(
            name or b"",
            created,
            updated,
            shown or None,
            tuple(kept.decode("ascii").split()),
            version or shown,
            manifest,
            facts,
            summary,
            head_facts,
            tuple(_request(entry) for entry in (requests or b"").decode("ascii").split()),
            (acknowledged or b"").decode("ascii"),
            answered,
        )
    except ValueError:
        raise SnapshotCorrupt("a stored session has fields that cannot be read") from None


def _request(entry: str) -> tuple[int, str]:
    number, _, place = entry.partition(":")
    return int(number), place
