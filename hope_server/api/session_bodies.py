"""What the bodies of the session routes may hold."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from hope_server.api.schemas import Body, LevelNames, SessionIdText, VersionText
from hope_server.api.validation import Between, Checked, refuse
from hope_server.engine.session_card import MAX_METADATA, MAX_TTL_SECONDS

__all__ = [
    "TAG_RULE",
    "CreateBody",
    "EmptyBody",
    "ForkBody",
    "PatchBody",
    "ResetBody",
    "RollbackBody",
    "SnapshotBody",
    "is_tag",
]

TAG_RULE = "use 1 to 64 letters, digits, _ or -, and nothing that looks like a version (32 hexadecimal digits)"
_TAG = re.compile(r"(?![0-9a-f]{32}\Z)[A-Za-z0-9_-]{1,64}")


def is_tag(text: str) -> bool:
    """Return whether `text` can name a snapshot."""
    return _TAG.fullmatch(text) is not None


def _check_tag(value: str) -> str:
    if not is_tag(value):
        raise refuse(f"is not a valid tag; {TAG_RULE}")
    return value


TagText = Annotated[str, Checked(_check_tag, {"pattern": "^(?![0-9a-f]{32}$)[A-Za-z0-9_-]{1,64}$"})]
Seconds = Annotated[float, Between(0, MAX_TTL_SECONDS)]
Label = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[Annotated[str, Field(min_length=1, max_length=64)], Label], Field(max_length=MAX_METADATA)]


class EmptyBody(Body):
    """Nothing is asked in the body."""


class PatchBody(Body):
    """What to change of a session; what is absent or null stays. `ttl` is in seconds, 0 is for ever."""

    frozen: bool | None = None
    ttl: Seconds | None = None
    metadata: Metadata | None = None


class CreateBody(Body):
    """A session to create; `id` None takes a generated one. `ttl` and `metadata` as in a patch."""

    id: SessionIdText | None = None
    ttl: Seconds | None = None
    metadata: Metadata | None = None


class ForkBody(Body):
    """The fork's name, None takes a generated one; and the version or snapshot it starts from, None is the newest."""

    id: SessionIdText | None = None
    version: VersionText | None = None


class RollbackBody(Body):
    """The version or snapshot to go back to."""

    version: VersionText


class ResetBody(Body):
    """The levels to make new, `journal` for the text that is kept for rehearsal; None is all."""

    levels: LevelNames | None = None


class SnapshotBody(Body):
    """The name of a snapshot, and the version that it keeps, None is the newest."""

    tag: TagText
    version: VersionText | None = None
