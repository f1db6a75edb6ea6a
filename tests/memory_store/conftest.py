"""The backends that the store contract is tested on, and the toy snapshots that the tests commit."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest
from hope_memory import Array, CommitInfo, Level, SessionId, Snapshot, SnapshotStore, SqliteStore

MakeSnapshot = Callable[..., Snapshot]
CommitChain = Callable[[SnapshotStore, SessionId, int], Awaitable[list[CommitInfo]]]


class Backend(Protocol):
    """Storage that outlives the stores opened on it, with a back door for the tests."""

    def store(self, keep_versions: int = 8, max_snapshot_bytes: int = 1 << 20) -> SnapshotStore:
        """Return a new, unopened store on the same storage."""

    def count_blobs(self) -> int:
        """Return how many encoded levels are stored."""

    def damage_level(self, version: str, level: str) -> None:
        """Flip one bit of the stored level that a commit names."""

    def damage_manifest(self, version: str) -> None:
        """Cut the last byte off a commit's stored manifest."""

    def swap_manifests(self, version: str, other: str) -> None:
        """Exchange the stored manifests of two commits."""

    def swap_levels(self, version: str, other: str, level: str) -> None:
        """Exchange the stored bytes of one level between two commits."""


class SqliteBackend:
    """One SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def store(self, keep_versions: int = 8, max_snapshot_bytes: int = 1 << 20) -> SqliteStore:
        return SqliteStore(self.path, keep_versions, max_snapshot_bytes)

    def count_blobs(self) -> int:
        return int(self._run("SELECT COUNT(*) FROM blobs")[0][0])

    def damage_level(self, version: str, level: str) -> None:
        key, data = self._blob(version, level)
        self._run("UPDATE blobs SET data = ? WHERE origin = ? AND level = ?", data[:-1] + bytes([data[-1] ^ 1]), *key)

    def damage_manifest(self, version: str) -> None:
        data = self._run("SELECT manifest FROM commits WHERE version = ?", version)[0][0]
        self._run("UPDATE commits SET manifest = ? WHERE version = ?", data[:-1], version)

    def swap_manifests(self, version: str, other: str) -> None:
        manifests = dict(self._run("SELECT version, manifest FROM commits"))
        for target, source in ((version, other), (other, version)):
            self._run("UPDATE commits SET manifest = ? WHERE version = ?", manifests[source], target)

    def swap_levels(self, version: str, other: str, level: str) -> None:
        (key, data), (other_key, other_data) = self._blob(version, level), self._blob(other, level)
        self._run("UPDATE blobs SET data = ? WHERE origin = ? AND level = ?", other_data, *key)
        self._run("UPDATE blobs SET data = ? WHERE origin = ? AND level = ?", data, *other_key)

    def _blob(self, version: str, level: str) -> tuple[tuple[str, str], bytes]:
        sql = "SELECT origin, level, data FROM commit_levels JOIN blobs USING (origin, level) WHERE version = ?"
        rows = self._run(f"{sql} AND level = ?", version, level)
        return (rows[0][0], rows[0][1]), rows[0][2]

    def _run(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        db = sqlite3.connect(self.path, isolation_level=None, timeout=5)
        try:
            return db.execute(sql, values).fetchall()
        finally:
            db.close()


BACKENDS: dict[str, Callable[[Path], Backend]] = {"sqlite": lambda folder: SqliteBackend(folder / "sessions.db")}


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only."""
    return "asyncio"


@pytest.fixture(params=sorted(BACKENDS))
def make_backend(request: pytest.FixtureRequest) -> Callable[[Path], Backend]:
    """Return a function that makes empty storage of each kind in a folder."""
    return BACKENDS[request.param]


@pytest.fixture
def backend(make_backend: Callable[[Path], Backend], tmp_path: Path) -> Backend:
    """Empty storage of each kind."""
    return make_backend(tmp_path)


@pytest.fixture
def sqlite_backend(tmp_path: Path) -> SqliteBackend:
    """An empty SQLite file."""
    return SqliteBackend(tmp_path / "sessions.db")


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[SnapshotStore]:
    """An open store that keeps 8 versions of at most 1 MiB."""
    store = backend.store()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def session() -> SessionId:
    """The session that most tests use."""
    return SessionId("acme", "chat-1")


@pytest.fixture
def make_snapshot() -> MakeSnapshot:
    """Return a function (turn, fill=turn, fingerprint) -> snapshot with the levels `fast` and `slow`."""

    def make(turn: int, fill: int | None = None, fingerprint: str = "toy-1") -> Snapshot:
        byte = bytes([(turn if fill is None else fill) % 256])
        fast = Level({"w": Array("float32", (8,), byte * 32), "steps": Array("int64", (), turn.to_bytes(8, "little"))})
        slow = Level({"w": Array("bfloat16", (16, 4), byte * 128)})
        return Snapshot(fingerprint, {"info": {"turn": turn}, "rng": b"\x00\x01"}, {"fast": fast, "slow": slow})

    return make


@pytest.fixture
def commit_chain(make_snapshot: MakeSnapshot) -> CommitChain:
    """Return a function that commits turns 1 to `length` to an empty session and returns them, oldest first."""

    async def commit(store: SnapshotStore, session: SessionId, length: int) -> list[CommitInfo]:
        chain: list[CommitInfo] = []
        for turn in range(1, length + 1):
            parent = chain[-1].version if chain else None
            chain.append(await store.commit(session, parent, make_snapshot(turn)))
        return chain

    return commit
