"""Remembers the newest version of each session that this process saw, so that a store that went back is noticed.

Nothing here makes a turn safe, the commit's compare-and-swap does; this makes lost memory an error instead of silence.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from hope_memory.codec import KEEP_REQUESTS
from hope_memory.protocol import SessionRecord

from hope_server.engine.sessions import SessionBook, key_of
from hope_server.engine.turn import SessionKey
from hope_server.errors import MemoryRolledBack, VersionMismatch

MAX_SESSIONS = 10_000
ANY_VERSION = "*"

OnRollback = Literal["fail", "adopt_store"]


@dataclass(frozen=True, slots=True)
class _Sight:
    """A session as it was last seen; `number` counts its commits."""

    birth: str
    tip: str
    number: int


class Witness:
    """Compares what the store says of a session with what it said before."""

    def __init__(self, book: SessionBook, on_rollback: OnRollback, max_sessions: int = MAX_SESSIONS) -> None:
        self._book = book
        self._on_rollback = on_rollback
        self._max_sessions = max_sessions
        self._seen: OrderedDict[SessionKey, _Sight] = OrderedDict()

    def see(self, key: SessionKey, birth: str, tip: str, number: int) -> None:
        """Note a session's tip; the longest unseen sessions are forgotten."""
        self._seen[key] = _Sight(birth, tip, number)
        self._seen.move_to_end(key)
        while len(self._seen) > self._max_sessions:
            self._seen.popitem(last=False)

    def forget(self, key: SessionKey) -> None:
        """Drop what is known of a session that was deleted."""
        self._seen.pop(key, None)

    async def check(self, record: SessionRecord, if_match: str | None = None) -> None:
        """Let a turn go on from the record's tip, or refuse it.

        if_match: the version that the caller takes the session to be at, or ANY_VERSION.
        Raises VersionMismatch (the session went on), MemoryRolledBack (the store went back).
        """
        key = key_of(record)
        if if_match is not None and if_match not in (ANY_VERSION, record.tip):
            if await self._book.ancestry(key, if_match) == "unknown":
                raise MemoryRolledBack(key.session_id, if_match)
            raise VersionMismatch(key.session_id, if_match, record.tip)
        if if_match is None:
            missing = await self._missing(record)
            if missing is not None:
                if self._on_rollback == "adopt_store":
                    self._see_record(record)
                raise MemoryRolledBack(key.session_id, missing)
        self._see_record(record)

    async def _missing(self, record: SessionRecord) -> str | None:
        """The version seen last, where the store's history lacks it."""
        seen = self._seen.get(key_of(record))
        # A session that was deleted and made again has another birth, and owes nothing to the one before.
        if seen is None or seen.birth != record.birth or seen.tip == record.tip:
            return None
        # Other servers may have gone on for longer than a history is kept; then nothing can be said.
        if _number(record) - seen.number >= KEEP_REQUESTS:
            return None
        is_lost = await self._book.ancestry(key_of(record), seen.tip) == "unknown"
        return seen.tip if is_lost else None

    def _see_record(self, record: SessionRecord) -> None:
        self.see(key_of(record), record.birth, record.tip, _number(record))


def _number(record: SessionRecord) -> int:
    return 0 if record.head is None else record.head.number
