"""Which session a chat request belongs to: the places where clients put an id, in order."""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers

from hope_server.api.deps import SESSION_ID_RULE, is_session_id
from hope_server.api.schemas import ChatBody
from hope_server.api.validation import kind_of
from hope_server.errors import InvalidRequest

__all__ = ["resolve_session_id"]


def resolve_session_id(headers: Headers, body: ChatBody) -> str | None:
    """Return the request's session id, None if it names none (then nothing is learned).

    First found wins: header X-Session-ID, body session_id, conversation, metadata.session_id, header
    X-OpenWebUI-Chat-Id, header x-litellm-session-id, body prompt_cache_key. Ids of the last three are other
    programs' own, so one that is not a valid id here is hashed into one instead of being refused.
    Raises InvalidRequest with `param`.
    """
    named = {
        "X-Session-ID": headers.get("x-session-id"),
        "session_id": body.session_id,
        "conversation": body.conversation,
        "metadata.session_id": (body.metadata or {}).get("session_id"),
    }
    for place, given in named.items():
        if given is None:
            continue
        if not isinstance(given, str):
            raise InvalidRequest(f"{place} must be a string, not {kind_of(given)}", param=place)
        if not is_session_id(given):
            raise InvalidRequest(f"{place} is not a valid session id; {SESSION_ID_RULE}", param=place)
        return given
    foreign = (headers.get("x-openwebui-chat-id"), headers.get("x-litellm-session-id"), body.prompt_cache_key)
    for given in foreign:
        if given:
            return given if is_session_id(given) else _hashed(given)
    return None


def _hashed(foreign_id: str) -> str:
    return "h-" + hashlib.blake2b(foreign_id.encode(), digest_size=16).hexdigest()
