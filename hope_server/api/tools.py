"""Tools, the choice among them and the form of a reply, as OpenAI's two APIs write them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from hope_server.api.messages import FunctionName
from hope_server.api.validation import Checked, kind_of, refuse
from hope_server.engine.turn import OutputFormat, Tool, ToolUse
from hope_server.errors import InvalidRequest

__all__ = [
    "MAX_TOOLS",
    "Choice",
    "FlatTool",
    "FlatTools",
    "GivenFormat",
    "NestedTool",
    "ResponseFormat",
    "TextFormat",
    "ToolChoice",
    "ToolDefinition",
    "Tools",
    "call_id",
    "tool_use",
]

MAX_TOOLS = 128
"""Tools that one request may describe."""

_MAX_SCHEMA_BYTES = 65_536
_NAME_SCHEMA = {"type": "string", "pattern": "^[A-Za-z0-9_.:-]{1,64}$"}


class Choice(NamedTuple):
    """Which tool must be called, if any; `name` is set with kind `function`."""

    kind: Literal["none", "auto", "required", "function"]
    name: str = ""


def _check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    size = len(json.dumps(schema, ensure_ascii=False).encode())
    if size > _MAX_SCHEMA_BYTES:
        raise refuse(f"has {size:,} bytes as JSON, the limit is {_MAX_SCHEMA_BYTES:,}; describe less")
    return schema


def _check_parameters(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise refuse('describes no object; arguments are an object, send a schema of type "object"')
    return _check_schema(schema)


def _only_functions(given: object) -> object:
    kind = given.get("type") if isinstance(given, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise refuse(f'has type {ascii(kind)[:60]}; only tools of type "function" are supported')
    return given


def _read_choice(given: object) -> Choice:
    if given in ("none", "auto", "required") and isinstance(given, str):
        return Choice(given)
    if isinstance(given, dict) and given.get("type") == "function":
        inner = given.get("function", given)
        name = inner.get("name") if isinstance(inner, dict) else None
        if isinstance(name, str):
            return Choice("function", name)
        raise refuse("names no function; send its name")
    shown = ascii(given.get("type") if isinstance(given, dict) else given)[:60]
    raise refuse(f'is {shown}; send "none", "auto", "required" or {{"type": "function", ...}} with the name of one')


_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        {
            "type": "object",
            "required": ["type", "function"],
            "properties": {
                "type": {"const": "function"},
                "function": {"type": "object", "required": ["name"], "properties": {"name": _NAME_SCHEMA}},
            },
        },
        {
            "type": "object",
            "required": ["type", "name"],
            "properties": {"type": {"const": "function"}, "name": _NAME_SCHEMA, "function": False},
        },
    ]
}
ToolChoice = Annotated[Choice, PlainValidator(_read_choice), WithJsonSchema(_CHOICE_SCHEMA)]
Parameters = Annotated[dict[str, Any], Checked(_check_parameters, {"properties": {"type": {"const": "object"}}})]


class _Loose(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class ToolDefinition(_Loose):
    """A function: its name, what it is for, and the JSON schema of its arguments."""

    name: FunctionName
    description: Annotated[str, Field(max_length=8192)] | None = None
    parameters: Parameters | None = None
    strict: bool | None = None

    def to_tool(self) -> Tool:
        """Return the engine's form."""
        schema = json.dumps(self.parameters or {}, ensure_ascii=False)
        return Tool(self.name, self.description or "", schema)


class NestedTool(_Loose):
    """A tool as chat completions have it."""

    type: Literal["function"]
    function: ToolDefinition


class FlatTool(ToolDefinition):
    """A tool as responses have it."""

    type: Literal["function"]


Tools = Annotated[list[Annotated[NestedTool, BeforeValidator(_only_functions)]], Field(max_length=MAX_TOOLS)]
FlatTools = Annotated[list[Annotated[FlatTool, BeforeValidator(_only_functions)]], Field(max_length=MAX_TOOLS)]


def _read_format(given: object) -> OutputFormat:
    if not isinstance(given, dict):
        raise refuse(f"must be an object, not {kind_of(given)}")
    kind = given.get("type")
    if kind == "text" or kind == "json_object":
        return OutputFormat(kind)
    if kind != "json_schema":
        raise refuse(f'has type {ascii(kind)[:60]}; send "text", "json_object" or "json_schema"')
    inner = given.get("json_schema", given)
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise refuse(f"has a `schema` that is {kind_of(schema)}; send the JSON schema that the reply must fit")
    return OutputFormat("json_schema", json.dumps(_check_schema(schema), ensure_ascii=False))


def _format_schema(with_schema: dict[str, Any]) -> dict[str, Any]:
    plain = {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}}
    return {"anyOf": [plain, {"type": "object", **with_schema}]}


_INNER = {"name": {"type": "string"}, "schema": {"type": "object"}, "strict": {"type": ["boolean", "null"]}}
_NESTED_FORMAT = _format_schema(
    {
        "required": ["type", "json_schema"],
        "properties": {
            "type": {"const": "json_schema"},
            "json_schema": {"type": "object", "required": ["schema"], "properties": _INNER},
        },
    }
)
_FLAT_FORMAT = _format_schema(
    {
        "required": ["type", "schema"],
        "properties": {"type": {"const": "json_schema"}, "json_schema": False, **_INNER},
    }
)
ResponseFormat = Annotated[OutputFormat, PlainValidator(_read_format), WithJsonSchema(_NESTED_FORMAT)]
"""What a chat completion must be."""


class GivenFormat(NamedTuple):
    """A form, and the object that asked for it."""

    output: OutputFormat
    given: dict[str, Any]


def _read_flat(given: object) -> GivenFormat:
    output = _read_format(given)
    return GivenFormat(output, given if isinstance(given, dict) else {})


TextFormat = Annotated[GivenFormat, PlainValidator(_read_flat), WithJsonSchema(_FLAT_FORMAT)]
"""What the text of a response must be."""


def tool_use(
    tools: Sequence[ToolDefinition], choice: Choice | None, is_parallel: bool | None, output: OutputFormat
) -> ToolUse | None:
    """Return the engine's form of a request's tools, None where it has none. Raises InvalidRequest."""
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"tools has {twice} more than once; give every function a name of its own", param="tools")
    kind, name = choice or Choice("auto")
    must_call = kind in ("required", "function")
    if kind == "function" and name not in names:
        shown = ascii(name)[1:-1][:64]
        raise InvalidRequest(f"tool_choice names {shown}, which is not among the tools", param="tool_choice")
    if kind == "required" and not names:
        raise InvalidRequest('tool_choice is "required" without tools; send tools', param="tool_choice")
    if must_call and output.kind != "text":
        reason = "a call is demanded and its form too; a reply is one of them, leave out tool_choice or the format"
        raise InvalidRequest(reason, param="tool_choice")
    if not names:
        return None
    # A small model that must call goes on calling until it is cut off, so several calls have to be asked for.
    several = is_parallel is True if must_call else is_parallel is not False
    return ToolUse(tuple(tool.to_tool() for tool in tools), kind, name, several)


def call_id(answer_id: str, reply: int, call: int) -> str:
    """Return the id of a call: of the same answer always the same, so that a repeated answer has it too."""
    return "call_" + hashlib.blake2b(f"{answer_id}.{reply}.{call}".encode(), digest_size=12).hexdigest()
