"""Exactly once: what names a request, what is kept of its answer, and how a repeated one is found.

A request has the caller's Idempotency-Key, or else an id derived from the session's tip at its start and its body, so
that the silent repetitions of clients that send no key are found too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from hope_memory.protocol import MAX_REPLY_BYTES, Answered, Request

from hope_server.engine.drafts import Visit
from hope_server.engine.sessions import Kept, SessionBook
from hope_server.engine.turn import (
    Attempt,
    ChatRequest,
    FinishReason,
    LearnRequest,
    Message,
    Receipt,
    Replay,
    ReplyFinished,
    SessionKey,
    TextRequest,
    TokenLogprob,
    TokenText,
    TurnEvent,
    TurnFinished,
    Usage,
)
from hope_server.errors import AnswerNotStored, DurabilityUnmet, IdempotencyKeyReused, SessionConflict

UNACKNOWLEDGED_SECONDS = 120.0
"""How long an answer that was not sent whole is taken to be what an identical request wants."""

_FORMAT = 2
_LARGE_TEXT = 200_000
_MESSAGE_FIELDS = tuple(field.name for field in fields(Message))
_MAX_UNPACKED_BYTES = 32 << 20
_PACKED = b"z"

AnyRequest = ChatRequest | TextRequest | LearnRequest


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that may teach: how it was sent, and the digest of all that its answer depends on."""

    attempt: Attempt
    digest: bytes


async def ask_of(request: AnyRequest) -> Ask:
    """Digest a request; in a thread where it is large."""
    if isinstance(request, ChatRequest):
        size = sum(len(message.content) for message in request.messages)
    elif isinstance(request, TextRequest):
        size = len(request.prompt)
    else:
        size = len(request.text or "")
    digest = await asyncio.to_thread(digest_of, request) if size > _LARGE_TEXT else digest_of(request)
    return Ask(request.attempt, digest)


def digest_of(request: AnyRequest) -> bytes:
    """Hash what the answer depends on; how it is sent, and how long and durably it is kept, are no part of it."""
    parts: dict[str, Any]
    if isinstance(request, ChatRequest):
        parts = {
            "kind": "chat",
            "messages": [_fields_of(message) for message in request.messages],
            "tool_use": None if request.tool_use is None else asdict(request.tool_use),
            "output_format": asdict(request.output_format),
            **_common(request),
        }
    elif isinstance(request, TextRequest):
        parts = {"kind": "text", "prompt": request.prompt, **_common(request)}
    else:
        parts = {"kind": "learn", "text": request.text, "passes": request.passes}
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def _fields_of(message: Message) -> dict[str, Any]:
    """What `asdict` gives, for thousands of messages in the time that it takes for a hundred."""
    plain = {name: getattr(message, name) for name in _MESSAGE_FIELDS}
    return {**plain, "tool_calls": [asdict(call) for call in message.tool_calls]}


def _common(request: ChatRequest | TextRequest) -> dict[str, Any]:
    memory = request.memory
    return {
        "sampling": asdict(request.sampling),
        "num_choices": request.num_choices,
        "memory": [memory.mode, memory.passes, memory.window, memory.levels, memory.sources],
    }


def request_id(key: SessionKey, tip: str, ask: Ask) -> str:
    """The id that a commit records for a request which found the session at `tip`."""
    if ask.attempt.key is not None:
        return f"k{ask.attempt.key}"
    parts = json.dumps([key.tenant, key.session_id, tip, ask.digest.hex()])
    return "d" + hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply of an answer. logprobs: of its tokens, where they were asked for."""

    text: str
    finish_reason: FinishReason = "stop"
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is kept with the commit that it is of; a request to learn has one empty reply.

    The receipt is kept without what only the commit settles: version_after, durability and replicas.
    """

    answer_id: str
    created: int
    replies: tuple[Reply, ...]
    usage: Usage
    receipt: Receipt

    async def encoded(self) -> bytes:
        """Return what `encode` does; from a thread where there is much of it."""
        has_logprobs = any(reply.logprobs for reply in self.replies)
        return await asyncio.to_thread(self.encode) if has_logprobs else self.encode()

    def encode(self) -> bytes:
        """Return it as bytes, none where it is too large to be kept."""
        fields = {
            "answer_id": self.answer_id,
            "created": self.created,
            "replies": [[reply.text, reply.finish_reason, _packed(reply.logprobs)] for reply in self.replies],
            "usage": asdict(self.usage),
            "receipt": asdict(self.receipt),
        }
        data = json.dumps([_FORMAT, fields], separators=(",", ":")).encode()
        if any(reply.logprobs for reply in self.replies):
            data = _PACKED + zlib.compress(data, 1)
        return data if len(data) <= MAX_REPLY_BYTES else b""

    @classmethod
    def decode(cls, reply: bytes) -> Answer:
        """Read what was kept. Raises AnswerNotStored."""
        try:
            version, fields = json.loads(_unpacked(reply) if reply.startswith(_PACKED) else reply)
            replies: tuple[Reply, ...]
            if version == 1:
                replies = (Reply(fields["text"], fields["finish_reason"]),)
            elif version == _FORMAT:
                replies = tuple(Reply(text, reason, _logprobs(kept)) for text, reason, kept in fields["replies"])
            else:
                raise AnswerNotStored
            receipt = replace(Receipt(**fields["receipt"]), replayed=True)
            return cls(fields["answer_id"], fields["created"], replies, Usage(**fields["usage"]), receipt)
        except (TypeError, ValueError, KeyError, AttributeError, zlib.error):
            raise AnswerNotStored from None

    def kept(self, version: str | None, durability: str) -> Answer:
        """The answer with what its commit settled; `version` None while the store has none."""
        level, _, replicas = durability.partition(":")
        count = int(replicas) if level == "replicated" else 0
        receipt = replace(self.receipt, version_after=version, durability=durability, replicas=count)
        return replace(self, receipt=receipt)

    @property
    def texts(self) -> list[str]:
        """What its replies say."""
        return [reply.text for reply in self.replies]

    @property
    def finished(self) -> TurnFinished:
        """The turn's last event."""
        return TurnFinished(self.replies[0].finish_reason, self.usage, self.receipt)

    @property
    def events(self) -> tuple[TurnEvent, ...]:
        """The events of a turn that gives this answer once more."""
        events: list[TurnEvent] = [Replay(self.answer_id, self.created)]
        for index, reply in enumerate(self.replies):
            if reply.text or reply.logprobs:
                events.append(TokenText(reply.text, index, reply.logprobs))
            if len(self.replies) > 1:
                events.append(ReplyFinished(index, reply.finish_reason))
        return (*events, self.finished)


