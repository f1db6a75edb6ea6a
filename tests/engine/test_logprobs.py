"""Log-probabilities of replies: the model's own, one a token, beside the text that each token is part of."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from taking import end_of, take, text_of
from toys import KEY, make_tokenizer, toy_engine

from hope_server.engine.engine import Engine
from hope_server.engine.logprobs import LogprobLog
from hope_server.engine.turn import (
    ChatRequest,
    MemoryOptions,
    Message,
    SamplingParams,
    ScoreRequest,
    TextRequest,
    TokenLogprob,
    TokenText,
    TurnEvent,
)
from hope_server.errors import InvalidRequest

pytestmark = pytest.mark.anyio
TOKENIZER = make_tokenizer()
# Letters alone, so that a reply's text has the tokens that were drawn.
LETTERS = tuple((token, 90.0) for token in TOKENIZER.encode("abcdefghij"))
BYTES = tuple((token, 90.0) for token in TOKENIZER.encode("aé\N{VIOLIN}")[1:])
ASKED = (Message("user", "Say something."),)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """A running toy engine."""
    engine = toy_engine(tmp_path / "store.db")
    await engine.start()
    yield engine
    await engine.stop()


def request(session: object = None, mode: str = "write", **sampling: object) -> ChatRequest:
    """A chat turn that asks for log-probabilities."""
    values: dict[str, object] = {"max_tokens": 24, "temperature": 0.8, "seed": 5, "logit_bias": LETTERS}
    params = SamplingParams(**(values | {"top_logprobs": 3} | sampling))
    return ChatRequest(ASKED, params, session, MemoryOptions(mode))


def entries_of(events: list[TurnEvent]) -> list[TokenLogprob]:
    """All log-probabilities of a reply."""
    return [entry for event in events if isinstance(event, TokenText) for entry in event.logprobs]


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.0}, {"presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.5}],
)
async def test_they_add_up_to_the_score_of_the_reply(engine: Engine, sampling: dict[str, float]) -> None:
    """Whatever the reply was drawn by, it is told what the model itself gives, as a score request finds it."""
    events = await take(engine.chat(request(**sampling)))
    text, entries = text_of(events), entries_of(events)
    assert len(entries) == 24 == len(text)
    (score,) = await engine.score(ScoreRequest((text,), (*ASKED, Message("assistant", ""))))
    # Scores read many tokens at once, replies one at a time: float32 rounds differently, and keys and values that are
    # kept in bfloat16 can turn that into one of their last bits (3e-4 nats were seen, of 100).
    assert sum(entry.logprob for entry in entries) == pytest.approx(score.logprob, abs=2e-3)


async def test_they_are_those_of_the_session_s_memory(engine: Engine) -> None:
    """In a session that has read something, the reply is scored by what was read."""
    await take(engine.chat(request(KEY)))
    events = await take(engine.chat(request(KEY, "read")))
    (score,) = await engine.score(ScoreRequest((text_of(events),), (*ASKED, Message("assistant", "")), session=KEY))
    assert sum(entry.logprob for entry in entries_of(events)) == pytest.approx(score.logprob, abs=1e-4)


async def test_the_likeliest_tokens_come_best_first(engine: Engine) -> None:
    """Each place tells as many as were asked for, by falling probability, whatever was drawn."""
    for num_top in (0, 1, 20):
        entries = entries_of(await take(engine.chat(request(top_logprobs=num_top))))
        assert {len(entry.top) for entry in entries} == {num_top}
        for entry in entries:
            told = [each.logprob for each in entry.top]
            assert told == sorted(told, reverse=True)
            assert all(each.top == () for each in entry.top)
            assert not told or told[0] >= entry.logprob
    assert entries_of(await take(engine.chat(request(top_logprobs=None)))) == []


async def test_asking_changes_nothing_of_the_reply(engine: Engine) -> None:
    """The same seed says the same, with log-probabilities and without."""
    plain, told = request(top_logprobs=None, logit_bias=()), request(logit_bias=())
    assert text_of(await take(engine.chat(plain))) == text_of(await take(engine.chat(told)))


@pytest.mark.parametrize("seed", range(6))
async def test_tokens_that_a_stop_string_cuts_away_have_none(engine: Engine, seed: int) -> None:
    """Tokens and characters stay together: what is told spells the text that was given out."""
    whole = text_of(await take(engine.chat(request(seed=seed))))
    stop = whole[9:12]
    events = await take(engine.chat(request(seed=seed, stop=(stop,))))
    text = text_of(events)
    assert text == whole[: whole.index(stop)]
    assert "".join(entry.text for entry in entries_of(events)) == text
    assert end_of_reason(events) == "stop"
    for event in events:
        if isinstance(event, TokenText):
            assert "".join(entry.text for entry in event.logprobs) == event.text


def end_of_reason(events: list[TurnEvent]) -> str:
    """Why a stateless turn ended."""
    return events[-1].finish_reason


@pytest.mark.parametrize("seed", range(4))
async def test_bytes_of_unfinished_characters_are_told(engine: Engine, seed: int) -> None:
    """Every token is told once, also where it adds no whole character; the bytes of all spell the text."""
    events = await take(engine.chat(request(seed=seed, logit_bias=BYTES, top_logprobs=0)))
    entries = entries_of(events)
    assert len(entries) == events[-1].usage.completion_tokens == 24
    data = b"".join(entry.data for entry in entries)
    text = text_of(events)
    assert data.decode(errors="replace").startswith(text)
    assert all(event.text for event in events[:-2] if isinstance(event, TokenText))


async def test_they_are_given_again_with_a_repeated_answer(engine: Engine) -> None:
    """A repetition has every one of them, bit for bit."""
    asked = replace(request(KEY), attempt=replace(request().attempt, key="k1", answer_id="a"))
    first = await take(engine.chat(asked))
    again = await take(engine.chat(asked))
    assert end_of(again).receipt.replayed
    assert entries_of(again) == entries_of(first) != []
    assert text_of(again) == text_of(first)


async def test_text_turns_have_them_too(engine: Engine) -> None:
    """Without a chat template the reply goes on directly from the prompt."""
    sampling = SamplingParams(max_tokens=12, seed=1, logit_bias=LETTERS, top_logprobs=0)
    events = await take(engine.complete(TextRequest("Once upon", sampling)))
    (score,) = await engine.score(ScoreRequest((text_of(events),), prompt="Once upon"))
    assert sum(entry.logprob for entry in entries_of(events)) == pytest.approx(score.logprob, abs=1e-4)


@pytest.mark.parametrize("num_top", [-1, 21])
async def test_too_many_are_refused(engine: Engine, num_top: int) -> None:
    """The number is named, and the field."""
    with pytest.raises(InvalidRequest, match=f"top_logprobs is {num_top}; ask for 0 to 20") as caught:
        await take(engine.chat(request(top_logprobs=num_top)))
    assert caught.value.param == "top_logprobs"


def test_special_tokens_have_a_name_and_no_bytes() -> None:
    """What ends a reply can be among the likeliest, and adds nothing to the text."""
    log = LogprobLog(TOKENIZER, 1)
    logits = torch.zeros(300)
    logits[257] = 3.0
    log.note(97, logits, 0)
    (entry,) = log.take(1)
    assert entry.top[0].text == "<|im_end|>" and entry.top[0].data == b""
    assert entry.top[0].logprob == pytest.approx(3.0 - math.log(299 + math.exp(3.0)))
    assert log.take(5) == log.take_rest() == ()
