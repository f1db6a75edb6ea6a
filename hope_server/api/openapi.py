"""GET /openapi.json: the description of this server's API.

There are no pages that show it: the usual ones load their code from elsewhere, and this server reaches out to nobody.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from hope_server.api.deps import ServicesDep
from hope_server.api.openapi_document import build_document
from hope_server.api.wire import JsonResponse, dump

__all__ = ["router"]

router = APIRouter()


@router.get("/openapi.json")
async def get_openapi_document(request: Request, services: ServicesDep) -> Response:
    """Return the OpenAPI document of this server."""
    state = request.app.state
    # Building takes longer than a request should hold up the others; the model never changes.
    if getattr(state, "openapi", None) is None:
        state.openapi = dump(build_document(state.routers, services.engine.model_id))
    return Response(state.openapi, media_type=JsonResponse.media_type)
