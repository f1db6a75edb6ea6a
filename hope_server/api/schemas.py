"""What request bodies may hold, checked to the last bound, and how they become the engine's requests.

Those of one endpoint only are beside it: `chat_body`, `completion_body`, `response_body`, `session_bodies`; messages,
tools and sampling have modules of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from hope_server.api.deps import SESSION_ID_RULE, is_session_id
from hope_server.api.messages import MessageBody, Messages
from hope_server.api.openai_names import NameRules, check_names
from hope_server.api.turn_headers import VERSION_RULE, is_version_condition
from hope_server.api.validation import Between, Checked, refuse
from hope_server.engine.turn import MemoryMode, MemoryOptions, Source
from hope_server.errors import InvalidRequest
from hope_server.settings import DURABILITY_RULE, is_durability

__all__ = [
    "Body",
    "ConsolidateBody",
    "DurabilityText",
    "LearnBody",
    "LevelNames",
    "MemoryBody",
    "MessageBody",
    "Passes",
    "ScoreBody",
    "SessionIdText",
    "VersionText",
]

_MAX_LEVELS = 32


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


SessionIdText = Annotated[str, Checked(_check_session_id, {"pattern": "^[A-Za-z0-9_-]{1,64}$"})]
DurabilityText = Annotated[
    str, Checked(_check_durability, {"pattern": "^(none|async|commit|fsync|replicated:[1-9][0-9]?)$"})
]
VersionText = Annotated[str, Checked(_check_version, {"pattern": r"^(\*|[A-Za-z0-9_-]{1,64})$"})]
LevelNames = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=_MAX_LEVELS)]
Passes = Annotated[int, Between(0, 1000)]


class Body(BaseModel):
    """A body that knows all its names; a misspelt one is refused with a suggestion.

    also_known: names that stand for no field; prefix: of the names in messages; rules: OpenAI's names that are not
    acted on; constraint: JSON schema of what the fields' own schemas do not say.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)
    prefix: ClassVar[str] = ""
    also_known: ClassVar[frozenset[str]] = frozenset()
    rules: ClassVar[NameRules] = NameRules()
    constraint: ClassVar[dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, given: Any) -> Any:
        if isinstance(given, dict):
            check_names(given, cls.also_known | cls.rules.names | cls.model_fields.keys(), cls.prefix)
            cls.rules.check(given)
        return given

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe the names that stand for no field too, and that there are no others."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema["properties"] = schema.get("properties", {}) | cls.rules.schema()
        return schema | {"additionalProperties": False} | cls.constraint


class MemoryBody(Body):
    """What the turn may do with the session's memory."""

    prefix = "memory."
    # Without the window nothing is learned, so only reading goes with it.
    constraint: ClassVar[dict[str, Any]] = {
        "anyOf": [
            {"properties": {"window": {"const": True}}},
            {"properties": {"mode": {"const": "read"}}, "required": ["mode"]},
        ]
    }

    mode: MemoryMode = "write"
    passes: Passes | None = None
    window: bool = True
    durability: DurabilityText | None = None
    if_match: VersionText | None = None
    levels: LevelNames | None = None
    sources: Annotated[list[Source], Field(max_length=5)] | None = None
    ttl: Annotated[float, Between(0, 10**9)] | None = None

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if not self.window and self.mode != "read":
            reason = (
                f'memory.window is false with mode "{self.mode}"; it needs memory.mode "read", as nothing is learned'
            )
            raise InvalidRequest(reason, param="memory.window")
        return self

    @property
    def has_mode(self) -> bool:
        """Whether the caller said in so many words what the turn may do."""
        return "mode" in self.model_fields_set

    def to_options(self) -> MemoryOptions:
        """Return the engine's form; `ttl` is in seconds."""
        options = MemoryOptions(
            mode=self.mode,
            passes=self.passes,
            window=self.window,
            durability=self.durability,
            if_match=self.if_match,
            levels=None if self.levels is None else tuple(self.levels),
            ttl_seconds=self.ttl,
        )
        return options if self.sources is None else replace(options, sources=tuple(self.sources))


class ConsolidateBody(Body):
    """Consolidate what the session has read."""

    passes: Passes | None = None
    stream: bool | None = None
    durability: DurabilityText | None = None
    if_match: VersionText | None = None


class LearnBody(ConsolidateBody):
    """Text to learn now."""

    text: Annotated[str, Checked(_check_has_text, {"pattern": r"\S"})]


class ScoreMemoryBody(Body):
    """Whether the session's memory is asked: `off` asks the model as it is without the session."""

    prefix = "memory."

    mode: Literal["read", "off"] = "read"


class ScoreBody(Body):
    """Continuations to score after messages or after a plain prompt."""

    constraint: ClassVar[dict[str, Any]] = {
        "oneOf": [
            {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
            {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
        ]
    }

    continuations: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=64)]
    messages: Messages | None = None
    prompt: str | None = None
    window: bool = True
    memory: ScoreMemoryBody | None = None

    @property
    def is_stateless(self) -> bool:
        """Whether the session is left out of it."""
        return self.memory is not None and self.memory.mode == "off"

    @model_validator(mode="after")
    def _check_one_prompt(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            count = "neither" if self.prompt is None else "both"
            raise InvalidRequest(
                f"{count} of messages and prompt are given; send exactly one of them", param="messages"
            )
        return self
