"""POST /v1/responses: OpenAI's newer API, its chain of responses mapped to sessions and their versions.

A response without a past starts a session. One that goes on from the session's newest response goes on in it; one that
goes on from an older response does so in a branch, so that neither sees the other.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Annotated, NoReturn

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import Headers
from starlette.responses import Response

from hope_server.api.deps import Services, ServicesDep, TenantDep
from hope_server.api.errors import ResponseNotFound
from hope_server.api.json_body import json_body
from hope_server.api.models import check_model
from hope_server.api.response_body import ResponseBody
from hope_server.api.response_events import ResponseReply
from hope_server.api.response_ids import new_response_id, session_of_response
from hope_server.api.response_object import ResponseObject, spell_named
from hope_server.api.session_id import FoundSession, resolve_session_id
from hope_server.api.sse import Dialect, start_stream
from hope_server.api.turn_headers import read_attempt, turn_memory
from hope_server.api.turns import TurnFeed, acknowledgement, closing, collect, whole_answer
from hope_server.engine.turn import ChatRequest, MemoryOptions, SessionKey, TurnEvent, TurnFinished
from hope_server.errors import InvalidRequest, SessionExists, SessionNotFound, VersionMismatch, VersionNotFound

__all__ = ["router"]

router = APIRouter(prefix="/v1/responses")


@router.post("")
async def create_response(
    request: Request,
    services: ServicesDep,
    tenant: TenantDep,
    body: Annotated[ResponseBody, Depends(json_body(ResponseBody))],
) -> Response:
    """Serve one response, streamed or whole."""
    check_model(body.model, services.engine)
    chain = await _chain(request.headers, services, tenant, body)
    turn = ChatRequest(
        messages=body.to_messages(),
        sampling=body.to_sampling(),
        session=chain.session,
        memory=turn_memory(request.headers, _memory(body)),
        attempt=read_attempt(request.headers, new_response_id(chain.session.session_id if chain.session else None)),
        tool_use=body.to_tool_use(),
        output_format=body.to_format(),
        resends_history=chain.resends_history,
        may_be_side=chain.may_be_side and body.may_be_side,
        tenant=tenant,
    )
    response = ResponseObject(services.engine.model_id, turn, body)
    reply = ResponseReply(response, has_tools=turn.tool_use is not None and turn.tool_use.choice != "none")
    course = _Course(services, turn, chain, response, is_kept=body.store is not False)
    feed = TurnFeed(course.events(), request.receive, services.metrics.turn("response"))
    if body.stream:
        return await start_stream(feed, reply, course.acknowledge, Dialect(spell_named, reply.failure))
    finished = await collect(feed, reply.take)
    return whole_answer(reply.whole(finished), finished, course.acknowledge)


@dataclass(frozen=True, slots=True)
class _Chain:
    """What a response goes on from. version: of the session that it must find, None for whatever is there."""

    session: SessionKey | None
    version: str | None = None
    resends_history: bool = False
    may_be_side: bool = False


async def _chain(headers: Headers, services: Services, tenant: str, body: ResponseBody) -> _Chain:
    """Return what a request goes on from. Raises InvalidRequest, ResponseNotFound."""
    found = resolve_session_id(headers, body)
    previous = body.previous_response_id
    if previous is not None:
        if body.conversation is not None:
            reason = "previous_response_id and conversation are both given; send one of them"
            raise InvalidRequest(reason, param="previous_response_id")
        return await _after(previous, found, services, tenant)
    if found.session_id is not None:
        return _Chain(SessionKey(tenant, found.session_id), None, found.resends_history, may_be_side=True)
    if body.store is False:
        return _Chain(None)
    return _Chain(SessionKey(tenant, _new_session_id(read_attempt(headers).key, "")))


async def _after(previous: str, found: FoundSession, services: Services, tenant: str) -> _Chain:
    session_id = session_of_response(previous)
    if session_id is None:
        _refuse_previous(previous)
    if found.session_id not in (None, session_id) and not found.resends_history:
        reason = f"previous_response_id is of session {session_id}, but the request names {found.session_id}"
        raise InvalidRequest(f"{reason}; send one of them", param="previous_response_id")
    key = SessionKey(tenant, session_id)
    try:
        version = await services.engine.find_answer(key, previous)
    except SessionNotFound:
        version = None
    if version is None:
        _refuse_previous(previous)
    return _Chain(key, version)


def _refuse_previous(previous: str) -> NoReturn:
    reason = "no kept version of a session has it; send the conversation as input instead"
    raise ResponseNotFound(previous, reason, param="previous_response_id")


def _new_session_id(idempotency_key: str | None, previous: str) -> str:
    """Return a name for a session; of a request that may be repeated always the same, so that its answer is found."""
    if idempotency_key is None:
        return f"resp-{secrets.token_hex(12)}"
    parts = json.dumps([idempotency_key, previous]).encode()
    return "resp-" + hashlib.blake2b(parts, digest_size=12).hexdigest()


def _memory(body: ResponseBody) -> MemoryOptions:
    memory = body.to_memory()
    # What is not to be stored is not to be learned either, unless that is asked for in so many words.
    return replace(memory, mode="read") if body.store is False and body.may_be_side else memory


class _Course:
    """The turn of a response, which goes over to a branch where its session has gone on without it."""

    def __init__(
        self, services: Services, turn: ChatRequest, chain: _Chain, response: ResponseObject, *, is_kept: bool
    ) -> None:
        """`is_kept`: False drops a branch with the turn."""
        self._engine = services.engine
        self._turn = turn
        self._version = chain.version if turn.memory.if_match is None else None
        self._response = response
        self._is_kept = is_kept

    def acknowledge(self, finished: TurnFinished) -> None:
        """Note that the response was sent whole."""
        acknowledgement(self._engine, self._turn.session)(finished)

    async def events(self) -> AsyncGenerator[TurnEvent]:
        """Yield the turn's events."""
        turn = self._turn
        if self._version is not None:
            # The session itself first, always: it knows if it has answered this very request before.
            turn = replace(turn, memory=replace(turn.memory, if_match=self._version))
        try:
            async with closing(self._engine.chat(turn)) as events:
                async for event in events:
                    yield event
            return
        except VersionMismatch:
            if self._version is None:
                raise
        branch = await self._branch(self._version)
        try:
            async with closing(self._engine.chat(self._turn)) as events:
                async for event in events:
                    yield event
        finally:
            if not self._is_kept:
                await self._engine.delete_session(branch)

    async def _branch(self, version: str) -> SessionKey:
        """Turn to a copy of the session as it was at `version`."""
        session = self._turn.session
        assert session is not None
        name = _new_session_id(self._turn.attempt.key, f"{session.session_id}.{version}")
        branch = SessionKey(session.tenant, name)
        try:
            await self._engine.fork_session(session, branch.session_id, version)
        except SessionExists:
            # Made when the request came first.
            pass
        except (SessionNotFound, VersionNotFound):
            reason = "its version is not kept any more; send the conversation as input instead"
            raise ResponseNotFound(self._response.id, reason, param="previous_response_id") from None
        response_id = new_response_id(branch.session_id)
        self._turn = replace(self._turn, session=branch, attempt=replace(self._turn.attempt, answer_id=response_id))
        self._response.rename(response_id)
        return branch


@router.get("/{response_id}")
async def get_response(response_id: str) -> Response:
    """Refuse: a response is told once, and lives on in its session's memory."""
    raise ResponseNotFound(
        response_id, "responses are not kept to be read again; repeat the request with its Idempotency-Key instead"
    )
