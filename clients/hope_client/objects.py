"""What calls take and give back: plain frozen objects, read from the server's JSON by `from_json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, TypeVar

from hope_client.errors import UnexpectedAnswer

_T = TypeVar("_T")


class Message(TypedDict):
    """One chat message; `role` is system, developer, user, assistant or tool."""

    role: str
    content: str


class MemoryOptions(TypedDict, total=False):
    """What a turn may do with the session's memory.

    mode: `write` learns (the default), `read` uses the memory and leaves it as it was, `off` ignores it.
    passes: how often the turn's text is rehearsed, 0 to 1000.
    window: False empties the attention window for this turn (only with `read`), so that only weights can know.
    durability: what the answer waits for: `none`, `async`, `commit` (the server's default), `replicated:N`, `fsync`.
    if_match: the version that the session must be at; `*` takes it as it is, also after the store went back in time.
    """

    mode: Literal["write", "read", "off"]
    passes: int
    window: bool
    durability: str
    if_match: str


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


@dataclass(frozen=True)
class Reply:
    """A complete answer. `receipt` and `usage` are None where the server gave none."""

    text: str
    receipt: Receipt | None
    usage: Usage | None
    finish_reason: str | None


@dataclass(frozen=True)
class LearnProgress:
    """How far a learn or consolidate call has come. `loss` is nats per token."""

    tokens_done: int
    tokens_total: int
    steps_done: int
    steps_total: int
    loss: float | None


@dataclass(frozen=True)
class LearnResult:
    """A finished learn or consolidate call."""

    receipt: Receipt | None
    usage: Usage | None


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
class Model:
    """A served model. `created` is Unix seconds."""

    id: str
    created: int = 0
    owned_by: str = ""


@dataclass(frozen=True)
class SessionInfo:
    """What is known of a session. Times are Unix seconds; bytes are by level, plus `window` and `journal`."""

    id: str
    created: int
    updated: int
    version: str | None
    turn: int
    num_tokens: int
    tokens_learned: int
    state_bytes: dict[str, int] = field(default_factory=dict)
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
