"""What calls take and give back: plain frozen objects, read from the server's JSON by `from_json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hope_client.errors import UnexpectedAnswer

_T = TypeVar("_T")


@dataclass(frozen=True)
class Usage:
    """Tokens of a turn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Receipt:
    """What a turn did to the session's memory. Losses are nats per token; None where nothing was measured.

    version_after: None while the store does not have what was learned (durability `none` and `async`).
    durability: what was reached; durability_requested: what was asked for; replicas: how many confirmed.
    discarded: why the turn's learning was thrown away; None when it was kept.
    replayed: the request had been answered before; this is that answer, and nothing was learned again.
    not_learned: why a turn that was to learn only read: `side_request` (it does not go on with the conversation) or
        `frozen`; None where that was not so.
    """

    session_id: str
    mode: str
    version_before: str | None
    version_after: str | None
    turn: int
    tokens_read: int
    tokens_learned: int
    steps: int
    loss_before: float | None
    loss_after: float | None
    update_norm: dict[str, float | None] = field(default_factory=dict)
    durability: str = "none"
    restored_from: str = "new"
    discarded: str | None = None
    durability_requested: str | None = None
    replicas: int = 0
    replayed: bool = False
    not_learned: str | None = None


@dataclass(frozen=True)
class ToolCall:
    """A function that the model called. `arguments` is a JSON object as text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """A complete answer. `receipt` and `usage` are None where the server gave none."""

    text: str
    receipt: Receipt | None
    usage: Usage | None
    finish_reason: str | None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class LearnProgress:
    """How far a learn or consolidate call has come. `loss` is nats per token.

    part, num_parts: which request of a text that is sent in several; the other numbers are of this part alone.
    """

    tokens_done: int
    tokens_total: int
    steps_done: int
    steps_total: int
    loss: float | None
    part: int = 1
    num_parts: int = 1


@dataclass(frozen=True)
class LearnResult:
    """A finished learn or consolidate call.

    receipt: of the last request; receipts: of every request, in order. usage: of all of them together.
    """

    receipt: Receipt | None
    usage: Usage | None
    receipts: tuple[Receipt, ...] = ()

    @property
    def tokens_learned(self) -> int:
        """Tokens learned by all requests together."""
        return sum(each.tokens_learned for each in self.receipts)


@dataclass(frozen=True)
class Score:
    """Sum of the natural-log probabilities of a continuation's tokens, and their number.

    logprob is NaN where the server could not give a number.
    """

    logprob: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Mean log-probability of a token, in nats; 0 for an empty continuation."""
        return self.logprob / self.num_tokens if self.num_tokens else 0.0


@dataclass(frozen=True)
class RecallLift:
    """How much better a session knows an answer by its weights than the model without it does.

    with_memory, without: mean log-probability of the answer's tokens, in nats; without: no session at all.
    lift: their difference, above 0 where the memory helps.
    """

    with_memory: float
    without: float
    lift: float
    num_tokens: int


@dataclass(frozen=True)
class Model:
    """A served model. `created` is Unix seconds."""

    id: str
    created: int = 0
    owned_by: str = ""


@dataclass(frozen=True)
class SessionInfo:
    """What is known of a session. Times are Unix seconds; bytes are by level, plus `window` and `journal`.

    frozen: turns read and do not learn. ttl: seconds after its last turn at which the session is deleted, None is
    never; expires: when that is. metadata: the caller's own notes. tags: version by tag, see `Session.snapshot`.
    """

    id: str
    created: int
    updated: int
    version: str | None
    turn: int
    num_tokens: int
    tokens_learned: int
    state_bytes: dict[str, int] = field(default_factory=dict)
    frozen: bool = False
    ttl: float | None = None
    expires: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    model: str | None = None

    @property
    def memory_bytes(self) -> int:
        """Size of what the session learned: all of its state but window and journal."""
        return sum(size for name, size in self.state_bytes.items() if name not in ("window", "journal"))

    @property
    def snapshot_bytes(self) -> int:
        """Size of all that is stored of the session's present state."""
        return sum(self.state_bytes.values())


@dataclass(frozen=True)
class Version:
    """One kept version of a session. `created` is Unix seconds."""

    version: str
    created: float
    parent: str | None = None
    number: int | None = None
    turn: int = 0
    num_tokens: int = 0
    num_bytes: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A version that a tag keeps. `created` is Unix seconds."""

    tag: str
    version: str
    created: float


@dataclass(frozen=True)
class LevelMemory:
    """One level of a session's memory.

    schedule: when it is written. num_writes: updates so far. num_bytes: as stored, 0 where it was never written.
    norm: size of what it adds to the model's weights; None where the server could not give a number.
    """

    num_writes: int = 0
    num_bytes: int = 0
    norm: float | None = None
    schedule: str = ""


@dataclass(frozen=True)
class MemoryStatistics:
    """What a session's memory holds.

    version: the one this is of. levels: by name. position: tokens read; tokens_learned: of these; pending_tokens: read
    since the last write.
    window: tokens that attention sees (`used`) and can see (`size`). journal: text kept for rehearsal (`pieces`,
    `tokens`, and `waiting` pieces that were not rehearsed yet). state_bytes: sizes as stored, by part.
    """

    levels: dict[str, LevelMemory]
    version: str | None = None
    position: int = 0
    tokens_learned: int = 0
    pending_tokens: int = 0
    window: dict[str, int] = field(default_factory=dict)
    journal: dict[str, int | None] = field(default_factory=dict)
    state_bytes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """One turn of a session, from its log. `created` is Unix seconds, losses are nats per token.

    kind: chat, text, learn, consolidate or reset.
    """

    turn: int
    created: float
    kind: str
    tokens_read: int = 0
    tokens_learned: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    update_norm: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Health:
    """Whether the server takes turns. `status` is its own word for it, for example ready or loading."""

    is_ready: bool
    status: str


def from_json(kind: type[_T], data: object) -> _T:
    """Return a `kind` read from a JSON object; keys that `kind` does not know are left out.

    Raises UnexpectedAnswer when `data` is no object or lacks a field without default.
    """
    if not isinstance(data, Mapping):
        raise UnexpectedAnswer(f"expected an object for {kind.__name__}, the server sent {type(data).__name__}")
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    values: dict[str, Any] = {each.name: data[each.name] for each in fields if each.name in data}
    try:
        return kind(**values)
    except TypeError as exc:
        missing = [each.name for each in fields if each.name not in data and _is_required(each)]
        raise UnexpectedAnswer(f"the server's {kind.__name__} lacks {', '.join(missing)}") from exc


def _is_required(each: dataclasses.Field[Any]) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
