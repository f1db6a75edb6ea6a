"""Levels and manifests to bytes and back: a frame of a msgpack header and raw array bytes.

Frame, little-endian: magic (4 bytes) | schema (u16) | zero (u16) | header size (u32) | body size (u64) | zero, up to
ALIGN | header | body.
Arrays follow each other in the body in the order of the header, each padded to ALIGN bytes, so the header holds no
offsets that could lie. A frame has no checksum: whoever stores it seals it (`sealing.py`) or digests it (`archive.py`),
and checks that before the frame is read. A reader checks lengths, then structure, and builds arrays as views of the
bytes that it was given: it never allocates by a number that it read. Nothing is compressed and nothing is executed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped]

from hope_memory.errors import SnapshotCorrupt
from hope_memory.snapshot import (
    MAX_ARRAYS,
    MAX_DIMS,
    MAX_LEVELS,
    MAX_NAME_BYTES,
    MAX_TREE_NODES,
    Array,
    Level,
    array_num_bytes,
    check_name,
    check_tree,
)

SCHEMA = 2
ALIGN = 16
MAX_HEADER_BYTES = 1 << 20
MAX_INFO_BYTES = 16 << 10
MAX_NUMBER = 1 << 60
MAX_PIECES = 4096
KEEP_REQUESTS = 64
"""Commits whose requests, ids and order a session remembers."""

_PREFIX = struct.Struct("<4sHHIQ")
_HEADER_AT = _PREFIX.size + -_PREFIX.size % ALIGN
_LEVEL = b"HMLV"
_MANIFEST = b"HMMF"
_INFO = b"HMIN"
_ANSWER = b"HMAN"


@dataclass(frozen=True, slots=True)
class LevelRef:
    """Which stored level a commit names.

    origin: the commit that wrote it; birth: the incarnation of the session that did; num_bytes: as stored, sealed;
    num_pieces: in how many pieces, at least 1.
    """

    origin: str
    birth: str
    num_bytes: int
    num_pieces: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of a commit but the levels' bytes. Fields as in `SessionId`, `CommitInfo` and `Snapshot`.

    base: the commit whose state it continues: the parent, but after a roll-back the commit that was restored.
    lineage: the latest KEEP_REQUESTS commits up to and with this one, newest first, each with the hash of the request
        that it answers (empty: none): which requests were learned can be told from this alone.
    """

    tenant: str
    name: str
    version: str
    parent: str | None
    number: int
    created: float
    fingerprint: str
    meta: dict[str, Any]
    base: str | None
    lineage: tuple[tuple[str, str], ...]
    levels: dict[str, LevelRef]

    @property
    def level_num_bytes(self) -> int:
        """Stored bytes of all levels together."""
        return sum(ref.num_bytes for ref in self.levels.values())


def encode_level(level: Level) -> bytes:
    """Encode a level; the arrays are copied once. Equal levels give equal bytes, whatever the order of the arrays."""
    entries: list[tuple[str, str, tuple[int, ...]]] = []
    parts: list[bytes | memoryview] = []
    for name, array in sorted(level.arrays.items()):
        entries.append((name, array.dtype, array.shape))
        parts += (array.data, bytes(-len(array.data) % ALIGN))
    return _frame(_LEVEL, _pack(entries), parts)


def decode_level(data: bytes | memoryview) -> Level:
    """Return the level whose arrays are read-only views of `data`.

    Raises: SnapshotCorrupt when the bytes are truncated, altered or not a level.
    """
    return level_of(*_unframe(_LEVEL, data))


