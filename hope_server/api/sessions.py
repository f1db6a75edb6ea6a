"""/v1/sessions: create, list, look at, change, tag, reset, set back, fork, export, import and delete sessions."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from hope_server.api.deps import SESSION_ID_RULE, Services, ServicesDep, SessionKeyDep, TenantDep, is_session_id
from hope_server.api.errors import UnsupportedMedia
from hope_server.api.json_body import json_body
from hope_server.api.session_bodies import (
    TAG_RULE,
    CreateBody,
    EmptyBody,
    ForkBody,
    PatchBody,
    ResetBody,
    RollbackBody,
    SnapshotBody,
    is_tag,
)
from hope_server.api.turn_headers import VERSION_RULE, is_version_condition, read_if_match
from hope_server.api.validation import Between
from hope_server.api.wire import JsonResponse
from hope_server.engine.turn import SessionInfo, SessionKey
from hope_server.errors import InvalidRequest, SessionNotFound

__all__ = ["router"]

router = APIRouter(prefix="/v1/sessions")

_ARCHIVE_TYPE = "application/octet-stream"


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
        "frozen": info.is_frozen,
        "ttl": info.ttl_seconds,
        "expires": info.expires,
        "metadata": info.metadata,
        "tags": info.tags,
        "model": model,
    }


def _session_response(services: Services, info: SessionInfo, status_code: int = 200) -> Response:
    headers = {"x-memory-session": info.session_id}
    if info.version is not None:
        headers |= {"x-memory-version": info.version, "ETag": f'"{info.version}"'}
    return JsonResponse(_session_object(info, services.engine.model_id), status_code=status_code, headers=headers)


@router.post("")
async def create_session(
    services: ServicesDep, tenant: TenantDep, body: Annotated[CreateBody, Depends(json_body(CreateBody))]
) -> Response:
    """Create a session, or return the one of that id: 201 when new, else 200. `ttl` and `metadata` apply to both."""
    key = SessionKey(tenant, body.id or _new_id())
    info, is_new = await services.engine.create_session(key)
    if body.ttl is not None or body.metadata is not None:
        info = await services.engine.update_session(key, ttl_seconds=body.ttl, metadata=body.metadata)
    return _session_response(services, info, 201 if is_new else 200)


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
    return _session_response(services, await services.engine.get_session(key))


@router.delete("/{session_id}")
async def delete_session(services: ServicesDep, key: SessionKeyDep) -> Response:
    """Delete a session with all its versions."""
    if not await services.engine.delete_session(key):
        raise SessionNotFound(key.session_id)
    return JsonResponse({"id": key.session_id, "object": "session.deleted", "deleted": True})


@router.patch("/{session_id}")
async def patch_session(
    request: Request,
    services: ServicesDep,
    key: SessionKeyDep,
    body: Annotated[PatchBody, Depends(json_body(PatchBody))],
) -> Response:
    """Freeze or unfreeze a session, limit its life, or replace its labels."""
    info = await services.engine.update_session(
        key,
        is_frozen=body.frozen,
        ttl_seconds=body.ttl,
        metadata=body.metadata,
        if_match=read_if_match(request.headers, None),
    )
    return _session_response(services, info)


@router.post("/{session_id}/freeze")
async def freeze_session(
    request: Request,
    services: ServicesDep,
    key: SessionKeyDep,
    body: Annotated[EmptyBody, Depends(json_body(EmptyBody))],
) -> Response:
    """Let a session's turns read and not learn."""
    if_match = read_if_match(request.headers, None)
    return _session_response(services, await services.engine.update_session(key, is_frozen=True, if_match=if_match))


@router.post("/{session_id}/unfreeze")
async def unfreeze_session(
    request: Request,
    services: ServicesDep,
    key: SessionKeyDep,
    body: Annotated[EmptyBody, Depends(json_body(EmptyBody))],
) -> Response:
    """Let a session's turns learn again."""
    if_match = read_if_match(request.headers, None)
    return _session_response(services, await services.engine.update_session(key, is_frozen=False, if_match=if_match))


@router.post("/{session_id}/reset")
async def reset_session(
    request: Request,
    services: ServicesDep,
    key: SessionKeyDep,
    body: Annotated[ResetBody, Depends(json_body(ResetBody))],
) -> Response:
    """Make levels of a session's memory new; the conversation stays in sight."""
    if_match = read_if_match(request.headers, None)
    return _session_response(services, await services.engine.reset_session(key, body.levels, if_match))


