"""Defining test 8: a retried turn learns once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from taking import chat, chat_request, end_of, is_replay, learn, named, num_turns, stored_state, take, text_of
from toys import KEY

from hope_server.engine import replay
from hope_server.engine.engine import Engine
from hope_server.engine.turn import LearnRequest, Replay, SessionKey, TurnEvent
from hope_server.errors import AnswerNotStored, IdempotencyKeyReused, SessionConflict, StoreUnavailable

pytestmark = pytest.mark.anyio
MakeEngine = Callable[..., Engine]


@pytest.fixture
async def engine(make_engine: MakeEngine) -> AsyncIterator[Engine]:
    """A running toy engine."""
    engine = make_engine()
    await engine.start()
    yield engine
    await engine.stop()


async def test_the_same_key_and_body_are_answered_again(engine: Engine) -> None:
    """Text, usage, receipt and the answer's own name are those of the first time; nothing is learned."""
    first = await take(engine.chat(chat_request(attempt=named("k1", answer_id="chatcmpl-a"))))
    again = await take(engine.chat(chat_request(attempt=named("k1", answer_id="chatcmpl-b"))))
    assert (is_replay(first), is_replay(again)) == (False, True)
    assert again[0] == Replay("chatcmpl-a", 17)
    assert text_of(again) == text_of(first)
    assert end_of(again).usage == end_of(first).usage
    assert replace(end_of(again).receipt, replayed=False) == end_of(first).receipt
    assert await num_turns(engine) == 1


async def test_an_answer_is_given_again_by_another_server_and_after_a_restart(make_engine: MakeEngine) -> None:
    """The answer is kept with the commit, so any process of the store has it."""
    first, second = make_engine(), make_engine()
    await first.start()
    said = await take(first.chat(chat_request(attempt=named("k1"))))
    await first.stop()
    await second.start()
    again = await take(second.chat(chat_request(attempt=named("k1"))))
    assert (is_replay(again), text_of(again)) == (True, text_of(said))
    assert await num_turns(second) == 1
    await second.stop()


async def test_an_answer_is_given_again_after_later_turns(engine: Engine) -> None:
    """A late retry finds its own turn, not the newest one."""
    first = await take(engine.chat(chat_request("One", attempt=named("k1"))))
    await chat(engine, "Two", attempt=named("k2"))
    again = await take(engine.chat(chat_request("One", attempt=named("k1"))))
    assert text_of(again) == text_of(first)
    assert end_of(again).receipt.version_after == end_of(first).receipt.version_after
    assert await num_turns(engine) == 2


async def test_a_key_names_one_request(engine: Engine) -> None:
    """Another text, another sampling and another kind of turn under a used key are refused."""
    await chat(engine, "One", attempt=named("k1"))
    for request in (chat_request("Two", attempt=named("k1")), chat_request("One", max_tokens=7, attempt=named("k1"))):
        with pytest.raises(IdempotencyKeyReused):
            await take(engine.chat(request))
    with pytest.raises(IdempotencyKeyReused):
        await learn(engine, "One", attempt=named("k1"))
    assert await num_turns(engine) == 1


async def test_learning_is_retried_like_chatting(engine: Engine) -> None:
    """Learn and consolidate give their receipt again."""
    first = await learn(engine, attempt=named("k1"))
    again = await take(engine.learn(LearnRequest(KEY, "The barn is red.", attempt=named("k1"))))
    assert is_replay(again)
    assert end_of(again).receipt.tokens_learned == first.receipt.tokens_learned
    for _ in range(2):
        end = end_of(await take(engine.learn(LearnRequest(KEY, None, attempt=named("k2")))))
    assert end.receipt.replayed
    assert await num_turns(engine) == 2


async def test_a_request_in_flight_is_waited_for(engine: Engine) -> None:
    """The same request twice at once is learned once; both get the same words."""
    both = [take(engine.chat(chat_request(attempt=named("k1")))) for _ in range(2)]
    one, two = await asyncio.gather(*both)
    assert {is_replay(one), is_replay(two)} == {False, True}
    assert text_of(one) == text_of(two)
    assert await num_turns(engine) == 1


async def test_without_a_key_a_counted_retry_is_found_by_its_body(engine: Engine) -> None:
    """What OpenAI's client repeats silently, and says so in a header, is not learned again, even after other turns."""
    await chat(engine, "One")
    await chat(engine, "Two")
    again = await take(engine.chat(chat_request("One", attempt=named(is_retry=True))))
    assert is_replay(again)
    other = await take(engine.chat(chat_request("Three", attempt=named(is_retry=True))))
    assert not is_replay(other)
    assert await num_turns(engine) == 3


