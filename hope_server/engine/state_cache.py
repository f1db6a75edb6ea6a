"""Host memory between the slots and the store: the newest snapshots of sessions that were used last, up to a size.

A version's snapshot never changes, so one that is found by session and version is what the store would give. Nothing is
pinned: whatever is dropped here is still in the store.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from hope_memory.snapshot import Snapshot

from hope_server.engine.turn import SessionKey

__all__ = ["StateCache"]

_OVERHEAD = 4_096
"""Bytes that a snapshot's own objects take beside its arrays, about."""
_PER_NODE = 64
"""Bytes of a value in a snapshot's tree, about."""


@dataclass(frozen=True, slots=True)
class _Kept:
    version: str
    snapshot: Snapshot
    num_bytes: int


class StateCache:
    """Keeps one snapshot a session, least recently used ones going first. Used from one event loop."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: of all snapshots together, 0 to keep none."""
        self._max_bytes = max_bytes
        self._kept: OrderedDict[SessionKey, _Kept] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        """Sessions that are kept."""
        return len(self._kept)

    def find(self, key: SessionKey, version: str) -> Snapshot | None:
        """The snapshot of a session's version, if it is kept; it then counts as used now."""
        kept = self._kept.get(key)
        if kept is None or kept.version != version:
            return None
        self._kept.move_to_end(key)
        return kept.snapshot

    def keep(self, key: SessionKey, version: str, snapshot: Snapshot) -> None:
        """Keep a version in the place of what is kept of its session; one that is larger than all room is not kept."""
        self.forget(key)
        size = snapshot.num_bytes + _OVERHEAD + _PER_NODE * _num_nodes(snapshot.meta)
        if size > self._max_bytes:
            return
        while self.num_bytes + size > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
        self._kept[key] = _Kept(version, snapshot, size)
        self.num_bytes += size

    def forget(self, key: SessionKey) -> None:
        """Drop what is kept of a session."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.num_bytes -= kept.num_bytes


def _num_nodes(tree: object) -> int:
    """Values in a snapshot's tree, itself included; texts count by their length."""
    if isinstance(tree, dict):
        return 1 + sum(map(_num_nodes, tree.values()))
    if isinstance(tree, list):
        return 1 + sum(map(_num_nodes, tree))
    return 1 + len(tree) // _PER_NODE if isinstance(tree, (str, bytes)) else 1
