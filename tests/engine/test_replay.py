"""What makes two requests the same, and what is kept of an answer."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest

from hope_server.engine import replay
from hope_server.engine.replay import Answer, Ask, Reply, ask_of, digest_of, request_id
from hope_server.engine.turn import (
    Attempt,
    ChatRequest,
    LearnRequest,
    MemoryOptions,
    Message,
    OutputFormat,
    Receipt,
    Replay,
    ReplyFinished,
    SamplingParams,
    SessionKey,
    TextRequest,
    TokenLogprob,
    TokenText,
    Tool,
    ToolCall,
    ToolUse,
    Usage,
)
from hope_server.errors import AnswerNotStored

ADA = SessionKey("t", "ada")
CHAT = ChatRequest((Message("user", "hi"),), SamplingParams(seed=1), ADA)
RECEIPT = Receipt("ada", "write", "v0", None, 1, 5, 4, 2, 3.5, math.nan, {"fast": 0.5}, "none", "hot")
ANSWER = Answer("chatcmpl-1", 17, (Reply("hello \U0001f3bb"),), Usage(3, 2), RECEIPT)
TEXT = TextRequest("hi", SamplingParams(seed=1), ADA)
TOLD = (
    TokenLogprob(
        "hé", "hé".encode(), -0.25, (TokenLogprob("hé", "hé".encode(), -0.25), TokenLogprob("\ufffd", b"\xf0", -3.5))
    ),
    TokenLogprob("\ufffd", b"\xf0\x9f", -math.inf),
)


@pytest.mark.parametrize(
    "other",
    [
        replace(CHAT, messages=(Message("user", "ho"),)),
        replace(CHAT, messages=(Message("system", "hi"),)),
        replace(CHAT, messages=(Message("user", "h"), Message("user", "i"))),
        replace(CHAT, sampling=SamplingParams(seed=2)),
        replace(CHAT, sampling=SamplingParams(seed=1, stop=("x",))),
        replace(CHAT, sampling=SamplingParams(seed=1, logit_bias=((5, 1.0),))),
        replace(CHAT, sampling=SamplingParams(seed=1, top_logprobs=0)),
        replace(CHAT, memory=MemoryOptions(passes=3)),
        replace(CHAT, memory=MemoryOptions(levels=("fast",))),
        replace(CHAT, memory=MemoryOptions(sources=("user",))),
        replace(CHAT, num_choices=2),
        replace(CHAT, messages=(Message("user", "hi", (ToolCall("f", "{}"),)),)),
        replace(CHAT, messages=(Message("user", "hi", (), ((0, 2),)),)),
        replace(CHAT, tool_use=ToolUse((Tool("f"),))),
        replace(CHAT, tool_use=ToolUse((Tool("f"),), "required")),
        replace(CHAT, output_format=OutputFormat("json_object")),
        TEXT,
        replace(TEXT, prompt="ho"),
        replace(TEXT, num_choices=2),
        replace(TEXT, memory=MemoryOptions("read")),
        LearnRequest(ADA, "hi"),
        LearnRequest(ADA, None),
        LearnRequest(ADA, "hi", 3),
    ],
)
def test_what_the_answer_depends_on_makes_another_request(other) -> None:
    """Messages with their roles and bounds, sampling, memory options and the kind of turn."""
    kinds = [CHAT, TEXT, LearnRequest(ADA, "hi"), LearnRequest(ADA, None), LearnRequest(ADA, "hi", 3)]
    assert [digest_of(other) == digest_of(each) for each in kinds].count(True) <= 1
    assert digest_of(other) != digest_of(CHAT)


@pytest.mark.parametrize(
    "same",
    [
        replace(CHAT, attempt=Attempt("k", True, "chatcmpl-2", 9)),
        replace(CHAT, memory=MemoryOptions(durability="fsync", if_match="v1", ttl_seconds=5.0)),
        replace(CHAT, session=SessionKey("t", "bob")),
    ],
)
def test_how_it_is_sent_does_not(same) -> None:
    """Attempts, durability and expected versions may differ; the session is no part of the body."""
    assert digest_of(same) == digest_of(CHAT)


@pytest.mark.anyio
async def test_a_large_request_has_the_same_digest_from_a_thread() -> None:
    """Where it is computed makes no difference."""
    for request in (
        LearnRequest(ADA, "x" * 300_000, attempt=Attempt("k")),
        TextRequest("x" * 300_000, attempt=Attempt("k")),
        replace(CHAT, messages=(Message("user", "x" * 300_000),), attempt=Attempt("k")),
    ):
        assert await ask_of(request) == Ask(Attempt("k"), digest_of(request))


def test_ids_of_keys_and_of_bodies_never_meet() -> None:
    """A caller cannot choose a key that is another request's derived id; derived ones depend on session and tip."""
    derived = request_id(ADA, "v1", Ask(Attempt(), b"d"))
    assert request_id(ADA, "v1", Ask(Attempt(derived), b"d")) != derived
    others = [(SessionKey("t", "bob"), "v1", b"d"), (ADA, "v2", b"d"), (ADA, "v1", b"e")]
    assert derived not in {request_id(key, tip, Ask(Attempt(), digest)) for key, tip, digest in others}
    assert request_id(ADA, "v1", Ask(Attempt("k" * 255), b"d")) == request_id(ADA, "v2", Ask(Attempt("k" * 255), b"e"))


