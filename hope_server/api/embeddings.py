"""/v1/embeddings: refused in so many words, as half an implementation would break clients later."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from hope_server.api.errors import RouteNotFound

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/embeddings", status_code=404)
async def create_embeddings() -> Response:
    """Refuse: this server embeds no text."""
    raise RouteNotFound(
        "embeddings are not served here, the model writes text; send them to a server of an embedding model"
    )
