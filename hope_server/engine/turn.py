"""The engine's vocabulary: what a request asks for, and the events that answer it.

A turn is one request served in one session (or in none). It ends in exactly one terminal event: `TurnFinished`,
or a `HopeError` raised by the event iterator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]
MemoryMode = Literal["write", "read", "off"]
Source = Literal["user", "assistant", "system", "tool", "untrusted"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant called. arguments: a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. `role` is system, developer, user, assistant or tool.

    tool_calls: of an assistant message.
    untrusted: ranges (start, stop) of characters in `content` that do not teach unless asked for by `untrusted`.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    untrusted: tuple[tuple[int, int], ...] = ()


Restored = Literal["new", "hot", "host", "store"]
"""Where a turn found its session's state: nowhere, in a slot, in host memory, in the store."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the assistant may call. parameters: the JSON schema of its arguments, as text."""

    name: str
    description: str = ""
    parameters: str = "{}"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Which functions there are, and whether one must be called.

    choice: `none` shows them but allows no call, `required` demands one, `function` demands one of `name`.
    is_parallel: several calls in one reply are allowed.
    """

    tools: tuple[Tool, ...]
    choice: Literal["none", "auto", "required", "function"] = "auto"
    name: str = ""
    is_parallel: bool = True


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What a reply must be: any text, any JSON object, or JSON that fits `schema` (a JSON schema as text)."""

    kind: Literal["text", "json_object", "json_schema"] = "text"
    schema: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. `temperature` 0 is greedy; `top_k` 0 means no limit.

    logit_bias: (token id, what is added to its logit). top_logprobs: how many likeliest tokens to tell at each place
    besides the one drawn; None: no log-probabilities at all.
    """

    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """What a turn may do with the session's memory.

    mode: `write` learns and commits, `read` uses the memory and leaves it as it was, `off` ignores it.
    passes: how often each taught piece is rehearsed by consolidation; None takes the server's default, 0 is online
    only.
    levels: names of the levels that this turn may write; None is all of them.
    sources: whose text teaches.
    window: False empties the attention window for this turn (only with `read`), so that only weights can know.
    durability: what the answer waits for (`hope_server.settings.DURABILITY_RULE`); None takes the server's default.
    if_match: the version that the session must be at; "*" takes it as it is, also after the store went back in time.
    ttl_seconds: the session is deleted that long after its last turn; 0 is never, None leaves it as it was.
    """

    mode: MemoryMode = "write"
    passes: int | None = None
    window: bool = True
    durability: str | None = None
    if_match: str | None = None
    levels: tuple[str, ...] | None = None
    sources: tuple[Source, ...] = ("user", "assistant")
    ttl_seconds: float | None = None


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
    """A chat turn. `session` None is stateless: nothing is remembered and nothing is learned.

    num_choices: replies to give. With more than one the session learns the messages and none of the replies.
    resends_history: the client is of a kind that sends the whole conversation every time.
    may_be_side: the caller did not ask for learning in so many words, so that a request which does not go on with the
        conversation (a title, a summary) need not be learned.
    tenant: who asks; slots are shared fairly between tenants.
    """

    messages: tuple[Message, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    session: SessionKey | None = None
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    attempt: Attempt = field(default_factory=Attempt)
    num_choices: int = 1
    tool_use: ToolUse | None = None
    output_format: OutputFormat = field(default_factory=OutputFormat)
    resends_history: bool = False
    may_be_side: bool = False
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class TextRequest:
    """Plain text to go on from, without a chat template (`/v1/completions`). The rest as in ChatRequest."""

    prompt: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    session: SessionKey | None = None
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    attempt: Attempt = field(default_factory=Attempt)
    num_choices: int = 1
    tenant: str = ""


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
    tenant: str = ""


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
    not_learned: why a turn that was to learn only read: `side_request` (it does not go on with the conversation) or
        `frozen`; None where that was not so.
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
    restored_from: Restored
    discarded: str | None = None
    durability_requested: str | None = None
    replicas: int = 0
    replayed: bool = False
    not_learned: Literal["side_request", "frozen"] | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """The request was answered before: that answer follows. answer_id, created: as the first time."""

    answer_id: str
    created: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token at one place of a reply and its natural log-probability before temperature and penalties.

    text, data: what it adds to the text, as characters and as bytes.
    top: the likeliest tokens at that place, best first, each without a `top` of its own.
    """

    text: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenText:
    """Text that became final; never half a character.

    index: of the reply that it belongs to. logprobs: of the tokens drawn since the text before, where asked for.
    """

    text: str
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyFinished:
    """One of several replies ended; only where a request asked for several."""

    index: int
    finish_reason: FinishReason


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
    """The terminal event of a turn that was served (and committed, where it learned).

    finish_reason: of the only reply; of several, that of the first.
    """

    finish_reason: FinishReason
    usage: Usage
    receipt: Receipt | None


TurnEvent = Replay | TokenText | ReplyFinished | LearnProgress | TurnFinished


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What is known of a session without loading it. Times are Unix seconds; bytes are by level, plus `window` and
    `journal`.

    is_frozen: it learns nothing; ttl_seconds: how long it lives after its last commit, None for ever; expires: until
    then. tags: names of its snapshots and the version that each keeps.
    """

    session_id: str
    created: int
    updated: int
    version: str | None
    turn: int
    num_tokens: int
    tokens_learned: int
    state_bytes: dict[str, int]
    is_frozen: bool = False
    ttl_seconds: float | None = None
    expires: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
