"""Builds requests without sending them, so that every client, sync or not, sends the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote, urlsplit

from hope_client.objects import MemoryOptions, Message, SessionInfo

_MAX_KEY = 255


@dataclass(frozen=True)
class Call:
    """One HTTP request: path below the base URL, body as bytes (None for none), and headers of its own.

    is_repeatable: sending it twice does no more than sending it once.
    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    is_repeatable: bool = True


@dataclass(frozen=True)
class Terms:
    """What a call that changes a session says of itself.

    key: its name; sent again under the same name it is answered again without being learned again.
    version: the version that the session must be at; None does not ask.
    """

    key: str
    version: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers that say it. Raises ValueError for a key that no header can carry."""
        if not 1 <= len(self.key) <= _MAX_KEY or not self.key.isascii() or not self.key.isprintable():
            raise ValueError(f"an idempotency key has 1 to {_MAX_KEY} printable ASCII characters")
        expected = {} if self.version is None else if_match(self.version)
        return {"Idempotency-Key": self.key, **expected}


def if_match(version: str) -> dict[str, str]:
    """Return the header that asks for a version."""
    return {"If-Match": f'"{version}"'}


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
    return Call("DELETE", session_path(session_id), is_repeatable=False)


def list_versions(session_id: str) -> Call:
    """Build the list of a session's kept versions."""
    return Call("GET", session_path(session_id, "/versions"))


def fork_session(session_id: str, new_id: str | None, version: str | None) -> Call:
    """Build the fork of a version (None: the newest); new_id None lets the server choose the id."""
    call = _json_call("POST", session_path(session_id, "/fork"), {"id": new_id, "version": version})
    return replace(call, is_repeatable=False)


def rollback(session_id: str, version: str, expected: str | None) -> Call:
    """Build the return to a kept version; `expected` is the version that the session must be at."""
    headers = {} if expected is None else if_match(expected)
    call = _json_call("POST", session_path(session_id, "/rollback"), {"version": version}, headers)
    return replace(call, is_repeatable=False)


def export_session(session_id: str, version: str | None) -> Call:
    """Build the export of a version (None: the newest)."""
    params = {} if version is None else {"version": version}
    return Call("GET", session_path(session_id, "/export"), params=params)


def import_session(data: bytes, session_id: str | None) -> Call:
    """Build the import of an export; None lets the server choose the id."""
    params = {} if session_id is None else {"id": session_id}
    headers = {"Content-Type": "application/octet-stream"}
    return Call("POST", "/v1/sessions/import", data, headers, params, is_repeatable=False)


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


def chat(session: SessionInfo, turn: Turn, terms: Terms, *, stream: bool) -> Call:
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
    return _json_call("POST", "/v1/chat/completions", body, {"X-Session-ID": session.id, **terms.headers})


def learn(session_id: str, text: str | None, passes: int | None, terms: Terms) -> Call:
    """Build a streamed learn call, or with `text` None a streamed consolidate call."""
    rest = "/consolidate" if text is None else "/learn"
    body = {"text": text, "passes": passes, "stream": True}
    return _json_call("POST", session_path(session_id, rest), body, terms.headers)


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
