"""Renders a model's Jinja chat template into pieces, so that nothing a user writes is ever read as template text.

Contents never pass through the template: markers stand for them, and the rendered text is cut at the markers. The text
between is the template's own and is split among the messages that it opens and closes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hope_server.engine.turn import Message
from hope_server.errors import CheckpointError, InvalidRequest

ROLES = ("system", "developer", "user", "assistant", "tool")

_FALLBACK = (
    "{{ prefix }}{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
_MARKER = re.compile("\ue000(\\d+)\ue001")
# White space that trimming takes away and no template writes itself.
_PADDING = "\N{EM SPACE}"
_SUBSTITUTES = {"developer": "system", "tool": "user"}
_PAST = ("user", "assistant")
# Text, marker and text: the least that a template which shows a message renders.
_MIN_PARTS = 3
# What template code can raise besides its own errors when it meets a value it did not expect.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered chat. `role` is that of the message it belongs to, "template" where it has none.

    untrusted: ranges (start, stop) of characters of a content that its sender does not vouch for.
    """

    role: str
    text: str
    is_content: bool
    untrusted: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template puts around the content of a role in the middle of a chat, and whether it trims the content."""

    opening: str
    closing: str
    is_trimmed: bool


class ChatTemplate:
    """A compiled chat template. Without a template, a message is written as its role, a colon and its content."""

    def __init__(self, template: str | None, variables: Mapping[str, str]) -> None:
        """Compile `template`; `variables` are what it may name besides the messages, such as `bos_token`.

        Raises CheckpointError when it does not compile or cannot render a question with its answer.
        """
        self._source = template or _FALLBACK
        self._variables = dict(variables)
        self._frames: dict[str, _Frame] = {}
        try:
            self._template = _compile(self._source)
            text = self._render(_PAST, is_generating=False)
        except _TEMPLATE_ERRORS as exc:
            raise CheckpointError(f"the model's chat template cannot be used ({exc}); correct or remove it") from exc
        if len(_MARKER.findall(text)) != len(_PAST):
            raise CheckpointError("the model's chat template does not show every message; correct or remove it")

    def pieces(self, messages: Sequence[Message], *, continuing: bool, open_last: bool = False) -> list[Piece]:
        """Render `messages` as pieces in order, ending with the text that asks the assistant to speak.

        continuing: leave out what a conversation begins with; the pieces follow one that an assistant message closed.
        open_last: end with the content of the last message instead, which must be the assistant's.
        Raises InvalidRequest when a role is unknown or the template refuses the messages.
        """
        if not messages and not continuing:
            raise InvalidRequest("messages is empty; send at least one message", param="messages")
        if open_last and (not messages or messages[-1].role != "assistant"):
            raise InvalidRequest("only a last message of role assistant can be continued", param="messages")
        num_past = len(_PAST) if continuing else 0
        roles = [*_PAST[:num_past], *(self._known_role(message.role) for message in messages)]
        try:
            text = self._render(roles, is_generating=not open_last)
        except _TEMPLATE_ERRORS as exc:
            reason = f"the model's chat template refuses these messages: {exc}"
            raise InvalidRequest(reason, param="messages") from exc
        parts = _MARKER.split(text)
        start = _markers_until(parts, num_past)
        shown = [int(index) for index in parts[1::2]][start:]
        absent = set(range(num_past, len(roles))).symmetric_difference(shown)
        if absent:
            role = roles[min(absent)]
            raise InvalidRequest(f"the model's chat template has no place here for a {role} message", param="messages")
        literals = parts[2 * start :: 2]
        if continuing:
            literals[0] = literals[0].removeprefix(self.assistant_closing())
        placed = [(roles[index], messages[index - num_past]) for index in shown]
        return self._label(literals, placed, is_open=open_last)

    def assistant_closing(self) -> str:
        """Return the text that follows the content of an assistant message."""
        return self._frame("assistant").closing

    def _known_role(self, role: str) -> str:
        if role not in ROLES:
            raise InvalidRequest(f"role {role[:40]!r} is unknown; use one of {', '.join(ROLES)}", param="messages")
        is_named = f"'{role}'" in self._source or f'"{role}"' in self._source
        return role if is_named else _SUBSTITUTES.get(role, role)

    def _label(self, literals: Sequence[str], placed: Sequence[tuple[str, Message]], *, is_open: bool) -> list[Piece]:
        """Put contents between `literals` and give every literal to the messages that it closes and opens.

        placed: messages in the order shown, each with the role that the template was told.
        """
        pieces: list[Piece] = []
        before, owner = "", "template"
        for literal, (role, message) in zip(literals, placed, strict=False):
            cut = self._boundary(literal, before, role)
            pieces += [Piece(owner, literal[:cut], False), Piece(message.role, literal[cut:], False)]
            content, cut_off = message.content, 0
            if self._frame(role).is_trimmed:
                cut_off = len(content) - len(content.lstrip())
                content = content.strip()
            untrusted = tuple((start - cut_off, stop - cut_off) for start, stop in message.untrusted)
            pieces.append(Piece(message.role, content, True, untrusted))
            before, owner = role, message.role
        if not is_open:
            cut = self._boundary(literals[-1], before, "assistant")
            pieces += [Piece(owner, literals[-1][:cut], False), Piece("assistant", literals[-1][cut:], False)]
        return [piece for piece in pieces if piece.text or piece.is_content]

    def _boundary(self, literal: str, before: str, after: str) -> int:
        """Return where the text between two contents stops closing the one and begins to open the other."""
        if before:
            closing = self._frame(before).closing
            return len(closing) if literal.startswith(closing) else 0
        opening = self._frame(after).opening
        return len(literal) - len(opening) if opening and literal.endswith(opening) else 0

    def _frame(self, role: str) -> _Frame:
        if role not in self._frames:
            self._frames[role] = self._measure_frame(role)
        return self._frames[role]

    def _measure_frame(self, role: str) -> _Frame:
        previous = "user" if role == "assistant" else "assistant"
        # A system message may be refused after the past; then it is measured alone, and as the last resort not at all.
        for sample in (_PAST if role == "assistant" else (*_PAST, role), (role,)):
            try:
                parts = _MARKER.split(self._render(sample, is_generating=False))
                padded = self._render(sample, is_generating=False, padding=_PADDING)
                before = self._closing_of(previous) if len(sample) > 1 else ""
            except _TEMPLATE_ERRORS:
                continue
            last = len(sample) - 1
            if len(parts) >= _MIN_PARTS and parts[-2] == str(last):
                is_trimmed = f"{_PADDING}{_marker(last)}{_PADDING}" not in padded
                return _Frame(parts[-3].removeprefix(before), parts[-1], is_trimmed)
        return _Frame("", "", False)

    def _closing_of(self, role: str) -> str:
        sample = _PAST[: _PAST.index(role) + 1]
        return _MARKER.split(self._render(sample, is_generating=False))[-1]

    def _render(self, roles: Sequence[str], *, is_generating: bool, padding: str = "") -> str:
        messages = [
            {"role": role, "content": f"{padding}{_marker(index)}{padding}"} for index, role in enumerate(roles)
        ]
        return self._template.render(self._variables, messages=messages, add_generation_prompt=is_generating)


def _compile(source: str) -> Template:
    # The same dialect as Hugging Face renders: block trimming, loop controls, raise_exception and an unescaped tojson.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _marker(index: int) -> str:
    return f"\ue000{index}\ue001"


def _markers_until(parts: Sequence[str], num_past: int) -> int:
    # Markers up to and with the last message of the past; parts alternate between text and marker numbers.
    numbers = list(parts[1::2])
    return len(numbers) - numbers[::-1].index(str(num_past - 1)) if num_past else 0
