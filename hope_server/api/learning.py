"""POST /v1/sessions/{id}/learn, /consolidate and /score: teach a session, and measure what it knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from hope_server.api.deps import Services, ServicesDep, SessionKeyDep
from hope_server.api.json_body import json_body
from hope_server.api.schemas import ConsolidateBody, LearnBody, ScoreBody
from hope_server.api.sse import start_stream
from hope_server.api.turn_headers import read_attempt, read_durability, read_if_match
from hope_server.api.turns import TurnFeed, acknowledgement, collect, unless_gone, whole_answer
from hope_server.api.wire import JsonResponse, finite, receipt_object, usage_object
from hope_server.engine.turn import LearnProgress, LearnRequest, ScoreRequest, SessionKey, TurnEvent, TurnFinished
from hope_server.telemetry import token_account

__all__ = ["router"]

router = APIRouter(prefix="/v1/sessions/{session_id}")


@router.post("/learn")
async def learn_text(
    request: Request,
    services: ServicesDep,
    key: SessionKeyDep,
    body: Annotated[LearnBody, Depends(json_body(LearnBody))],
) -> Response:
    """Learn a text now; the answer comes when it is learned and committed."""
    return await _learn(request, services, _turn(request, key, body.text, body), bool(body.stream))


@router.post("/consolidate")
async def consolidate(
    request: Request,
    services: ServicesDep,
    key: SessionKeyDep,
    body: Annotated[ConsolidateBody, Depends(json_body(ConsolidateBody))],
) -> Response:
    """Rehearse now what the session has read."""
    return await _learn(request, services, _turn(request, key, None, body), bool(body.stream))


def _turn(request: Request, key: SessionKey, text: str | None, body: ConsolidateBody) -> LearnRequest:
    return LearnRequest(
        session=key,
        text=text,
        passes=body.passes,
        durability=read_durability(request.headers, body.durability),
        if_match=read_if_match(request.headers, body.if_match),
        attempt=read_attempt(request.headers),
    )


async def _learn(request: Request, services: Services, turn: LearnRequest, is_streamed: bool) -> Response:
    name = "consolidate" if turn.text is None else "learn"
    reply = LearnReply(name, turn.session.session_id)
    feed = TurnFeed(services.engine.learn(turn), request.receive, services.metrics.turn(name))
    on_sent = acknowledgement(services.engine, turn.session)
    if is_streamed:
        return await start_stream(feed, reply, on_sent)
    finished = await collect(feed)
    return whole_answer(reply.whole(finished), finished, on_sent)


class LearnReply:
    """The objects that answer a learn or consolidate request."""

    def __init__(self, name: str, session_id: str) -> None:
        self._name = name
        self._session_id = session_id

    def whole(self, finished: TurnFinished) -> dict[str, Any]:
        """Return the final object, streamed or not."""
        return {
            "object": f"session.{self._name}",
            "session_id": self._session_id,
            "usage": usage_object(finished.usage),
            "memory": receipt_object(finished.receipt),
        }

    def objects(self, event: TurnEvent) -> Iterator[dict[str, Any]]:
        """Yield the objects of one event."""
        if isinstance(event, LearnProgress):
            yield {
                "object": "session.learn.progress",
                "tokens_done": event.tokens_done,
                "tokens_total": event.tokens_total,
                "steps_done": event.steps_done,
                "steps_total": event.steps_total,
                "loss": finite(event.loss),
            }
        elif isinstance(event, TurnFinished):
            yield self.whole(event)


@router.post("/score")
async def score_continuations(
    request: Request,
    services: ServicesDep,
    key: SessionKeyDep,
    body: Annotated[ScoreBody, Depends(json_body(ScoreBody))],
) -> Response:
    """Return the log-probability of each continuation under the session's memory, which stays as it is."""
    question = ScoreRequest(
        continuations=tuple(body.continuations),
        messages=None if body.messages is None else tuple(message.to_message() for message in body.messages),
        prompt=body.prompt,
        session=None if body.is_stateless else key,
        window=body.window,
        tenant=key.tenant,
    )
    if (account := token_account.get()) is not None:
        account.begin()
    scores = await unless_gone(services.engine.score(question), request.receive)
    found = [{"logprob": finite(score.logprob), "num_tokens": score.num_tokens} for score in scores]
    return JsonResponse({"object": "session.score", "scores": found})