def level_of(header: memoryview, body: memoryview) -> Level:
    """Return the level of a frame's two parts. Raises SnapshotCorrupt."""
    # One container for the list of arrays, two for each array; a header that holds more is not ours.
    entries = unpack(header, max_containers=1 + 2 * MAX_ARRAYS, max_items=MAX_ARRAYS)
    if type(entries) is not list or len(entries) > MAX_ARRAYS:
        raise SnapshotCorrupt("a level's header is not a list of arrays")
    arrays: dict[str, Array] = {}
    at = 0
    for entry in entries:
        name, dtype, shape = _array_entry(entry)
        try:
            num_bytes = array_num_bytes(dtype, shape)
            if name in arrays or num_bytes > len(body) - at:
                raise ValueError(f"array {name!r} is named twice or larger than the level")
            arrays[name] = Array(dtype, shape, body[at : at + num_bytes])
        except ValueError as exc:
            raise SnapshotCorrupt(f"a level's header is wrong: {exc}") from exc
        end = at + num_bytes + -num_bytes % ALIGN
        if any(body[at + num_bytes : end]):
            raise SnapshotCorrupt(f"the padding of array {name!r} is not zero")
        at = end
    if at != len(body):
        raise SnapshotCorrupt(f"a level's arrays need {at} bytes, its body has {len(body)}")
    try:
        return Level(arrays)
    except ValueError as exc:
        raise SnapshotCorrupt(f"a level's header is wrong: {exc}") from exc


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest. Raises ValueError when `meta` makes it larger than MAX_HEADER_BYTES."""
    header = _pack(
        {
            "tenant": manifest.tenant,
            "name": manifest.name,
            "version": manifest.version,
            "parent": manifest.parent,
            "number": manifest.number,
            "created": manifest.created,
            "fingerprint": manifest.fingerprint,
            "meta": manifest.meta,
            "base": manifest.base,
            "lineage": manifest.lineage,
            "levels": [
                (name, ref.origin, ref.birth, ref.num_bytes, ref.num_pieces)
                for name, ref in sorted(manifest.levels.items())
            ],
        }
    )
    return _frame(_MANIFEST, header, ())


def decode_manifest(data: bytes | memoryview) -> Manifest:
    """Return the manifest in `data`. Raises SnapshotCorrupt when the bytes are truncated, altered or none."""
    header, body = _unframe(_MANIFEST, data)
    fields = unpack(header, max_containers=MAX_TREE_NODES + 3 + MAX_LEVELS + KEEP_REQUESTS, max_items=MAX_TREE_NODES)
    if body or type(fields) is not dict or tuple(fields) != Manifest.__slots__:
        raise SnapshotCorrupt("a manifest's header has other fields than expected")
    levels = fields.pop("levels")
    if type(levels) is not list or len(levels) > MAX_LEVELS:
        raise SnapshotCorrupt("a manifest's levels are not a list of the allowed length")
    refs: dict[str, LevelRef] = {}
    for entry in levels:
        name, ref = _level_entry(entry)
        if name in refs:
            raise SnapshotCorrupt("a manifest names a level twice")
        refs[name] = ref
    kinds = {
        "tenant": str,
        "name": str,
        "version": str,
        "number": int,
        "created": float,
        "fingerprint": str,
        "meta": dict,
    }
    wrong = [name for name, kind in kinds.items() if type(fields[name]) is not kind]
    wrong += [name for name in ("parent", "base") if not isinstance(fields[name], str | None)]
    if wrong:
        raise SnapshotCorrupt(f"a manifest has fields of a wrong type: {', '.join(wrong)}")
    fields["lineage"] = _lineage(fields["lineage"])
    if not 1 <= fields["number"] <= MAX_NUMBER:
        raise SnapshotCorrupt(f"a manifest has the impossible number {fields['number']}")
    try:
        check_tree(fields["meta"])
        check_name("fingerprint", fields["fingerprint"], MAX_NAME_BYTES)
        for name in refs:
            check_name("level name", name, MAX_NAME_BYTES)
    except ValueError as exc:
        raise SnapshotCorrupt(f"a manifest is wrong: {exc}") from exc
    return Manifest(levels=refs, **fields)


def encode_info(info: dict[str, Any]) -> bytes:
    """Encode the public part of a snapshot's meta. Raises ValueError when it exceeds MAX_INFO_BYTES."""
    encoded = _frame(_INFO, _pack(info), ())
    if len(encoded) > MAX_INFO_BYTES:
        raise ValueError(f"meta['info'] has {len(encoded):,} bytes, the limit is {MAX_INFO_BYTES:,}; keep it small")
    return encoded


def decode_info(data: bytes | memoryview) -> dict[str, Any]:
    """Return the tree that `encode_info` wrote. Raises SnapshotCorrupt on anything else."""
    if len(data) > MAX_INFO_BYTES:
        raise SnapshotCorrupt(f"a stored summary has {len(data):,} bytes, the limit is {MAX_INFO_BYTES:,}")
    header, body = _unframe(_INFO, data)
    if body:
        raise SnapshotCorrupt("a stored summary has a body")
    info = unpack(header, max_containers=MAX_TREE_NODES, max_items=MAX_TREE_NODES)
    try:
        check_tree(info)
    except ValueError as exc:
        raise SnapshotCorrupt(f"a stored summary is wrong: {exc}") from exc
    result: dict[str, Any] = info
    return result


def encode_answer(fields: dict[str, Any], reply: bytes) -> bytes:
    """Encode what is remembered of a request: a small tree, and its reply, opaque. Raises ValueError."""
    return _frame(_ANSWER, _pack(fields), (reply,))


def decode_answer(data: bytes | memoryview) -> tuple[dict[str, Any], bytes]:
    """Return what `encode_answer` was given. Raises SnapshotCorrupt on anything else."""
    header, body = _unframe(_ANSWER, data)
    fields = unpack(header, max_containers=MAX_TREE_NODES, max_items=MAX_TREE_NODES)
    try:
        check_tree(fields)
    except ValueError as exc:
        raise SnapshotCorrupt(f"a stored answer is wrong: {exc}") from exc
    return fields, bytes(body)


