"""Builds requests without sending them, so that every client, sync or not, sends the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote, urlsplit

from hope_client.objects import SessionInfo
from hope_client.options import ChatOptions, MemoryOptions, Message, OpenAICall

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
        return {"Idempotency-Key": self.key, **if_match(self.version)}


def if_match(version: str | None) -> dict[str, str]:
    """Return the header that asks for a version, none where None is to be asked for."""
    return {} if version is None else {"If-Match": f'"{version}"'}


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


def create_session(session_id: str | None, ttl: float | None, metadata: Mapping[str, str] | None) -> Call:
    """Build the idempotent creation of a session; None lets the server choose the id, and leaves the rest as it is."""
    return _json_call("POST", "/v1/sessions", {"id": session_id, "ttl": ttl, "metadata": metadata})


@dataclass(frozen=True)
class Patch:
    """What to change of a session that is not what it knows; None leaves a field as it is."""

    frozen: bool | None = None
    ttl: float | None = None
    metadata: Mapping[str, str] | None = None


def patch_session(session_id: str, patch: Patch, expected: str | None) -> Call:
    """Build a patch; `expected`, here and below, is the version that the session must be at."""
    body = {"frozen": patch.frozen, "ttl": patch.ttl, "metadata": patch.metadata}
    return _json_call("PATCH", session_path(session_id), body, if_match(expected))


def set_frozen(session_id: str, is_frozen: bool, expected: str | None) -> Call:
    """Build the freezing or unfreezing of a session."""
    path = session_path(session_id, "/freeze" if is_frozen else "/unfreeze")
    return _json_call("POST", path, {}, if_match(expected))


def reset(session_id: str, levels: Sequence[str] | None, expected: str | None) -> Call:
    """Build the return of levels (None: all of them) to what they were at first."""
    body = {"levels": None if levels is None else list(levels)}
    call = _json_call("POST", session_path(session_id, "/reset"), body, if_match(expected))
    return replace(call, is_repeatable=False)


def add_snapshot(session_id: str, tag: str, version: str | None, expected: str | None) -> Call:
    """Build the tagging of a version (None: the newest)."""
    body = {"tag": tag, "version": version}
    return _json_call("POST", session_path(session_id, "/snapshots"), body, if_match(expected))


def list_snapshots(session_id: str) -> Call:
    """Build the list of a session's tags."""
    return Call("GET", session_path(session_id, "/snapshots"))


def delete_snapshot(session_id: str, tag: str, expected: str | None) -> Call:
    """Build the removal of a tag."""
    path = session_path(session_id, f"/snapshots/{quote(tag, safe='')}")
    return Call("DELETE", path, headers=if_match(expected), is_repeatable=False)


def memory_statistics(session_id: str) -> Call:
    """Build the look at a session's memory, level by level."""
    return Call("GET", session_path(session_id, "/memory"))


def list_turns(session_id: str) -> Call:
    """Build the list of a session's latest turns."""
    return Call("GET", session_path(session_id, "/turns"))


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
    """Build the return to a kept version or tag."""
    call = _json_call("POST", session_path(session_id, "/rollback"), {"version": version}, if_match(expected))
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


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """Return `prompt` as messages; text is what the user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def chat(
    session: SessionInfo, prompt: str | Sequence[Message], options: ChatOptions, terms: Terms, *, stream: bool
) -> Call:
    """Build a chat turn of `session`. Raises ValueError for an option that is not JSON."""
    body: dict[str, object] = {**options}
    more = body.pop("extra_body", None)
    body.pop("key", None)
    if isinstance(more, Mapping):
        body |= more
    body |= {"model": session.model, "messages": as_messages(prompt)}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return _json_call("POST", "/v1/chat/completions", body, {"X-Session-ID": session.id, **terms.headers})


def openai_call(session_id: str, memory: MemoryOptions | None, key: str | None) -> OpenAICall:
    """Return what makes a call of the openai client a turn of the session."""
    headers = {"X-Session-ID": session_id} if key is None else {"X-Session-ID": session_id, **Terms(key).headers}
    return {"extra_headers": headers, "extra_body": {} if memory is None else {"memory": memory}}


def learn(session_id: str, text: str | None, passes: int | None, terms: Terms) -> Call:
    """Build a streamed learn call, or with `text` None a streamed consolidate call."""
    rest = "/consolidate" if text is None else "/learn"
    body = {"text": text, "passes": passes, "stream": True}
    return _json_call("POST", session_path(session_id, rest), body, terms.headers)


@dataclass(frozen=True)
class Question:
    """What to score behind: exactly one of `prompt` and `messages`.

    window: False empties the attention window. has_memory: False asks the model without the session.
    """

    prompt: str | None = None
    messages: Sequence[Message] | None = None
    window: bool = True
    has_memory: bool = True


def score(session_id: str, continuations: Sequence[str], question: Question) -> Call:
    """Build a score call. Raises ValueError unless exactly one of `prompt` and `messages` is given."""
    if (question.prompt is None) == (question.messages is None):
        raise ValueError("give exactly one of prompt and messages")
    body = {
        "continuations": list(continuations),
        "prompt": question.prompt,
        "messages": None if question.messages is None else list(question.messages),
        "window": question.window,
        "memory": None if question.has_memory else {"mode": "off"},
    }
    return _json_call("POST", session_path(session_id, "/score"), body)
