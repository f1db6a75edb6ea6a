"""How the reason of a refused turn reaches the client: through the engine's reply, into the error of the HTTP answer.

vLLM answers every failed request with `Internal server error`. The engine's process writes status, code and sentence
where a reply says why it stopped; the API server's process reads them there.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from http import HTTPStatus
from typing import Any, NamedTuple

from hope_server.errors import (
    AnswerNotStored,
    DurabilityUnmet,
    HopeError,
    IdempotencyKeyReused,
    InvalidRequest,
    MemoryEvicted,
    MemoryRolledBack,
    SessionBusy,
    SessionConflict,
    SessionNotFound,
    StateIncompatible,
    StoreFull,
    StoreUnavailable,
)

_MARK = "hope-refusal "
_MAX_KEPT = 1024
_STATUSES: tuple[tuple[type[HopeError], HTTPStatus], ...] = (
    (InvalidRequest, HTTPStatus.BAD_REQUEST),
    (SessionNotFound, HTTPStatus.NOT_FOUND),
    (SessionBusy, HTTPStatus.CONFLICT),
    (SessionConflict, HTTPStatus.CONFLICT),
    (AnswerNotStored, HTTPStatus.CONFLICT),
    (MemoryRolledBack, HTTPStatus.CONFLICT),
    (StateIncompatible, HTTPStatus.CONFLICT),
    (MemoryEvicted, HTTPStatus.GONE),
    (IdempotencyKeyReused, HTTPStatus.UNPROCESSABLE_ENTITY),
    (DurabilityUnmet, HTTPStatus.SERVICE_UNAVAILABLE),
    (StoreFull, HTTPStatus.SERVICE_UNAVAILABLE),
    (StoreUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
)


class Reason(NamedTuple):
    """Why a turn was refused: HTTP status, code of the error, sentence."""

    status: int
    code: str
    message: str


def reason_text(error: HopeError) -> str:
    """Write an error into the one field of a reply that reaches the API server."""
    status = next((found for kind, found in _STATUSES if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    return _MARK + json.dumps([int(status), error.code, str(error)])


def read_reason(stop_reason: object) -> Reason | None:
    """Read what `reason_text` wrote; None for any other reason."""
    if not isinstance(stop_reason, str) or not stop_reason.startswith(_MARK):
        return None
    return Reason(*json.loads(stop_reason.removeprefix(_MARK)))


def tell_reasons() -> None:
    """Have vLLM's API server, in this process, answer refused turns with their reasons; once or more often."""
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing
    from vllm.exceptions import GenerationError
    from vllm.v1.engine import FinishReason
    from vllm.v1.engine.output_processor import RequestState

    if getattr(GenerateBaseServing, "_hope_tells_reasons", False):
        return
    reasons: OrderedDict[str, Reason] = OrderedDict()
    make_output, raise_if_error = RequestState.make_request_output, GenerateBaseServing._raise_if_error

    class TurnRefused(GenerationError):
        """An error whose words are ours."""

        def __init__(self, reason: Reason) -> None:
            super().__init__(f"{reason.code}: {reason.message}")
            self.status_code = HTTPStatus(reason.status)

    def make_and_note(
        state: Any, tokens: Any, pooled: Any, finish_reason: Any, stop_reason: Any, *rest: Any, error: Any = None
    ) -> Any:
        reason = read_reason(stop_reason) if finish_reason == FinishReason.ERROR else None
        if reason is not None:
            reasons[state.external_req_id] = reason
            while len(reasons) > _MAX_KEPT:
                reasons.popitem(last=False)
        return make_output(state, tokens, pooled, finish_reason, stop_reason, *rest, error=error)

    def raise_with_reason(serving: Any, finish_reason: str | None, request_id: str) -> None:
        if finish_reason == "error":
            # Of a completion with several prompts each request has a number behind this id.
            name = next((name for name in reasons if name == request_id or name.startswith(f"{request_id}-")), None)
            if name is not None:
                raise TurnRefused(reasons.pop(name))
        raise_if_error(serving, finish_reason, request_id)

    RequestState.make_request_output = make_and_note
    GenerateBaseServing._raise_if_error = raise_with_reason
    GenerateBaseServing._hope_tells_reasons = True
