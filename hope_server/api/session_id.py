"""Which session a request belongs to: the places where clients put an id, in order."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator
from starlette.datastructures import Headers

from hope_server.api.deps import SESSION_ID_RULE, is_session_id
from hope_server.api.schemas import Body, MemoryBody, SessionIdText
from hope_server.api.validation import Checked, kind_of
from hope_server.engine.turn import MemoryOptions
from hope_server.errors import InvalidRequest

__all__ = ["FoundSession", "SessionBody", "resolve_session_id"]


class ConversationBody(BaseModel):
    """OpenAI's other form of naming a conversation."""

    id: SessionIdText


def _id_of_object(value: object) -> object:
    return value.get("id") if isinstance(value, dict) else value


def _check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    given = metadata.get("session_id")
    if given is not None and not isinstance(given, str):
        reason = f"metadata.session_id must be a string, not {kind_of(given)}"
        raise InvalidRequest(reason, param="metadata.session_id")
    if given is not None and not is_session_id(given):
        reason = f"metadata.session_id is not a valid session id; {SESSION_ID_RULE}"
        raise InvalidRequest(reason, param="metadata.session_id")
    return metadata


_METADATA = {"properties": {"session_id": {"type": ["string", "null"], "pattern": "^[A-Za-z0-9_-]{1,64}$"}}}
Conversation = Annotated[
    SessionIdText, BeforeValidator(_id_of_object, json_schema_input_type=SessionIdText | ConversationBody)
]


class SessionBody(Body):
    """Where a turn's body can name its session, and what the turn may do with its memory."""

    session_id: SessionIdText | None = None
    conversation: Conversation | None = None
    metadata: Annotated[dict[str, Any], Checked(_check_metadata, _METADATA)] | None = None
    prompt_cache_key: str | None = None
    memory: MemoryBody | None = None

    @property
    def may_be_side(self) -> bool:
        """Whether the caller left it to the server if the turn teaches."""
        return self.memory is None or not self.memory.has_mode

    def to_memory(self) -> MemoryOptions:
        """Return what the turn may do with memory."""
        return MemoryOptions() if self.memory is None else self.memory.to_options()


class FoundSession(NamedTuple):
    """A request's session. resends_history: it was named as clients do that send the whole conversation each time."""

    session_id: str | None
    resends_history: bool


def resolve_session_id(headers: Headers, body: SessionBody) -> FoundSession:
    """Return the request's session; without one nothing is learned.

    First found wins: header X-Session-ID, body session_id, conversation, metadata.session_id, header
    X-OpenWebUI-Chat-Id, header x-litellm-session-id, header x-session-affinity, body prompt_cache_key. Ids of the last
    four are other programs' own, so one that is not a valid id here is hashed into one instead of being refused.
    Raises InvalidRequest with `param`.
    """
    header = headers.get("x-session-id")
    if header is not None and not is_session_id(header):
        raise InvalidRequest(f"X-Session-ID is not a valid session id; {SESSION_ID_RULE}", param="X-Session-ID")
    named = (header, body.session_id, body.conversation, (body.metadata or {}).get("session_id"))
    if (first := next((given for given in named if given is not None), None)) is not None:
        return FoundSession(first, resends_history=False)
    foreign = (
        headers.get("x-openwebui-chat-id"),
        headers.get("x-litellm-session-id"),
        headers.get("x-session-affinity"),
        body.prompt_cache_key,
    )
    for given in foreign:
        if given:
            return FoundSession(given if is_session_id(given) else _hashed(given), resends_history=True)
    return FoundSession(None, resends_history=False)


def _hashed(foreign_id: str) -> str:
    return "h-" + hashlib.blake2b(foreign_id.encode(), digest_size=16).hexdigest()
