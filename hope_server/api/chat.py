"""POST /v1/chat/completions, as OpenAI's clients know it, plus the memory receipt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from hope_server.api.chat_body import ChatBody
from hope_server.api.deps import ServicesDep, TenantDep
from hope_server.api.json_body import json_body
from hope_server.api.models import check_model
from hope_server.api.replies import Replies, Reply, logprob_object
from hope_server.api.session_id import resolve_session_id
from hope_server.api.sse import start_stream
from hope_server.api.tools import call_id
from hope_server.api.turn_headers import read_attempt, turn_memory
from hope_server.api.turns import TurnFeed, acknowledgement, collect, whole_answer
from hope_server.api.wire import completion_usage, receipt_object
from hope_server.engine.tool_format import CallBegun, Content, ReplyEvent
from hope_server.engine.turn import ChatRequest, Replay, SessionKey, TokenLogprob, TurnEvent, TurnFinished

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(
    request: Request, services: ServicesDep, tenant: TenantDep, body: Annotated[ChatBody, Depends(json_body(ChatBody))]
) -> Response:
    """Serve one chat turn, streamed or whole."""
    check_model(body.model, services.engine)
    found = resolve_session_id(request.headers, body)
    turn = ChatRequest(
        messages=tuple(message.to_message() for message in body.messages),
        sampling=body.to_sampling(),
        session=None if found.session_id is None else SessionKey(tenant, found.session_id),
        memory=turn_memory(request.headers, body.to_memory()),
        attempt=read_attempt(request.headers),
        num_choices=body.n or 1,
        tool_use=body.to_tool_use(),
        output_format=body.to_format(),
        resends_history=found.resends_history,
        may_be_side=body.may_be_side,
        tenant=tenant,
    )
    reply = ChatReply(services.engine.model_id, turn, body.has_usage_chunk)
    feed = TurnFeed(services.engine.chat(turn), request.receive, services.metrics.turn("chat"))
    on_sent = acknowledgement(services.engine, turn.session)
    if body.stream:
        return await start_stream(feed, reply, on_sent)
    finished = await collect(feed, reply.take)
    return whole_answer(reply.whole(finished), finished, on_sent)


class ChatReply:
    """One answer's objects: the whole completion, or the chunks of a stream, under one id."""

    def __init__(self, model: str, turn: ChatRequest, with_usage: bool) -> None:
        """`with_usage` adds OpenAI's last chunk with the usage to a stream."""
        self._id = turn.attempt.answer_id
        self._created = turn.attempt.created
        self._model = model
        self._with_usage = with_usage
        self._with_logprobs = turn.sampling.top_logprobs is not None
        has_tools = turn.tool_use is not None and turn.tool_use.choice != "none"
        self._replies = Replies(turn.num_choices, has_tools=has_tools)
        self._has_role: set[int] = set()

    def take(self, event: TurnEvent) -> None:
        """Take an event of an answer that is not streamed."""
        if isinstance(event, Replay):
            self._id, self._created = event.answer_id, event.created
        self._replies.take(event)

    def whole(self, finished: TurnFinished) -> dict[str, Any]:
        """Return the chat.completion object."""
        self._replies.end(finished)
        completion = self._head("chat.completion")
        completion["choices"] = [self._choice(reply) for reply in self._replies.all]
        completion["usage"] = completion_usage(finished.usage)
        completion["memory"] = receipt_object(finished.receipt)
        return completion

    def objects(self, event: TurnEvent) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one event; before a reply's first, the one that names the role, which clients expect."""
        if isinstance(event, Replay):
            self._id, self._created = event.answer_id, event.created
            return
        if isinstance(event, TurnFinished):
            yield from self._end(event)
        elif (taken := self._replies.take(event)) is not None:
            yield from self._chunks(*taken)

    def _chunks(self, reply: Reply, events: list[ReplyEvent]) -> Iterator[dict[str, Any]]:
        if reply.index not in self._has_role:
            self._has_role.add(reply.index)
            yield self._chunk(reply.index, {"role": "assistant", "content": ""})
        for event in events:
            yield self._chunk(reply.index, self._delta(reply.index, event), self._logprobs(reply.take_untold()))

    def _end(self, event: TurnFinished) -> Iterator[dict[str, Any]]:
        # No reply ends before the turn is kept.
        ends = self._replies.end(event)
        for reply, events in ends:
            yield from self._chunks(reply, events)
        for reply, _ in ends:
            last = self._chunk(reply.index, {}, self._logprobs(reply.take_untold()), reply.finish_reason)
            if reply.index == len(ends) - 1:
                last["memory"] = receipt_object(event.receipt)
            yield last
        if self._with_usage:
            usage = self._head("chat.completion.chunk")
            usage["choices"] = []
            usage["usage"] = completion_usage(event.usage)
            yield usage

    def _choice(self, reply: Reply) -> dict[str, Any]:
        calls = [
            {
                "id": call_id(self._id, reply.index, index),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(reply.calls)
        ]
        content = reply.content
        message = {"role": "assistant", "content": content if content or not calls else None, "refusal": None}
        return {
            "index": reply.index,
            "message": message | ({"tool_calls": calls} if calls else {}),
            "logprobs": self._logprobs(reply.logprobs),
            "finish_reason": reply.finish_reason,
        }

    def _delta(self, reply: int, event: ReplyEvent) -> dict[str, Any]:
        if isinstance(event, Content):
            return {"content": event.text}
        function = {"name": event.name, "arguments": ""} if isinstance(event, CallBegun) else {"arguments": event.text}
        head = {"id": call_id(self._id, reply, event.index), "type": "function"} if "name" in function else {}
        return {"tool_calls": [{"index": event.index, **head, "function": function}]}

    def _logprobs(self, tokens: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {"content": [logprob_object(token) for token in tokens], "refusal": None}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        chunk = self._head("chat.completion.chunk")
        chunk["choices"] = [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}]
        if self._with_usage:
            chunk["usage"] = None
        return chunk
