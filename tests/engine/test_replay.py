"""What makes two requests the same, and what is kept of an answer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hope_server.engine import replay
from hope_server.engine.replay import Answer, Ask, ask_of, digest_of, request_id
from hope_server.engine.turn import (
    Attempt,
    ChatRequest,
    LearnRequest,
    MemoryOptions,
    Message,
    Receipt,
    Replay,
    SamplingParams,
    SessionKey,
    TokenText,
    Usage,
)
from hope_server.errors import AnswerNotStored

ADA = SessionKey("t", "ada")
CHAT = ChatRequest((Message("user", "hi"),), SamplingParams(seed=1), ADA)
RECEIPT = Receipt("ada", "write", "v0", None, 1, 5, 4, 2, 3.5, math.nan, {"fast": 0.5}, "none", "hot")
ANSWER = Answer("chatcmpl-1", 17, "hello \U0001f3bb", "stop", Usage(3, 2), RECEIPT)


@pytest.mark.parametrize(
    "other",
    [
        replace(CHAT, messages=(Message("user", "ho"),)),
        replace(CHAT, messages=(Message("system", "hi"),)),
        replace(CHAT, messages=(Message("user", "h"), Message("user", "i"))),
        replace(CHAT, sampling=SamplingParams(seed=2)),
        replace(CHAT, sampling=SamplingParams(seed=1, stop=("x",))),
        replace(CHAT, memory=MemoryOptions(passes=3)),
        LearnRequest(ADA, "hi"),
        LearnRequest(ADA, None),
        LearnRequest(ADA, "hi", 3),
    ],
)
def test_what_the_answer_depends_on_makes_another_request(other) -> None:
    """Messages with their roles and bounds, sampling, memory options and the kind of turn."""
    kinds = [CHAT, LearnRequest(ADA, "hi"), LearnRequest(ADA, None), LearnRequest(ADA, "hi", 3)]
    assert [digest_of(other) == digest_of(each) for each in kinds].count(True) <= 1
    assert digest_of(other) != digest_of(CHAT)


@pytest.mark.parametrize(
    "same",
    [
        replace(CHAT, attempt=Attempt("k", True, "chatcmpl-2", 9)),
        replace(CHAT, memory=MemoryOptions(durability="fsync", if_match="v1")),
        replace(CHAT, session=SessionKey("t", "bob")),
    ],
)
def test_how_it_is_sent_does_not(same) -> None:
    """Attempts, durability and expected versions may differ; the session is no part of the body."""
    assert digest_of(same) == digest_of(CHAT)


@pytest.mark.anyio
async def test_a_large_request_has_the_same_digest_from_a_thread() -> None:
    """Where it is computed makes no difference."""
    request = LearnRequest(ADA, "x" * 300_000, attempt=Attempt("k"))
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
    assert again.text == ANSWER.text
    assert math.isnan(again.receipt.loss_after)
    expected = replace(
        RECEIPT, version_after="v1", durability="replicated:2", replicas=2, replayed=True, loss_after=None
    )
    assert replace(again.receipt, loss_after=None) == expected
    assert again.events == (Replay("chatcmpl-1", 17), TokenText(ANSWER.text), again.finished)
    assert replace(again, text="").events == (Replay("chatcmpl-1", 17), again.finished)


def test_a_large_answer_is_not_kept(monkeypatch) -> None:
    """Nothing is stored in its place, and reading that says so."""
    size = len(ANSWER.encode())
    monkeypatch.setattr(replay, "MAX_REPLY_BYTES", size)
    assert len(ANSWER.encode()) == size
    monkeypatch.setattr(replay, "MAX_REPLY_BYTES", size - 1)
    assert ANSWER.encode() == b""


@pytest.mark.parametrize(
    "kept", [b"", b"\xff", b"1", b"[]", b"[2,{}]", b"[1,{}]", b'[1,{"receipt":{}}]', b"[1,[]]", b'[1,{"receipt":1}]']
)
def test_what_cannot_be_read_is_no_answer(kept: bytes) -> None:
    """An answer of another format is an error for its caller, not a fault."""
    with pytest.raises(AnswerNotStored):
        Answer.decode(kept)
