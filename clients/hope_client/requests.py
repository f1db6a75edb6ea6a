"""Builds requests without sending them, so that every client, sync or not, sends the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from hope_client.objects import MemoryOptions, Message, SessionInfo


@dataclass(frozen=True)
class Call:
    """One HTTP request: path below the base URL, JSON body as bytes (None for none), and headers of its own."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


def normalise_url(base_url: str) -> str:
    """Return `base_url` without a trailing slash or `/v1`. Raises ValueError when it is no http(s) URL."""
    try:
        parts = urlsplit(base_url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or not base_url.isascii() or not base_url.isprintable() or " " in base_url:
        raise ValueError(f"{base_url!r} is not the URL of a server; write it like http://127.0.0.1:8000")
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/")


def is_loopback(base_url: str) -> bool:
    """Return whether the URL names this machine, so that no proxy may come between."""
    host = urlsplit(base_url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def bearer(api_key: str | None) -> dict[str, str]:
    """Return the headers that carry the key. Raises ValueError for a key that no header can carry."""
    if api_key is None:
        return {}
    if not api_key or not api_key.isascii() or not api_key.isprintable():
        raise ValueError("the API key must be printable ASCII")
    return {"Authorization": f"Bearer {api_key}"}


def _json_call(method: str, path: str, body: Mapping[str, object], headers: Mapping[str, str] | None = None) -> Call:
    # Raises ValueError for NaN and infinity, which JSON cannot say.
    encoded = json.dumps({key: value for key, value in body.items() if value is not None}, allow_nan=False).encode()
    return Call(method, path, encoded, {"Content-Type": "application/json", **(headers or {})})


def session_path(session_id: str, rest: str = "") -> str:
    """Return the path of a session's resource, its id quoted."""
    return f"/v1/sessions/{quote(session_id, safe='')}{rest}"


def list_models() -> Call:
    """Build GET /v1/models."""
    return Call("GET", "/v1/models")


def check_ready() -> Call:
    """Build GET /ready."""
    return Call("GET", "/ready")


def create_session(session_id: str | None) -> Call:
    """Build the idempotent creation of a session; None lets the server choose the id."""
    return _json_call("POST", "/v1/sessions", {"id": session_id})


def list_sessions(limit: int, after: str | None) -> Call:
    """Build one page of the list of sessions, starting behind the id `after`."""
    params = {"limit": str(limit)} if after is None else {"limit": str(limit), "after": after}
    return Call("GET", "/v1/sessions", params=params)


def get_session(session_id: str) -> Call:
    """Build the look-up of one session."""
    return Call("GET", session_path(session_id))


def delete_session(session_id: str) -> Call:
    """Build the deletion of one session."""
    return Call("DELETE", session_path(session_id))


def list_versions(session_id: str) -> Call:
    """Build the list of a session's kept versions."""
    return Call("GET", session_path(session_id, "/versions"))


def fork_session(session_id: str, new_id: str | None) -> Call:
    """Build the fork of a session; None lets the server choose the new id."""
    return _json_call("POST", session_path(session_id, "/fork"), {"id": new_id})


@dataclass(frozen=True)
class Turn:
    """What a chat turn asks for. None takes the server's default.

    options: further parameters of POST /v1/chat/completions by their OpenAI names, such as `top_p`, `seed` or `stop`.
    """

    prompt: str | Sequence[Message]
    temperature: float | None = None
    max_tokens: int | None = None
    memory: MemoryOptions | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def chat(session: SessionInfo, turn: Turn, *, stream: bool) -> Call:
    """Build a chat turn of `session`. Raises ValueError for an option that is not JSON."""
    prompt = turn.prompt
    body: dict[str, object] = {
        **turn.options,
        "model": session.model,
        "messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt),
        "temperature": turn.temperature,
        "max_tokens": turn.max_tokens,
        "memory": turn.memory,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return _json_call("POST", "/v1/chat/completions", body, {"X-Session-ID": session.id})


def learn(session_id: str, text: str | None, passes: int | None) -> Call:
    """Build a streamed learn call, or with `text` None a streamed consolidate call."""
    rest = "/consolidate" if text is None else "/learn"
    return _json_call("POST", session_path(session_id, rest), {"text": text, "passes": passes, "stream": True})


def score(
    session_id: str,
    continuations: Sequence[str],
    *,
    prompt: str | None,
    messages: Sequence[Message] | None,
    window: bool,
) -> Call:
    """Build a score call. Raises ValueError unless exactly one of `prompt` and `messages` is given."""
    if (prompt is None) == (messages is None):
        raise ValueError("give exactly one of prompt and messages")
    body = {
        "continuations": list(continuations),
        "prompt": prompt,
        "messages": None if messages is None else list(messages),
        "window": window,
    }
    return _json_call("POST", session_path(session_id, "/score"), body)