@router.post("/{session_id}/snapshots")
async def create_snapshot(
    request: Request,
    services: ServicesDep,
    key: SessionKeyDep,
    body: Annotated[SnapshotBody, Depends(json_body(SnapshotBody))],
) -> Response:
    """Keep a version under a name until that is deleted; the answer is the session with its tags."""
    if_match = read_if_match(request.headers, None)
    return _session_response(services, await services.engine.create_snapshot(key, body.tag, body.version, if_match))


@router.get("/{session_id}/snapshots")
async def list_snapshots(services: ServicesDep, key: SessionKeyDep) -> Response:
    """List a session's snapshots, newest version first."""
    return JsonResponse({"object": "list", "data": await services.engine.list_snapshots(key)})


@router.delete("/{session_id}/snapshots/{tag}")
async def delete_snapshot(request: Request, services: ServicesDep, key: SessionKeyDep, tag: str) -> Response:
    """Delete a snapshot; its version is kept like any other from then on."""
    if not is_tag(tag):
        raise InvalidRequest(f"the tag in the path is not valid; {TAG_RULE}", param="tag")
    await services.engine.delete_snapshot(key, tag, read_if_match(request.headers, None))
    return JsonResponse({"tag": tag, "object": "session.snapshot.deleted", "deleted": True})


@router.get("/{session_id}/memory")
async def get_memory(services: ServicesDep, key: SessionKeyDep) -> Response:
    """Say what a session's memory holds, level by level."""
    found = await services.engine.session_memory(key)
    return JsonResponse({"object": "session.memory", "session_id": key.session_id, **found})


@router.get("/{session_id}/turns")
async def list_turns(services: ServicesDep, key: SessionKeyDep) -> Response:
    """List a session's last turns, newest first."""
    return JsonResponse({"object": "list", "data": await services.engine.session_turns(key)})


@router.post("/{session_id}/fork")
async def fork_session(
    services: ServicesDep, key: SessionKeyDep, body: Annotated[ForkBody, Depends(json_body(ForkBody))]
) -> Response:
    """Give the state of a kept version or snapshot a second name; the two then learn apart."""
    info = await services.engine.fork_session(key, body.id or _new_id(), body.version)
    return _session_response(services, info, 201)


@router.get("/{session_id}/versions")
async def list_versions(services: ServicesDep, key: SessionKeyDep) -> Response:
    """List the kept versions of a session, newest first."""
    return JsonResponse({"object": "list", "data": await services.engine.session_versions(key)})


@router.post("/{session_id}/rollback")
async def rollback_session(
    request: Request,
    services: ServicesDep,
    key: SessionKeyDep,
    body: Annotated[RollbackBody, Depends(json_body(RollbackBody))],
) -> Response:
    """Make the state of a kept version or snapshot the newest; what came after it stays among the versions."""
    if_match = read_if_match(request.headers, None)
    return _session_response(services, await services.engine.rollback_session(key, body.version, if_match))


@router.get("/{session_id}/export")
async def export_session(services: ServicesDep, key: SessionKeyDep, version: str | None = None) -> Response:
    """Return the state of a kept version as one file; without `version` the newest."""
    if version is not None and not is_version_condition(version):
        raise InvalidRequest(f"version is not a version; {VERSION_RULE}", param="version")
    exported, data = await services.engine.export_session(key, version)
    headers = {
        "Content-Disposition": f'attachment; filename="{key.session_id}.hope"',
        "x-memory-session": key.session_id,
        "x-memory-version": exported,
    }
    return Response(data, media_type=_ARCHIVE_TYPE, headers=headers)


@router.post("/import")
async def import_session(request: Request, services: ServicesDep, tenant: TenantDep, id: str | None = None) -> Response:
    """Make a session of an exported file, which is the body, under the id `id` or a generated one."""
    if id is not None and not is_session_id(id):
        raise InvalidRequest(f"id is not a valid session id; {SESSION_ID_RULE}", param="id")
    # A web page can post other types across origins without asking first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _ARCHIVE_TYPE:
        raise UnsupportedMedia(f"the Content-Type is {kind[:100] or 'missing'}; send `Content-Type: {_ARCHIVE_TYPE}`")
    info = await services.engine.import_session(SessionKey(tenant, id or _new_id()), await request.body())
    return _session_response(services, info, 201)
