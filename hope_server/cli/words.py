"""What commands say of replies, receipts and sessions: in words for people, as plain objects for programs."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from hope_client import LearnResult, Receipt, Reply, SessionInfo

_NOT_LEARNED = {"side_request": "side request, it does not go on with the conversation", "frozen": "frozen"}


def receipt_line(receipt: Receipt) -> str:
    """Return in one line what a turn did to the memory."""
    if receipt.discarded is not None:
        return f"nothing learned: {receipt.discarded}"
    if receipt.not_learned is not None:
        return f"nothing learned: {_NOT_LEARNED.get(receipt.not_learned, receipt.not_learned)}"
    if receipt.mode != "write":
        return f"nothing learned: memory is {receipt.mode}"
    words = [f"learned {receipt.tokens_learned:,} of {receipt.tokens_read:,} tokens in {receipt.steps:,} steps"]
    if receipt.replayed:
        words.insert(0, "answered before, not learned again")
    if receipt.loss_before is not None and receipt.loss_after is not None:
        words.append(f"loss {receipt.loss_before:.2f} → {receipt.loss_after:.2f}")
    words.append(f"version {short(receipt.version_after)}" if receipt.version_after is not None else "not stored yet")
    words.append(f"durability {receipt.durability}")
    return ", ".join(words)


def reply_object(reply: Reply) -> dict[str, Any]:
    """Return a reply as JSON-ready object."""
    return {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": None if reply.usage is None else dataclasses.asdict(reply.usage),
        "memory": None if reply.receipt is None else dataclasses.asdict(reply.receipt),
    }


def learn_object(result: LearnResult) -> dict[str, Any]:
    """Return the outcome of a learn call as JSON-ready object."""
    return {
        "tokens_learned": result.tokens_learned,
        "requests": len(result.receipts),
        "usage": None if result.usage is None else dataclasses.asdict(result.usage),
        "memory": None if result.receipt is None else dataclasses.asdict(result.receipt),
    }


def learn_line(result: LearnResult) -> str:
    """Return in one line what a learn call did."""
    if result.receipt is None:
        return "nothing learned"
    if len(result.receipts) == 1:
        return receipt_line(result.receipt)
    return (
        f"learned {result.tokens_learned:,} tokens in {len(result.receipts)} requests; "
        f"the last: {receipt_line(result.receipt)}"
    )


def short(version: str | None) -> str:
    """Return the first letters of a version, by which it can be named."""
    return "none yet" if version is None else version[:8]


def when(seconds: float) -> str:
    """Return a time of day in this place."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def megabytes(num_bytes: float) -> str:
    """Return a size for people."""
    return f"{num_bytes / 1e6:.1f} MB"


def life_of(info: SessionInfo) -> str:
    """Return how long a session lives."""
    if info.ttl is None:
        return "for ever"
    end = "" if info.expires is None else f", until {when(info.expires)}"
    return f"{info.ttl:,.0f} s after its last turn{end}"
