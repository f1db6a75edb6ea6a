"""What can be done to a session besides talking to it: freeze, label, limit its life, snapshot, reset and measure it.

Each verb holds the session's gate, commits what this process has of it, and then makes one commit of its own, on the
tip that it found. Asked again, each finds that nothing is left to do, or does the same once more to the same effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from hope_memory.protocol import CommitInfo, SessionRecord

from hope_server.engine.commits import Commits
from hope_server.engine.desk import SessionDesk
from hope_server.engine.drafts import Visit
from hope_server.engine.gate import SessionGate
from hope_server.engine.loop import Committed, Drop, EngineLoop, Renamed
from hope_server.engine.memory_gauge import MemoryGauge, as_object
from hope_server.engine.relay import Relay
from hope_server.engine.request_plan import card_of
from hope_server.engine.run import Prepared, Run
from hope_server.engine.session_card import SessionCard
from hope_server.engine.sessions import SessionBook, describe, describe_version
from hope_server.engine.state_codec import StateReader
from hope_server.engine.transcript import Conversation, epoch_after
from hope_server.engine.turn import SessionInfo, SessionKey
from hope_server.engine.witness import Witness
from hope_server.errors import InternalError, InvalidRequest, SessionFrozen, VersionNotFound


class SessionVerbs(SessionDesk):
    """Answers what is asked of sessions, and changes them. Methods are called from one event loop."""

    def __init__(
        self,
        book: SessionBook,
        loop: EngineLoop,
        gate: SessionGate,
        commits: Commits,
        witness: Witness,
        max_snapshot_bytes: int,
        reader: StateReader,
        gauge: MemoryGauge,
    ) -> None:
        super().__init__(book, loop, gate, commits, witness, max_snapshot_bytes)
        self._reader = reader
        self._gauge = gauge
        self._relay = Relay(loop, book)

    async def update_session(
        self,
        key: SessionKey,
        *,
        is_frozen: bool | None = None,
        ttl_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
    ) -> SessionInfo:
        """Freeze or unfreeze a session, limit its life (0: for ever), change its labels; None leaves a thing as it is.

        Raises SessionNotFound, VersionMismatch, InvalidRequest.
        """
        async with self._settled(key):
            record = await self._book.get(key)
            await self._witness.check(record, if_match)
            card = card_of(record).living(ttl_seconds)
            if metadata is not None:
                card = card.labelled(metadata)
            if is_frozen is not None:
                card = replace(card, is_frozen=is_frozen)
            return describe(await self._with_card(key, record, card))

    async def reset_session(
        self, key: SessionKey, levels: Sequence[str] | None = None, if_match: str | None = None
    ) -> SessionInfo:
        """Make levels (and the text that is kept for rehearsal, by the name "journal") new; None is all of them.

        The conversation stays in the attention window. Asked again, it makes one more version with the same memory.
        Raises SessionNotFound, SessionFrozen, VersionMismatch, InvalidRequest.
        """
        known = self._gauge.resettable
        names = known if levels is None else tuple(dict.fromkeys(levels))
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            what = f"names {unknown[0][:64]!r}" if unknown else "is empty"
            raise InvalidRequest(f"levels {what}; there are: {', '.join(known)}", param="levels")
        async with self._settled(key):
            record = await self._book.get(key)
            await self._witness.check(record, if_match)
            check_unfrozen(record)
            if record.head is None:
                return describe(record)
            talk = Conversation.of(record.head.meta)
            run = _plain_run(key, record, card_of(record))
            run.kind, run.resets = "reset", names
            run.conversation = replace(talk, epoch=epoch_after(talk.epoch, f"reset {' '.join(names)}"))
            return describe(await self._commit_run(key, record, run))

    # -- snapshots ---

    async def create_snapshot(
        self, key: SessionKey, tag: str, version: str | None = None, if_match: str | None = None
    ) -> SessionInfo:
        """Keep a version (None: the newest) under a tag for as long as the tag is there.

        A tag that names the same state already stays as it is.
        Raises SessionNotFound, VersionNotFound, VersionMismatch, InvalidRequest (the tag is taken; too many).
        """
        async with self._settled(key):
            record = await self._book.get(key)
            await self._witness.check(record, if_match)
            kept = {info.version: info for info in await self._book.versions(key)}
            wanted = version if version is not None or record.head is None else record.head.version
            found = kept.get(wanted or "")
            if found is None:
                raise VersionNotFound(key.session_id, wanted)
            card = card_of(record)
            there = kept.get(card.tags.get(tag, ""))
            if there is None:
                return describe(await self._with_card(key, record, card.tagged(tag, found.version)))
            if found.version == there.version or (version is None and _is_same_state(there, found)):
                return describe(record)
            raise InvalidRequest(
                f"snapshot {tag!r} keeps version {there.version}; delete it first, or choose another tag", param="tag"
            )

    async def list_snapshots(self, key: SessionKey) -> list[dict[str, Any]]:
        """A session's snapshots, newest version first. Raises SessionNotFound."""
        tags = card_of(await self._book.get(key)).tags
        kept = await self._book.versions(key)
        pairs = [(tag, info) for info in kept for tag, version in tags.items() if version == info.version]
        return [{"tag": tag, **describe_version(info)} for tag, info in pairs]

    async def delete_snapshot(self, key: SessionKey, tag: str, if_match: str | None = None) -> None:
        """Take a tag away; its version is then kept like any other. Raises VersionNotFound where there is none."""
        async with self._settled(key):
            record = await self._book.get(key)
            await self._witness.check(record, if_match)
            card = card_of(record)
            if tag not in card.tags:
                raise VersionNotFound(key.session_id, tag)
            await self._with_card(key, record, card.untagged(tag))

    # -- reports ---

    async def session_memory(self, key: SessionKey) -> dict[str, Any]:
        """What a session's memory holds, level by level. Raises SessionNotFound, StateIncompatible."""
        async with self._settled(key):
            record = await self._book.get(key)
            loaded = None if record.head is None else await self._book.load(key, record.head.version)
        if loaded is None:
            return {"version": None, "levels": {}, "position": 0, "tokens_learned": 0}
        report = await asyncio.to_thread(lambda: self._gauge.measure(self._reader.read(loaded.snapshot)))
        return {"version": loaded.info.version, **as_object(report)}

    async def session_turns(self, key: SessionKey) -> list[dict[str, Any]]:
        """A session's last turns, newest first. Raises SessionNotFound."""
        turns = card_of((await self._commits.look(key)).record).turns
        return [asdict(turn) for turn in reversed(turns)]

    async def find_answer(self, key: SessionKey, answer_id: str) -> str | None:
        """The newest kept version whose last turn gave this answer; None where none is kept. Raises SessionNotFound."""
        await self._commits.settle(key)
        for info in await self._book.versions(key):
            if answer_id and info.meta.get("answer_id") == answer_id:
                return info.version
        return None

    # -- private ---

    async def _with_card(self, key: SessionKey, record: SessionRecord, card: SessionCard) -> SessionRecord:
        """Commit a session with another card and the state that it has."""
        if card == card_of(record):
            return record
        if record.head is None:
            return await self._commit_run(key, record, _plain_run(key, record, card))
        info = await self._book.restate(record, record.head.version, card)
        # What is kept of it in a slot is the state of both versions.
        self._loop.send(Renamed(key, record.head.version, info.version))
        return await self._look_again(key)

    async def _commit_run(self, key: SessionKey, record: SessionRecord, run: Run) -> SessionRecord:
        """Compute a run and commit what it made of the session."""
        prepared: Prepared | None = None
        async with contextlib.aclosing(self._relay.follow([run], Visit(key, record))) as reports:
            async for _, event in reports:
                prepared = event if isinstance(event, Prepared) else prepared
        if prepared is None:
            raise InternalError("the engine ended without a state to keep")
        version: str | None = None
        try:
            kept = await self._book.commit(key, record.tip, prepared.snapshot, prepared.unchanged)
            version = kept.info.version
        finally:
            self._loop.send(Drop(run) if version is None else Committed(run, version))
        return await self._look_again(key)


def check_unfrozen(record: SessionRecord) -> None:
    """Raise SessionFrozen where a session is not to be changed."""
    if card_of(record).is_frozen:
        raise SessionFrozen(record.session.name)


def _plain_run(key: SessionKey, record: SessionRecord, card: SessionCard) -> Run:
    """A run that reads nothing and commits the session as it is, with this card."""
    head = record.head
    return Run(
        emit=_unset,
        feed=deque(),
        key=key,
        tenant=key.tenant,
        version=None if head is None else head.version,
        learns=True,
        conversation=Conversation.of({} if head is None else head.meta),
        card=card,
        kind=None,
        created=int(time.time()),
    )


def _is_same_state(one: CommitInfo, other: CommitInfo) -> bool:
    """Whether two versions differ in no turn, only in what was done to the session around them."""
    names = ("turn", "num_tokens", "epoch", "answer_id", "chain")
    return [one.meta.get(name) for name in names] == [other.meta.get(name) for name in names]


def _unset(event: object) -> None:
    raise RuntimeError(f"a run reported {type(event).__name__} before it was submitted")
