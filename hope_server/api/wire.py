"""How JSON is written: pure ASCII, no NaN, one function for responses and events alike."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from hope_server.engine.turn import Receipt, Usage

__all__ = [
    "JsonResponse",
    "completion_usage",
    "dump",
    "finite",
    "memory_headers",
    "receipt_object",
    "response_usage",
    "usage_object",
]


def dump(payload: Mapping[str, Any]) -> bytes:
    """Return `payload` as one line of JSON. Raises ValueError for NaN, which callers turn into null first."""
    # ASCII only: several SSE readers split lines at U+2028 and U+0085, and a lone surrogate must not fail late.
    return json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


class JsonResponse(Response):
    """A complete JSON response."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return dump(content)


def finite(value: float | None) -> float | None:
    """Return `value`, or None where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None


def usage_object(usage: Usage) -> dict[str, int]:
    """Return the tokens of a turn by OpenAI's names."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def completion_usage(usage: Usage) -> dict[str, Any]:
    """Return the usage object of a chat or text completion; nothing is cached by prefix, sessions remember instead."""
    return {
        **usage_object(usage),
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def response_usage(usage: Usage) -> dict[str, Any]:
    """Return the usage object of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def receipt_object(receipt: Receipt | None) -> dict[str, Any] | None:
    """Return the receipt as JSON-ready object; None for a stateless turn."""
    if receipt is None:
        return None
    fields = dataclasses.asdict(receipt)
    fields["loss_before"] = finite(receipt.loss_before)
    fields["loss_after"] = finite(receipt.loss_after)
    fields["update_norm"] = {level: finite(norm) for level, norm in receipt.update_norm.items()}
    return fields


def memory_headers(receipt: Receipt | None) -> dict[str, str]:
    """Return the x-memory-* headers of a response that is not streamed; nothing for a stateless turn."""
    if receipt is None:
        return {}
    headers = {
        "x-memory-session": receipt.session_id,
        "x-memory-version-before": receipt.version_before,
        "x-memory-version": receipt.version_after,
        "x-memory-tokens-learned": str(receipt.tokens_learned),
        "x-memory-durability": receipt.durability,
        "x-memory-replayed": "true" if receipt.replayed else None,
        "x-memory-not-learned": receipt.not_learned,
    }
    return {name: value for name, value in headers.items() if value is not None}
