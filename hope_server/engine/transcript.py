"""What a request means to a session: which of its messages were read already, and where the conversation goes on.

A session keeps no words, only digests that chain over its canonical messages, so that full histories and
only-the-new-message both work and an edited past is noticed. System messages are no part of the chain: clients change
them between requests, and what a session was told in them is kept apart. Pure Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hope_server.engine.tool_format import render_calls
from hope_server.engine.turn import Message

EMPTY = ""
MAX_MARKS = 128
"""Newest prefixes of a conversation that a session can recognise one by one."""

MAX_SYSTEMS = 64
_MARK_CHARS = 16
_THOUGHT, _THOUGHT_END = "<think>", "</think>"

Relation = Literal["begins", "extends", "returns", "repeats", "parts", "apart"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a session remembers of what was said.

    chain: digest of the whole conversation; marks: the beginnings of the digests of its newest prefixes, oldest first,
    its own at the end; systems: digests of system messages that were read, oldest first.
    resends: its client repeats the whole conversation. epoch: changes when the memory is written in other ways than by
    conversation, so that going back in the conversation never undoes that.
    """

    chain: str = EMPTY
    marks: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    resends: bool = False
    epoch: str = ""

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Conversation:
        """Read what `fields` wrote into a version's meta; versions of earlier builds have less."""
        chain = str(info.get("chain", EMPTY))
        marks = bytes(info.get("marks", b"")).hex()
        cut = tuple(marks[at : at + _MARK_CHARS] for at in range(0, len(marks), _MARK_CHARS))
        known = cut or ((chain[:_MARK_CHARS],) if chain != EMPTY else ())
        systems = tuple(info.get("systems", ()))
        return cls(chain, known, systems, bool(info.get("resends", False)), str(info.get("epoch", "")))

    def fields(self) -> dict[str, Any]:
        """The conversation as part of a version's meta."""
        return {
            "chain": self.chain,
            "systems": list(self.systems),
            "marks": bytes.fromhex("".join(self.marks)),
            "resends": self.resends,
            "epoch": self.epoch,
        }

    def hear(self, messages: Iterable[Message]) -> Conversation:
        """The conversation with more messages at its end."""
        chain, marks, systems = self.chain, list(self.marks), list(self.systems)
        for message in messages:
            digest = system_digest(message)
            if digest is not None:
                systems.append(digest)
                continue
            chain = extend_chain(chain, message)
            marks.append(chain[:_MARK_CHARS])
        kept = tuple(dict.fromkeys(systems))[-MAX_SYSTEMS:]
        return replace(self, chain=chain, marks=tuple(marks[-MAX_MARKS:]), systems=kept)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a request's messages stand to a conversation.

    begins: there was no conversation; extends: they repeat all of it and go on; returns: they share its beginning, and
    end or differ before its end; repeats: they are the conversation, whose last word the assistant has; parts: they
    are a history of which it knows nothing; apart: they repeat nothing. length: messages that are shared.
    """

    relation: Relation
    length: int


def canonical(message: Message) -> str:
    """What counts of a message: its text without reasoning and outer white space, calls in one form."""
    if message.role != "assistant":
        return message.content.strip()
    return render_calls(replace(message, content=_without_reasoning(message.content).strip())).strip()


def _without_reasoning(text: str) -> str:
    """Leave out what stands between the marks of reasoning.

    Reasoning that a template opened has only its end in the reply, and one that was cut off has none. Searched by hand,
    as a pattern takes a hundred times longer on a long text, and everything waits for it.
    """
    start, end = text.find(_THOUGHT), text.find(_THOUGHT_END)
    if end >= 0 and (start < 0 or end < start):
        text = text[end + len(_THOUGHT_END) :]
    kept: list[str] = []
    at = 0
    while (start := text.find(_THOUGHT, at)) >= 0:
        kept.append(text[at:start])
        end = text.find(_THOUGHT_END, start)
        at = len(text) if end < 0 else end + len(_THOUGHT_END)
    return "".join((*kept, text[at:]))


def extend_chain(chain: str, message: Message) -> str:
    """The digest of a conversation with one more message."""
    role = "system" if message.role == "developer" else message.role
    content = canonical(message)
    parts = f"{chain}\x00{role}\x00{len(content)}\x00{content}".encode()
    return hashlib.blake2b(parts, digest_size=16).hexdigest()


def chains(messages: Sequence[Message], *, with_systems: bool = False) -> list[str]:
    """The digest after each prefix of the messages; index 0 is the empty conversation.

    with_systems: as builds did that counted system messages as part of the conversation.
    """
    out = [EMPTY]
    for message in messages:
        is_said = with_systems or system_digest(message) is None
        out.append(extend_chain(out[-1], message) if is_said else out[-1])
    return out


def system_digest(message: Message) -> str | None:
    """The digest of a system message's content; None for other roles."""
    return extend_chain(EMPTY, message) if message.role in ("system", "developer") else None


