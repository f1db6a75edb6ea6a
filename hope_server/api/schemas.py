"""What request bodies may hold, checked to the last bound, and how they become the engine's requests."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hope_server.api.deps import SESSION_ID_RULE, is_session_id
from hope_server.api.openai_names import IGNORED, NOT_SUPPORTED, check_names, refuse_unsupported
from hope_server.api.turn_headers import VERSION_RULE, is_version_condition
from hope_server.api.validation import Between, kind_of, refuse
from hope_server.engine.turn import MemoryMode, MemoryOptions, Message, SamplingParams
from hope_server.errors import InvalidRequest
from hope_server.settings import DURABILITY_RULE, is_durability

__all__ = [
    "ChatBody",
    "ConsolidateBody",
    "CreateBody",
    "ForkBody",
    "LearnBody",
    "MemoryBody",
    "MessageBody",
    "RollbackBody",
    "ScoreBody",
]


def _flatten_content(content: object) -> object:
    """Join OpenAI's text parts with newlines; leave anything else to the type check."""
    if not isinstance(content, list):
        return content
    if not content:
        raise refuse("is an empty list; send a string or at least one text part")
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            shown = ascii(kind)[:60] if kind != "text" else "'text' without a string in `text`"
            raise refuse(f'has a part of type {shown}; send only parts like {{"type": "text", "text": "..."}}')
        texts.append(text)
    return "\n".join(texts)


def _one_as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _id_of_object(value: object) -> object:
    return value.get("id") if isinstance(value, dict) else value


def _check_session_id(value: str) -> str:
    if not is_session_id(value):
        raise refuse(f"is not a valid session id; {SESSION_ID_RULE}")
    return value


def _check_has_text(value: str) -> str:
    if not value.strip():
        raise refuse("is empty; send some text")
    return value


def _check_durability(value: str) -> str:
    if not is_durability(value):
        raise refuse(f"is not a durability; {DURABILITY_RULE}")
    return value


def _check_version(value: str) -> str:
    if not is_version_condition(value):
        raise refuse(f"is not a version; {VERSION_RULE}")
    return value


SessionIdText = Annotated[str, AfterValidator(_check_session_id)]
DurabilityText = Annotated[str, AfterValidator(_check_durability)]
VersionText = Annotated[str, AfterValidator(_check_version)]
Passes = Annotated[int, Between(0, 1000)]
Penalty = Annotated[float, Between(-2, 2)]
MaxTokens = Annotated[int, Between(1, 32768)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """A body that knows all its names; a misspelt one is refused with a suggestion."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)
    prefix: ClassVar[str] = ""
    also_known: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, given: Any) -> Any:
        if isinstance(given, dict):
            check_names(given, cls.also_known | cls.model_fields.keys(), cls.prefix)
        return given


class MessageBody(BaseModel):
    """One chat message. Fields that carry no text for us (name, tool_calls, refusal) are left aside."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_flatten_content)]

    @model_validator(mode="before")
    @classmethod
    def _allow_bare_tool_calls(cls, given: Any) -> Any:
        # Agents resend assistant messages that hold nothing but tool calls.
        if isinstance(given, dict) and given.get("tool_calls") and given.get("content") is None:
            return {**given, "content": ""}
        return given

    def to_message(self) -> Message:
        """Return the engine's form; developer is the newer name of system."""
        return Message("system" if self.role == "developer" else self.role, self.content)


class MemoryBody(Body):
    """What the turn may do with the session's memory."""

    prefix = "memory."

    mode: MemoryMode = "write"
    passes: Passes | None = None
    window: bool = True
    durability: DurabilityText | None = None
    if_match: VersionText | None = None

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if not self.window and self.mode != "read":
            reason = (
                f'memory.window is false with mode "{self.mode}"; it needs memory.mode "read", as nothing is learned'
            )
            raise InvalidRequest(reason, param="memory.window")
        return self

    def to_options(self) -> MemoryOptions:
        """Return the engine's form."""
        return MemoryOptions(self.mode, self.passes, self.window, self.durability, self.if_match)


class StreamOptionsBody(BaseModel):
    """OpenAI's stream options; others than `include_usage` change nothing here."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    include_usage: bool | None = None


class ChatBody(Body):
    """A chat completion request: OpenAI's, plus `session_id`, `memory`, `top_k` and `repetition_penalty`."""

    also_known = IGNORED | NOT_SUPPORTED.keys()

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=2048)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    temperature: Annotated[float, Between(0, 2)] | None = None
    top_p: Annotated[float, Between(0, 1, above=True)] | None = None
    top_k: Annotated[int, Between(0, 1_000_000)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Between(0, 2, above=True)] | None = None
    seed: Annotated[int, Between(-(2**63), 2**63 - 1)] | None = None
    stop: Annotated[list[StopText], BeforeValidator(_one_as_list), Field(max_length=4)] | None = None
    session_id: str | None = None
    conversation: Annotated[str, BeforeValidator(_id_of_object)] | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    memory: MemoryBody | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, given: Any) -> Any:
        if isinstance(given, dict):
            refuse_unsupported(given)
        return given

    @model_validator(mode="after")
    def _check_one_limit(self) -> Self:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            reason = f"max_tokens is {both[0]} and max_completion_tokens is {both[1]}; send only one of them"
            raise InvalidRequest(reason, param="max_tokens")
        return self

    def to_sampling(self) -> SamplingParams:
        """Return how to draw tokens; what is absent or null takes the server's default."""
        given = {
            "max_tokens": self.max_completion_tokens if self.max_tokens is None else self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
            "stop": tuple(self.stop) if self.stop else None,
        }
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(**chosen)

    def to_memory(self) -> MemoryOptions:
        """Return what the turn may do with memory."""
        return MemoryOptions() if self.memory is None else self.memory.to_options()


class CreateBody(Body):
    """A session to create; `id` None takes a generated one."""

    id: SessionIdText | None = None


class ForkBody(Body):
    """The fork's name, None takes a generated one; and the version it starts from, None is the newest."""

    id: SessionIdText | None = None
    version: VersionText | None = None


class RollbackBody(Body):
    """The version to go back to."""

    version: VersionText


class ConsolidateBody(Body):
    """Consolidate what the session has read."""

    passes: Passes | None = None
    stream: bool | None = None
    durability: DurabilityText | None = None
    if_match: VersionText | None = None


class LearnBody(ConsolidateBody):
    """Text to learn now."""

    text: Annotated[str, AfterValidator(_check_has_text)]


class ScoreBody(Body):
    """Continuations to score after messages or after a plain prompt."""

    continuations: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=64)]
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=2048)] | None = None
    prompt: str | None = None
    window: bool = True

    @model_validator(mode="after")
    def _check_one_prompt(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            count = "neither" if self.prompt is None else "both"
            raise InvalidRequest(
                f"{count} of messages and prompt are given; send exactly one of them", param="messages"
            )
        return self
