"""Short ways to take turns with an engine in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

from toys import KEY

from hope_server.engine.engine import Engine
from hope_server.engine.turn import (
    Attempt,
    ChatRequest,
    LearnRequest,
    MemoryOptions,
    Message,
    Replay,
    SamplingParams,
    SessionKey,
    TokenText,
    TurnEvent,
    TurnFinished,
)


def chat_request(
    text: str = "Hello",
    *,
    session: SessionKey = KEY,
    attempt: Attempt | None = None,
    max_tokens: int = 6,
    **memory: object,
) -> ChatRequest:
    """A greedy chat turn of few tokens; `memory` are fields of MemoryOptions."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return ChatRequest((Message("user", text),), sampling, session, MemoryOptions(**memory), attempt or Attempt())


def named(key: str | None = None, *, is_retry: bool = False, answer_id: str = "chatcmpl-1") -> Attempt:
    """How a request was sent."""
    return Attempt(key, is_retry, answer_id, 17)


async def take(events: AsyncIterator[TurnEvent]) -> list[TurnEvent]:
    """Every event of a turn."""
    return [event async for event in events]


async def chat(engine: Engine, text: str = "Hello", **changes: object) -> TurnFinished:
    """Take a chat turn and return its end."""
    return end_of(await take(engine.chat(chat_request(text, **changes))))


async def learn(engine: Engine, text: str = "The barn is red.", **changes: object) -> TurnFinished:
    """Take a learn turn and return its end."""
    return end_of(await take(engine.learn(LearnRequest(KEY, text, **changes))))


def end_of(events: list[TurnEvent]) -> TurnFinished:
    """The last event, which carries a receipt."""
    last = events[-1]
    assert isinstance(last, TurnFinished) and last.receipt is not None
    return last


def text_of(events: list[TurnEvent]) -> str:
    """What a turn said."""
    return "".join(event.text for event in events if isinstance(event, TokenText))


def is_replay(events: list[TurnEvent]) -> bool:
    """Whether the events repeat an earlier answer, and say so at both ends."""
    begins = isinstance(events[0], Replay)
    assert end_of(events).receipt.replayed is begins
    return begins


async def num_turns(engine: Engine, session: SessionKey = KEY) -> int:
    """How many turns the store has of a session."""
    return (await engine.get_session(session)).turn


async def stored_state(engine: Engine, session: SessionKey = KEY) -> dict[str, dict[str, bytes]]:
    """Every array of a session's newest version, by level and name."""
    loaded = await engine._book.load(session, None)
    return {
        level: {name: bytes(array.data) for name, array in arrays.arrays.items()}
        for level, arrays in loaded.snapshot.levels.items()
    }
