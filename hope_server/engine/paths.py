"""Where a chat goes on from, the newest version or the one at which an edited past agrees, and what of it is new."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from hope_memory.protocol import CommitInfo, SessionRecord

from hope_server.engine.session_card import SessionCard
from hope_server.engine.tool_format import tools_text
from hope_server.engine.transcript import (
    EMPTY,
    Conversation,
    go_on,
    has_news,
    is_task_prompt,
    is_within,
    relate,
    shared_length,
    system_digest,
    without_reasoning,
)
from hope_server.engine.turn import ChatRequest, Message
from hope_server.errors import InvalidRequest

Versions = Callable[[], Awaitable[list[CommitInfo]]]
T = TypeVar("T")

_LARGE_CHARS = 100_000
# What looking at a message costs beside its text, in characters.
_CHARS_OF_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Path:
    """What a chat request comes to.

    base: the version whose state it goes on from, None where there is none; messages: what is to be read there;
    conversation: of the session after that. is_continuing: the messages follow others that are in the window.
    not_learned: why a turn that was to learn only reads.
    """

    base: CommitInfo | None
    messages: tuple[Message, ...]
    conversation: Conversation
    is_continuing: bool
    not_learned: Literal["side_request", "frozen"] | None = None


def fresh_path(request: ChatRequest, base: CommitInfo | None = None) -> Path:
    """The path of a request that reads all of its messages as the beginning of a conversation."""
    if not request.messages:
        raise InvalidRequest("messages is empty; send at least one message", param="messages")
    new, after = _with_tools(request, request.messages, Conversation().hear(request.messages), ())
    return Path(base, new, after, is_continuing=False)


async def find_path(request: ChatRequest, record: SessionRecord, versions: Versions) -> Path:
    """Find a request's path in a session. versions: gives the kept ones, newest first. Raises InvalidRequest."""
    head = record.head
    if not request.messages or not request.memory.window:
        return fresh_path(request, head)
    info = head.meta if head is not None else {}
    here, messages = Conversation.of(info), request.messages
    resends = request.resends_history or here.resends
    standing = await _apart(messages, lambda: relate(messages, here, resends=resends))
    if standing.relation == "repeats":
        raise InvalidRequest("the session has read all of these messages already; add a new one", param="messages")
    not_learned: Literal["side_request", "frozen"] | None = None
    if request.memory.mode == "write":
        is_side = is_task_prompt(messages) or (resends and standing.relation == "apart")
        if SessionCard.of(info).is_frozen:
            not_learned = "frozen"
        elif request.may_be_side and is_side:
            not_learned = "side_request"
    base, past, length, relation = head, here, standing.length, standing.relation
    if relation == "returns":
        kept = await versions()
        found = await _apart(messages, lambda: ancestor(messages, here, kept))
        if found is not None:
            base, length = found
            past = Conversation(epoch=here.epoch) if base is None else Conversation.of(base.meta)
            past, relation = replace(past, resends=True), "extends" if length else "begins"
    new, after = await _apart(messages, lambda: go_on(messages, past, length, relation))
    new, after = _with_tools(request, new, after, past.systems)
    if not new:
        raise InvalidRequest("the session has read all of these messages already; add a new one", param="messages")
    return Path(base, new, after, past.chain != EMPTY, not_learned)


async def _apart(messages: Sequence[Message], work: Callable[[], T]) -> T:
    """Do what looks at every message, in a thread where they are many or long: all else would wait for it."""
    size = sum(len(message.content) + _CHARS_OF_MESSAGE for message in messages)
    return await asyncio.to_thread(work) if size > _LARGE_CHARS else work()


def ancestor(
    messages: Sequence[Message], here: Conversation, versions: Sequence[CommitInfo]
) -> tuple[CommitInfo | None, int] | None:
    """The version of the longest conversation that `messages` go on from, and its length in messages.

    versions: the kept ones, newest first. What was learned in other ways than by conversation is not undone, so only
    versions of the same epoch count. Where the very first answer is asked for again, that is the version before it, or
    None, 0 for a session that has seen nothing. None: no such version is kept.
    """
    best: tuple[CommitInfo | None, int] | None = None
    alike = [info for info in versions if Conversation.of(info.meta).epoch == here.epoch]
    for info in alike:
        past = Conversation.of(info.meta)
        length = shared_length(messages, past)
        if length > (best[1] if best else 0) and has_news(messages, length, past.systems):
            best = info, length
    if best is not None or not is_within(messages, here):
        return best
    before = next((info for info in alike if Conversation.of(info.meta).chain == EMPTY), None)
    if before is not None:
        return before, 0
    first = versions[-1] if versions else None
    is_whole = first is not None and first.number == 1 and first.meta.get("turn") == 1 and here.epoch == ""
    return (None, 0) if is_whole else None


def _with_tools(
    request: ChatRequest, new: Sequence[Message], after: Conversation, known: Sequence[str]
) -> tuple[tuple[Message, ...], Conversation]:
    """Put what describes the request's tools before what is to be read, unless the session has read it."""
    read = tuple(without_reasoning(message) for message in new)
    text = tools_text(request.tool_use) if request.tool_use is not None else ""
    if not text:
        return read, after
    told = Message("system", text)
    if system_digest(told) in known:
        return read, after
    after = after.hear((told,))
    if read and read[0].role in ("system", "developer"):
        # Many templates have room for one system message only.
        return (replace(read[0], content=f"{read[0].content}\n\n{text}"), *read[1:]), after
    return (told, *read), after