def _frame(magic: bytes, header: bytes, parts: Sequence[bytes | memoryview]) -> bytes:
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"names and meta need {len(header):,} bytes, the limit is {MAX_HEADER_BYTES:,}")
    header += bytes(-len(header) % ALIGN)
    prefix = _PREFIX.pack(magic, SCHEMA, 0, len(header), sum(map(len, parts)))
    return b"".join((prefix, bytes(_HEADER_AT - len(prefix)), header, *parts))


def _unframe(magic: bytes, data: bytes | memoryview) -> tuple[memoryview, memoryview]:
    view = memoryview(data).toreadonly()
    if len(view) < _HEADER_AT:
        raise SnapshotCorrupt(f"{len(view)} bytes are too few for a header")
    found, schema, zero, header_bytes, body_bytes = _PREFIX.unpack_from(view)
    if found != magic or zero or any(view[_PREFIX.size : _HEADER_AT]):
        raise SnapshotCorrupt(f"the bytes begin with {found!r}, not with {magic!r}")
    if schema != SCHEMA:
        raise SnapshotCorrupt(f"the bytes have schema {schema}, this build reads {SCHEMA}")
    if header_bytes > MAX_HEADER_BYTES + ALIGN or len(view) != _HEADER_AT + header_bytes + body_bytes:
        raise SnapshotCorrupt(f"{len(view)} bytes do not match the header: truncated or altered")
    return view[_HEADER_AT : _HEADER_AT + header_bytes], view[_HEADER_AT + header_bytes :]


def _pack(tree: Any) -> bytes:
    try:
        packed = msgpack.packb(tree)
    except (TypeError, OverflowError) as exc:
        raise ValueError(f"meta cannot be encoded: {exc}") from exc
    assert isinstance(packed, bytes)
    return packed


def unpack(header: memoryview, max_containers: int, max_items: int) -> Any:
    """Return the tree in a header, held to limits while it is made. Raises SnapshotCorrupt."""
    num_containers = 0

    def count(container: Any) -> Any:
        # An empty map is one byte in the header and 64 in memory, so containers are counted while they are made.
        nonlocal num_containers
        num_containers += 1
        if num_containers > max_containers:
            raise ValueError(f"more than {max_containers} containers")
        return container

    unpacker = msgpack.Unpacker(
        None,
        max_buffer_size=MAX_HEADER_BYTES + ALIGN,
        object_hook=count,
        list_hook=count,
        strict_map_key=True,
        max_str_len=MAX_HEADER_BYTES,
        max_bin_len=MAX_HEADER_BYTES,
        max_array_len=max_items,
        max_map_len=max_items,
        max_ext_len=0,
    )
    try:
        unpacker.feed(header)
        tree = unpacker.unpack()
        padding = header[unpacker.tell() :]
    except (ValueError, msgpack.UnpackException) as exc:
        raise SnapshotCorrupt(f"a header is not valid msgpack: {exc}") from exc
    if len(padding) >= ALIGN or any(padding):
        raise SnapshotCorrupt("a header has bytes after its end")
    return tree


def _array_entry(entry: Any) -> tuple[str, str, tuple[int, ...]]:
    if type(entry) is not list or len(entry) != 3:
        raise SnapshotCorrupt("a level's header has an entry that is not (name, dtype, shape)")
    name, dtype, shape = entry
    if type(name) is not str or type(dtype) is not str or type(shape) is not list or len(shape) > MAX_DIMS:
        raise SnapshotCorrupt("a level's header has an entry of wrong types")
    return name, dtype, tuple(shape)


def _level_entry(entry: Any) -> tuple[str, LevelRef]:
    if type(entry) is not list or len(entry) != 5:
        raise SnapshotCorrupt("a manifest has a level that is not (name, origin, birth, size, pieces)")
    name, origin, birth, num_bytes, num_pieces = entry
    is_typed = all(type(text) is str for text in (name, origin, birth)) and type(num_bytes) is type(num_pieces) is int
    if not is_typed or num_bytes < 0 or not 1 <= num_pieces <= MAX_PIECES:
        raise SnapshotCorrupt("a manifest has a level of wrong types or an impossible size")
    return name, LevelRef(origin, birth, num_bytes, num_pieces)


def _lineage(entries: Any) -> tuple[tuple[str, str], ...]:
    if type(entries) is not list or len(entries) > KEEP_REQUESTS:
        raise SnapshotCorrupt("a manifest's lineage is not a list of the allowed length")
    for entry in entries:
        if type(entry) is not list or len(entry) != 2 or any(type(text) is not str for text in entry):
            raise SnapshotCorrupt("a manifest's lineage has an entry that is not (version, request)")
    return tuple((version, request) for version, request in entries)
