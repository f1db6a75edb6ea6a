"""Archives: one session's state in one file that stands alone, to carry it to another store.

Archive: magic (8 bytes) | header size (u32, little-endian) | zero (4 bytes) | header, padded to ALIGN | level frames of
`codec`, one after the other | sha256 of all before it. The header is a msgpack map of the fields of `ArchiveHeader`.
An archive is not sealed, and its digest proves only that it is whole: who reads one trusts its giver with what the
session remembers, never with the reader's memory or time. Nothing is parsed before the digest is right.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgpack  # type: ignore[import-untyped]

from hope_memory.codec import (
    ALIGN,
    MAX_HEADER_BYTES,
    MAX_NUMBER,
    SCHEMA,
    decode_level,
    encode_level,
    unpack,
)
from hope_memory.errors import SnapshotCorrupt, SnapshotTooLarge
from hope_memory.protocol import MAX_ID_BYTES, Loaded
from hope_memory.snapshot import MAX_LEVELS, MAX_NAME_BYTES, MAX_TREE_NODES, Level, Snapshot, check_name

FORMAT = 1
_MAGIC = b"HOPEARC1"
_PREFIX = struct.Struct("<8sI4s")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class ArchiveHeader:
    """What an archive says of itself.

    format, schema: of the archive and of its level frames. fingerprint, meta: as in `Snapshot`. name: the session's.
    version, number, created: as in `CommitInfo`. levels: name and bytes of each level frame, in their order.
    """

    format: int
    schema: int
    fingerprint: str
    name: str
    version: str
    number: int
    created: float
    meta: dict[str, Any]
    levels: list[tuple[str, int]]


def write_archive(loaded: Loaded, name: str) -> Iterator[bytes]:
    """Return the parts of the archive of a loaded snapshot. Raises ValueError when its meta is too large.

    name: the session's. The levels are encoded when the first part is taken.
    """
    info, snapshot = loaded.info, loaded.snapshot
    frames = {level: encode_level(snapshot.levels[level]) for level in sorted(snapshot.levels)}
    header = msgpack.packb(
        asdict(
            ArchiveHeader(
                format=FORMAT,
                schema=SCHEMA,
                fingerprint=snapshot.fingerprint,
                name=name,
                version=info.version,
                number=info.number,
                created=info.created,
                meta=snapshot.meta,
                levels=[(level, len(frame)) for level, frame in frames.items()],
            )
        )
    )
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"names and meta need {len(header):,} bytes, the limit is {MAX_HEADER_BYTES:,}")
    header += bytes(-len(header) % ALIGN)
    digest = hashlib.sha256()
    for part in (_PREFIX.pack(_MAGIC, len(header), bytes(4)) + header, *frames.values()):
        digest.update(part)
        yield part
    yield digest.digest()


def read_archive(data: bytes | memoryview, max_bytes: int) -> tuple[ArchiveHeader, Snapshot]:
    """Return an archive's header and its snapshot, whose arrays are read-only views of `data`.

    max_bytes: size of the archive, at most.
    Raises: SnapshotTooLarge, and SnapshotCorrupt when it is truncated, altered, no archive or of a newer format.
    """
    view = memoryview(data).toreadonly()
    if len(view) > max_bytes:
        raise SnapshotTooLarge(len(view), max_bytes)
    if len(view) < _PREFIX.size + _DIGEST_BYTES:
        raise SnapshotCorrupt(f"{len(view)} bytes are too few for an archive")
    magic, header_bytes, zero = _PREFIX.unpack_from(view)
    if magic != _MAGIC:
        raise SnapshotCorrupt("the bytes are no archive of a session, or one of a newer format")
    body = view[: len(view) - _DIGEST_BYTES]
    if hashlib.sha256(body).digest() != view[len(body) :]:
        raise SnapshotCorrupt("the archive's digest does not match: it was truncated or altered")
    header_end = _PREFIX.size + header_bytes
    if any(zero) or header_bytes % ALIGN or header_bytes > MAX_HEADER_BYTES + ALIGN or header_end > len(body):
        raise SnapshotCorrupt("the archive's header has an impossible size")
    header = _header(view[_PREFIX.size : header_end])
    try:
        snapshot = Snapshot(header.fingerprint, header.meta, _levels(header, body[header_end:]))
    except ValueError as exc:
        raise SnapshotCorrupt(f"the archive holds no valid snapshot: {exc}") from exc
    return header, snapshot


def _header(packed: memoryview) -> ArchiveHeader:
    tree = unpack(packed, max_containers=MAX_TREE_NODES + 2 + MAX_LEVELS, max_items=MAX_TREE_NODES)
    if type(tree) is not dict or tuple(tree) != tuple(field.name for field in fields(ArchiveHeader)):
        raise SnapshotCorrupt("the archive's header has other fields than expected")
    if tree["format"] != FORMAT or tree["schema"] != SCHEMA:
        raise SnapshotCorrupt(f"the archive has format {tree['format']}, schema {tree['schema']}; this build reads "
                              f"format {FORMAT}, schema {SCHEMA}")  # fmt: skip
    kinds = {"fingerprint": str, "name": str, "version": str, "number": int, "created": float, "meta": dict}
    wrong = [name for name, kind in kinds.items() if type(tree[name]) is not kind]
    levels = tree.pop("levels")
    if wrong or type(levels) is not list or not all(_is_level(entry) for entry in levels):
        raise SnapshotCorrupt(f"the archive's header has fields of wrong types: {', '.join(wrong) or 'levels'}")
    if not 1 <= tree["number"] <= MAX_NUMBER:
        raise SnapshotCorrupt(f"the archive has the impossible number {tree['number']}")
    try:
        check_name("session name", tree["name"], MAX_ID_BYTES)
        check_name("version", tree["version"], MAX_NAME_BYTES)
    except ValueError as exc:
        raise SnapshotCorrupt(f"the archive's header is wrong: {exc}") from exc
    return ArchiveHeader(**tree, levels=[(name, num_bytes) for name, num_bytes in levels])


def _is_level(entry: Any) -> bool:
    return type(entry) is list and len(entry) == 2 and type(entry[0]) is str and type(entry[1]) is int and entry[1] >= 0


def _levels(header: ArchiveHeader, frames: memoryview) -> dict[str, Level]:
    if sum(num_bytes for _, num_bytes in header.levels) != len(frames):
        raise SnapshotCorrupt("the archive's levels are not of the sizes in its header")
    levels: dict[str, Level] = {}
    at = 0
    for name, num_bytes in header.levels:
        if name in levels:
            raise SnapshotCorrupt("the archive names a level twice")
        levels[name] = decode_level(frames[at : at + num_bytes])
        at += num_bytes
    return levels
