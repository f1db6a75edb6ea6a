"""Exactly once: what names a request, what is kept of its answer, and how a repeated one is found.

A request has the caller's Idempotency-Key, or else an id derived from the session's tip at its start and its body, so
that the silent repetitions of clients that send no key are found too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from hope_memory.protocol import MAX_REPLY_BYTES, Answered, Request

from hope_server.engine.drafts import Visit
from hope_server.engine.sessions import Kept, SessionBook
from hope_server.engine.turn import (
    Attempt,
    ChatRequest,
    FinishReason,
    LearnRequest,
    Receipt,
    Replay,
    SessionKey,
    TokenText,
    TurnEvent,
    TurnFinished,
    Usage,
)
from hope_server.errors import AnswerNotStored, DurabilityUnmet, IdempotencyKeyReused, SessionConflict

UNACKNOWLEDGED_SECONDS = 120.0
"""How long an answer that was not sent whole is taken to be what an identical request wants."""

_FORMAT = 1
_LARGE_TEXT = 200_000


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that may teach: how it was sent, and the digest of all that its answer depends on."""

    attempt: Attempt
    digest: bytes


async def ask_of(request: ChatRequest | LearnRequest) -> Ask:
    """Digest a request; in a thread where it is large."""
    if isinstance(request, ChatRequest):
        size = sum(len(message.content) for message in request.messages)
    else:
        size = len(request.text or "")
    digest = await asyncio.to_thread(digest_of, request) if size > _LARGE_TEXT else digest_of(request)
    return Ask(request.attempt, digest)


def digest_of(request: ChatRequest | LearnRequest) -> bytes:
    """Hash what the answer depends on; how it is sent, and how durably it is kept, are no part of it."""
    parts: dict[str, Any]
    if isinstance(request, ChatRequest):
        memory = request.memory
        parts = {
            "kind": "chat",
            "messages": [[message.role, message.content] for message in request.messages],
            "sampling": asdict(request.sampling),
            "memory": [memory.mode, memory.passes, memory.window],
        }
    else:
        parts = {"kind": "learn", "text": request.text, "passes": request.passes}
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def request_id(key: SessionKey, tip: str, ask: Ask) -> str:
    """The id that a commit records for a request which found the session at `tip`."""
    if ask.attempt.key is not None:
        return f"k{ask.attempt.key}"
    parts = json.dumps([key.tenant, key.session_id, tip, ask.digest.hex()])
    return "d" + hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is kept with the commit that it is of; `text` is empty where the request was to learn.

    The receipt is kept without what only the commit settles: version_after, durability and replicas.
    """

    answer_id: str
    created: int
    text: str
    finish_reason: FinishReason
    usage: Usage
    receipt: Receipt

    def encode(self) -> bytes:
        """Return it as bytes, none where it is too large to be kept."""
        data = json.dumps([_FORMAT, asdict(self)], separators=(",", ":")).encode()
        return data if len(data) <= MAX_REPLY_BYTES else b""

    @classmethod
    def decode(cls, reply: bytes) -> Answer:
        """Read what was kept. Raises AnswerNotStored."""
        try:
            version, fields = json.loads(reply)
            if version != _FORMAT:
                raise AnswerNotStored
            receipt = replace(Receipt(**fields.pop("receipt")), replayed=True)
            return cls(usage=Usage(**fields.pop("usage")), receipt=receipt, **fields)
        except (TypeError, ValueError, KeyError, AttributeError):
            raise AnswerNotStored from None

    def kept(self, version: str | None, durability: str) -> Answer:
        """The answer with what its commit settled; `version` None while the store has none."""
        level, _, replicas = durability.partition(":")
        count = int(replicas) if level == "replicated" else 0
        receipt = replace(self.receipt, version_after=version, durability=durability, replicas=count)
        return replace(self, receipt=receipt)

    @property
    def finished(self) -> TurnFinished:
        """The turn's last event."""
        return TurnFinished(self.finish_reason, self.usage, self.receipt)

    @property
    def events(self) -> tuple[TurnEvent, ...]:
        """The events of a turn that gives this answer once more."""
        text = (TokenText(self.text),) if self.text else ()
        return (Replay(self.answer_id, self.created), *text, self.finished)


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

    async def settle_race(self, visit: Visit, name: str, text: str) -> TurnFinished:
        """Answer a turn whose request another server committed first: as that one did, where the texts are the same.

        Raises SessionConflict where they differ; the request is then answered by the stored text when sent again.
        """
        found = await self._book.find_request(visit.key, name)
        answer = None if found is None else Answer.decode(found.reply).kept(found.info.version, "commit")
        if answer is None or answer.text != text:
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