def shared_length(messages: Sequence[Message], conversation: Conversation) -> int:
    """How many messages at the beginning are the whole conversation; 0 where they are not, or there is none."""
    if conversation.chain == EMPTY:
        return 0
    forms = [chains(messages)]
    if any(message.role in ("system", "developer") for message in messages):
        forms.append(chains(messages, with_systems=True))
    for found in forms:
        if conversation.chain in found:
            return len(found) - 1 - found[::-1].index(conversation.chain)
    return 0


def relate(messages: Sequence[Message], conversation: Conversation, *, resends: bool) -> Standing:
    """Say how a request stands to the conversation.

    resends: the client is known to send the whole conversation every time. Of another client, a single message that
    the conversation happens to begin with is a new message.
    """
    if conversation.chain == EMPTY:
        return Standing("begins", 0)
    whole = shared_length(messages, conversation)
    if whole and has_news(messages, whole, conversation.systems):
        return Standing("extends", whole)
    is_history = any(message.role == "assistant" for message in messages)
    if whole and messages[-1].role == "assistant":
        return Standing("repeats", whole)
    marks, found = set(conversation.marks), chains(messages)
    shared = next((n for n in range(len(messages), 0, -1) if found[n] and found[n][:_MARK_CHARS] in marks), 0)
    if shared and (is_history or resends):
        return Standing("returns", shared)
    return Standing("parts" if is_history else "apart", 0)


def has_news(messages: Sequence[Message], length: int, known_systems: Sequence[str]) -> bool:
    """Whether there is anything unread where the first `length` messages and some system messages are known."""
    return bool(_unread(messages, length, known_systems))


def is_within(messages: Sequence[Message], conversation: Conversation) -> bool:
    """Whether all of the messages are a beginning of the conversation, as when an answer is asked for again."""
    digest = chains(messages)[-1]
    return digest != EMPTY and digest[:_MARK_CHARS] in conversation.marks


def go_on(
    messages: Sequence[Message], base: Conversation, length: int, relation: Relation
) -> tuple[tuple[Message, ...], Conversation]:
    """What a session whose state is at `base` has yet to read, and its conversation after that.

    length: messages at the beginning that it has read. Where they are not all of its conversation (it could not go
    back, or knows nothing of this history), the client's view of the conversation takes the place of its own, so that
    the next request goes on from there.
    """
    if relation in ("begins", "apart"):
        new = _unread(messages, 0, base.systems)
        return new, replace(base.hear(new), resends=base.resends and relation != "apart")
    if relation == "extends":
        new = _unread(messages, length, base.systems)
        told = replace(base, chain=chains(messages[:length])[-1])
        has_reply = any(message.role == "assistant" for message in messages[:length])
        return new, replace(told.hear(new), resends=base.resends or has_reply)
    if relation == "parts" or not any(system_digest(message) is None for message in messages[length:]):
        length = _after_last_reply(messages)
    new = _unread(messages, length, base.systems)
    view = Conversation(systems=base.systems, resends=True, epoch=base.epoch)
    return new, replace(view.hear(messages), systems=base.hear(new).systems)


def epoch_after(epoch: str, what: str) -> str:
    """The epoch of a session whose memory was written in another way than by conversation."""
    return hashlib.blake2b(f"{epoch}\x00{what}".encode(), digest_size=4).hexdigest()


def without_reasoning(message: Message) -> Message:
    """The message as a session reads it: what an assistant said and called, not what it thought."""
    is_plain = message.role != "assistant" or not (message.tool_calls or "think>" in message.content)
    return message if is_plain else Message(message.role, canonical(message))


def is_task_prompt(messages: Sequence[Message]) -> bool:
    """Whether a request is one of those that Open WebUI sends beside a chat, for titles, tags and the like."""
    last = messages[-1] if messages else Message("user", "")
    return last.role == "user" and "### Task:" in last.content and "<chat_history>" in last.content


def _unread(messages: Sequence[Message], length: int, known_systems: Sequence[str]) -> tuple[Message, ...]:
    """What follows the first `length` messages, and system messages anywhere, but none that were read before."""
    return tuple(
        message
        for index, message in enumerate(messages)
        if ((digest := system_digest(message)) is None and index >= length)
        or (digest is not None and digest not in known_systems)
    )


def _after_last_reply(messages: Sequence[Message]) -> int:
    replies = [index for index, message in enumerate(messages[:-1]) if message.role == "assistant"]
    return replies[-1] + 1 if replies else 0
