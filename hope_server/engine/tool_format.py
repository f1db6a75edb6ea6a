"""How tools and calls look as plain text: what the model is told, what it writes, and how that is read back.

A call is `<tool_call>`, a line with a JSON object of `name` and `arguments`, and `</tool_call>`. Pure text: the engine
and the API share it. What only resembles a call stays content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from hope_server.engine.turn import Message, Tool, ToolCall, ToolUse

__all__ = [
    "MAX_PARALLEL_CALLS",
    "CallArguments",
    "CallBegun",
    "Content",
    "ReplyEvent",
    "ReplyParser",
    "render_calls",
    "split_reply",
    "tool_grammar",
    "tools_text",
]

MAX_PARALLEL_CALLS = 8
"""Calls that a reply which must call may hold."""

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"
# Outside strings of an object: what begins one, changes the depth, or cannot be there. Stopping at "<" keeps the work
# linear in a text of many markers.
_STRUCTURE = re.compile(r'["{}<\\]')
_STRING_END = re.compile(r'["\\]')
# Calls are written as they are rendered, so that a small model cannot lose itself in white space.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, slots=True)
class Content:
    """Text of a reply that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call; its arguments follow. index: from 0 within the reply."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The arguments of the call `index`, or their next piece: JSON as text."""

    index: int
    text: str


ReplyEvent = Content | CallBegun | CallArguments


def tools_text(tool_use: ToolUse) -> str:
    """Return the system text that describes the tools and how to call them; empty where there are none."""
    if not tool_use.tools:
        return ""
    lines = "\n".join(_describe(tool) for tool in tool_use.tools)
    text = f"You may call these functions to help with the user's request:\n<tools>\n{lines}\n</tools>\n"
    if tool_use.choice == "none":
        return text + "Do not call any of them in this reply."
    form = f'{_OPEN}\n{{"name": <function name>, "arguments": <JSON object of arguments>}}\n{_CLOSE}'
    text += f"For a call write exactly this, with the function's name and arguments:\n{form}"
    if tool_use.choice == "required":
        text += "\nCall a function in this reply."
    elif tool_use.choice == "function":
        text += f"\nCall the function {tool_use.name} in this reply."
    if not tool_use.is_parallel:
        text += "\nWrite at most one call in a reply."
    return text


def render_calls(message: Message) -> str:
    """Return an assistant message as the model would have written it: content, then calls, in their canonical form.

    Calls that the content itself spells out come first, so that a reply given back as plain text and one given back
    in parts are the same. Other messages are their content.
    """
    if message.role != "assistant" or not (message.tool_calls or _OPEN in message.content):
        return message.content
    content, spelled = split_reply(message.content)
    blocks = [_render(call) for call in (*spelled, *message.tool_calls)]
    return "\n".join([content, *blocks] if content else blocks)


