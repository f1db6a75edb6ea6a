"""What calls take beside plain values: typed dictionaries with the names that the server gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    # Part of `typing` from Python 3.11 on; only type checkers need it here.
    from typing_extensions import NotRequired  # noqa: UP035


class Message(TypedDict):
    """One chat message; `role` is system, developer, user, assistant or tool.

    content: text, or OpenAI's text parts. tool_calls: of an assistant; tool_call_id: of a tool's result.
    """

    role: str
    content: str | Sequence[Mapping[str, object]] | None
    tool_calls: NotRequired[Sequence[Mapping[str, object]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


class MemoryOptions(TypedDict, total=False):
    """What a turn may do with the session's memory.

    mode: `write` learns (the default), `read` uses the memory and leaves it as it was, `off` ignores it.
    passes: how often the turn's text is rehearsed, 0 to 1000.
    window: False empties the attention window for this turn (only with `read`), so that only weights can know.
    durability: what the answer waits for: `none`, `async`, `commit` (the server's default), `replicated:N`, `fsync`.
    if_match: the version that the session must be at; `*` takes it as it is, also after the store went back in time.
    levels: names of the memory levels that the turn may write; left out: all.
    sources: whose text teaches, of user, assistant, system, tool and untrusted; left out: user and assistant.
    ttl: seconds after its last turn at which the session is deleted; 0 is never.
    """

    mode: Literal["write", "read", "off"]
    passes: int
    window: bool
    durability: str
    if_match: str
    levels: Sequence[str]
    sources: Sequence[Literal["user", "assistant", "system", "tool", "untrusted"]]
    ttl: float


class ChatOptions(TypedDict, total=False):
    """Options of a turn, by the names of POST /v1/chat/completions. Left out or None: the server's default.

    key: the turn's idempotency key; left out: a new one. The same turn under the same key is learned once.
    extra_body: further fields of the request by their names.
    """

    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    tools: Sequence[Mapping[str, object]] | None
    tool_choice: str | Mapping[str, object] | None
    response_format: Mapping[str, object] | None
    memory: MemoryOptions | None
    key: str | None
    extra_body: Mapping[str, object] | None


class OpenAIClient(TypedDict):
    """What `openai.OpenAI` takes to talk to this server."""

    base_url: str
    api_key: str


class OpenAICall(TypedDict):
    """What a call of the openai client takes to happen in a session."""

    extra_headers: dict[str, str]
    extra_body: dict[str, Any]
