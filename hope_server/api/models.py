"""GET /v1/models: the one model that this server serves."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from hope_server.api.deps import ServicesDep
from hope_server.api.engine_port import EnginePort
from hope_server.api.wire import JsonResponse
from hope_server.errors import ModelNotFound

__all__ = ["check_model", "router"]

router = APIRouter(prefix="/v1/models")


def check_model(model: str | None, engine: EnginePort) -> None:
    """Raise ModelNotFound unless `model` is the served one; None, a request that names none, means it too."""
    if model is not None and model != engine.model_id:
        raise ModelNotFound(model[:200], engine.model_id)


def _model_object(engine: EnginePort) -> dict[str, str | int]:
    return {"id": engine.model_id, "object": "model", "created": engine.created, "owned_by": "hope-server"}


@router.get("")
async def list_models(services: ServicesDep) -> Response:
    """List the served model."""
    return JsonResponse({"object": "list", "data": [_model_object(services.engine)]})


@router.get("/{model_id:path}")
async def get_model(model_id: str, services: ServicesDep) -> Response:
    """Return the served model."""
    check_model(model_id, services.engine)
    return JsonResponse(_model_object(services.engine))
