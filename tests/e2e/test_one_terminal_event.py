"""Defining test 7: every turn ends in exactly one terminal event, also when cancelled, overloaded or too long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hope_memory.errors import StoreFull as NoSpace
from toys import KEY, toy_engine

from hope_server.engine.engine import Engine
from hope_server.engine.turn import (
    ChatRequest,
    LearnRequest,
    MemoryOptions,
    Message,
    SamplingParams,
    ScoreRequest,
    SessionKey,
    TokenText,
    TurnFinished,
)
from hope_server.errors import (
    HopeError,
    Overloaded,
    PromptTooLong,
    SessionBusy,
    SessionNotFound,
    ShuttingDown,
    StoreFull,
)


def _chat(text: str = "Hello", key: SessionKey | None = KEY, max_tokens: int = 12, **memory: object) -> ChatRequest:
    sampling = SamplingParams(max_tokens=max_tokens, seed=3)
    return ChatRequest((Message("user", text),), sampling, key, MemoryOptions(**memory))


async def _endings(events) -> list[object]:
    """Every terminal event of a turn: TurnFinished, or the error that it raised."""
    found: list[object] = []
    try:
        async for event in events:
            assert not found, "an event after the terminal one"
            if isinstance(event, TurnFinished):
                found.append(event)
    except HopeError as error:
        found.append(error)
    return found


@pytest.fixture
async def engine(tmp_path: Path):
    """A running toy engine."""
    engine = toy_engine(
        tmp_path / "store.db", max_prompt_tokens=200, max_waiting_turns=2, max_queued_turns_per_session=1
    )
    await engine.start()
    yield engine
    await engine.stop()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "request_",
    [
        _chat(),
        _chat(key=None),
        _chat(mode="read"),
        _chat(mode="off"),
        _chat(mode="read", window=False),
        _chat(max_tokens=1),
        _chat("x" * 100, max_tokens=100),
    ],
    ids=["write", "stateless", "read", "off", "no window", "one token", "long"],
)
async def test_a_served_chat_ends_once(engine: Engine, request_: ChatRequest) -> None:
    """A chat in any memory mode gives one TurnFinished, and a commit exactly where it learns."""
    (ending,) = await _endings(engine.chat(request_))
    assert isinstance(ending, TurnFinished)
    learns = request_.session is not None and request_.memory.mode == "write"
    assert ending.finish_reason in ("stop", "length")
    assert (ending.receipt is not None and ending.receipt.version_after is not None) == learns


@pytest.mark.anyio
async def test_a_prompt_that_is_too_long_ends_in_one_error(engine: Engine) -> None:
    """The error names the number of tokens and the limit; the session is as it was."""
    (ending,) = await _endings(engine.chat(_chat("y" * 300)))
    assert isinstance(ending, PromptTooLong)
    assert ending.limit == 200
    assert ending.num_tokens > 300
    assert (await engine.get_session(KEY)).version is None


@pytest.mark.anyio
async def test_turns_of_one_session_queue_up_to_the_bound(engine: Engine) -> None:
    """Of three turns at once in one session two are served, one after the other, and the third is told to retry."""
    endings = await asyncio.gather(*(_endings(engine.chat(_chat(f"Turn {i}"))) for i in range(3)))
    kinds = sorted(type(ending).__name__ for (ending,) in endings)
    assert kinds == ["SessionBusy", "TurnFinished", "TurnFinished"]
    assert {ending.receipt.turn for (ending,) in endings if not isinstance(ending, SessionBusy)} == {1, 2}


@pytest.mark.anyio
async def test_overload_is_refused_at_once(engine: Engine) -> None:
    """More turns than slots and waiting places: the excess gets Overloaded, the rest is served."""
    turns = [engine.chat(_chat(key=None, max_tokens=60)) for _ in range(30)]
    tasks = []
    for turn in turns:
        tasks.append(asyncio.create_task(_endings(turn)))
        await asyncio.sleep(0.001)
    endings = [ending for (ending,) in await asyncio.gather(*tasks)]
    assert len(endings) == 30
    assert any(isinstance(ending, Overloaded) for ending in endings)
    assert all(isinstance(ending, (Overloaded, TurnFinished)) for ending in endings)
    assert sum(isinstance(ending, TurnFinished) for ending in endings) >= 3


@pytest.mark.anyio
async def test_a_cancelled_turn_leaves_the_session_as_it_was(engine: Engine) -> None:
    """Leaving the stream after its first text drops the turn; the next one goes on from the version before."""
    (first,) = await _endings(engine.chat(_chat()))
    stream = engine.chat(_chat("Tell me more", max_tokens=100))
    async for event in stream:
        assert isinstance(event, TokenText)
        break
    await stream.aclose()
    info = await engine.get_session(KEY)
    assert (info.version, info.turn) == (first.receipt.version_after, 1)
    (again,) = await _endings(engine.chat(_chat("Tell me more")))
    assert again.receipt.version_before == first.receipt.version_after
    assert again.receipt.turn == 2


@pytest.mark.anyio
async def test_a_full_store_ends_the_turn_in_one_error_and_keeps_the_session(engine: Engine, monkeypatch) -> None:
    """A commit that finds no space is an error, not an answer; nothing of the turn remains."""
    (first,) = await _endings(engine.chat(_chat()))
    store = engine._book._store

    async def no_space(*_args: object) -> None:
        raise NoSpace("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", no_space)
        (ending,) = await _endings(engine.chat(_chat("Again")))
    assert isinstance(ending, StoreFull)
    (after,) = await _endings(engine.chat(_chat("Again")))
    assert after.receipt.version_before == first.receipt.version_after


@pytest.mark.anyio
async def test_a_fault_of_the_engine_ends_only_the_turn_it_hit(engine: Engine, monkeypatch) -> None:
    """An unexpected exception becomes one InternalError without details; the next turn is served."""
    with monkeypatch.context() as patch:
        patch.setattr(engine._loop._runner._model, "prefill", lambda *_args: 1 / 0)
        (ending,) = await _endings(engine.chat(_chat(key=None)))
    assert isinstance(ending, HopeError)
    assert ending.code == "internal_error"
    assert "division" not in ending.message
    (after,) = await _endings(engine.chat(_chat(key=None)))
    assert isinstance(after, TurnFinished)


@pytest.mark.anyio
async def test_unknown_sessions_and_a_stopped_engine_are_refused(tmp_path: Path) -> None:
    """Consolidating or scoring an unknown session is SessionNotFound; after stop every turn is ShuttingDown."""
    engine = toy_engine(tmp_path / "store.db")
    await engine.start()
    (ending,) = await _endings(engine.learn(LearnRequest(KEY)))
    assert isinstance(ending, SessionNotFound)
    with pytest.raises(SessionNotFound):
        await engine.score(ScoreRequest((" x",), prompt="y", session=KEY))
    await engine.stop()
    for events in (engine.chat(_chat()), engine.learn(LearnRequest(KEY, "text")), engine.chat(_chat(key=None))):
        (ending,) = await _endings(events)
        assert isinstance(ending, ShuttingDown)
