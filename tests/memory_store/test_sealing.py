"""Sealed bytes open where they belong and nowhere else: every flip, cut and exchange is refused."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flips
import pytest
from hope_memory import Array, CommitInfo, Level, Request, SessionId, SnapshotCorrupt, encode_level
from hope_memory.codec import LevelRef, Manifest, encode_answer
from hope_memory.sealing import SEAL_BYTES, DataKeys, UnknownKey, context_bytes, key_id_of
from hope_memory.seals import Seals, StaleKeys, open_name
from hypothesis import given, settings
from hypothesis import strategies as st

KEYS = DataKeys.generate()
SESSION = SessionId("acme", "chat-1")
SEALS = Seals(SESSION, KEYS, are_latest=True)
LEVEL = Level({"w": Array("float32", (3,), b"abcdefghijkl")})
MANIFEST = Manifest("acme", "chat-1", "v1", None, 1, 2.5, "toy-1", {}, None, (("v1", ""),), {})
INFO = CommitInfo("v1", None, 1, 2.5, 99, {"turn": 1})
PARTS = st.lists(st.text(max_size=6) | st.integers(-(1 << 63), (1 << 63) - 1) | st.binary(max_size=6), max_size=4)


@given(PARTS, PARTS)
@settings(max_examples=300, deadline=None)
def test_different_contexts_never_have_the_same_bytes(parts: list[Any], others: list[Any]) -> None:
    """Neither types nor where one part ends and the next begins are lost."""
    same = [(type(part), part) for part in parts] == [(type(part), part) for part in others]
    assert (context_bytes(parts) == context_bytes(others)) == same


@pytest.mark.parametrize("size", [0, 1, 15, 16, 1000])
def test_sealed_bytes_come_back_and_do_not_show_what_they_are(size: int) -> None:
    """Any size comes back, SEAL_BYTES larger while stored; the same bytes twice are sealed differently."""
    data = b"plain text here!" * (size // 16) + b"p" * (size % 16)
    sealed, again = KEYS.seal(data, ("x", 1)), KEYS.seal(data, ("x", 1))
    assert KEYS.open(sealed, ("x", 1)) == data == KEYS.open(memoryview(again), ("x", 1))
    assert (len(sealed), sealed != again, b"plain" in sealed) == (size + SEAL_BYTES, True, False)


def test_every_flipped_bit_truncation_and_extension_is_refused() -> None:
    """Not one altered bit, missing byte or added byte of sealed bytes is accepted."""
    sealed = KEYS.seal(b"twelve bytes", ("x",))
    for at in range(len(sealed)):
        for bit in range(8):
            altered = bytearray(sealed)
            altered[at] ^= 1 << bit
            with pytest.raises(SnapshotCorrupt):
                KEYS.open(bytes(altered), ("x",))
        with pytest.raises(SnapshotCorrupt):
            KEYS.open(sealed[:at], ("x",))
    with pytest.raises(SnapshotCorrupt):
        KEYS.open(sealed + b"\0", ("x",))


def test_bytes_of_other_keys_are_told_from_altered_ones() -> None:
    """An unknown key id is an error of its own, since later keys may have it."""
    sealed = DataKeys.generate().seal(b"x", ())
    with pytest.raises(UnknownKey):
        KEYS.open(sealed, ())
    with pytest.raises(StaleKeys):
        Seals(SESSION, KEYS).open_manifest(sealed, "v1")
    with pytest.raises(UnknownKey):
        SEALS.open_manifest(sealed, "v1")


def test_a_fork_reads_what_was_written_before_it_and_nothing_later() -> None:
    """Inherited keys open old bytes; neither the source's later bytes nor the fork's own are open to the other."""
    before = KEYS.seal(b"x", ("shared",))
    source = KEYS.with_new_key()
    fork = source.inherited(key_id_of(before))
    assert fork.birth != source.birth
    assert fork.open(before, ("shared",)) == source.open(before, ("shared",)) == b"x"
    for writer, reader in ((source, fork), (fork, source)):
        with pytest.raises(UnknownKey):
            reader.open(writer.seal(b"y", ("later",)), ("later",))
    assert len(source.inherited().keys) == len(source.keys) + 1


def test_keys_do_not_show_in_their_representation() -> None:
    """What ends up in a log by mistake holds no key."""
    (key,) = KEYS.keys.values()
    assert key.hex() not in repr(KEYS) and repr(key) not in repr(KEYS) and key.hex() not in repr(SEALS)


def level_sealed_for(seals: Seals, name: str = "fast", origin: str = "v1", fingerprint: str = "toy-1") -> list[bytes]:
    """Return the level's pieces as sealed for a place."""
    return list(seals.seal_level(name, encode_level(LEVEL), origin, fingerprint, 1 << 20)[1])


