"""The backends that the store contract is tested on, and the toy snapshots that the tests commit."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import redis
from hope_memory import (
    Array,
    CommitInfo,
    Level,
    SessionId,
    Snapshot,
    SnapshotStore,
    SqliteStore,
    Vault,
)
from hope_memory.key_file import KeyRing
from hope_memory.redis_layout import Facts, piece_field
from hope_memory.redis_store import RedisOptions, RedisStore
from redis_server import RedisCluster, RedisServer

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

    def lose_everything(self) -> None:
        """Empty the storage behind the store's back, as a restart without its data does; keys stay."""


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

    def lose_everything(self) -> None:
        for table in ("requests", "commit_levels", "commits", "blobs", "sessions"):
            self._run(f"DELETE FROM {table}")

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


class RedisBackend:
    """The keys under one prefix of a Redis, and the sessions' keys in a folder."""

    def __init__(self, server: RedisServer | RedisCluster, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.prefix = f"test-{secrets.token_hex(4)}:"

    def vault(self) -> Vault:
        return Vault.beside(self.folder / "sessions.db")

    def store(self, keep_versions: int = 8, max_snapshot_bytes: int = 1 << 20) -> RedisStore:
        options = RedisOptions(prefix=self.prefix)
        return RedisStore(self.server.url, keep_versions, max_snapshot_bytes, self.vault(), options)

    def count_blobs(self) -> int:
        fields = [field for _, key in self.hashes() for field in self.fields(key) if field.startswith("l:")]
        return len({field.split("#")[0] for field in fields})

    def damage_level(self, version: str, level: str) -> None:
        field = self._piece(version, level)
        data = self.get(field)
        self.put(field, data[:-1] + bytes([data[-1] ^ 1]))

    def damage_manifest(self, version: str) -> None:
        self.put(f"m:{version}", self.get(f"m:{version}")[:-1])

    def swap_manifests(self, version: str, other: str) -> None:
        self._swap(f"m:{version}", f"m:{other}")

    def swap_levels(self, version: str, other: str, level: str) -> None:
        self._swap(self._piece(version, level), self._piece(other, level))

    def lose_everything(self) -> None:
        for node, key in self.keys("*"):
            node.delete(key)

    def keys(self, pattern: str) -> list[tuple[redis.Redis, str]]:
        """The keys under the prefix whose names go on so, each with a client of the node that holds it."""
        nodes = self.server.primaries() if isinstance(self.server, RedisCluster) else [self.server.backdoor]
        found = ((node, key) for node in nodes for key in node.scan_iter(f"{self.prefix}{pattern}", count=1000))
        return [(node, key.decode()) for node, key in found]

    def hashes(self) -> list[tuple[redis.Redis, str]]:
        """The hashes of sessions."""
        return self.keys("*:s")

    def fields(self, key: str) -> list[str]:
        """The fields of a hash."""
        return [field.decode() for field in self._holder(key).hkeys(key)]

    def get(self, field: str) -> bytes:
        """The value of a field in whichever hash has it."""
        node, key = self._home_of(field)
        value = node.hget(key, field)
        assert isinstance(value, bytes)
        return value

    def put(self, field: str, value: bytes) -> None:
        """Overwrite a field in whichever hash has it."""
        node, key = self._home_of(field)
        node.hset(key, field, value)

    def _holder(self, key: str) -> redis.Redis:
        return next(node for node, name in self.hashes() if name == key)

    def _home_of(self, field: str) -> tuple[redis.Redis, str]:
        return next((node, key) for node, key in self.hashes() if node.hexists(key, field))

    def _piece(self, version: str, level: str) -> str:
        place = KeyRing.load(self.folder / "sessions.key").place("level", level)[:16]
        stems = [stem for stem, _ in Facts.decode(self.get(f"f:{version}")).stems]
        return piece_field(next(stem for stem in stems if f":{place}@" in stem), 0)

    def _swap(self, field: str, other: str) -> None:
        mine, theirs = self.get(field), self.get(other)
        self.put(field, theirs)
        self.put(other, mine)


BACKENDS = ("redis", "redis_cluster", "sqlite")


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only."""
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis without persistence for all tests that only add keys of their own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A Redis Cluster of six processes, likewise."""
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(params=BACKENDS)
def make_backend(request: pytest.FixtureRequest) -> Callable[[Path], Backend]:
    """Return a function that makes empty storage of each kind in a folder."""
    if request.param == "sqlite":
        return lambda folder: SqliteBackend(folder / "sessions.db")
    server = request.getfixturevalue("redis_server" if request.param == "redis" else "redis_cluster")
    return lambda folder: RedisBackend(server, folder)


@pytest.fixture
def backend(make_backend: Callable[[Path], Backend], tmp_path: Path) -> Backend:
    """Empty storage of each kind."""
    return make_backend(tmp_path)


@pytest.fixture
def sqlite_backend(tmp_path: Path) -> SqliteBackend:
    """An empty SQLite file."""
    return SqliteBackend(tmp_path / "sessions.db")


@pytest.fixture
def redis_backend(redis_server: RedisServer, tmp_path: Path) -> RedisBackend:
    """No keys yet under a prefix of a Redis."""
    return RedisBackend(redis_server, tmp_path)


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
