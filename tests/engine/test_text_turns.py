"""Plain text turns: no template, no closing; the text is the user's, and the conversation stays as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from taking import chat, end_of, is_replay, named, num_turns, stored_state, take, text_of
from toys import KEY, make_tokenizer, toy_engine

from hope_server.engine.engine import Engine
from hope_server.engine.turn import Attempt, MemoryOptions, SamplingParams, SessionKey, TextRequest, TurnFinished
from hope_server.errors import IdempotencyKeyReused, InvalidRequest, PromptTooLong, SessionNotFound, VersionMismatch

pytestmark = pytest.mark.anyio
TOKENIZER = make_tokenizer()
PROMPT = "Once upon a time there was a miller."


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """A running toy engine."""
    engine = toy_engine(tmp_path / "store.db", max_prompt_tokens=300)
    await engine.start()
    yield engine
    await engine.stop()


def request(
    prompt: str = PROMPT,
    session: SessionKey | None = KEY,
    attempt: Attempt | None = None,
    max_tokens: int = 10,
    stop: tuple[str, ...] = (),
    **memory: Any,
) -> TextRequest:
    """A greedy text turn; `memory` are fields of MemoryOptions."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=stop)
    return TextRequest(prompt, sampling, session, MemoryOptions(**memory), attempt or Attempt())


async def conversation(engine: Engine) -> list[Any]:
    """What the session's newest version says of its conversation."""
    head = (await engine._book.get(KEY)).head
    assert head is not None
    return [head.meta["chain"], head.meta["systems"]]


async def test_the_prompt_is_read_as_it_is(engine: Engine) -> None:
    """Without a template around it, and special tokens in it are text."""
    for prompt in (PROMPT, "<|im_start|>user\nHi<|im_end|>"):
        last = (await take(engine.complete(request(prompt, None))))[-1]
        assert isinstance(last, TurnFinished)
        assert last.receipt is None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(prompt), 10)


async def test_the_prompt_and_the_reply_teach(engine: Engine) -> None:
    """All that is read is learned: no tokens of a template, and no closing."""
    receipt = end_of(await take(engine.complete(request()))).receipt
    assert (receipt.tokens_read, receipt.tokens_learned, receipt.turn) == (len(PROMPT) + 10, len(PROMPT) + 10, 1)
    assert receipt.version_after is not None
    only_reply = end_of(await take(engine.complete(request(sources=("assistant",))))).receipt
    assert only_reply.tokens_learned == 10


async def test_texts_continue_each_other(engine: Engine, tmp_path: Path) -> None:
    """A text in two turns leaves the memory of the same text in one, where the reply between them is in it."""
    first = await take(engine.complete(request(max_tokens=3)))
    await take(engine.complete(request(" And then?", max_tokens=3)))
    whole = toy_engine(tmp_path / "whole.db")
    await whole.start()
    reply = TOKENIZER.encode(text_of(first))
    assert len(reply) == 3
    plan = whole._planner.text

    async def with_reply(asked: TextRequest, record: Any) -> Any:
        run = await plan(asked, record)
        own = [item.token for item in run.feed][len(PROMPT) : -len(" And then?")]
        assert own == reply
        for place in range(len(PROMPT), len(PROMPT) + 3):
            run.feed[place] = type(run.feed[place])(run.feed[place].token, "assistant", run.generation.passes)
        return run

    whole._planner.text = with_reply
    await take(whole.complete(request(PROMPT + text_of(first) + " And then?", max_tokens=3)))
    ours, theirs = await stored_state(engine), await stored_state(whole)
    assert ours == theirs
    await whole.stop()


async def test_the_conversation_stays_as_it_was(engine: Engine) -> None:
    """Messages that were known before a text turn are known after it, and a chat goes on from both."""
    await chat(engine, "Hello")
    before = await conversation(engine)
    await take(engine.complete(request()))
    assert await conversation(engine) == before
    receipt = (await chat(engine, "And now?")).receipt
    assert receipt is not None
    assert receipt.turn == 3


async def test_a_turn_that_reads_uses_the_memory_and_leaves_it(engine: Engine) -> None:
    """What it says depends on the session; the session has no new version."""
    await take(engine.complete(request("The barn is red. " * 10)))
    version = (await engine.get_session(KEY)).version
    inside = await take(engine.complete(request(mode="read")))
    assert text_of(inside) != text_of(await take(engine.complete(request(session=None))))
    assert text_of(inside) == text_of(await take(engine.complete(request(mode="read"))))
    assert end_of(inside).receipt.version_after == version


async def test_a_repeated_request_is_answered_again(engine: Engine) -> None:
    """Exactly once, by the caller's key and by the body; a key names one request."""
    first = await take(engine.complete(request(attempt=named("k1"))))
    again = await take(engine.complete(request(attempt=named("k1"))))
    assert is_replay(again) and text_of(again) == text_of(first)
    with pytest.raises(IdempotencyKeyReused):
        await take(engine.complete(request("Another.", attempt=named("k1"))))
    silent = await take(engine.complete(request("More.", attempt=named())))
    assert text_of(await take(engine.complete(request("More.", attempt=named(is_retry=True))))) == text_of(silent)
    assert await num_turns(engine) == 2


async def test_expected_versions_are_checked(engine: Engine) -> None:
    """As for chats: a version that the session is not at, and a session that is not there."""
    with pytest.raises(SessionNotFound):
        await take(engine.complete(request(if_match="v0")))
    version = end_of(await take(engine.complete(request(durability="fsync")))).receipt.version_after
    await take(engine.complete(request("More.", if_match=version)))
    with pytest.raises(VersionMismatch):
        await take(engine.complete(request("Yet more.", if_match=version)))


async def test_a_stop_string_ends_it(engine: Engine) -> None:
    """The reply ends before it, in the same text."""
    whole = text_of(await take(engine.complete(request(session=None, max_tokens=20))))
    events = await take(engine.complete(request(session=None, max_tokens=20, stop=(whole[5:7],))))
    assert text_of(events) == whole[: whole.index(whole[5:7])]
    assert events[-1].finish_reason == "stop"


async def test_what_cannot_be_gone_on_from_is_refused(engine: Engine) -> None:
    """An empty prompt and one over the limit."""
    with pytest.raises(InvalidRequest, match="prompt is empty") as caught:
        await take(engine.complete(request("", None)))
    assert caught.value.param == "prompt"
    with pytest.raises(PromptTooLong):
        await take(engine.complete(request("x" * 301, None)))
