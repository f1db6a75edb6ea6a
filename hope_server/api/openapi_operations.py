"""What the API's description says of each operation that the routes themselves do not: answers, errors, examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hope_server.api import openapi_answers as answers

__all__ = ["HEADERS", "OPERATIONS", "PARAMETERS", "Operation"]

_ANY = frozenset({400, 401, 403, 421, 429, 431, 500, 503})
_BODY = _ANY | {408, 413, 415}
_LOOK = _ANY | {404, 410}
_CHANGE = _BODY | {404, 409, 410, 412, 507}
_TURN = _CHANGE | {422}
_ID = "^[A-Za-z0-9_-]{1,64}$"
_VERSION = r"^(\*|[A-Za-z0-9_-]{1,64})$"

HEADERS: Mapping[str, dict[str, Any]] = {
    "X-Session-ID": {
        "description": "The session of the turn; goes before every other place that names one.",
        "schema": {"type": "string", "pattern": _ID},
        "example": "ada",
    },
    "Idempotency-Key": {
        "description": "Names the request, so that sent again it is answered again and learned once.",
        "schema": {"type": "string", "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
        "example": "7f1c",
    },
    "If-Match": {
        "description": 'The version that the session must be at, "*" for any.',
        "schema": {"type": "string", "pattern": _VERSION},
        "example": "*",
    },
}
"""Header parameters by name."""

PARAMETERS: Mapping[str, dict[str, Any]] = {
    "session_id": {"schema": {"type": "string", "pattern": _ID}, "example": "ada"},
    "after": {"schema": {"type": "string", "pattern": _ID}, "example": "ada"},
    "id": {"schema": {"type": "string", "pattern": _ID}, "example": "grace"},
    "version": {"schema": {"type": "string", "pattern": _VERSION}, "example": "*"},
    "tag": {
        "schema": {"type": "string", "pattern": "^(?![0-9a-f]{32}$)[A-Za-z0-9_-]{1,64}$"},
        "example": "before-the-exam",
    },
    "limit": {"example": 20},
    "model_id": {"schema": {"type": "string", "minLength": 1}},
    "response_id": {"schema": {"type": "string", "minLength": 1}, "example": "resp_YWRhLg"},
}
"""What is known of path and query parameters, by name."""

_TURN_HEADERS = ("X-Session-ID", "Idempotency-Key")
_KEY = ("Idempotency-Key",)
_MATCH = ("If-Match",)
_MESSAGES = [{"role": "user", "content": "Where does Mira keep the violin?"}]
_WEATHER = {
    "name": "get_weather",
    "description": "Say what the weather is",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. answer: its shape, None for other media; examples: request bodies by name."""

    tag: str
    answer: Any
    errors: frozenset[int] = _ANY
    statuses: tuple[int, ...] = (200,)
    examples: Mapping[str, Any] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    is_streamed: bool = False
    media_type: str = "application/json"
    body_type: str | None = None


