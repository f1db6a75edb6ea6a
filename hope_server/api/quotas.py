"""How many sessions one key may keep, and how large together: asked before anything is made or taught.

A tenant's sessions are counted from the store, so that all servers on one store count the same. A count is used for
some seconds, longer where counting took long; what this server makes or deletes meanwhile is added at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from hope_server.api.auth import current_key
from hope_server.api.engine_port import EnginePort
from hope_server.api.errors import QuotaExceeded
from hope_server.api.key_registry import KeyLimits
from hope_server.engine.turn import ChatRequest, LearnRequest, SessionInfo, SessionKey, TextRequest, TurnEvent
from hope_server.errors import SessionNotFound

__all__ = ["with_quotas"]

_FRESH_SECONDS = 5.0
# Counting may take at most a twentieth of the time.
_FRESH_SHARE = 20
_PAGE = 500
_MAX_TENANTS = 1024


@dataclass(slots=True)
class _Usage:
    """What a tenant keeps, as last counted, and until when that is believed (monotonic seconds)."""

    num_sessions: int
    num_bytes: int
    fresh_until: float


def with_quotas(engine: EnginePort, defaults: KeyLimits) -> EnginePort:
    """Return `engine` behind a check of the calling key's quotas; `defaults` hold where the key says nothing."""
    # Everything else passes through by __getattr__, which types cannot follow.
    return cast(EnginePort, _QuotaEngine(engine, defaults))


class _QuotaEngine:
    """Stands in for an engine where sessions are made, taught or deleted."""

    def __init__(self, engine: EnginePort, defaults: KeyLimits) -> None:
        self._engine = engine
        self._defaults = defaults
        self._usages: dict[str, _Usage] = {}
        self._counting: dict[str, asyncio.Task[_Usage]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def chat(self, request: ChatRequest) -> AsyncIterator[TurnEvent]:
        """Serve a chat turn, if it may grow its session."""
        return self._checked(request.session, request.memory.mode == "write", self._engine.chat(request))

    def complete(self, request: TextRequest) -> AsyncIterator[TurnEvent]:
        """Complete a text, if its session may grow."""
        return self._checked(request.session, request.memory.mode == "write", self._engine.complete(request))

    def learn(self, request: LearnRequest) -> AsyncIterator[TurnEvent]:
        """Learn, if the session may grow."""
        return self._checked(request.session, True, self._engine.learn(request))

    async def create_session(self, key: SessionKey) -> tuple[SessionInfo, bool]:
        """Return the session, made if there may be one more."""
        await self._check(key, _limits(self._defaults), grows=False)
        return await self._engine.create_session(key)

    async def fork_session(self, key: SessionKey, new_id: str, version: str | None = None) -> SessionInfo:
        """Make a fork, if there may be one more session."""
        await self._check(SessionKey(key.tenant, new_id), _limits(self._defaults), grows=True)
        return await self._engine.fork_session(key, new_id, version)

    async def import_session(self, key: SessionKey, data: bytes) -> SessionInfo:
        """Make a session of a file, if there may be one more."""
        await self._check(key, _limits(self._defaults), grows=True)
        return await self._engine.import_session(key, data)

    async def delete_session(self, key: SessionKey) -> bool:
        """Delete a session; there is room for another at once."""
        existed = await self._engine.delete_session(key)
        self._usages.pop(key.tenant, None)
        return existed

    def _checked(
        self, key: SessionKey | None, writes: bool, events: AsyncIterator[TurnEvent]
    ) -> AsyncIterator[TurnEvent]:
        limits = _limits(self._defaults)
        if key is None or not writes or not (limits.max_sessions or limits.max_stored_bytes):
            return events
        return self._after_check(key, limits, cast(AsyncGenerator[TurnEvent], events))

    async def _after_check(
        self, key: SessionKey, limits: KeyLimits, events: AsyncGenerator[TurnEvent]
    ) -> AsyncGenerator[TurnEvent]:
        async with aclosing(events):
            await self._check(key, limits, grows=True)
            async for event in events:
                yield event

    async def _check(self, key: SessionKey, limits: KeyLimits, *, grows: bool) -> None:
        """Raise QuotaExceeded if the session is new and may not be made, or may not grow; count it if it is new."""
        max_sessions, max_bytes = limits.max_sessions or 0, limits.max_stored_bytes or 0
        if not max_sessions and not max_bytes:
            return
        is_new = not await self._exists(key)
        usage = await self._usage(key.tenant)
        if is_new and max_sessions and usage.num_sessions >= max_sessions:
            raise QuotaExceeded(
                f"this API key keeps {usage.num_sessions:,} sessions, the limit is {max_sessions:,}; "
                "delete one first (DELETE /v1/sessions/{id})"
            )
        if (is_new or grows) and max_bytes and usage.num_bytes >= max_bytes:
            raise QuotaExceeded(
                f"the sessions of this API key take {usage.num_bytes:,} bytes, the limit is {max_bytes:,}; "
                'delete some, or send memory.mode "read", with which nothing is learned'
            )
        usage.num_sessions += is_new

    async def _exists(self, key: SessionKey) -> bool:
        try:
            await self._engine.get_session(key)
        except SessionNotFound:
            return False
        return True

    async def _usage(self, tenant: str) -> _Usage:
        known = self._usages.get(tenant)
        if known is not None and time.monotonic() < known.fresh_until:
            return known
        # Requests that come meanwhile wait for the same count.
        counting = self._counting.get(tenant)
        if counting is None:
            counting = self._counting[tenant] = asyncio.create_task(self._count(tenant))
            counting.add_done_callback(lambda _: self._counting.pop(tenant, None))
        return await asyncio.shield(counting)

    async def _count(self, tenant: str) -> _Usage:
        started = time.monotonic()
        num_sessions, num_bytes, after = 0, 0, None
        while True:
            page = await self._engine.list_sessions(tenant, _PAGE, after)
            num_sessions += len(page)
            num_bytes += sum(sum(info.state_bytes.values()) for info in page)
            if len(page) < _PAGE:
                break
            after = page[-1].session_id
        now = time.monotonic()
        usage = _Usage(num_sessions, num_bytes, now + max(_FRESH_SECONDS, _FRESH_SHARE * (now - started)))
        if len(self._usages) >= _MAX_TENANTS:
            self._usages = {name: each for name, each in self._usages.items() if each.fresh_until > now}
        self._usages[tenant] = usage
        return usage


def _limits(defaults: KeyLimits) -> KeyLimits:
    """Return what the key of the current request may keep."""
    record = current_key.get()
    return defaults if record is None else record.limits.over(defaults)
