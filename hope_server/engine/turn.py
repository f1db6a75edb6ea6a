"""The engine's vocabulary: what a request asks for, and the events that answer it.

A turn is one request served in one session (or in none). It ends in exactly one terminal event: `TurnFinished`,
or a `HopeError` raised by the event iterator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]
MemoryMode = Literal["write", "read", "off"]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. `role` is system, developer, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. `temperature` 0 is greedy; `top_k` 0 means no limit."""

    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """What a turn may do with the session's memory.

    mode: `write` learns and commits, `read` uses the memory and leaves it as it was, `off` ignores it.
    passes: how often each taught piece is rehearsed by consolidation; None takes the server's default, 0 is online
    only.
    window: False empties the attention window for this turn (only with `read`), so that only weights can know.
    durability: what the answer waits for (`hope_server.settings.DURABILITY_RULE`); None takes the server's default.
    if_match: the version that the session must be at; "*" takes it as it is, also after the store went back in time.
    """

    mode: MemoryMode = "write"
    passes: int | None = None
    window: bool = True
    durability: str | None = None
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a request was sent, so that the same one again is answered without learning again.

    key: the caller's name for the request, 1 to 255 characters; None where it gave none.
    is_retry: the caller says that it sent the request before.
    answer_id, created: the answer's name and Unix seconds; a repeated answer has those of the first.
    """

    key: str | None = None
    is_retry: bool = False
    answer_id: str = ""
    created: int = 0


@dataclass(frozen=True, slots=True)
class SessionKey:
    """A session's full name: ids are scoped by tenant."""

    tenant: str
    session_id: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat turn. `session` None is stateless: nothing is remembered and nothing is learned."""

    messages: tuple[Message, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    session: SessionKey | None = None
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    attempt: Attempt = field(default_factory=Attempt)


@dataclass(frozen=True, slots=True)
class LearnRequest:
    """Text to learn now. `text` None consolidates what the session has already read. The rest as in MemoryOptions."""

    session: SessionKey
    text: str | None = None
    passes: int | None = None
    durability: str | None = None
    if_match: str | None = None
    attempt: Attempt = field(default_factory=Attempt)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-probability of each continuation after the prompt, under the session's memory. Read-only.

    Exactly one of `messages` and `prompt` is set. A last message of role assistant is left open and continued.
    """

    continuations: tuple[str, ...]
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    session: SessionKey | None = None
    window: bool = True


@dataclass(frozen=True, slots=True)
class Score:
    """Sum of natural-log probabilities of a continuation's tokens, and their number."""

    logprob: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a turn."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a turn did to the session's memory. Losses are nats per token; None where nothing was measured.

    version_after: None while no version of the store holds what the turn learned (durability none and async).
    durability: what was reached when the answer was sent; durability_requested: what was asked for, None where there
        was nothing to keep; replicas: how many confirmed, where that was asked.
    replayed: the request had been answered before; this is that answer, and nothing was learned again.
    """

    session_id: str
    mode: MemoryMode
    version_before: str | None
    version_after: str | None
    turn: int
    tokens_read: int
    tokens_learned: int
    steps: int
    loss_before: float | None
    loss_after: float | None
    update_norm: dict[str, float]
    durability: str
    restored_from: Literal["new", "hot", "store"]
    discarded: str | None = None
    durability_requested: str | None = None
    replicas: int = 0
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Replay:
    """The request was answered before: that answer follows. answer_id, created: as the first time."""

    answer_id: str
    created: int


@dataclass(frozen=True, slots=True)
class TokenText:
    """Text that became final; never half a character."""

    text: str


@dataclass(frozen=True, slots=True)
class LearnProgress:
    """How far a learn or consolidate request has come."""

    tokens_done: int
    tokens_total: int
    steps_done: int
    steps_total: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """The terminal event of a turn that was served (and committed, where it learned)."""

    finish_reason: FinishReason
    usage: Usage
    receipt: Receipt | None


TurnEvent = Replay | TokenText | LearnProgress | TurnFinished


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What is known of a session without loading it. Times are Unix seconds; bytes are by level, plus `window` and
    `journal`.
    """

    session_id: str
    created: int
    updated: int
    version: str | None
    turn: int
    num_tokens: int
    tokens_learned: int
    state_bytes: dict[str, int]