REF = LevelRef("v1", KEYS.birth, len(level_sealed_for(SEALS)[0]), 1)
OTHER_BIRTH = replace(KEYS, birth="0" * 32)
# What opens bytes, and the same kind of bytes of other places; all are sealed with the same, right, key.
PLACES: dict[str, tuple[Callable[[bytes], object], bytes, list[bytes]]] = {
    "level": (
        lambda sealed: SEALS.open_level("fast", REF, "toy-1", [sealed]),
        level_sealed_for(SEALS)[0],
        [
            level_sealed_for(SEALS, name="slow")[0],
            level_sealed_for(SEALS, origin="v2")[0],
            level_sealed_for(SEALS, fingerprint="toy-2")[0],
            level_sealed_for(Seals(SESSION, OTHER_BIRTH))[0],
            level_sealed_for(Seals(SessionId("rival", "chat-1"), KEYS))[0],
        ],
    ),
    "manifest": (
        lambda sealed: SEALS.open_manifest(sealed, "v1"),
        SEALS.seal_manifest(MANIFEST),
        [
            SEALS.seal_manifest(replace(MANIFEST, version="v2")),
            Seals(SessionId("acme", "chat-2"), KEYS).seal_manifest(MANIFEST),
            Seals(SessionId("rival", "chat-1"), KEYS).seal_manifest(MANIFEST),
            Seals(SESSION, OTHER_BIRTH).seal_manifest(MANIFEST),
            SEALS.seal_manifest(replace(MANIFEST, tenant="rival")),
        ],
    ),
    "summary": (
        lambda sealed: SEALS.open_info(sealed, "v1"),
        SEALS.seal_info("v1", {"turn": 1}),
        [SEALS.seal_info("v2", {"turn": 1}), Seals(SESSION, OTHER_BIRTH).seal_info("v1", {"turn": 1})],
    ),
    "answer": (
        lambda sealed: SEALS.open_answer(sealed, "place"),
        SEALS.seal_answer("place", Request("r", b"d", b"reply"), INFO),
        [
            SEALS.seal_answer("other", Request("r", b"d", b"reply"), INFO),
            Seals(SessionId("acme", "chat-2"), KEYS).seal_answer("place", Request("r"), INFO),
        ],
    ),
    "name": (
        lambda sealed: open_name("acme", KEYS, sealed),
        SEALS.seal_name(),
        [Seals(SESSION, OTHER_BIRTH).seal_name(), Seals(SessionId("rival", "chat-1"), KEYS).seal_name()],
    ),
}


@pytest.mark.parametrize("kind", sorted(PLACES))
def test_bytes_open_only_where_they_were_sealed_for(kind: str) -> None:
    """The right bytes open; those of another session, birth, tenant, version, level or model, or kind, do not."""
    opened, right, wrong = PLACES[kind]
    opened(right)
    for other in [*wrong, *(bytes_of[1] for name, bytes_of in PLACES.items() if name != kind)]:
        with pytest.raises(SnapshotCorrupt):
            opened(other)


def test_pieces_of_a_level_are_not_exchanged_left_out_or_repeated() -> None:
    """Each piece knows its number and how many there are; piece sizes hold to the limit."""
    encoded = encode_level(Level({"w": Array("uint8", (1000,), bytes(1000))}))
    ref, made = SEALS.seal_level("fast", encoded, "v1", "toy-1", 256)
    pieces = list(made)
    assert (ref.num_pieces, ref.num_bytes, max(map(len, pieces))) == (len(pieces), sum(map(len, pieces)), 256)
    assert encode_level(SEALS.open_level("fast", ref, "toy-1", pieces)) == encoded
    swapped = [pieces[1], pieces[0], *pieces[2:]]
    for wrong in (swapped, pieces[:-1], [pieces[0], pieces[0], *pieces[2:]], [*pieces, pieces[-1]]):
        with pytest.raises(SnapshotCorrupt):
            SEALS.open_level("fast", ref, "toy-1", wrong)
    shorter = replace(ref, num_pieces=len(pieces) - 1, num_bytes=ref.num_bytes - len(pieces[-1]))
    with pytest.raises(SnapshotCorrupt):
        SEALS.open_level("fast", shorter, "toy-1", pieces[:-1])


@pytest.mark.parametrize("info", [{}, {"info": 3}, {"info": {}, "digest": b""}, {"info": {}, "digest": 3}], ids=repr)
def test_an_answer_of_another_form_is_damage(info: dict[str, Any]) -> None:
    """A sealed answer whose fields are missing or of wrong types is refused."""
    context = ("request", "acme", "chat-1", KEYS.birth, "place")
    with pytest.raises(SnapshotCorrupt, match="stored answer"):
        SEALS.open_answer(KEYS.seal(encode_answer(info, b""), context), "place")


@pytest.mark.parametrize("kind", sorted(flips.TARGETS))
def test_no_altered_record_is_accepted(kind: str) -> None:
    """Seeded flips, cuts, exchanges and bytes of other places: HOPE_FLIPS of them (10,000), not one accepted."""
    make, share = flips.TARGETS[kind]
    num_tries = int(int(os.environ.get("HOPE_FLIPS", "10000")) * share)
    assert flips.sweep(make(), num_tries, random.Random(20_261_121)) == (num_tries, 0)
