"""Archives come back whole in any store; cut, altered or deceiving ones are refused."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hope_memory import CommitInfo, Level, Loaded, SessionId, Snapshot, SnapshotCorrupt, SnapshotTooLarge, SqliteStore
from hope_memory.archive import read_archive, write_archive

if TYPE_CHECKING:
    from tests.memory_store.conftest import MakeSnapshot

pytestmark = pytest.mark.anyio

INFO = CommitInfo("ab" * 16, None, 3, 1.5, 99, {"turn": 3})


def archive_of(snapshot: Snapshot, name: str = "chat-1") -> bytes:
    """Return the archive of a snapshot."""
    return b"".join(write_archive(Loaded(INFO, snapshot, ()), name))


def forged(header: Any, frames: bytes = b"", magic: bytes = b"HOPEARC1") -> bytes:
    """Return an archive whose digest is right, as one who means harm would write it."""
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    packed += bytes(-len(packed) % 16)
    body = struct.pack("<8sI4x", magic, len(packed)) + packed + frames
    return body + hashlib.sha256(body).digest()


async def test_a_session_moves_to_another_store(
    tmp_path: Path, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """What was exported from one store and imported into another, with other keys, is the same state."""
    source, target = SqliteStore(tmp_path / "a.db"), SqliteStore(tmp_path / "b.db")
    await source.open()
    await target.open()
    await source.commit(session, None, make_snapshot(1))
    loaded = await source.load(session)
    header, snapshot = read_archive(b"".join(write_archive(loaded, session.name)), 1 << 20)
    assert (header.name, header.version, header.number) == (session.name, loaded.info.version, 1)
    await target.commit(SessionId("rival", header.name), None, snapshot)
    assert (await target.load(SessionId("rival", session.name))).snapshot == make_snapshot(1)
    await source.close()
    await target.close()


@pytest.mark.parametrize("num_levels", [0, 1, 2])
def test_an_archive_comes_back_as_it_was(make_snapshot: MakeSnapshot, num_levels: int) -> None:
    """State, meta and the facts of the commit come back, as views that copy nothing."""
    made = make_snapshot(7)
    snapshot = Snapshot(made.fingerprint, made.meta, dict(sorted(made.levels.items())[:num_levels]))
    data = archive_of(snapshot, "ü" * 128)
    header, found = read_archive(data, len(data))
    assert found == snapshot
    assert (header.format, header.name, header.version, header.number) == (1, "ü" * 128, "ab" * 16, 3)
    assert all(array.data.obj is data for level in found.levels.values() for array in level.arrays.values())


def test_every_flip_and_truncation_is_refused_before_anything_is_parsed(make_snapshot: MakeSnapshot) -> None:
    """No altered bit, no prefix and nothing longer is accepted, and the size limit comes first of all."""
    data = archive_of(make_snapshot(1))
    for at in range(len(data)):
        altered = bytearray(data)
        altered[at] ^= 1 << at % 8
        for wrong in (bytes(altered), data[:at]):
            with pytest.raises(SnapshotCorrupt):
                read_archive(wrong, 1 << 20)
    with pytest.raises(SnapshotCorrupt):
        read_archive(data + b"\0", 1 << 20)
    with pytest.raises(SnapshotTooLarge):
        read_archive(data, len(data) - 1)


GOOD: dict[str, Any] = {
    "format": 1, "schema": 2, "fingerprint": "toy-1", "name": "chat-1", "version": "v", "number": 1, "created": 1.5,
    "meta": {}, "levels": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [("format", 2), ("format", "1"), ("schema", 1), ("schema", 3), ("fingerprint", ""), ("fingerprint", 1),
     ("name", ""), ("name", "a\0b"), ("name", "n" * 257), ("version", ""), ("version", b"v"), ("number", 0),
     ("number", True),
     ("number", 1 << 61), ("created", 1), ("meta", []), ("meta", {"info": 3}), ("levels", {}), ("levels", [["a"]]),
     ("levels", [["a", -1]]), ("levels", [["a", 1]]), ("levels", [["a", True]]), ("levels", [["a", 0]]),
     ("levels", [["a", 16], ["a", -16]]), ("levels", [["a", 0]] * 300)],
)  # fmt: skip
def test_a_header_with_a_wrong_field_is_refused(field: str, value: Any) -> None:
    """Each field is checked, behind a right digest too."""
    assert read_archive(forged(GOOD), 1 << 20)[1] == Snapshot("toy-1", {}, {})
    with pytest.raises(SnapshotCorrupt):
        read_archive(forged(GOOD | {field: value}), 1 << 20)
    with pytest.raises(SnapshotCorrupt):
        read_archive(forged({name: found for name, found in GOOD.items() if name != field}), 1 << 20)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(forged(b"\xdd\xff\xff\xff\xff"), id="list of 4 billion"),
        pytest.param(forged(b"\x91" * (1 << 20)), id="nested without end"),
        pytest.param(forged(GOOD, bytes(48)), id="frames that no level names"),
        pytest.param(forged(GOOD | {"levels": [["a", 48]]}, b"HMLV" + bytes(44)), id="no frame"),
        pytest.param(forged(bytes(16 + (1 << 20) + 16)), id="header too long"),
        pytest.param(forged(GOOD, magic=b"HOPEARC2"), id="newer"),
        pytest.param(b"", id="empty"),
    ],
)
def test_hostile_archives_are_refused_cheaply(data: bytes) -> None:
    """Sizes that lie cost nothing."""
    tracemalloc.start()
    try:
        with pytest.raises(SnapshotCorrupt):
            read_archive(data, 1 << 24)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_header_size_beyond_the_archive_is_refused() -> None:
    """A header cannot reach into the digest or past the end."""
    for size in (16, 48, 1 << 20, 0xFFFFFFF0, 7):
        body = struct.pack("<8sI4x", b"HOPEARC1", size)
        with pytest.raises(SnapshotCorrupt):
            read_archive(body + hashlib.sha256(body).digest(), 1 << 20)


def test_meta_that_is_too_large_is_refused_by_the_writer() -> None:
    """What a reader would refuse is never written."""
    with pytest.raises(ValueError, match="limit"):
        archive_of(Snapshot("toy-1", {"x": bytes(1 << 20)}, {"w": Level({})}))
