"""What a turn says in its headers: its name, whether it is repeated, how durable it must be, and on which version."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import replace

from starlette.datastructures import Headers

from hope_server.engine.turn import Attempt, MemoryOptions
from hope_server.errors import InvalidRequest
from hope_server.settings import DURABILITY_RULE, is_durability

__all__ = ["VERSION_RULE", "is_version_condition", "read_attempt", "read_durability", "read_if_match", "turn_memory"]

VERSION_RULE = 'use the version of a receipt, or "*" for any'
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_VERSION = re.compile(r"\*|[A-Za-z0-9_-]{1,64}")


def is_version_condition(text: str) -> bool:
    """Return whether `text` can be asked of a session's version: a version, or `*`."""
    return _VERSION.fullmatch(text) is not None


def read_attempt(headers: Headers, answer_id: str | None = None) -> Attempt:
    """Return how the request was sent. Raises InvalidRequest for an unusable key.

    answer_id: the name of its answer; None takes a fresh one, of a chat completion.
    """
    keys = headers.getlist("idempotency-key")
    if len(keys) > 1 or (keys and not _IDEMPOTENCY_KEY.fullmatch(keys[0])):
        raise InvalidRequest(
            "Idempotency-Key must be one value of 1 to 255 printable ASCII characters", param="Idempotency-Key"
        )
    # OpenAI's clients count their silent repetitions here.
    count = headers.get("x-stainless-retry-count", "")
    is_retry = count.isdecimal() and count.strip("0") != ""
    name = answer_id or f"chatcmpl-{secrets.token_hex(12)}"
    return Attempt(keys[0] if keys else None, is_retry, name, int(time.time()))


def turn_memory(headers: Headers, memory: MemoryOptions) -> MemoryOptions:
    """Return `memory` with what the headers say of it. Raises InvalidRequest where they differ."""
    return replace(
        memory,
        durability=read_durability(headers, memory.durability),
        if_match=read_if_match(headers, memory.if_match),
    )


def read_durability(headers: Headers, in_body: str | None) -> str | None:
    """Return the durability that the header or the body asks for, None for neither. Raises InvalidRequest."""
    given = _one_of(headers, "X-Memory-Durability", in_body, "memory.durability")
    if given is not None and not is_durability(given):
        raise InvalidRequest(f"X-Memory-Durability is not a durability; {DURABILITY_RULE}", param="X-Memory-Durability")
    return given


def read_if_match(headers: Headers, in_body: str | None) -> str | None:
    """Return the version that the header or the body names, None for neither. Raises InvalidRequest."""
    header = headers.get("if-match")
    if header is not None and header.startswith('"') and header.endswith('"') and len(header) > 2:
        headers = Headers({"if-match": header[1:-1]})
    given = _one_of(headers, "If-Match", in_body, "memory.if_match")
    if given is not None and not is_version_condition(given):
        raise InvalidRequest(f"If-Match is not one version; {VERSION_RULE}", param="If-Match")
    return given


def _one_of(headers: Headers, name: str, in_body: str | None, param: str) -> str | None:
    in_header = headers.get(name)
    if in_header is not None and in_body is not None and in_header != in_body:
        raise InvalidRequest(f"the header {name} and {param} differ; send one of them", param=param)
    return in_body if in_header is None else in_header
