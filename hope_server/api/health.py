"""GET /health, /ready and /metrics: for supervisors and dashboards."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from hope_server.api.deps import ServicesDep
from hope_server.api.wire import JsonResponse

__all__ = ["router"]

router = APIRouter()


@router.get("/health")
async def get_health() -> Response:
    """Say that the process lives."""
    return JsonResponse({"status": "ok"})


@router.get("/ready")
async def get_ready(services: ServicesDep) -> Response:
    """Say whether turns are taken, and sessions can be reached."""
    if not services.engine.is_ready:
        return JsonResponse({"status": services.startup.status}, status_code=503)
    if not services.engine.reaches_store:
        return JsonResponse({"status": "store_unavailable"}, status_code=503)
    return JsonResponse({"status": "ready"})


@router.get("/metrics")
async def get_metrics(services: ServicesDep) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(services.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})