def _packed(logprobs: Iterable[TokenLogprob]) -> list[list[Any]]:
    """Log-probabilities as small JSON; the bytes only where they are not those of the text."""
    return [
        [item.text, None if item.data == item.text.encode() else item.data.hex(), item.logprob, _packed(item.top)]
        for item in logprobs
    ]


def _logprobs(kept: Iterable[list[Any]]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(text, text.encode() if data is None else bytes.fromhex(data), logprob, _logprobs(top))
        for text, data, logprob, top in kept
    )


def _unpacked(reply: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(reply[len(_PACKED) :], _MAX_UNPACKED_BYTES)
    if not unpacker.eof:
        raise ValueError("an answer that is cut off, or too large")
    return data


class Replays:
    """Finds the answer of a request that was served before."""

    def __init__(self, book: SessionBook, *, is_lenient: bool, clock: Callable[[], float] = time.time) -> None:
        """`is_lenient`: a durability that was not confirmed is told in the receipt instead of raised."""
        self._book = book
        self._is_lenient = is_lenient
        self._clock = clock

    async def find(self, visit: Visit, ask: Ask, durability: str) -> Answer | None:
        """Return the request's answer, as durable as asked now; None for a new request.

        Raises IdempotencyKeyReused, AnswerNotStored, DurabilityUnmet.
        """
        found = await self._search(visit, ask)
        if found is None:
            return None
        answer = Answer.decode(found.reply)
        if not found.info.version:
            is_queued = visit.draft is not None and visit.draft.is_queued
            return answer.kept(None, "async" if is_queued else "none")
        if durability in ("none", "async", "commit"):
            return answer.kept(found.info.version, "commit")
        name = request_id(visit.key, found.info.parent or visit.stored.birth, ask)
        kept = await self._book.confirm(visit.key, Request(name, ask.digest), durability)
        self.check_durability(kept, durability)
        return answer.kept(found.info.version, kept.info.durability)

    async def settle_race(self, visit: Visit, name: str, texts: list[str]) -> TurnFinished:
        """Answer a turn whose request another server committed first: as that one did, where the texts are the same.

        Raises SessionConflict where they differ; the request is then answered by the stored text when sent again.
        """
        found = await self._book.find_request(visit.key, name)
        answer = None if found is None else Answer.decode(found.reply).kept(found.info.version, "commit")
        if answer is None or answer.texts != texts:
            raise SessionConflict(
                "another server answered the same request first, in other words; send it again to get that answer"
            )
        return answer.finished

    def check_durability(self, kept: Kept, asked: str) -> None:
        """Raise DurabilityUnmet where a commit is less durable than asked and that is not to be borne."""
        if not kept.is_met and not self._is_lenient:
            raise DurabilityUnmet(asked, kept.info.durability)

    async def _search(self, visit: Visit, ask: Ask) -> Answered | None:
        unstored = {} if visit.draft is None else visit.draft.answers
        if ask.attempt.key is not None:
            name = request_id(visit.key, visit.record.tip, ask)
            found = unstored.get(name) or await self._book.find_request(visit.key, name)
            if found is not None and found.digest != ask.digest:
                raise IdempotencyKeyReused
            return found
        last = await self._last(visit)
        if last is not None and last.digest == ask.digest and (ask.attempt.is_retry or self._is_open(last)):
            return last
        return await self._search_retried(visit, ask) if ask.attempt.is_retry else None

    async def _last(self, visit: Visit) -> Answered | None:
        """What the session's newest turn answered."""
        draft = visit.draft
        if draft is None:
            return await self._book.last_request(visit.key)
        return replace(draft.answers[draft.request.id], is_acknowledged=draft.pledge.is_acknowledged)

    def _is_open(self, last: Answered) -> bool:
        """Whether its caller may still wait for the answer."""
        return not last.is_acknowledged and abs(self._clock() - last.info.created) < UNACKNOWLEDGED_SECONDS

    async def _search_retried(self, visit: Visit, ask: Ask) -> Answered | None:
        """Look for the same body among the kept versions; the parent of each is the tip that its request found."""
        for answered in () if visit.draft is None else visit.draft.answers.values():
            if answered.digest == ask.digest:
                return answered
        for info in await self._book.versions(visit.key):
            name = request_id(visit.key, info.parent or visit.stored.birth, ask)
            found = await self._book.find_request(visit.key, name)
            if found is not None and found.digest == ask.digest:
                return found
        return None
