"""Readers of schema 1, whose frames had a checksum of their own instead of a seal; nothing writes it any more.

Frame, little-endian: magic (4 bytes) | schema (u16) | zero (u16) | header size (u32) | body size (u64) |
sha256 of all the rest (32 bytes) | header | body.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

from hope_memory.codec import MAX_HEADER_BYTES, level_of, unpack
from hope_memory.errors import SnapshotCorrupt
from hope_memory.snapshot import MAX_LEVELS, MAX_TREE_NODES, Level, check_tree

_PREFIX = struct.Struct("<4sHHIQ")
_HEADER_AT = _PREFIX.size + 32


@dataclass(frozen=True, slots=True)
class Manifest1:
    """A commit of schema 1. levels: by name, the checksum in the level's frame and its size in bytes."""

    tenant: str
    name: str
    version: str
    parent: str | None
    number: int
    created: float
    fingerprint: str
    meta: dict[str, Any]
    levels: dict[str, tuple[bytes, int]]


def decode_level_1(data: bytes, expected: tuple[bytes, int]) -> Level:
    """Return a level whose checksum and size are the expected ones. Raises SnapshotCorrupt."""
    if (bytes(data[_PREFIX.size : _HEADER_AT]), len(data)) != expected:
        raise SnapshotCorrupt("a level is not the one that its manifest names")
    return level_of(*_unframe(b"HMLV", data))


def decode_info_1(data: bytes) -> dict[str, Any]:
    """Return the public part of a commit's meta. Raises SnapshotCorrupt."""
    header, _ = _unframe(b"HMIN", data)
    return _tree(unpack(header, max_containers=MAX_TREE_NODES, max_items=MAX_TREE_NODES))


def decode_manifest_1(data: bytes) -> Manifest1:
    """Return a commit's manifest. Raises SnapshotCorrupt."""
    header, _ = _unframe(b"HMMF", data)
    fields = unpack(header, max_containers=MAX_TREE_NODES + 2 + MAX_LEVELS, max_items=MAX_TREE_NODES)
    if type(fields) is not dict or tuple(fields) != Manifest1.__slots__:
        raise SnapshotCorrupt("a manifest of schema 1 has other fields than expected")
    try:
        levels = {name: (digest, num_bytes) for name, digest, num_bytes in fields.pop("levels")}
    except (TypeError, ValueError) as exc:
        raise SnapshotCorrupt("a manifest of schema 1 has levels of another form") from exc
    _tree(fields["meta"])
    return Manifest1(levels=levels, **fields)


def _unframe(magic: bytes, data: bytes) -> tuple[memoryview, memoryview]:
    view = memoryview(data).toreadonly()
    if len(view) < _HEADER_AT:
        raise SnapshotCorrupt(f"{len(view)} bytes are too few for a header")
    found, schema, zero, header_bytes, body_bytes = _PREFIX.unpack_from(view)
    if (found, schema, zero) != (magic, 1, 0) or header_bytes > MAX_HEADER_BYTES + 16:
        raise SnapshotCorrupt("the bytes are no frame of schema 1")
    if len(view) != _HEADER_AT + header_bytes + body_bytes:
        raise SnapshotCorrupt(f"{len(view)} bytes do not match the header: truncated or altered")
    checksum = hashlib.sha256(view[: _PREFIX.size])
    checksum.update(view[_HEADER_AT:])
    if checksum.digest() != view[_PREFIX.size : _HEADER_AT]:
        raise SnapshotCorrupt("the checksum does not match: the bytes were altered")
    return view[_HEADER_AT : _HEADER_AT + header_bytes], view[_HEADER_AT + header_bytes :]


def _tree(tree: Any) -> dict[str, Any]:
    try:
        check_tree(tree)
    except ValueError as exc:
        raise SnapshotCorrupt(f"a stored tree is wrong: {exc}") from exc
    result: dict[str, Any] = tree
    return result
