"""Loads and commits sessions through `hope_memory`, in a thread of its own, while the engine goes on with others.

The protocol is the server's own, by its own code: `SessionBook` reads and commits (compare-and-swap on the version that
a turn went on from), `Witness` notices a store that went back in time. Nothing here waits for a step, and no step waits
for anything here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from hope_memory.protocol import Request

from hope_server.engine.session_card import SessionCard
from hope_server.engine.sessions import Kept, SessionBook
from hope_server.engine.stores import build_store
from hope_server.engine.turn import SessionKey
from hope_server.engine.witness import Witness
from hope_server.errors import DurabilityUnmet, IdempotencyKeyReused, SessionConflict
from hope_server.settings import Settings
from hope_vllm.answers import Answer, Ask
from hope_vllm.codec import Shard, State, StateCodec

Result = TypeVar("Result")

TENANT = "default"
"""The tenant of a server without keys: sessions of `hope serve` on the same store are found, and refused by their
fingerprint, instead of being begun anew beside it."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a turn goes on from. tip: the version that its commit must find; state: None in a session without any.

    answer: what the request was answered with before, where it was; then there is nothing to go on from.
    """

    tip: str
    birth: str
    state: State | None
    answer: Answer | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens read since the session's first."""
        return 0 if self.state is None else self.state.num_tokens

    @property
    def card(self) -> SessionCard:
        """What belongs to the session and not to its version."""
        return SessionCard.of({} if self.state is None else self.state.info)


class Keeper:
    """The sessions of one engine, asked for from its one thread; every answer is a future."""

    def __init__(self, settings: Settings, codec: StateCodec) -> None:
        """Raises SettingsError where the store cannot be used."""
        self._settings = settings
        self._codec = codec
        self._book = SessionBook(build_store(settings), codec.fingerprint, settings.host_cache_bytes)
        self._witness = Witness(self._book, settings.on_rollback)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hope-keeper", daemon=True)

    def open(self) -> None:
        """Open the store. Raises StartupError where it cannot be used."""
        self._thread.start()
        self._run(self._book.open()).result()

    def close(self) -> None:
        """Finish what has begun and close the store."""
        if not self._thread.is_alive():
            return
        with suppress(RuntimeError):
            # Offline vLLM shuts down while the interpreter ends; a SQLite file can then only be left as it is, which is
            # as after a crash: every commit that was told of is in it.
            self._run(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def load(self, session_id: str, ask: Ask | None = None) -> Future[Start]:
        """Look a session up, made where it is missing, and read its newest state.

        ask: the request's own name, where it has one; one that was answered before is answered so again.
        The future raises HopeError: StateIncompatible (learned with another model or version), StateCorrupt,
        ShardMissing, MemoryRolledBack, MemoryEvicted, IdempotencyKeyReused, AnswerNotStored, StoreUnavailable. It never
        gives a fresh state in their place.
        """
        return self._run(self._load(SessionKey(TENANT, session_id), ask))

    def commit(
        self,
        session_id: str,
        start: Start,
        shards: Sequence[Shard],
        num_read: int,
        reply: tuple[Ask, Answer] | None = None,
    ) -> Future[Kept]:
        """Make the ranks' shards the session's newest state, where `start` is still what it was.

        num_read: tokens of the turn; reply: the request's own name and its answer, to be kept with the commit. The
        future raises HopeError: SessionConflict, DurabilityUnmet and more; but for DurabilityUnmet the session is then
        as it was.
        """
        return self._run(self._commit(SessionKey(TENANT, session_id), start, shards, num_read, reply))

    # -- private ------------------------------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _load(self, key: SessionKey, ask: Ask | None) -> Start:
        record, _ = await self._book.create(key)
        await self._witness.check(record)
        found = None if ask is None else await self._book.find_request(key, ask.name)
        if ask is not None and found is not None:
            if found.digest != ask.digest:
                raise IdempotencyKeyReused
            return Start(record.tip, record.birth, None, Answer.decode(found.reply, found.info.version))
        if record.head is None:
            return Start(record.tip, record.birth, None)
        snapshot, _ = await self._book.fetch(key, record.head.version)
        return Start(record.tip, record.birth, self._codec.decode(snapshot))

    async def _commit(
        self,
        key: SessionKey,
        start: Start,
        shards: Sequence[Shard],
        num_read: int,
        reply: tuple[Ask, Answer] | None,
    ) -> Kept:
        before = {} if start.state is None else start.state.info
        info = {
            "turn": int(before.get("turn", 0)) + 1,
            "tokens_learned": int(before.get("tokens_learned", 0)) + num_read,
            **start.card.fields(),
        }
        snapshot = self._codec.encode(shards, start.num_tokens + num_read, info)
        request = None if reply is None else Request(reply[0].name, reply[0].digest, reply[1].encode())
        kept = await self._book.commit(key, start.tip, snapshot, request=request, durability=self._settings.durability)
        if kept.info.is_replay:
            raise SessionConflict("another server answered the same request first; send it again to get that answer")
        self._witness.see(key, start.birth, kept.info.version, kept.info.number)
        if not kept.is_met and self._settings.durability_unmet == "fail":
            raise DurabilityUnmet(self._settings.durability, kept.info.durability)
        return kept

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.gather(*others, return_exceptions=True)
        await self._book.close()