def test_an_answer_survives_being_kept() -> None:
    """All of it comes back, marked as a repetition, with what its commit settled."""
    again = Answer.decode(ANSWER.encode()).kept("v1", "replicated:2")
    assert again.replies == ANSWER.replies
    assert math.isnan(again.receipt.loss_after)
    expected = replace(
        RECEIPT, version_after="v1", durability="replicated:2", replicas=2, replayed=True, loss_after=None
    )
    assert replace(again.receipt, loss_after=None) == expected
    assert again.events == (Replay("chatcmpl-1", 17), TokenText("hello \U0001f3bb"), again.finished)
    assert replace(again, replies=(Reply(""),)).events == (Replay("chatcmpl-1", 17), again.finished)


@pytest.mark.anyio
async def test_several_replies_come_back_one_after_the_other() -> None:
    """Each with its log-probabilities and its end; the bytes of half characters are kept."""
    replies = (Reply("hé", "length", TOLD), Reply("", "stop"), Reply("ho", "stop", TOLD[1:]))
    answer = replace(ANSWER, replies=replies)
    again = Answer.decode(answer.encode())
    assert again.replies == replies
    assert await answer.encoded() == answer.encode()
    assert again.events == (
        Replay("chatcmpl-1", 17),
        TokenText("hé", 0, TOLD),
        ReplyFinished(0, "length"),
        ReplyFinished(1, "stop"),
        TokenText("ho", 2, TOLD[1:]),
        ReplyFinished(2, "stop"),
        again.finished,
    )
    assert again.finished.finish_reason == "length"


def test_many_log_probabilities_take_little_room() -> None:
    """A long reply with twenty tokens told at each place is kept, and cannot be half read."""
    top = tuple(TokenLogprob(f" word{index}", f" word{index}".encode(), -1.2345678 * index) for index in range(20))
    told = tuple(replace(top[index % 20], logprob=-index / 7, top=top) for index in range(512))
    kept = replace(ANSWER, replies=(Reply("text", "stop", told),)).encode()
    assert 0 < len(kept) <= replay.MAX_REPLY_BYTES
    assert Answer.decode(kept).replies[0].logprobs == told
    with pytest.raises(AnswerNotStored):
        Answer.decode(kept[:-5])


def test_an_answer_of_an_earlier_build_is_read() -> None:
    """It has one reply, without log-probabilities."""
    fields = {"answer_id": "a", "created": 3, "text": "ho", "finish_reason": "length"}
    kept = json.dumps([1, {**fields, "usage": asdict(ANSWER.usage), "receipt": asdict(RECEIPT)}]).encode()
    found = Answer.decode(kept)
    assert (found.answer_id, found.created, found.replies) == ("a", 3, (Reply("ho", "length"),))
    assert (found.usage, found.receipt.replayed) == (ANSWER.usage, True)


def test_a_large_answer_is_not_kept(monkeypatch) -> None:
    """Nothing is stored in its place, and reading that says so."""
    size = len(ANSWER.encode())
    monkeypatch.setattr(replay, "MAX_REPLY_BYTES", size)
    assert len(ANSWER.encode()) == size
    monkeypatch.setattr(replay, "MAX_REPLY_BYTES", size - 1)
    assert ANSWER.encode() == b""


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"\xff",
        b"1",
        b"[]",
        b"[3,{}]",
        b"[2,{}]",
        b"z",
        b"zxy",
        b"[1,{}]",
        b'[1,{"receipt":{}}]',
        b"[1,[]]",
        b'[1,{"receipt":1}]',
    ],
)
def test_what_cannot_be_read_is_no_answer(kept: bytes) -> None:
    """An answer of another format is an error for its caller, not a fault."""
    with pytest.raises(AnswerNotStored):
        Answer.decode(kept)
