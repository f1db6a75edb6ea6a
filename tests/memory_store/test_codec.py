"""Bytes that were cut, altered or made to deceive are refused; everything else comes back as it was."""

from __future__ import annotations

import hashlib
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hope_memory import Array, Level, SnapshotCorrupt, decode_level, encode_level
from hope_memory.codec import (
    ALIGN,
    KEEP_REQUESTS,
    MAX_HEADER_BYTES,
    MAX_PIECES,
    LevelRef,
    Manifest,
    decode_answer,
    decode_info,
    decode_manifest,
    encode_answer,
    encode_info,
    encode_manifest,
)
from hope_memory.snapshot import DTYPE_BYTES, MAX_ARRAYS, array_num_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=20)
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TREES = st.dictionaries(
    KEYS,
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)),
    max_size=5,
)
IDS = st.text("0123456789abcdef", min_size=32, max_size=32)
REFS = st.builds(LevelRef, IDS, IDS, st.integers(0, 1 << 40), st.integers(1, MAX_PIECES))
MANIFESTS = st.builds(
    Manifest,
    tenant=NAMES,
    name=NAMES,
    version=IDS,
    parent=st.none() | st.just("ab" * 16),
    number=st.integers(1, 1 << 60),
    created=st.floats(0, 1e11),
    fingerprint=NAMES,
    meta=TREES,
    base=st.none() | IDS,
    lineage=st.lists(st.tuples(IDS, IDS | st.just("")), max_size=KEEP_REQUESTS).map(tuple),
    levels=st.dictionaries(NAMES, REFS, max_size=5),
)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Draw an array of any dtype with up to 4 dimensions of up to 5."""
    dtype = draw(st.sampled_from(sorted(DTYPE_BYTES)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    size = array_num_bytes(dtype, shape)
    data = draw(st.binary(min_size=size, max_size=size))
    return Array(dtype, shape, bytes(byte & 1 for byte in data) if dtype == "bool" else data)


LEVELS = st.builds(Level, st.dictionaries(NAMES, arrays(), max_size=6))

SMALL_LEVEL = Level({"w": Array("float32", (3,), b"abcdefghijkl"), "n": Array("int64", (), bytes(8))})
SMALL_MANIFEST = Manifest(
    tenant="acme",
    name="chat-1",
    version="0" * 32,
    parent=None,
    number=1,
    created=2.5,
    fingerprint="toy-1",
    meta={"info": {"turn": 1}},
    base=None,
    lineage=(("0" * 32, "a" * 32),),
    levels={"fast": LevelRef("0" * 32, "b" * 32, 9, 1)},
)
DECODERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "level": (encode_level(SMALL_LEVEL), decode_level),
    "manifest": (encode_manifest(SMALL_MANIFEST), decode_manifest),
    "info": (encode_info({"turn": 7}), decode_info),
    "answer": (encode_answer({"digest": b"d"}, b"reply"), decode_answer),
}


def framed(magic: bytes, header: bytes, body: bytes = b"") -> bytes:
    """Return a frame of right lengths, as one who means harm would write it."""
    header += bytes(-len(header) % ALIGN)
    return struct.pack("<4sHHIQ12x", magic, 2, 0, len(header), len(body)) + header + body


@given(LEVELS)
@settings(max_examples=150, deadline=None)
def test_any_level_comes_back_as_it_was(level: Level) -> None:
    """Decoding an encoded level gives an equal level."""
    assert decode_level(encode_level(level)) == level


@given(MANIFESTS)
@settings(max_examples=150, deadline=None)
def test_any_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    """Decoding an encoded manifest gives an equal manifest."""
    assert decode_manifest(encode_manifest(manifest)) == manifest


@given(st.binary(max_size=300), st.sampled_from(sorted(DECODERS)))
@settings(max_examples=300, deadline=None)
def test_any_header_of_the_right_length_is_decoded_or_refused(header: bytes, kind: str) -> None:
    """Garbage in a valid frame never raises anything but SnapshotCorrupt."""
    encoded, decode = DECODERS[kind]
    try:
        result = decode(framed(encoded[:4], header))
    except SnapshotCorrupt:
        return
    assert isinstance(result, Level | Manifest | dict | tuple)


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_a_flipped_bit_is_refused_or_harmless(kind: str) -> None:
    """Behind the seal no altered bit gets here; if one did, it would be refused or give plain values, nothing else."""
    encoded, decode = DECODERS[kind]
    intact, num_refused = decode(encoded), 0
    for at in range(len(encoded)):
        for bit in range(8):
            altered = bytearray(encoded)
            altered[at] ^= 1 << bit
            try:
                assert decode(bytes(altered)) != intact or at >= len(encoded) - ALIGN
            except SnapshotCorrupt:
                num_refused += 1
    assert num_refused > 32 * 8


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_every_truncation_and_any_extra_byte_is_refused(kind: str) -> None:
    """No proper prefix and nothing longer is accepted."""
    encoded, decode = DECODERS[kind]
    for length in range(len(encoded)):
        with pytest.raises(SnapshotCorrupt):
            decode(encoded[:length])
    for extra in (b"\0", b"x", bytes(ALIGN)):
        with pytest.raises(SnapshotCorrupt):
            decode(encoded + extra)


def test_one_kind_is_not_taken_for_another() -> None:
    """A valid manifest is no level and a level is no manifest."""
    with pytest.raises(SnapshotCorrupt, match="begin with"):
        decode_level(DECODERS["manifest"][0])
    with pytest.raises(SnapshotCorrupt, match="begin with"):
        decode_manifest(DECODERS["level"][0])


@pytest.mark.parametrize("rest", [msgpack.packb([]), bytes(ALIGN), b"\0\1"], ids=["value", "padding", "byte"])
def test_a_header_with_something_after_its_end_is_refused(rest: bytes) -> None:
    """A second value, more padding than alignment needs, or padding that is not zero is refused."""
    assert decode_level(framed(b"HMLV", msgpack.packb([]))) == Level({})
    with pytest.raises(SnapshotCorrupt, match="after its end"):
        decode_level(framed(b"HMLV", msgpack.packb([]) + rest))


def test_another_schema_is_named_in_the_error() -> None:
    """Bytes of a later build are refused with both schema numbers."""
    encoded = bytearray(DECODERS["level"][0])
    encoded[4] = 9
    with pytest.raises(SnapshotCorrupt, match="schema 9, this build reads 2"):
        decode_level(bytes(encoded))


HUGE = 0xFFFFFFFF
HOSTILE_LEVELS: dict[str, bytes] = {
    "list of 4 billion": b"\xdd" + struct.pack(">I", HUGE),
    "map of 4 billion": b"\xdf" + struct.pack(">I", HUGE),
    "text of 4 billion": b"\xdb" + struct.pack(">I", HUGE),
    "bytes of 4 billion": b"\xc6" + struct.pack(">I", HUGE),
    "extension": b"\xc9" + struct.pack(">Ib", HUGE, 5),
    "timestamp": msgpack.packb(msgpack.Timestamp(1)),
    "a million empty maps": b"\xdc\x00\xfa" + (b"\xdc\x10\x00" + b"\x80" * 4096) * 250,
    "a million empty lists": b"\xdc\x00\xfa" + (b"\xdc\x10\x00" + b"\x90" * 4096) * 250,
    "lists nested without end": b"\x91" * MAX_HEADER_BYTES,
    "big lists nested without end": b"\xdc\x10\x00" * (MAX_HEADER_BYTES // 3),
    "list of 65535": b"\xdc\xff\xff" * (MAX_HEADER_BYTES // 3),
    "array of 2^320 bytes": msgpack.packb([("w", "uint8", [1 << 40] * 8)]),
    "array of 16 EB": msgpack.packb([("w", "uint8", [(1 << 64) - 1])]),
    "array of -1": msgpack.packb([("w", "uint8", [-1])]),
    "9 dimensions": msgpack.packb([("w", "uint8", [1] * 9)]),
    "true as a size": msgpack.packb([("w", "uint8", [True])]),
    "larger than the body": msgpack.packb([("w", "uint8", [17])]),
    "smaller than the body": msgpack.packb([]),
    "unknown dtype": msgpack.packb([("w", "object", [1])]),
    "bytes as a name": msgpack.packb([(b"w", "uint8", [1])]),
    "empty name": msgpack.packb([("", "uint8", [16])]),
    "same name twice": msgpack.packb([("w", "uint8", [16]), ("w", "uint8", [0])]),
    "too many arrays": msgpack.packb([(str(n), "uint8", [0]) for n in range(MAX_ARRAYS + 1)]),
    "broken text": b"\x91\x93\xa1\xff\xa5uint8\x91\x10",
    "a number": msgpack.packb(3),
    "nothing": b"",
    "far too long": bytes(MAX_HEADER_BYTES + 4096),
}


@pytest.mark.parametrize("name", sorted(HOSTILE_LEVELS))
def test_hostile_headers_are_refused_quickly_and_cheaply(name: str) -> None:
    """A header that lies about sizes costs under 0.5 s and 48 MB."""
    encoded = framed(b"HMLV", HOSTILE_LEVELS[name], bytes(ALIGN))
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with pytest.raises(SnapshotCorrupt):
            decode_level(encoded)
        took, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Far above what it takes (milliseconds), far below what trusting the sizes would take.
    assert took < 0.5
    assert peak < 48 << 20


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", 3), ("parent", 3), ("number", "1"), ("number", True), ("created", 1), ("fingerprint", ""),
     ("meta", []), ("meta", {"x": msgpack.ExtType(1, b"")}), ("levels", {}), ("levels", [("a", b"o", "b", 1, 1)]),
     ("levels", [("a", "o", "b", -1, 1)]), ("levels", [("a", "o", "b", 1, 1)] * 2), ("levels", [("", "o", "b", 1, 1)]),
     ("number", 0), ("number", 1 << 63), ("tenant", b"acme"), ("name", None), ("levels", [("a", "o", "b", 1)]),
     ("levels", [("a", "o", "b", 1, 0)]), ("levels", [("a", "o", "b", 1, MAX_PIECES + 1)]), ("base", 3),
     ("levels", [(str(n), "o", "b", 1, 1) for n in range(257)]), ("lineage", {}), ("lineage", [("v",)]),
     ("lineage", [("v", None)]), ("lineage", [("v", "")] * (KEEP_REQUESTS + 1))],
)  # fmt: skip
def test_manifest_with_a_wrong_field_is_refused(field: str, value: Any) -> None:
    """Each field of a manifest is checked."""
    fields: dict[str, Any] = {name: getattr(SMALL_MANIFEST, name) for name in Manifest.__slots__}
    fields["levels"] = [("fast", "0" * 32, "b" * 32, 9, 1)]
    assert decode_manifest(framed(b"HMMF", msgpack.packb(fields))) == SMALL_MANIFEST
    with pytest.raises(SnapshotCorrupt):
        decode_manifest(framed(b"HMMF", msgpack.packb(fields | {field: value})))
    del fields[field]
    with pytest.raises(SnapshotCorrupt):
        decode_manifest(framed(b"HMMF", msgpack.packb(fields)))


def test_meta_and_info_that_are_too_large_are_refused_by_the_writer() -> None:
    """What a reader would refuse is never written."""
    with pytest.raises(ValueError, match="limit"):
        encode_manifest(replace(SMALL_MANIFEST, meta={"x": bytes(MAX_HEADER_BYTES)}))
    with pytest.raises(ValueError, match="keep it small"):
        encode_info({"x": bytes(20_000)})


def test_arrays_are_aligned_views_of_the_encoded_bytes() -> None:
    """Decoding copies nothing, and every array begins at a multiple of ALIGN, as vector loads want it."""
    encoded = encode_level(Level({"a": Array("uint8", (3,), b"abc"), "b": Array("float64", (1,), b"12345678")}))
    level = decode_level(encoded)
    assert all(array.data.obj is encoded and array.data.readonly for array in level.arrays.values())
    assert [encoded.index(b"abc") % ALIGN, encoded.index(b"12345678") % ALIGN] == [0, 0]


def test_equal_levels_have_equal_bytes() -> None:
    """The order in which arrays were added does not show; one changed byte does."""
    swapped = Level(dict(reversed(SMALL_LEVEL.arrays.items())))
    other = Level(SMALL_LEVEL.arrays | {"n": Array("int64", (), b"\x01" + bytes(7))})
    assert encode_level(swapped) == encode_level(SMALL_LEVEL)
    assert encode_level(other) != encode_level(SMALL_LEVEL)


def test_stored_format_is_frozen() -> None:
    """The bytes of schema 2 stay what they are, so that files of older builds stay readable."""
    digests = {kind: hashlib.sha256(encoded).hexdigest()[:16] for kind, (encoded, _) in DECODERS.items()}
    assert digests == {
        "level": "04b081145c51f754",
        "manifest": "2d7a5e2eab42cc37",
        "info": "abf64b0feb15862d",
        "answer": "57c9d25ce6181577",
    }
