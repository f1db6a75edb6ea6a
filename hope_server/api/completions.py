"""POST /v1/completions: text goes on from where a prompt ends, without a chat template."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from hope_server.api.completion_body import CompletionBody
from hope_server.api.deps import ServicesDep, TenantDep
from hope_server.api.engine_port import EnginePort
from hope_server.api.json_body import json_body
from hope_server.api.models import check_model
from hope_server.api.replies import Replies, Reply, take_logprob
from hope_server.api.session_id import resolve_session_id
from hope_server.api.sse import start_stream
from hope_server.api.turn_headers import read_attempt, turn_memory
from hope_server.api.turns import TurnFeed, acknowledgement, closing, collect, whole_answer
from hope_server.api.wire import completion_usage, receipt_object
from hope_server.engine.turn import (
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
from hope_server.errors import InvalidRequest

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/completions")
async def create_completion(
    request: Request,
    services: ServicesDep,
    tenant: TenantDep,
    body: Annotated[CompletionBody, Depends(json_body(CompletionBody))],
) -> Response:
    """Go on from a text, streamed or whole."""
    check_model(body.model, services.engine)
    found = resolve_session_id(request.headers, body)
    memory = turn_memory(request.headers, body.to_memory())
    if len(body.prompt) > 1 and found.session_id is not None and memory.mode == "write":
        reason = f"{len(body.prompt)} prompts cannot be learned in one turn; send one, or memory.mode read or off"
        raise InvalidRequest(reason, param="prompt")
    turns = [
        TextRequest(
            prompt=prompt,
            sampling=body.to_sampling(),
            session=None if found.session_id is None else SessionKey(tenant, found.session_id),
            memory=memory,
            attempt=read_attempt(request.headers, f"cmpl-{secrets.token_hex(12)}"),
            num_choices=body.n or 1,
            tenant=tenant,
        )
        for prompt in body.prompt
    ]
    reply = CompletionReply(services.engine.model_id, turns, bool(body.echo), body.has_usage_chunk)
    feed = TurnFeed(_complete_all(services.engine, turns), request.receive, services.metrics.turn("completion"))
    on_sent = acknowledgement(services.engine, turns[0].session)
    if body.stream:
        return await start_stream(feed, reply, on_sent)
    finished = await collect(feed, reply.take)
    return whole_answer(reply.whole(finished), finished, on_sent)


async def _complete_all(engine: EnginePort, turns: Sequence[TextRequest]) -> AsyncGenerator[TurnEvent]:
    """Serve the prompts one after another as one turn, the replies numbered through."""
    prompt_tokens = completion_tokens = 0
    ends: list[TurnFinished] = []
    for rank, turn in enumerate(turns):
        start = rank * turn.num_choices
        async with closing(engine.complete(turn)) as events:
            async for event in events:
                if isinstance(event, TokenText):
                    yield TokenText(event.text, start + event.index, event.logprobs)
                elif isinstance(event, ReplyFinished):
                    yield ReplyFinished(start + event.index, event.finish_reason)
                elif isinstance(event, TurnFinished):
                    ends.append(event)
                    prompt_tokens += event.usage.prompt_tokens
                    completion_tokens += event.usage.completion_tokens
                    if turn.num_choices == 1:
                        yield ReplyFinished(start, event.finish_reason)
                else:
                    yield event
    yield TurnFinished(ends[0].finish_reason, Usage(prompt_tokens, completion_tokens), ends[-1].receipt)


class CompletionReply:
    """One answer's objects, whole or as chunks, under one id."""

    def __init__(self, model: str, turns: Sequence[TextRequest], is_echo: bool, with_usage: bool) -> None:
        """`is_echo`: every reply begins with its prompt; `with_usage` adds a last chunk with the usage to a stream."""
        attempt = turns[0].attempt
        self._id, self._created = attempt.answer_id, attempt.created
        self._model = model
        self._with_usage = with_usage
        self._with_logprobs = turns[0].sampling.top_logprobs is not None
        self._num_each = turns[0].num_choices
        self._echoes = [turn.prompt if is_echo else "" for turn in turns]
        self._replies = Replies(len(turns) * self._num_each, has_tools=False)
        # Where the next token of each reply stands in its text.
        self._offsets = [0] * len(self._replies.all)
        self._begun: set[int] = set()

    def take(self, event: TurnEvent) -> None:
        """Take an event of an answer that is not streamed."""
        if isinstance(event, Replay):
            self._id, self._created = event.answer_id, event.created
        self._replies.take(event)

    def whole(self, finished: TurnFinished) -> dict[str, Any]:
        """Return the text_completion object."""
        self._replies.end(finished)
        completion = self._head()
        completion["choices"] = [
            self._choice(reply, self._echo(reply) + reply.content, reply.logprobs, reply.finish_reason)
            for reply in self._replies.all
        ]
        completion["usage"] = completion_usage(finished.usage)
        completion["memory"] = receipt_object(finished.receipt)
        return completion

    def objects(self, event: TurnEvent) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one event."""
        if isinstance(event, Replay):
            self._id, self._created = event.answer_id, event.created
        elif isinstance(event, TurnFinished):
            yield from self._end(event)
        elif isinstance(event, TokenText) and (taken := self._replies.take(event)) is not None:
            reply = taken[0]
            if text := self._opening(reply) + event.text:
                yield self._chunk(self._choice(reply, text, reply.take_untold(), None))
        else:
            self._replies.take(event)

    def _end(self, event: TurnFinished) -> Iterator[dict[str, Any]]:
        # No reply ends before the turn is kept.
        self._replies.end(event)
        for reply in self._replies.all:
            choice = self._choice(reply, self._opening(reply), reply.take_untold(), reply.finish_reason)
            chunk = self._chunk(choice)
            if reply is self._replies.all[-1]:
                chunk["memory"] = receipt_object(event.receipt)
            yield chunk
        if self._with_usage:
            usage = self._head()
            usage["choices"] = []
            usage["usage"] = completion_usage(event.usage)
            yield usage

    def _echo(self, reply: Reply) -> str:
        return self._echoes[reply.index // self._num_each]

    def _opening(self, reply: Reply) -> str:
        """Return what comes before a reply's first text."""
        if reply.index in self._begun:
            return ""
        self._begun.add(reply.index)
        return self._echo(reply)

    def _choice(self, reply: Reply, text: str, tokens: list[TokenLogprob], finish_reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(reply, tokens) if self._with_logprobs else None
        return {"text": text, "index": reply.index, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, reply: Reply, tokens: list[TokenLogprob]) -> dict[str, Any]:
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets[reply.index])
            self._offsets[reply.index] += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [take_logprob(token.logprob) for token in tokens],
            "top_logprobs": [{each.text: take_logprob(each.logprob) for each in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = self._head()
        chunk["choices"] = [choice]
        if self._with_usage:
            chunk["usage"] = None
        return chunk
