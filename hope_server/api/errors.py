"""How errors leave the service: one table from `code` to status, one body, one handler for each source.

The tree of hope_server/errors.py, and those that only HTTP knows:

HopeError
├── BodyTooLarge        request_too_large       413  `limit`
├── EngineNotStarted    startup_error           503  the engine failed to start; the log says why
├── HeadersTooLarge     headers_too_large       431
├── HostNotAllowed      host_not_allowed        421
├── InsufficientScope   insufficient_scope      403  `scope`
├── InvalidApiKey       invalid_api_key         401
├── Loading             loading                 503
├── MethodNotAllowed    method_not_allowed      405
├── QuotaExceeded       quota_exceeded          403
├── RateLimitExceeded   rate_limit_exceeded     429  `retry_after_seconds`
├── RequestTimeout      request_timeout         408
├── ResponseNotFound    response_not_found      404  `response_id`
├── RouteNotFound       not_found               404
└── UnsupportedMedia    unsupported_media_type  415
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from hope_server.api.validation import first_fault
from hope_server.api.wire import JsonResponse
from hope_server.errors import HopeError, InternalError, NoRoom, Overloaded, SessionBusy
from hope_server.telemetry import log_event, request_id

__all__ = [
    "BodyTooLarge",
    "EngineNotStarted",
    "HeadersTooLarge",
    "HostNotAllowed",
    "InsufficientScope",
    "InvalidApiKey",
    "Loading",
    "MethodNotAllowed",
    "QuotaExceeded",
    "RateLimitExceeded",
    "RequestTimeout",
    "ResponseNotFound",
    "RouteNotFound",
    "UnsupportedMedia",
    "codes_of_status",
    "error_object",
    "error_response",
    "install_error_handlers",
    "unexpected_error",
]

CLIENT_CLOSED_REQUEST = 499

_STATUS = {
    "invalid_request": 400,
    "prompt_too_long": 400,
    "invalid_api_key": 401,
    # Not 429: waiting changes nothing, and stock clients repeat a 429 by themselves.
    "quota_exceeded": 403,
    "insufficient_scope": 403,
    "model_not_found": 404,
    "not_found": 404,
    "response_not_found": 404,
    "session_not_found": 404,
    "version_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "session_busy": 409,
    "session_conflict": 409,
    "session_exists": 409,
    "session_frozen": 409,
    "state_incompatible": 409,
    "memory_rolled_back": 409,
    "answer_not_stored": 409,
    "memory_evicted": 410,
    "version_mismatch": 412,
    "request_too_large": 413,
    "state_too_large": 413,
    "unsupported_media_type": 415,
    "host_not_allowed": 421,
    "idempotency_key_reused": 422,
    "overloaded": 429,
    "rate_limit_exceeded": 429,
    "headers_too_large": 431,
    "cancelled": CLIENT_CLOSED_REQUEST,
    "internal_error": 500,
    "state_corrupt": 500,
    "durability_unmet": 503,
    "loading": 503,
    "no_room": 503,
    "shutting_down": 503,
    "startup_error": 503,
    "store_unavailable": 503,
    "store_full": 507,
}
# What may go well when it is sent again, and when. The stock OpenAI client repeats 409 and 5xx by itself; everything
# that is not listed stays as it is however often it is asked, and says so.
_RETRY_AFTER_SECONDS = {
    "durability_unmet": 1.0,
    "loading": 1.0,
    "overloaded": 1.0,
    "session_busy": 1.0,
    "session_conflict": 1.0,
    "shutting_down": 1.0,
    "store_unavailable": 1.0,
}


class BodyTooLarge(HopeError):
    """The request's body has more bytes than the route takes."""

    code = "request_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit:,} bytes, the limit of this route; send it in parts")
        self.limit = limit


class EngineNotStarted(HopeError):
    """The engine failed to start, so nothing can be served."""

    code = "startup_error"


class HeadersTooLarge(HopeError):
    """The request's headers are too many, or too long together."""

    code = "headers_too_large"


class HostNotAllowed(HopeError):
    """A server without keys was called by a name that is not its own, as a web page can make a browser do."""

    code = "host_not_allowed"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"the Host header is {host!r}, which is no name of this server; use its IP address or localhost, "
            "add the name to HOPE_ALLOWED_HOSTS, or give the server keys"
        )


