"""What route functions are handed: the service's parts, the caller's tenant, the session that the path names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from hope_server.api.engine_port import EnginePort
from hope_server.api.middleware import Startup
from hope_server.api.pacing import Pace
from hope_server.engine.turn import SessionKey
from hope_server.errors import InvalidRequest
from hope_server.settings import Settings
from hope_server.telemetry import Metrics, Tracing

__all__ = ["SESSION_ID_RULE", "Services", "ServicesDep", "SessionKeyDep", "TenantDep", "is_session_id"]

SESSION_ID_RULE = "use 1 to 64 letters, digits, _ or -"
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_session_id(text: str) -> bool:
    """Return whether `text` can name a session."""
    return _SESSION_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that one app serves with."""

    engine: EnginePort
    settings: Settings
    metrics: Metrics
    startup: Startup
    tracing: Tracing | None = None
    pace: Pace = field(default_factory=Pace)


# Coroutines, because FastAPI sends plain functions through a thread pool.
async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def _tenant(request: Request) -> str:
    tenant = request.state.tenant
    assert isinstance(tenant, str)
    return tenant


ServicesDep = Annotated[Services, Depends(_services)]
TenantDep = Annotated[str, Depends(_tenant)]


async def _session_key(session_id: str, tenant: TenantDep) -> SessionKey:
    if not is_session_id(session_id):
        raise InvalidRequest(f"the session id in the path is not valid; {SESSION_ID_RULE}", param="session_id")
    return SessionKey(tenant, session_id)


SessionKeyDep = Annotated[SessionKey, Depends(_session_key)]
