"""/v1/sessions: create, list, look at, fork and delete sessions."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from hope_server.api.deps import SESSION_ID_RULE, ServicesDep, SessionKeyDep, TenantDep, is_session_id
from hope_server.api.json_body import json_body
from hope_server.api.schemas import CreateBody, ForkBody
from hope_server.api.validation import Between
from hope_server.api.wire import JsonResponse
from hope_server.engine.turn import SessionInfo, SessionKey
from hope_server.errors import InvalidRequest, SessionNotFound

__all__ = ["router"]

router = APIRouter(prefix="/v1/sessions")


def _new_id() -> str:
    return f"sess_{secrets.token_hex(12)}"


def _session_object(info: SessionInfo, model: str) -> dict[str, Any]:
    return {
        "id": info.session_id,
        "object": "session",
        "created": info.created,
        "updated": info.updated,
        "version": info.version,
        "turn": info.turn,
        "num_tokens": info.num_tokens,
        "tokens_learned": info.tokens_learned,
        "state_bytes": info.state_bytes,
        "model": model,
    }


@router.post("")
async def create_session(
    services: ServicesDep, tenant: TenantDep, body: Annotated[CreateBody, Depends(json_body(CreateBody))]
) -> Response:
    """Create a session, or return the one of that id: 201 when new, else 200."""
    info, is_new = await services.engine.create_session(SessionKey(tenant, body.id or _new_id()))
    return JsonResponse(_session_object(info, services.engine.model_id), status_code=201 if is_new else 200)


@router.get("")
async def list_sessions(
    services: ServicesDep,
    tenant: TenantDep,
    limit: Annotated[int, Query(), Between(1, 100)] = 20,
    after: str | None = None,
) -> Response:
    """List the caller's sessions, `limit` at a time; `after` is the last id of the page before."""
    if after is not None and not is_session_id(after):
        raise InvalidRequest(f"after is not a valid session id; {SESSION_ID_RULE}", param="after")
    # One more than asked tells whether there is another page.
    found = await services.engine.list_sessions(tenant, limit + 1, after)
    page = found[:limit]
    listing = {
        "object": "list",
        "data": [_session_object(info, services.engine.model_id) for info in page],
        "first_id": page[0].session_id if page else None,
        "last_id": page[-1].session_id if page else None,
        "has_more": len(found) > limit,
    }
    return JsonResponse(listing)


@router.get("/{session_id}")
async def get_session(services: ServicesDep, key: SessionKeyDep) -> Response:
    """Return one session."""
    return JsonResponse(_session_object(await services.engine.get_session(key), services.engine.model_id))


@router.delete("/{session_id}")
async def delete_session(services: ServicesDep, key: SessionKeyDep) -> Response:
    """Delete a session with all its versions."""
    if not await services.engine.delete_session(key):
        raise SessionNotFound(key.session_id)
    return JsonResponse({"id": key.session_id, "object": "session.deleted", "deleted": True})


@router.post("/{session_id}/fork")
async def fork_session(
    services: ServicesDep, key: SessionKeyDep, body: Annotated[ForkBody, Depends(json_body(ForkBody))]
) -> Response:
    """Give the session's present state a second name; the two then learn apart."""
    info = await services.engine.fork_session(key, body.id or _new_id())
    return JsonResponse(_session_object(info, services.engine.model_id), status_code=201)


@router.get("/{session_id}/versions")
async def list_versions(services: ServicesDep, key: SessionKeyDep) -> Response:
    """List the kept versions of a session, newest first."""
    return JsonResponse({"object": "list", "data": await services.engine.session_versions(key)})
