"""Names of responses and of their items; a response's name holds the session that it was made in."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets

from hope_server.api.deps import is_session_id

__all__ = ["item_id", "new_response_id", "session_of_response"]

_NUM_RANDOM_BYTES = 12


def new_response_id(session_id: str | None) -> str:
    """Return a name for a response of the session; None for one that is not kept."""
    return _spell((session_id or "").encode() + b"." + secrets.token_bytes(_NUM_RANDOM_BYTES))


def session_of_response(response_id: str) -> str | None:
    """Return the session that a response was made in; None for what is no response's name, or of one not kept."""
    text = response_id.removeprefix("resp_")
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        session = raw[: -_NUM_RANDOM_BYTES - 1].decode("ascii")
    except (ValueError, binascii.Error):
        return None
    # Spelt again, so that one response has one name.
    is_whole = raw[len(session) : len(session) + 1] == b"." and _spell(raw) == response_id
    return session if is_whole and is_session_id(session) else None


def item_id(prefix: str, response_id: str, index: int) -> str:
    """Return the name of an output item: of the same response always the same."""
    return f"{prefix}_" + hashlib.blake2b(f"{response_id}.{index}".encode(), digest_size=12).hexdigest()


def _spell(raw: bytes) -> str:
    return "resp_" + base64.urlsafe_b64encode(raw).decode().rstrip("=")
