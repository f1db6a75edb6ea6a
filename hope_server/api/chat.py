"""POST /v1/chat/completions, as OpenAI's clients know it, plus the memory receipt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from hope_server.api.deps import ServicesDep, TenantDep
from hope_server.api.json_body import json_body
from hope_server.api.models import check_model
from hope_server.api.schemas import ChatBody
from hope_server.api.session_id import resolve_session_id
from hope_server.api.sse import start_stream
from hope_server.api.turn_headers import read_attempt, read_durability, read_if_match
from hope_server.api.turns import Collected, TurnFeed, acknowledgement, collect, whole_answer
from hope_server.api.wire import receipt_object, usage_object
from hope_server.engine.turn import (
    Attempt,
    ChatRequest,
    FinishReason,
    Replay,
    SessionKey,
    TokenText,
    TurnEvent,
    TurnFinished,
)

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(
    request: Request, services: ServicesDep, tenant: TenantDep, body: Annotated[ChatBody, Depends(json_body(ChatBody))]
) -> Response:
    """Serve one chat turn, streamed or whole."""
    check_model(body.model, services.engine)
    session_id = resolve_session_id(request.headers, body)
    memory = body.to_memory()
    turn = ChatRequest(
        messages=tuple(message.to_message() for message in body.messages),
        sampling=body.to_sampling(),
        session=None if session_id is None else SessionKey(tenant, session_id),
        memory=replace(
            memory,
            durability=read_durability(request.headers, memory.durability),
            if_match=read_if_match(request.headers, memory.if_match),
        ),
        attempt=read_attempt(request.headers),
    )
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    reply = ChatReply(services.engine.model_id, turn.attempt, with_usage)
    feed = TurnFeed(services.engine.chat(turn), request.receive, services.metrics.turn("chat"))
    on_sent = acknowledgement(services.engine, turn.session)
    if body.stream:
        return await start_stream(feed, reply, on_sent)
    answer = await collect(feed)
    return whole_answer(reply.whole(answer), answer.finished, on_sent)


class ChatReply:
    """One answer's objects: the whole completion, or the chunks of a stream, under one id."""

    def __init__(self, model: str, attempt: Attempt, with_usage: bool) -> None:
        """`attempt` names the answer; `with_usage` adds OpenAI's last chunk with the usage to a stream."""
        self._id = attempt.answer_id
        self._created = attempt.created
        self._model = model
        self._with_usage = with_usage
        self._has_role = False

    def whole(self, answer: Collected) -> dict[str, Any]:
        """Return the chat.completion object."""
        finished = answer.finished
        if answer.replay is not None:
            self._take_name(answer.replay)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": finished.finish_reason,
        }
        completion = self._head("chat.completion")
        completion["choices"] = [choice]
        completion["usage"] = usage_object(finished.usage)
        completion["memory"] = receipt_object(finished.receipt)
        return completion

    def objects(self, event: TurnEvent) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one event; before the first, the one that names the role, which clients expect."""
        if isinstance(event, Replay):
            self._take_name(event)
            return
        if not self._has_role:
            self._has_role = True
            yield self._chunk({"role": "assistant", "content": ""}, None)
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

    def _take_name(self, replay: Replay) -> None:
        self._id, self._created = replay.answer_id, replay.created

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(self, delta: dict[str, str], finish_reason: FinishReason | None) -> dict[str, Any]:
        chunk = self._head("chat.completion.chunk")
        chunk["choices"] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
        if self._with_usage:
            chunk["usage"] = None
        return chunk
