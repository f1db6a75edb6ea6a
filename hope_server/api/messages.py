"""Chat messages as clients send them: text or parts, tool calls and their results, text that is not to be trusted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from hope_server.api.validation import Checked, kind_of, refuse
from hope_server.engine.turn import Message, ToolCall

__all__ = [
    "CALL_ARGUMENTS",
    "MAX_MESSAGES",
    "FunctionName",
    "MessageBody",
    "MessageText",
    "Messages",
    "is_function_name",
    "read_parts",
]

MAX_MESSAGES = 2048
"""Messages that one request may hold."""

CALL_ARGUMENTS = 262_144
"""Longest arguments of one call, in characters."""

_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_MAX_CALLS = 128
_NOT_TEXT = {
    "audio": "audio",
    "file": "files",
    "image": "images",
    "image_file": "images",
    "image_url": "images",
    "input_audio": "audio",
    "input_file": "files",
    "input_image": "images",
    "video_url": "videos",
}
_TEXT_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {
        "type": {"const": "text"},
        "text": {"type": "string"},
        "trusted": {"type": "boolean", "description": "false: the part does not teach unless memory.sources says so."},
    },
}
_REFUSAL_PART = {
    "type": "object",
    "required": ["type", "refusal"],
    "properties": {"type": {"const": "refusal"}, "refusal": {"type": "string"}},
}
_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT_PART, _REFUSAL_PART]}},
        {"type": "null", "description": "Only of an assistant message with tool calls or a refusal."},
    ]
}


def is_function_name(name: str) -> bool:
    """Return whether `name` can be that of a function."""
    return _FUNCTION_NAME.fullmatch(name) is not None


def _check_function_name(name: str) -> str:
    if not is_function_name(name):
        raise refuse("is not a function's name; use 1 to 64 letters, digits or the signs _ . : -")
    return name


FunctionName = Annotated[str, Checked(_check_function_name, {"pattern": "^[A-Za-z0-9_.:-]{1,64}$"})]
"""A function's name."""


@dataclass(frozen=True, slots=True)
class MessageText:
    """A message's text, and the ranges (start, stop) of characters in it that are not to be trusted."""

    text: str
    untrusted: tuple[tuple[int, int], ...] = ()


def read_parts(content: list[Any], kinds: frozenset[str]) -> MessageText:
    """Join OpenAI's text parts, whose types are `kinds` or refusal, with newlines. Raises pydantic's own error."""
    if not content:
        raise refuse("is an empty list; send a string or at least one text part")
    texts: list[str] = []
    untrusted: list[tuple[int, int]] = []
    start = 0
    for part in content:
        text = _part_text(part, kinds)
        texts.append(text)
        if part.get("trusted") is False and text:
            untrusted.append((start, start + len(text)))
        start += len(text) + 1
    return MessageText("\n".join(texts), tuple(untrusted))


def _part_text(part: Any, kinds: frozenset[str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else kind_of(part)
    wanted = min(kinds)
    if isinstance(kind, str) and kind in _NOT_TEXT and kind not in kinds:
        raise refuse(f"has a part of type {kind!a}; this model reads text only, {_NOT_TEXT[kind]} are not supported")
    if not isinstance(kind, str) or kind not in kinds | {"refusal"}:
        raise refuse(
            f'has a part of type {ascii(kind)[:60]}; send only parts like {{"type": "{wanted}", "text": "..."}}'
        )
    name = "refusal" if kind == "refusal" else "text"
    text = part.get(name)
    if not isinstance(text, str):
        raise refuse(f"has a part of type '{kind}' without a string in `{name}`; send it")
    if not isinstance(part.get("trusted", True), bool):
        raise refuse(f"has a part whose `trusted` is {kind_of(part['trusted'])}; send true or false")
    return text


_CHAT_KINDS = frozenset({"text"})


def _read_content(content: object) -> MessageText:
    if isinstance(content, str):
        return MessageText(content)
    if isinstance(content, list):
        return read_parts(content, _CHAT_KINDS)
    raise refuse(f"must be a string, not {kind_of(content)}")


class _Loose(BaseModel):
    """A part of a message; what else it holds carries nothing for us."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class CalledFunction(_Loose):
    """What an assistant message says was called. arguments: a JSON object as text, as a rule."""

    name: FunctionName
    arguments: Annotated[str, Field(max_length=CALL_ARGUMENTS)] = "{}"


class CallBody(_Loose):
    """One tool call of an assistant message."""

    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


def _allow_bare(schema: dict[str, Any]) -> None:
    """Say that an assistant message may hold calls or a refusal in place of content."""
    schema["required"] = ["role"]
    called = {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}}
    refused = {"role": {"const": "assistant"}, "refusal": {"type": "string"}}
    schema["anyOf"] = [
        {"properties": {"content": {"type": ["string", "array"]}}, "required": ["content"]},
        {"properties": called, "required": ["tool_calls"]},
        {"properties": refused, "required": ["refusal"]},
    ]


class MessageBody(_Loose):
    """One chat message. Fields that carry no text for us (name, audio) are left aside."""

    model_config = ConfigDict(json_schema_extra=_allow_bare)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[MessageText, PlainValidator(_read_content), WithJsonSchema(_CONTENT_SCHEMA)]
    tool_calls: Annotated[list[CallBody], Field(max_length=_MAX_CALLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    refusal: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _allow_bare(cls, given: Any) -> Any:
        # Agents resend assistant messages that hold nothing but tool calls.
        if isinstance(given, dict) and given.get("role") == "assistant" and given.get("content") is None:
            refusal = given.get("refusal")
            if given.get("tool_calls") or isinstance(refusal, str):
                return {**given, "content": refusal if isinstance(refusal, str) else ""}
        return given

    def to_message(self) -> Message:
        """Return the engine's form; developer is the newer name of system."""
        calls = self.tool_calls or [] if self.role == "assistant" else []
        return Message(
            "system" if self.role == "developer" else self.role,
            self.content.text,
            tuple(ToolCall(call.function.name, call.function.arguments) for call in calls),
            self.content.untrusted,
        )


Messages = Annotated[list[MessageBody], Field(min_length=1, max_length=MAX_MESSAGES)]
"""The messages of one request."""
