"""Which requests are let in, by the memory that their texts take while they wait and run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import wraps
from typing import Protocol, TypeVar

from hope_server.engine.turn import ChatRequest, LearnRequest, ScoreRequest, TextRequest, TurnEvent
from hope_server.errors import NoRoom

__all__ = ["Admission", "admitted", "bytes_of"]

LEARN_BYTES, PROMPT_BYTES = 6, 40
"""What a character takes, itself and its tokens, about: of a text that is learned, and of a prompt."""
RETRY_SECONDS = 5.0

AnyRequest = ChatRequest | TextRequest | LearnRequest | ScoreRequest


class Admission:
    """Counts what the open requests hold. Used from one event loop."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: that all open requests may hold together; one alone is always let in."""
        self._max_bytes = max_bytes
        self.num_bytes = 0

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Let a request of that size in for as long as it is open. Raises NoRoom."""
        if self.num_bytes and self.num_bytes + num_bytes > self._max_bytes:
            raise NoRoom(RETRY_SECONDS)
        self.num_bytes += num_bytes
        try:
            yield
        finally:
            self.num_bytes -= num_bytes


class _Admitting(Protocol):
    _admission: Admission


Owner = TypeVar("Owner", bound=_Admitting)
Turn = TypeVar("Turn", ChatRequest, TextRequest, LearnRequest)


def admitted(
    serve: Callable[[Owner, Turn], AsyncGenerator[TurnEvent]],
) -> Callable[[Owner, Turn], AsyncGenerator[TurnEvent]]:
    """Make a method that serves turns hold their memory while they are open."""

    @wraps(serve)
    async def hold_and_serve(self: Owner, request: Turn) -> AsyncGenerator[TurnEvent]:
        with self._admission.hold(bytes_of(request)):
            async with aclosing(serve(self, request)) as events:
                async for event in events:
                    yield event

    return hold_and_serve


def bytes_of(request: AnyRequest) -> int:
    """How much memory a request takes while it is open, about."""
    if isinstance(request, LearnRequest):
        return LEARN_BYTES * len(request.text or "")
    if isinstance(request, TextRequest):
        return PROMPT_BYTES * len(request.prompt)
    characters = sum(len(message.content) for message in request.messages or ())
    if isinstance(request, ScoreRequest):
        characters += len(request.prompt or "") + sum(map(len, request.continuations))
    return PROMPT_BYTES * characters
