"""The body of POST /v1/responses, and how its items become messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from hope_server.api.messages import CALL_ARGUMENTS, MAX_MESSAGES, MessageText, is_function_name, read_parts
from hope_server.api.openai_names import RESPONSE_NAMES
from hope_server.api.sampling import DrawBody, MaxTokens, TopLogprobs
from hope_server.api.session_id import SessionBody
from hope_server.api.tools import FlatTools, TextFormat, ToolChoice, tool_use
from hope_server.api.validation import kind_of, refuse
from hope_server.engine.turn import Message, OutputFormat, SamplingParams, ToolCall, ToolUse

__all__ = ["ResponseBody"]

_ROLES = ("user", "assistant", "system", "developer")
_TEXT_KINDS = frozenset({"input_text", "output_text", "text"})
_LOGPROBS = "message.output_text.logprobs"

Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class Item(NamedTuple):
    """An input item as a message; None for one that carries nothing for us. is_call: it is one call."""

    message: Message | None
    is_call: bool = False


def _read_item(given: object) -> Item:
    if not isinstance(given, dict):
        raise refuse(f"must be an object, not {kind_of(given)}")
    kind = given.get("type", "message")
    if kind == "message":
        return Item(_read_message(given))
    if kind == "function_call":
        return Item(_read_call(given), is_call=True)
    if kind == "function_call_output":
        return Item(Message("tool", _read_text(given, "output").text))
    if kind == "reasoning":
        return Item(None)
    if kind == "item_reference":
        raise refuse("is a reference to an item; items are not kept by id, send the item or previous_response_id")
    raise refuse(f"has type {ascii(kind)[:60]}; send message, function_call or function_call_output items")


def _read_message(given: dict[str, Any]) -> Message:
    role = given.get("role")
    if role not in _ROLES:
        raise refuse(f"has role {ascii(role)[:60]}; send one of {', '.join(_ROLES)}")
    text = _read_text(given, "content")
    return Message("system" if role == "developer" else role, text.text, (), text.untrusted)


def _read_call(given: dict[str, Any]) -> Message:
    name, arguments = given.get("name"), given.get("arguments")
    if not isinstance(name, str) or not is_function_name(name):
        raise refuse("is a call without a function's name; send it")
    if not isinstance(arguments, str) or len(arguments) > CALL_ARGUMENTS:
        raise refuse(f"is a call whose arguments are no text of up to {CALL_ARGUMENTS:,} characters; send JSON as text")
    return Message("assistant", "", (ToolCall(name, arguments),))


def _read_text(given: dict[str, Any], name: str) -> MessageText:
    value = given.get(name)
    if isinstance(value, str):
        return MessageText(value)
    if isinstance(value, list):
        return read_parts(value, _TEXT_KINDS)
    raise refuse(f"has a `{name}` that is {kind_of(value)}; send a string or text parts")


def _text_schema() -> dict[str, Any]:
    part = {
        "type": "object",
        "required": ["type", "text"],
        "properties": {
            "type": {"enum": sorted(_TEXT_KINDS)},
            "text": {"type": "string"},
            "trusted": {"type": "boolean"},
        },
    }
    refusal = {
        "type": "object",
        "required": ["type", "refusal"],
        "properties": {"type": {"const": "refusal"}, "refusal": {"type": "string"}},
    }
    return {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"anyOf": [part, refusal]}}]}


def _item_schema(kind: str, required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": {"type": {"const": kind}, **properties}}


_ITEM_SCHEMA = {
    "anyOf": [
        _item_schema("message", ["role", "content"], role={"enum": list(_ROLES)}, content=_text_schema()),
        _item_schema(
            "function_call",
            ["type", "name", "arguments"],
            name={"type": "string", "pattern": "^[A-Za-z0-9_.:-]{1,64}$"},
            arguments={"type": "string", "maxLength": CALL_ARGUMENTS},
            call_id={"type": "string"},
        ),
        _item_schema("function_call_output", ["type", "output"], output=_text_schema(), call_id={"type": "string"}),
        _item_schema("reasoning", ["type"]),
    ]
}


def _one_as_list(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


InputItem = Annotated[Item, PlainValidator(_read_item), WithJsonSchema(_ITEM_SCHEMA)]
InputItems = Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]


class TextBody(BaseModel):
    """What the text of a response must be."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    format: TextFormat | None = None


class ResponseBody(DrawBody, SessionBody):
    """A request for a response: OpenAI's, plus `session_id`, `memory` and more ways of drawing tokens."""

    rules = RESPONSE_NAMES
    constraint: ClassVar[dict[str, Any]] = {
        "not": {
            "required": ["previous_response_id", "conversation"],
            "properties": {"previous_response_id": {"type": "string"}, "conversation": {"type": ["string", "object"]}},
        }
    }

    input: Annotated[InputItems, BeforeValidator(_one_as_list, json_schema_input_type=str | InputItems)]
    instructions: str | None = None
    tools: FlatTools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextBody | None = None
    max_output_tokens: MaxTokens | None = None
    top_logprobs: TopLogprobs | None = None
    include: Annotated[list[Includable], Field(max_length=16)] | None = None
    store: bool | None = None
    previous_response_id: Annotated[str, Field(max_length=256)] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @model_validator(mode="after")
    def _check_tools(self) -> ResponseBody:
        # Raises where the tools, the choice and the format do not go together.
        self.to_tool_use()
        return self

    def to_messages(self) -> tuple[Message, ...]:
        """Return the instructions and the input; calls belong to the assistant message that they follow."""
        system = [Message("system", self.instructions)] if self.instructions else []
        return tuple(system + _joined(self.input))

    def to_sampling(self) -> SamplingParams:
        """Return how to draw tokens."""
        has_logprobs = self.top_logprobs is not None or _LOGPROBS in (self.include or [])
        return self.draw(self.max_output_tokens, (self.top_logprobs or 0) if has_logprobs else None)

    def to_format(self) -> OutputFormat:
        """Return what the reply must be."""
        return self.text.format.output if self.text is not None and self.text.format is not None else OutputFormat()

    def to_tool_use(self) -> ToolUse | None:
        """Return the tools that the reply may call. Raises InvalidRequest."""
        return tool_use(self.tools or [], self.tool_choice, self.parallel_tool_calls, self.to_format())


def _joined(items: Sequence[Item]) -> list[Message]:
    found: list[Message] = []
    calls: list[ToolCall] = []
    for item in items:
        if item.message is None:
            continue
        if item.is_call:
            calls += item.message.tool_calls
            if not found or found[-1].role != "assistant":
                found.append(Message("assistant", ""))
            continue
        if calls and item.message.role == "assistant":
            # One reply, whose text went on behind its calls.
            found[-1] = Message("assistant", found[-1].content + item.message.content)
            continue
        found = _with_calls(found, calls)
        calls = []
        found.append(item.message)
    return _with_calls(found, calls)


def _with_calls(found: list[Message], calls: list[ToolCall]) -> list[Message]:
    if calls:
        last = found[-1]
        found[-1] = Message(last.role, last.content, tuple(calls), last.untrusted)
    return found
