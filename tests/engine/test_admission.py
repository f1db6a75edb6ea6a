"""Admission by bytes: open requests hold no more than they may, and one alone is always let in."""

from __future__ import annotations

from pathlib import Path

import pytest
from taking import learn, take
from toys import KEY, toy_engine

from hope_server.engine.admission import LEARN_BYTES, PROMPT_BYTES, Admission, bytes_of
from hope_server.engine.turn import ChatRequest, LearnRequest, Message, SamplingParams, ScoreRequest, SessionKey
from hope_server.errors import NoRoom, PromptTooLong


def test_what_is_above_the_room_is_refused_until_others_have_ended() -> None:
    """A request is counted while it is open and no longer, also when it fails."""
    admission = Admission(100)
    with admission.hold(60):
        with pytest.raises(NoRoom, match="retry in 5 s"), admission.hold(41):
            pass
        with admission.hold(40):
            assert admission.num_bytes == 100
    with pytest.raises(ZeroDivisionError), admission.hold(60):
        raise ZeroDivisionError
    assert admission.num_bytes == 0


def test_one_alone_is_let_in_however_large() -> None:
    """Its size is bounded by what a body may hold."""
    admission = Admission(100)
    with admission.hold(1_000), pytest.raises(NoRoom), admission.hold(1):
        pass


def test_a_request_takes_what_its_texts_take() -> None:
    """By the character, of every text in it."""
    messages = (Message("system", "ab"), Message("user", "cde"))
    assert bytes_of(ChatRequest(messages, SamplingParams(), None)) == 5 * PROMPT_BYTES
    assert bytes_of(ScoreRequest(("x", "yz"), messages)) == 8 * PROMPT_BYTES
    assert bytes_of(LearnRequest(KEY, "0123456789")) == 10 * LEARN_BYTES
    assert bytes_of(LearnRequest(KEY, None)) == 0


@pytest.mark.anyio
async def test_an_engine_without_room_refuses_and_serves_again(tmp_path: Path) -> None:
    """While one text is learned a second is refused; nothing is held when both have ended, well or badly."""
    engine = toy_engine(tmp_path / "one.db", max_open_bytes=2_000)
    await engine.start()
    text = "The barn is red. " * 15
    first = engine.learn(LearnRequest(KEY, text))
    await anext(first)
    with pytest.raises(NoRoom):
        await take(engine.learn(LearnRequest(SessionKey("default", "other"), text)))
    await take(first)
    with pytest.raises(PromptTooLong):
        await take(engine.chat(ChatRequest((Message("user", "long " * 100_000),), SamplingParams(), None)))
    assert (await learn(engine, text + "The van is white.")).receipt.turn == 2
    assert engine.stats()["open_request_bytes"] == 0
    await engine.stop()