OPERATIONS: Mapping[str, Operation] = {
    "GET /health": Operation("service", answers.Status, frozenset({431})),
    "GET /ready": Operation("service", answers.Status, frozenset({431}), (200, 503)),
    "GET /metrics": Operation("service", None, media_type="text/plain"),
    "GET /openapi.json": Operation("service", dict[str, Any]),
    "GET /v1/models": Operation("models", answers.ModelList),
    "GET /v1/models/{model_id}": Operation("models", answers.Model, _ANY | {404}),
    "POST /v1/chat/completions": Operation(
        "turns",
        answers.Chat,
        _TURN,
        is_streamed=True,
        headers=_TURN_HEADERS,
        examples={
            "chat": {"messages": _MESSAGES, "session_id": "ada", "max_tokens": 64},
            "tools": {
                "messages": [{"role": "user", "content": "Do I need a coat in Bern?"}],
                "tools": [{"type": "function", "function": _WEATHER}],
                "tool_choice": "auto",
            },
            "read_only": {"messages": _MESSAGES, "session_id": "ada", "memory": {"mode": "read"}, "n": 2},
        },
    ),
    "POST /v1/completions": Operation(
        "turns",
        answers.Completion,
        _TURN,
        is_streamed=True,
        headers=_TURN_HEADERS,
        examples={"text": {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0, "logprobs": 2}},
    ),
    "POST /v1/responses": Operation(
        "turns",
        answers.ResponseAnswer,
        _TURN,
        is_streamed=True,
        headers=_TURN_HEADERS,
        examples={
            "text": {"input": "Mira keeps the violin in the red barn.", "instructions": "Answer in one word."},
            "items": {
                "conversation": "ada",
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
                "tools": [{"type": "function", **_WEATHER}],
            },
        },
    ),
    "GET /v1/responses/{response_id}": Operation("turns", None, _ANY | {404}, statuses=()),
    "POST /v1/embeddings": Operation("turns", None, _ANY | {404, 408, 413}, statuses=()),
    "POST /v1/sessions": Operation(
        "sessions", answers.Session, _CHANGE, (200, 201), {"named": {"id": "ada", "ttl": 86400}, "unnamed": {}}
    ),
    "GET /v1/sessions": Operation("sessions", answers.SessionList),
    "POST /v1/sessions/import": Operation(
        "sessions", answers.Session, _CHANGE, (201,), body_type="application/octet-stream"
    ),
    "GET /v1/sessions/{session_id}": Operation("sessions", answers.Session, _LOOK),
    "PATCH /v1/sessions/{session_id}": Operation(
        "sessions", answers.Session, _CHANGE, examples={"freeze": {"frozen": True}}, headers=_MATCH
    ),
    "DELETE /v1/sessions/{session_id}": Operation("sessions", answers.Deleted, _LOOK),
    "POST /v1/sessions/{session_id}/freeze": Operation(
        "sessions", answers.Session, _CHANGE, examples={"empty": {}}, headers=_MATCH
    ),
    "POST /v1/sessions/{session_id}/unfreeze": Operation(
        "sessions", answers.Session, _CHANGE, examples={"empty": {}}, headers=_MATCH
    ),
    "POST /v1/sessions/{session_id}/reset": Operation(
        "sessions", answers.Session, _CHANGE, examples={"all": {}, "some": {"levels": ["journal"]}}, headers=_MATCH
    ),
    "POST /v1/sessions/{session_id}/snapshots": Operation(
        "sessions", answers.Session, _CHANGE, examples={"newest": {"tag": "before-the-exam"}}, headers=_MATCH
    ),
    "GET /v1/sessions/{session_id}/snapshots": Operation("sessions", answers.Listing, _LOOK),
    "DELETE /v1/sessions/{session_id}/snapshots/{tag}": Operation(
        "sessions", answers.SnapshotDeleted, _LOOK | {409, 412}, headers=_MATCH
    ),
    "GET /v1/sessions/{session_id}/memory": Operation("sessions", answers.MemoryAnswer, _LOOK | {409}),
    "GET /v1/sessions/{session_id}/turns": Operation("sessions", answers.Listing, _LOOK),
    "POST /v1/sessions/{session_id}/fork": Operation(
        "sessions", answers.Session, _CHANGE, (201,), {"named": {"id": "grace"}}
    ),
    "GET /v1/sessions/{session_id}/versions": Operation("sessions", answers.Listing, _LOOK),
    "POST /v1/sessions/{session_id}/rollback": Operation(
        "sessions", answers.Session, _CHANGE, examples={"tag": {"version": "before-the-exam"}}, headers=_MATCH
    ),
    "GET /v1/sessions/{session_id}/export": Operation(
        "sessions", None, _LOOK | {409}, media_type="application/octet-stream"
    ),
    "POST /v1/sessions/{session_id}/learn": Operation(
        "learning",
        answers.LearnAnswer,
        _TURN,
        examples={"text": {"text": "Mira keeps the violin in the red barn.", "passes": 4}},
        headers=_KEY,
        is_streamed=True,
    ),
    "POST /v1/sessions/{session_id}/consolidate": Operation(
        "learning", answers.LearnAnswer, _TURN, examples={"default": {}}, headers=_KEY, is_streamed=True
    ),
    "POST /v1/sessions/{session_id}/score": Operation(
        "learning",
        answers.Scores,
        _CHANGE,
        examples={"prompt": {"prompt": "The violin is in the", "continuations": [" red barn", " blue car"]}},
    ),
}
"""Every operation by method and path."""