class InsufficientScope(HopeError):
    """The key is good, but not for this; `scope` is what it lacks."""

    code = "insufficient_scope"

    def __init__(self, scope: str) -> None:
        super().__init__(f"this API key lacks the scope {scope}; use a key that has it (hope keys create --scopes)")
        self.scope = scope


class InvalidApiKey(HopeError):
    """The request carries no key that this server knows."""

    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("no valid API key; send the header `Authorization: Bearer <key>` with a key of this server")


class Loading(HopeError):
    """The engine is still loading its model."""

    code = "loading"

    def __init__(self) -> None:
        super().__init__("the model is still loading; retry in a moment, GET /ready says when")


class MethodNotAllowed(HopeError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"


class QuotaExceeded(HopeError):
    """The caller keeps as much on this server as its key allows."""

    code = "quota_exceeded"


class RateLimitExceeded(HopeError):
    """The caller asks for more at a time than its key allows."""

    code = "rate_limit_exceeded"

    def __init__(self, limit: str, retry_after_seconds: float) -> None:
        """`limit` says what the key may do, like `60 requests a minute`."""
        wait = max(1, math.ceil(retry_after_seconds))
        super().__init__(f"the limit of this API key is {limit}; retry in {wait} s")
        self.retry_after_seconds = retry_after_seconds


class RequestTimeout(HopeError):
    """The request came too slowly."""

    code = "request_timeout"


class ResponseNotFound(HopeError):
    """No response of that id can be gone on from, or read."""

    code = "response_not_found"

    def __init__(self, response_id: str, reason: str, *, param: str | None = None) -> None:
        """`reason` says why, and what to do."""
        super().__init__(f"no response {ascii(response_id)[1:-1][:120]!r}: {reason}", param=param)
        self.response_id = response_id


class RouteNotFound(HopeError):
    """No route has this path."""

    code = "not_found"


class UnsupportedMedia(HopeError):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"


def status_of(error: HopeError) -> int:
    """Return the HTTP status of an error; 500 for a code the table lacks."""
    return _STATUS.get(error.code, 500)


def codes_of_status(status: int) -> list[str]:
    """Return the codes of all errors that answer with `status`."""
    return [code for code, each in _STATUS.items() if each == status]


def error_object(error: HopeError) -> dict[str, Any]:
    """Return OpenAI's error body, the same in a response and inside a stream."""
    status = status_of(error)
    kind = "not_found_error" if status == 404 else "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: HopeError) -> Response:
    """Return the complete response of an error that came before anything was sent."""
    headers: dict[str, str] = {}
    seconds = _RETRY_AFTER_SECONDS.get(error.code)
    if isinstance(error, NoRoom | Overloaded | RateLimitExceeded | SessionBusy):
        seconds = error.retry_after_seconds
    if seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    else:
        headers["x-should-retry"] = "false"
    if isinstance(error, InvalidApiKey):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge | RequestTimeout):
        # What is left of the body is not read.
        headers["Connection"] = "close"
    return JsonResponse(error_object(error), status_code=status_of(error), headers=headers)


def unexpected_error() -> InternalError:
    """Return what a client may know of a fault of ours: never the exception's own text, which can quote a prompt."""
    current = request_id.get()
    where = f"; the server's log has the details under request id {current}" if current else ""
    return InternalError(f"the server failed while serving this request and kept nothing of it{where}")


async def _on_hope_error(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HopeError)
    if status_of(exc) >= 500:
        log_event("request_refused", {"code": exc.code})
    return error_response(exc)


async def _on_validation_error(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    return error_response(first_fault(exc.errors()))


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    path = request.url.path[:200]
    if exc.status_code == 404:
        return error_response(RouteNotFound(f"there is no route {request.method} {path}; the API lies under /v1"))
    if exc.status_code == 405:
        allowed = (exc.headers or {}).get("Allow", "another method")
        response = error_response(MethodNotAllowed(f"{request.method} is not allowed on {path}; use {allowed}"))
        response.headers["Allow"] = allowed
        return response
    kind = "invalid_request_error" if exc.status_code < 500 else "server_error"
    message = HTTPStatus(exc.status_code).phrase
    body = {"error": {"message": message, "type": kind, "param": None, "code": "http_error"}}
    return JsonResponse(body, status_code=exc.status_code, headers=exc.headers)


async def _on_client_gone(_request: Request, _exc: Exception) -> Response:
    # Nobody reads it; the status is for the request log.
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` answer in OpenAI's shape; unexpected ones are caught by RequestContext."""
    app.add_exception_handler(HopeError, _on_hope_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