def split_reply(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Return the content and the calls of a whole reply; a malformed call is content."""
    parser = ReplyParser()
    names: list[str] = []
    arguments: list[str] = []
    content: list[str] = []
    for event in parser.push(text) + parser.flush():
        if isinstance(event, Content):
            content.append(event.text)
        elif isinstance(event, CallBegun):
            names.append(event.name)
            arguments.append("")
        else:
            arguments[event.index] += event.text
    return "".join(content), tuple(map(ToolCall, names, arguments))


class ReplyParser:
    """Reads a reply while it is written. However the text is cut into pushes, it finds the same content and calls.

    White space around calls belongs to none of them, except between two pieces of content. A call is told once it is
    complete, as only then it is known to be one; a complete object whose closing marker the end of the text cut off is
    a call too.
    """

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._pending = ""
        self._num_calls = 0
        self._has_content = False
        self._after_call = False
        self._call: _OpenCall | None = None

    @property
    def num_calls(self) -> int:
        """Calls found so far."""
        return self._num_calls

    def push(self, text: str) -> list[ReplyEvent]:
        """Return what `text`, which goes on from what was pushed before, makes certain."""
        if self._at:
            self._text, self._at = self._text[self._at :], 0
        self._text += text
        return self._advance(is_end=False)

    def flush(self) -> list[ReplyEvent]:
        """Return what is left when nothing more comes."""
        events = self._advance(is_end=True)
        if self._pending and not self._after_call:
            events.append(Content(self._pending))
        self._pending = ""
        return events

    def _advance(self, *, is_end: bool) -> list[ReplyEvent]:
        events: list[ReplyEvent] = []
        while self._at < len(self._text):
            if self._call is None:
                start = self._text.find(_OPEN, self._at)
                if start < 0:
                    kept = 0 if is_end else _marker_prefix(self._text, self._at)
                    self._take_content(events, len(self._text) - kept)
                    break
                self._take_content(events, start)
                self._call = _OpenCall(start)
            # Offsets of the call are into the text before it was cut.
            is_over, end = self._call.find_end(self._text, is_end=is_end)
            if not is_over:
                if self._at:
                    self._call.shift(self._at)
                break
            found = _parse_call(self._text[self._call.start : self._call.stop]) if end else None
            self._call = None
            if found is None:
                # Only the marker is content for certain; what follows it may hold a call.
                self._take_content(events, self._at + len(_OPEN))
                continue
            self._pending, self._after_call = "", True
            events += [CallBegun(self._num_calls, found.name), CallArguments(self._num_calls, found.arguments)]
            self._num_calls += 1
            self._at = end
        return events

    def _take_content(self, events: list[ReplyEvent], stop: int) -> None:
        text, self._at = self._text[self._at : stop], stop
        self._add_content(events, text)

    def _add_content(self, events: list[ReplyEvent], text: str) -> None:
        """Give out content, but hold back the white space at its end, which a call may follow."""
        body = text.rstrip()
        if not body:
            self._pending += text
            return
        if self._after_call:
            # White space right behind a call only parts two pieces of content.
            space = self._pending + body[: len(body) - len(body.lstrip())]
            body = (space if self._has_content else "") + body.lstrip()
        else:
            body = self._pending + body
        self._pending, self._after_call, self._has_content = text[len(text.rstrip()) :], False, True
        events.append(Content(body))


class _OpenCall:
    """Where the text from an opening marker on has the call's object; looks at every character once."""

    def __init__(self, marker: int) -> None:
        """`marker`: where the marker begins; this and `start` and `stop` of the object are places in the text."""
        self.start = 0
        self.stop = 0
        self._at = marker + len(_OPEN)
        self._depth = 0
        self._in_string = False

    def shift(self, num_cut: int) -> None:
        """Follow a text whose first `num_cut` characters, all before the marker, are cut off."""
        self._at -= num_cut
        self.start = max(0, self.start - num_cut)
        self.stop = max(0, self.stop - num_cut)

    def find_end(self, text: str, *, is_end: bool) -> tuple[bool, int]:
        """Return whether it is certain what this is, and where the call ends then, 0 if it is none."""
        if not self.start:
            self._skip_space(text)
            if self._at == len(text):
                return is_end, 0
            if text[self._at] != "{":
                return True, 0
            self.start = self._at
        if not self.stop:
            is_broken = self._find_stop(text)
            if not self.stop:
                return is_broken or is_end, 0
        self._skip_space(text)
        if text.startswith(_CLOSE, self._at):
            return True, self._at + len(_CLOSE)
        if not _CLOSE.startswith(text[self._at : self._at + len(_CLOSE)]):
            return True, 0
        return is_end, len(text)

    def _skip_space(self, text: str) -> None:
        while self._at < len(text) and text[self._at].isspace():
            self._at += 1

    def _find_stop(self, text: str) -> bool:
        """Go on to the object's end; return whether there is none, as it holds what JSON cannot."""
        while (found := (_STRING_END if self._in_string else _STRUCTURE).search(text, self._at)) is not None:
            mark, self._at = found.group(), found.end()
            if mark == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                if self._at == len(text):
                    # What is escaped has not come yet.
                    self._at = found.start()
                    return False
                self._at += 1
            elif mark in "{}":
                self._depth += 1 if mark == "{" else -1
                if self._depth == 0:
                    self.stop = self._at
                    return False
            else:
                return True
        self._at = len(text)
        return False


def _marker_prefix(text: str, start: int) -> int:
    """How many characters at the end of `text`, from `start` on, may begin a call."""
    at = text.rfind("<", max(start, len(text) - len(_OPEN) + 1))
    return len(text) - at if at >= 0 and _OPEN.startswith(text[at:]) else 0


def _parse_call(text: str) -> ToolCall | None:
    """Read a call's object; None where it is not one that can be written again as strict JSON."""
    try:
        found = json.loads(text, parse_constant=_refuse)
        if not isinstance(found, dict) or not found.keys() <= {"name", "arguments"}:
            return None
        name, arguments = found.get("name"), found.get("arguments", {})
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return None
        dumped = _dump(arguments)
        # Half of a surrogate pair can be escaped, but not written.
        (name + dumped).encode()
    except (ValueError, RecursionError):
        return None
    return ToolCall(name, dumped)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _render(call: ToolCall) -> str:
    try:
        arguments = json.loads(call.arguments or "{}", parse_constant=_refuse)
        written = f'{{"name": {_dump(call.name)}, "arguments": {_dump(arguments)}}}'
    except (ValueError, RecursionError):
        written = f'{{"name": {_dump(call.name)}, "arguments": {_dump(call.arguments)}}}'
    return f"{_OPEN}\n{written}\n{_CLOSE}"


def _describe(tool: Tool) -> str:
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return _dump({"type": "function", "function": function})


def tool_grammar(tool_use: ToolUse) -> str | None:
    """Return the llguidance grammar (Lark) of a reply that must call; None where the reply is free.

    `required` demands one of the tools, `function` the named one; with `is_parallel` one to `MAX_PARALLEL_CALLS` calls.
    """
    if tool_use.choice not in ("required", "function"):
        return None
    tools = [tool for tool in tool_use.tools if tool_use.choice == "required" or tool.name == tool_use.name]
    more = f' ("\\n" call){{0,{MAX_PARALLEL_CALLS - 1}}}' if tool_use.is_parallel else ""
    return "\n".join(["%llguidance {}", f"start: call{more}", *_call_rules(tools)]) + "\n"


def _call_rules(tools: Sequence[Tool]) -> list[str]:
    names = " | ".join(f"call_{index}" for index in range(len(tools)))
    rules = [f"call: {names}"]
    for index, tool in enumerate(tools):
        head = json.dumps(f'{_OPEN}\n{{"name": {_dump(tool.name)}, "arguments": ')
        rules.append(f'call_{index}: {head} args_{index} "}}\\n{_CLOSE}"')
        rules.append(f"args_{index}: %json {_parameters(tool)}")
    return rules


def _parameters(tool: Tool) -> str:
    schema = json.loads(tool.parameters)
    # Anything else stands for a function without described arguments.
    fields = schema if isinstance(schema, dict) else {}
    return json.dumps({"type": "object", **fields, "x-guidance": _SPACING})
