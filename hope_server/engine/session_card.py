"""What belongs to a session and not to one of its versions: is it frozen, its life, its labels, its last turns.

It is kept in the newest version's meta and passed on from there by every commit, also one that goes back to the state
of an older version.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from hope_server.errors import InvalidRequest

MAX_TURNS = 32
"""Turns that a session tells of."""

MAX_TAGS = 16
MAX_METADATA = 16
MAX_METADATA_BYTES = 4096
MAX_TTL_SECONDS = 1_000_000_000

TurnKind = Literal["chat", "text", "learn", "consolidate", "reset"]


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """What one turn did. created: Unix seconds; losses in nats per token, None where nothing was measured."""

    turn: int
    created: int
    kind: str
    tokens_read: int
    tokens_learned: int
    loss_before: float | None
    loss_after: float | None
    update_norm: dict[str, float]

    def row(self) -> list[Any]:
        """The record as it is stored."""
        return list(asdict(self).values())


_TURN_FIELDS = len(fields(TurnRecord))


@dataclass(frozen=True, slots=True)
class SessionCard:
    """What belongs to a session whichever version its state goes on from.

    ttl_seconds: the session ends that long after its last commit; None: never. tags: name of a snapshot to the version
    that it keeps. turns: the newest MAX_TURNS, oldest first.
    """

    is_frozen: bool = False
    ttl_seconds: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    turns: tuple[TurnRecord, ...] = ()

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> SessionCard:
        """Read what `fields` wrote into a version's meta; versions of earlier builds have nothing of it."""
        ttl = info.get("ttl")
        rows = [row for row in info.get("turns", ()) if len(row) == _TURN_FIELDS]
        return cls(
            is_frozen=bool(info.get("frozen", False)),
            ttl_seconds=None if ttl is None else float(ttl),
            metadata=dict(info.get("metadata", {})),
            tags=dict(info.get("tags", {})),
            turns=tuple(TurnRecord(*row) for row in rows),
        )

    def fields(self) -> dict[str, Any]:
        """The card as part of a version's meta."""
        return {
            "frozen": self.is_frozen,
            "ttl": self.ttl_seconds,
            "metadata": self.metadata,
            "tags": self.tags,
            "turns": [turn.row() for turn in self.turns],
        }

    @property
    def pins(self) -> frozenset[str]:
        """Versions that are kept however old they are."""
        return frozenset(self.tags.values())

    def with_turn(self, record: TurnRecord) -> SessionCard:
        """The card after one more turn."""
        return replace(self, turns=(*self.turns, record)[-MAX_TURNS:])

    def living(self, ttl_seconds: float | None) -> SessionCard:
        """The card with a new life: 0 is for ever, None leaves it as it is. Raises InvalidRequest."""
        if ttl_seconds is None:
            return self
        if not 0 <= ttl_seconds <= MAX_TTL_SECONDS:
            raise InvalidRequest(
                f"ttl is {ttl_seconds:g} seconds; give 0 (for ever) to {MAX_TTL_SECONDS:,.0f}", param="ttl"
            )
        return replace(self, ttl_seconds=ttl_seconds or None)

    def labelled(self, metadata: Mapping[str, str]) -> SessionCard:
        """The card with these labels in place of those before. Raises InvalidRequest."""
        size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
        if len(metadata) > MAX_METADATA or size > MAX_METADATA_BYTES:
            raise InvalidRequest(
                f"metadata has {len(metadata)} pairs of {size:,} bytes in all; "
                f"up to {MAX_METADATA} pairs and {MAX_METADATA_BYTES:,} bytes are kept",
                param="metadata",
            )
        return replace(self, metadata=dict(metadata))

    def tagged(self, tag: str, version: str) -> SessionCard:
        """The card with a tag on a version; one of that name moves. Raises InvalidRequest."""
        if tag not in self.tags and len(self.tags) >= MAX_TAGS:
            raise InvalidRequest(
                f"the session has {len(self.tags)} snapshots, the limit is {MAX_TAGS}; delete one first", param="tag"
            )
        return replace(self, tags={**self.tags, tag: version})

    def untagged(self, tag: str) -> SessionCard:
        """The card without a tag."""
        return replace(self, tags={name: version for name, version in self.tags.items() if name != tag})

    def forked(self) -> SessionCard:
        """The card of a fork: it lives as long and is labelled alike, but is not frozen and has no past of its own."""
        return SessionCard(ttl_seconds=self.ttl_seconds, metadata=self.metadata)

    def expires(self, last_commit: float) -> float | None:
        """When the session ends, Unix seconds; None: never."""
        return None if self.ttl_seconds is None else last_commit + self.ttl_seconds

    def is_expired(self, last_commit: float, now: float | None = None) -> bool:
        """Whether the session has ended."""
        end = self.expires(last_commit)
        return end is not None and (time.time() if now is None else now) >= end
