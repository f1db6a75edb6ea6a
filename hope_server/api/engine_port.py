"""The engine as the API sees it; anything with these members can be served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from hope_server.engine.turn import (
    ChatRequest,
    LearnRequest,
    Score,
    ScoreRequest,
    SessionInfo,
    SessionKey,
    TextRequest,
    TurnEvent,
)

__all__ = ["EnginePort"]


class EnginePort(Protocol):
    """What `create_app` needs of an engine. Every method may raise a HopeError.

    An iterator of `chat` or `learn` is read by one task. When the client goes away that task is cancelled: the
    iterator sees CancelledError at its own await, or `aclose`, and the turn ends without a commit, or with the whole
    commit that had begun.
    """

    @property
    def model_id(self) -> str:
        """Name of the served model; known once `is_ready`."""

    @property
    def created(self) -> int:
        """When the served model was made or imported, Unix seconds; known once `is_ready`."""

    @property
    def is_ready(self) -> bool:
        """Whether turns are taken; False while loading and while stopping."""

    @property
    def reaches_store(self) -> bool:
        """Whether the store of sessions answered lately; a server that cannot reach it should get no turns."""

    async def start(self) -> None:
        """Load everything; return when ready. Raises StartupError."""

    async def stop(self) -> None:
        """Let running turns finish within the drain time, then free everything; also legal after a failed start."""

    def chat(self, request: ChatRequest) -> AsyncIterator[TurnEvent]:
        """Serve a chat turn: TokenText any number of times, then exactly one TurnFinished, or raise.

        An answer that was given before begins with Replay.
        """

    def complete(self, request: TextRequest) -> AsyncIterator[TurnEvent]:
        """Go on from a plain text; events as of `chat`."""

    async def find_answer(self, key: SessionKey, answer_id: str) -> str | None:
        """Return the kept version that ended with the answer of that id. Raises SessionNotFound."""

    def learn(self, request: LearnRequest) -> AsyncIterator[TurnEvent]:
        """Learn or consolidate: LearnProgress any number of times, then exactly one TurnFinished, or raise."""

    async def score(self, request: ScoreRequest) -> list[Score]:
        """Return one score per continuation, in order. Read-only; cancellable."""

    async def create_session(self, key: SessionKey) -> tuple[SessionInfo, bool]:
        """Return the session and whether it is new."""

    async def list_sessions(self, tenant: str, limit: int, after: str | None) -> list[SessionInfo]:
        """Return at most `limit` sessions of `tenant` in a stable order, starting behind the id `after`."""

    async def get_session(self, key: SessionKey) -> SessionInfo:
        """Return a session without loading its memory. Raises SessionNotFound."""

    async def update_session(
        self,
        key: SessionKey,
        *,
        is_frozen: bool | None = None,
        ttl_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
    ) -> SessionInfo:
        """Change what a session is, not what it knows; None leaves a thing as it is. Raises VersionMismatch."""

    async def reset_session(
        self, key: SessionKey, levels: Sequence[str] | None = None, if_match: str | None = None
    ) -> SessionInfo:
        """Make levels new (None: all, and the journal). Raises SessionFrozen, VersionMismatch, InvalidRequest."""

    async def create_snapshot(
        self, key: SessionKey, tag: str, version: str | None = None, if_match: str | None = None
    ) -> SessionInfo:
        """Keep a version (None: the newest) under a tag. Raises VersionNotFound, VersionMismatch, InvalidRequest."""

    async def list_snapshots(self, key: SessionKey) -> list[dict[str, Any]]:
        """Return the snapshots as JSON-ready objects, newest version first."""

    async def delete_snapshot(self, key: SessionKey, tag: str, if_match: str | None = None) -> None:
        """Take a tag away. Raises VersionNotFound where there is none."""

    async def session_memory(self, key: SessionKey) -> dict[str, Any]:
        """Return what the memory holds as a JSON-ready object."""

    async def session_turns(self, key: SessionKey) -> list[dict[str, Any]]:
        """Return the last turns as JSON-ready objects, newest first."""

    async def delete_session(self, key: SessionKey) -> bool:
        """Delete a session and its versions; return whether it existed."""

    async def fork_session(self, key: SessionKey, new_id: str, version: str | None = None) -> SessionInfo:
        """Give a kept version (None: the newest) a second name. Raises SessionNotFound, SessionExists."""

    async def rollback_session(self, key: SessionKey, version: str, if_match: str | None = None) -> SessionInfo:
        """Make a kept version's state the newest, if the session is at `if_match`. Raises VersionNotFound."""

    async def export_session(self, key: SessionKey, version: str | None = None) -> tuple[str, bytes]:
        """Return a kept version's name (None: the newest) and the file that holds it. Raises VersionNotFound."""

    async def import_session(self, key: SessionKey, data: bytes) -> SessionInfo:
        """Make a session of an exported file. Raises InvalidRequest, StateIncompatible, SessionExists."""

    def acknowledge(self, key: SessionKey, version: str | None) -> None:
        """Note that a turn's answer was sent whole; `version` as its receipt has it. Returns at once, never fails."""

    async def session_versions(self, key: SessionKey) -> list[dict[str, Any]]:
        """Return the kept versions, newest first, as JSON-ready objects. Raises SessionNotFound."""

    def stats(self) -> dict[str, float]:
        """Return gauges by name (published as hope_<name>); cheap, legal at any time."""