async def test_without_a_key_an_answer_that_did_not_arrive_is_given_again(engine: Engine) -> None:
    """Until the answer was sent whole, the same body is taken for the same request."""
    first = end_of(await take(engine.chat(chat_request())))
    assert is_replay(await take(engine.chat(chat_request())))
    engine.acknowledge(KEY, first.receipt.version_after)
    await engine._commits.drain()
    assert not is_replay(await take(engine.chat(chat_request())))
    assert await num_turns(engine) == 2


async def test_an_old_answer_is_not_taken_for_a_new_request(engine: Engine, monkeypatch) -> None:
    """Two minutes later the same words are a new turn, even if nobody confirmed the first."""
    await chat(engine)
    monkeypatch.setattr(replay, "UNACKNOWLEDGED_SECONDS", 0.0)
    assert not is_replay(await take(engine.chat(chat_request())))
    assert await num_turns(engine) == 2


async def test_an_answer_that_is_too_large_is_not_kept_and_not_learned_again(engine: Engine, monkeypatch) -> None:
    """The retry is an error that says so."""
    monkeypatch.setattr(replay, "MAX_REPLY_BYTES", 10)
    await chat(engine, attempt=named("k1"))
    with pytest.raises(AnswerNotStored):
        await chat(engine, attempt=named("k1"))
    assert await num_turns(engine) == 1


async def test_a_request_that_was_refused_is_learned_when_it_is_sent_again(engine: Engine, monkeypatch) -> None:
    """A key is used up by a commit, not by an attempt that failed."""

    async def conflict(*_args: object) -> None:
        raise SessionConflict("lost the race")

    with monkeypatch.context() as patch:
        patch.setattr(engine._book, "commit", conflict)
        with pytest.raises(SessionConflict):
            await chat(engine, attempt=named("k1"))
    assert not (await chat(engine, attempt=named("k1"))).receipt.replayed
    assert await num_turns(engine) == 1


@pytest.mark.parametrize("error", [StoreUnavailable, SessionConflict])
async def test_a_turn_whose_commit_failed_leaves_no_trace(make_engine: MakeEngine, monkeypatch, error) -> None:
    """Sent again it is learned once: the session is then, byte for byte, as if the first attempt had never been."""
    states = []
    for fails in (False, True):
        engine = make_engine()
        await engine.start()
        key = SessionKey("default", f"fails {fails}")
        await chat(engine, "One", session=key)
        if fails:
            with monkeypatch.context() as patch:
                patch.setattr(engine._book, "commit", AsyncMock(side_effect=error("not now")))
                with pytest.raises(error):
                    await chat(engine, "Two", session=key)
        end = await chat(engine, "Two", session=key)
        assert (end.receipt.turn, end.receipt.replayed) == (2, False)
        await chat(engine, "Three", session=key)
        states.append(await stored_state(engine, key))
        await engine.stop()
    assert states[0] == states[1]


async def test_two_servers_with_the_same_request_learn_it_once(make_engine: MakeEngine) -> None:
    """Both compute it and one commits; the other says the same words under the same version."""
    engines = [make_engine(), make_engine()]
    for engine in engines:
        await engine.start()
    await chat(engines[0], "Before")

    async def ask(engine: Engine) -> list[TurnEvent]:
        return await take(engine.chat(chat_request(attempt=named("k1"))))

    one, two = await asyncio.gather(*(ask(engine) for engine in engines))
    assert text_of(one) == text_of(two)
    assert end_of(one).receipt.version_after == end_of(two).receipt.version_after
    assert await num_turns(engines[0]) == 2
    for engine in engines:
        after = await chat(engine, "After", attempt=named("k2"))
        assert after.receipt.version_before is not None
    assert await num_turns(engines[0]) == 3
    for engine in engines:
        await engine.stop()


async def test_a_server_that_lost_the_race_with_other_words_has_the_caller_ask_again(make_engine: MakeEngine) -> None:
    """Words that were streamed cannot be taken back: a conflict, and the next attempt gets the words that were kept."""
    engine, rival = make_engine(), make_engine()
    for each in (engine, rival):
        await each.start()
    await chat(engine, "Before")
    find = engine._replays.find
    kept: list[TurnEvent] = []

    async def find_too_early(*args: Any) -> Any:
        answer = await find(*args)
        if not kept:
            kept.extend(await take(rival.chat(chat_request(attempt=named("k1")))))
        return answer

    engine._replays.find = find_too_early
    # The digest is of the request; what this server says is made to differ.
    chat_plan = engine._planner.chat

    async def say_less(*args: Any) -> Any:
        run = await chat_plan(*args)
        run.generation = replace(run.generation, max_tokens=1)
        return run

    engine._planner.chat = say_less
    with pytest.raises(SessionConflict, match="another server answered the same request first"):
        await chat(engine, attempt=named("k1"))
    again = await take(engine.chat(chat_request(attempt=named("k1"))))
    assert (is_replay(again), text_of(again)) == (True, text_of(kept))
    assert await num_turns(engine) == 2
    for each in (engine, rival):
        await each.stop()
