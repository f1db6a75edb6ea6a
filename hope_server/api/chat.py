"""POST /v1/chat/completions, as OpenAI's clients know it, plus the memory receipt."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from hope_server.api.deps import ServicesDep, TenantDep
from hope_server.api.json_body import json_body
from hope_server.api.models import check_model
from hope_server.api.schemas import ChatBody
from hope_server.api.session_id import resolve_session_id
from hope_server.api.sse import start_stream
from hope_server.api.turns import TurnFeed, collect
from hope_server.api.wire import JsonResponse, memory_headers, receipt_object, usage_object
from hope_server.engine.turn import ChatRequest, FinishReason, SessionKey, TokenText, TurnEvent, TurnFinished

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(
    request: Request, services: ServicesDep, tenant: TenantDep, body: Annotated[ChatBody, Depends(json_body(ChatBody))]
) -> Response:
    """Serve one chat turn, streamed or whole."""
    check_model(body.model, services.engine)
    session_id = resolve_session_id(request.headers, body)
    turn = ChatRequest(
        messages=tuple(message.to_message() for message in body.messages),
        sampling=body.to_sampling(),
        session=None if session_id is None else SessionKey(tenant, session_id),
        memory=body.to_memory(),
    )
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    reply = ChatReply(services.engine.model_id, with_usage)
    feed = TurnFeed(services.engine.chat(turn), request.receive, services.metrics.turn("chat"))
    if body.stream:
        return await start_stream(feed, reply)
    text, finished = await collect(feed)
    return JsonResponse(reply.whole(text, finished), headers=memory_headers(finished.receipt))


class ChatReply:
    """One answer's objects: the whole completion, or the chunks of a stream, under one id."""

    def __init__(self, model: str, with_usage: bool) -> None:
        """`with_usage` adds OpenAI's last chunk with the usage to a stream."""
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._with_usage = with_usage

    def whole(self, text: str, finished: TurnFinished) -> dict[str, Any]:
        """Return the chat.completion object."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finished.finish_reason,
        }
        completion = self._head("chat.completion")
        completion["choices"] = [choice]
        completion["usage"] = usage_object(finished.usage)
        completion["memory"] = receipt_object(finished.receipt)
        return completion

    def opening(self) -> Iterator[dict[str, Any]]:
        """Yield the chunk that names the role, which clients expect first."""
        yield self._chunk({"role": "assistant", "content": ""}, None)

    def objects(self, event: TurnEvent) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one event."""
        if isinstance(event, TokenText) and event.text:
            yield self._chunk({"content": event.text}, None)
        elif isinstance(event, TurnFinished):
            last = self._chunk({}, event.finish_reason)
            last["memory"] = receipt_object(event.receipt)
            yield last
            if self._with_usage:
                usage = self._head("chat.completion.chunk")
                usage["choices"] = []
                usage["usage"] = usage_object(event.usage)
                yield usage

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(self, delta: dict[str, str], finish_reason: FinishReason | None) -> dict[str, Any]:
        chunk = self._head("chat.completion.chunk")
        chunk["choices"] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
        if self._with_usage:
            chunk["usage"] = None
        return chunk
