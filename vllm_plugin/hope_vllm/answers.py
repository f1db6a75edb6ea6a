"""Requests that name themselves, and what they were answered with: the same one again teaches nothing again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from hope_memory.protocol import MAX_REPLY_BYTES

from hope_server.errors import AnswerNotStored, InvalidRequest

MAX_KEY_BYTES = 200


@dataclass(frozen=True, slots=True)
class Ask:
    """A request's own name and what it asks. name: as `hope serve` keeps an Idempotency-Key; digest: 32 bytes."""

    name: str
    digest: bytes

    @classmethod
    def of(cls, key: str, prompt: Sequence[int], params: str) -> Ask:
        """Name a request; params: all else that its answer depends on, in words. Raises InvalidRequest."""
        if not key.isprintable() or not 1 <= len(key.encode()) <= MAX_KEY_BYTES:
            raise InvalidRequest(f"hope_request must have 1 to {MAX_KEY_BYTES} printable bytes")
        text = json.dumps([list(prompt), params])
        return cls(f"k{key}", hashlib.blake2b(text.encode(), digest_size=32).digest())


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply as it is kept with the commit of its turn. finish, stop_reason: why it ended, in vLLM's words."""

    tokens: tuple[int, ...]
    finish: str
    stop_reason: int | str | None
    version: str = ""

    def encode(self) -> bytes:
        """Return it as bytes, none where it is too large to be kept."""
        data = json.dumps([1, list(self.tokens), self.finish, self.stop_reason]).encode()
        return data if len(data) <= MAX_REPLY_BYTES else b""

    @classmethod
    def decode(cls, reply: bytes, version: str) -> Answer:
        """Read what was kept with the commit `version`. Raises AnswerNotStored, also for another engine's answers."""
        try:
            form, tokens, finish, stop_reason = json.loads(reply)
            if form != 1 or finish not in ("stop", "length"):
                raise ValueError(form)
            return cls(tuple(int(token) for token in tokens), finish, stop_reason, version)
        except (TypeError, ValueError):
            raise AnswerNotStored from None
