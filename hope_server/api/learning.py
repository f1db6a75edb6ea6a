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
from hope_server.api.turns import TurnFeed, collect, unless_gone
from hope_server.api.wire import JsonResponse, finite, memory_headers, receipt_object, usage_object
from hope_server.engine.turn import LearnProgress, LearnRequest, ScoreRequest, TurnEvent, TurnFinished

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
    return await _learn(request, services, LearnRequest(key, body.text, body.passes), bool(body.stream))


@router.post("/consolidate")
async def consolidate(
    request: Request,
    services: ServicesDep,
    key: SessionKeyDep,
    body: Annotated[ConsolidateBody, Depends(json_body(ConsolidateBody))],
) -> Response:
    """Rehearse now what the session has read."""
    return await _learn(request, services, LearnRequest(key, None, body.passes), bool(body.stream))


async def _learn(request: Request, services: Services, turn: LearnRequest, is_streamed: bool) -> Response:
    name = "consolidate" if turn.text is None else "learn"
    reply = LearnReply(name, turn.session.session_id)
    feed = TurnFeed(services.engine.learn(turn), request.receive, services.metrics.turn(name))
    if is_streamed:
        return await start_stream(feed, reply)
    _, finished = await collect(feed)
    return JsonResponse(reply.whole(finished), headers=memory_headers(finished.receipt))


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

    def opening(self) -> tuple[dict[str, Any], ...]:
        """Return nothing: progress is the first thing said."""
        return ()

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
        session=key,
        window=body.window,
    )
    scores = await unless_gone(services.engine.score(question), request.receive)
    found = [{"logprob": finite(score.logprob), "num_tokens": score.num_tokens} for score in scores]
    return JsonResponse({"object": "session.score", "scores": found})
