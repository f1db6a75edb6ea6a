"""From a request for plain text to a Run: the prompt as it is, without a chat template and without a closing."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Any

from hope_memory.protocol import SessionRecord

from hope_server.engine.run import FeedToken, Run
from hope_server.engine.session_card import SessionCard
from hope_server.engine.sessions import key_of
from hope_server.engine.transcript import Conversation, epoch_after
from hope_server.engine.turn import TextRequest


def plan_text(request: TextRequest, ids: list[int], passes: int, record: SessionRecord | None) -> Run:
    """Plan to read the prompt's `ids` behind all that the session has read, rehearsing each `passes` times.

    The prompt is what the user says. The conversation, which is of messages, stays as it was.
    """
    head = record.head if record is not None else None
    info: dict[str, Any] = head.meta if head is not None else {}
    conversation, card = Conversation.of(info), SessionCard.of(info)
    writes = record is not None and request.memory.mode == "write"
    learns = writes and not card.is_frozen
    teaches = learns and "user" in request.memory.sources
    feed = (FeedToken(token, "user", passes, request.memory.levels) if teaches else FeedToken(token) for token in ids)
    return Run(
        emit=_unset,
        feed=deque(feed),
        key=key_of(record) if record is not None else None,
        tenant=request.tenant,
        version=head.version if head is not None else None,
        learns=learns,
        keep_window=request.memory.window,
        conversation=replace(conversation, epoch=epoch_after(conversation.epoch, request.prompt)),
        card=card.living(request.memory.ttl_seconds),
        kind="text",
        levels=request.memory.levels,
        reply_source="assistant" if "assistant" in request.memory.sources else None,
        answer_id=request.attempt.answer_id,
        created=request.attempt.created or int(time.time()),
        not_learned="frozen" if writes and card.is_frozen else None,
    )


def _unset(event: object) -> None:
    raise RuntimeError(f"a run reported {type(event).__name__} before it was submitted")
