"""The shapes of every answer, for the API's description; tests hold the answers themselves against them."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

# That of typing is not enough for pydantic before Python 3.12.
from typing_extensions import TypedDict

from hope_server.engine.turn import Receipt

__all__ = [
    "Chat",
    "Completion",
    "Deleted",
    "ErrorAnswer",
    "LearnAnswer",
    "Listing",
    "MemoryAnswer",
    "Model",
    "ModelList",
    "ResponseAnswer",
    "Scores",
    "Session",
    "SessionList",
    "SnapshotDeleted",
    "Status",
]

FinishReason = Literal["stop", "length", "tool_calls"]


class ErrorFields(TypedDict):
    """What went wrong. param: the parameter that is at fault."""

    message: str
    type: Literal["invalid_request_error", "not_found_error", "server_error"]
    param: str | None
    code: str


class ErrorAnswer(TypedDict):
    """OpenAI's shape of an error."""

    error: ErrorFields


class Status(TypedDict):
    """How the server is."""

    status: str


class Model(TypedDict):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """All served models: the one."""

    object: Literal["list"]
    data: list[Model]


class CachedTokens(TypedDict):
    """Tokens of a prompt that were not computed again: none, sessions remember instead."""

    cached_tokens: int
    cache_write_tokens: NotRequired[int]


class ReasoningTokens(TypedDict):
    """Tokens of an answer that are not shown: none."""

    reasoning_tokens: int


class TurnUsage(TypedDict):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionUsage(TurnUsage):
    """Tokens read and written, in detail."""

    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class LikelyToken(TypedDict):
    """A token that could stand at one place. bytes: of its text in UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class PlacedToken(LikelyToken):
    """The token at one place."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a reply's tokens."""

    content: list[PlacedToken]
    refusal: None


class FunctionOfCall(TypedDict):
    """A function and its arguments, a JSON object as text."""

    name: str
    arguments: str


class ToolCallObject(TypedDict):
    """One call."""

    id: str
    type: Literal["function"]
    function: FunctionOfCall


class ChatMessage(TypedDict):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCallObject]]


class ChatChoice(TypedDict):
    """One reply."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Chat(TypedDict):
    """A chat completion. memory: what the turn did to the session, null without one."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    memory: Receipt | None


class TextLogprobs(TypedDict):
    """Log-probabilities in the older form: four lists, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(TypedDict):
    """One reply."""

    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(TypedDict):
    """A text completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage
    memory: Receipt | None


class OutputText(TypedDict):
    """The text of an output message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[PlacedToken]


class OutputMessage(TypedDict):
    """A message that the model wrote."""

    id: str
    type: Literal["message"]
    status: Literal["completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(TypedDict):
    """A call that the model made."""

    id: str
    type: Literal["function_call"]
    status: Literal["completed"]
    call_id: str
    name: str
    arguments: str


class ResponseUsage(TypedDict):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class Incomplete(TypedDict):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class Named(TypedDict):
    """A conversation."""

    id: str


class ResponseAnswer(TypedDict):
    """A response: what came of it, and what was asked."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete"]
    incomplete_details: Incomplete | None
    error: None
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage
    model: str
    previous_response_id: str | None
    instructions: str | None
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    reasoning: dict[str, None]
    max_output_tokens: int | None
    max_tool_calls: None
    truncation: Literal["auto", "disabled"]
    store: bool
    background: bool
    service_tier: str
    metadata: dict[str, Any]
    safety_identifier: None
    prompt_cache_key: str | None
    conversation: NotRequired[Named]
    memory: Receipt | None


class Session(TypedDict):
    """A session. Times are Unix seconds; ttl is in seconds, null for ever; tags: of its snapshots."""

    id: str
    object: Literal["session"]
    created: int
    updated: int
    version: str | None
    turn: int
    num_tokens: int
    tokens_learned: int
    state_bytes: dict[str, int]
    frozen: bool
    ttl: float | None
    expires: int | None
    metadata: dict[str, str]
    tags: dict[str, str]
    model: str


class SessionList(TypedDict):
    """A page of sessions."""

    object: Literal["list"]
    data: list[Session]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Listing(TypedDict):
    """All entries at once."""

    object: Literal["list"]
    data: list[dict[str, Any]]


class Deleted(TypedDict):
    """A session that is gone."""

    id: str
    object: Literal["session.deleted"]
    deleted: bool


class SnapshotDeleted(TypedDict):
    """A snapshot that is gone."""

    tag: str
    object: Literal["session.snapshot.deleted"]
    deleted: bool


class MemoryAnswer(TypedDict, total=False):
    """What a session's memory holds."""

    object: Literal["session.memory"]
    session_id: str


class LearnAnswer(TypedDict):
    """What learning or consolidating came to."""

    object: Literal["session.learn", "session.consolidate"]
    session_id: str
    usage: TurnUsage
    memory: Receipt | None


class Score(TypedDict):
    """Sum of natural-log probabilities of a continuation's tokens, and their number."""

    logprob: float | None
    num_tokens: int


class Scores(TypedDict):
    """One score per continuation."""

    object: Literal["session.score"]
    scores: list[Score]
