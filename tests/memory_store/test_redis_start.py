"""A Redis that cannot hold sessions is refused at the start, with one line that says why and holds no password."""

from __future__ import annotations

import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from hope_memory import Request, SessionId, StoreUnavailable, Vault, open_store
from hope_memory.redis_check import ServerFacts, check
from hope_memory.redis_store import RedisOptions, RedisStore
from redis_server import RedisCluster, RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.memory_store.conftest import MakeSnapshot, RedisBackend

pytestmark = pytest.mark.anyio

# What docs and examples may give a user of Redis: these commands, on the store's keys.
NEEDED = "+eval +evalsha +hset +hget +hmget +hdel +hexists +hkeys +exists +unlink +pexpire +persist +time +get +set"
NEEDED += " +zadd +zrem +zrangebylex +info +ping +wait"
SOUND = ServerFacts((7, 2, 11), False, False, False, 0, "noeviction", True)


def store_at(url: str, folder: Path, prefix: str = "hope:", allow_eviction: bool = False) -> RedisStore:
    """A store that is not open yet."""
    options = RedisOptions(prefix, allow_eviction=allow_eviction)
    return RedisStore(url, vault=Vault.beside(folder / "sessions.db"), options=options)


async def refusal(store: RedisStore) -> str:
    """The line with which a store does not open."""
    with pytest.raises(StoreUnavailable) as caught:
        await store.open()
    text = str(caught.value)
    assert "\n" not in text and "secret" not in text
    return text


@asynccontextmanager
async def opened(store: RedisStore) -> AsyncIterator[RedisStore]:
    """The store, open for the block."""
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_a_policy_that_throws_sessions_away_is_refused(tmp_path: Path) -> None:
    """With maxmemory, only noeviction will do, unless eviction is allowed."""
    with RedisServer(tmp_path / "redis", ["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]) as server:
        assert "maxmemory-policy allkeys-lru" in await refusal(store_at(server.url, tmp_path))
        async with opened(store_at(server.url, tmp_path, allow_eviction=True)) as store:
            await store.ping()
        server.backdoor.config_set("maxmemory-policy", "noeviction")
        async with opened(store_at(server.url, tmp_path)) as store:
            await store.ping()


async def test_a_wrong_password_is_named_and_not_repeated(tmp_path: Path) -> None:
    """No password, a wrong one and an unknown user are told; the right one opens."""
    with RedisServer(tmp_path / "redis", ["--requirepass", "right-secret"]) as server:
        at = f"127.0.0.1:{server.port}"
        for login in ("", ":wrong-secret@", "nobody:wrong-secret@"):
            assert "user or password" in await refusal(store_at(f"redis://{login}{at}", tmp_path))
        async with opened(store_at(f"redis://:right-secret@{at}", tmp_path)) as store:
            await store.ping()


async def test_a_replica_is_refused(tmp_path: Path) -> None:
    """A read-only replica is told from a primary."""
    with RedisServer(tmp_path / "replica", ["--replicaof", "127.0.0.1", "1"]) as replica:
        assert "read-only replica" in await refusal(store_at(replica.url, tmp_path))


async def test_the_wrong_kind_of_url_is_named(
    redis_server: RedisServer, redis_cluster: RedisCluster, tmp_path: Path
) -> None:
    """A cluster behind redis:// and a single Redis behind redis+cluster:// each name the right scheme."""
    plain = redis_cluster.url.replace("+cluster", "")
    assert "use redis+cluster://" in await refusal(store_at(plain, tmp_path))
    single = redis_server.url.replace("redis:", "redis+cluster:").removesuffix("/0")
    assert "use redis://" in await refusal(store_at(single, tmp_path))


async def test_nobody_there_is_told_within_the_deadline(tmp_path: Path) -> None:
    """A port where nothing listens is StoreUnavailable."""
    assert "cannot be reached" in await refusal(store_at("redis://user:secret@127.0.0.1:1", tmp_path))


async def test_tls_is_told_from_plain(redis_server: RedisServer, tmp_path: Path) -> None:
    """TLS where there is none and none where it is needed are named; with the certificate it opens."""
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *words.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60
    )
    at = f"127.0.0.1:{redis_server.port}"
    assert "TLS" in await refusal(store_at(f"rediss://{at}", tmp_path))
    port = free_port()
    options = ["--port", "0", "--tls-port", str(port), "--tls-cert-file", str(certificate)]
    options += ["--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"]
    with RedisServer(tmp_path / "redis", options, port=port) as server:
        at = f"127.0.0.1:{server.port}"
        assert "rediss://" in await refusal(store_at(f"redis://{at}", tmp_path))
        assert "TLS" in await refusal(store_at(f"rediss://{at}", tmp_path))
        async with opened(store_at(f"rediss://{at}?ssl_ca_certs={certificate}", tmp_path)) as store:
            await store.ping()


async def test_keys_of_other_programs_are_left_alone(
    redis_backend: RedisBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Where another program has a value of any kind at a session's key, the store says so and leaves it as it is."""
    async with opened(redis_backend.store()) as store:
        key = f"{redis_backend.prefix}{{{store.vault.place(session)}}}:s"
        node = redis_backend.server.backdoor  # type: ignore[union-attr]
        for put, fault in (
            (lambda: node.set(key, "theirs"), "another kind of value"),
            (lambda: node.hset(key, mapping={"name": "theirs"}), "another program"),
            (lambda: node.hset(key, mapping={"v": "2"}), "newer layout"),
        ):
            node.delete(key)
            put()
            before = node.dump(key)
            for call in (store.get, store.create, store.delete, store.load):
                if call is not store.delete:
                    with pytest.raises(StoreUnavailable, match=fault):
                        await call(session)
            with pytest.raises(StoreUnavailable, match=fault):
                await store.commit(session, None, make_snapshot(1))
            assert node.dump(key) == before


async def test_a_user_needs_few_commands_and_the_store_s_keys_only(
    redis_server: RedisServer, tmp_path: Path, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """Everything works for a user with the named commands on the prefix, and a missing right is told."""
    node = redis_server.backdoor
    rules = ["reset", "on", ">secret", f"~{tmp_path.name}:*", *NEEDED.split()]
    node.execute_command("ACL", "SETUSER", "hope", *rules)
    url = f"redis://hope:secret@127.0.0.1:{redis_server.port}"
    async with opened(store_at(url, tmp_path, f"{tmp_path.name}:")) as store:
        head = await store.commit(session, None, make_snapshot(1), request=Request("r"))
        await store.rollback(session, head.version)
        fork = await store.fork(session, "fork")
        await store.acknowledge(session, head.version)
        assert len(await store.list(session.tenant)) == 2
        assert (await store.load(fork.session)).snapshot == make_snapshot(1)
        assert len(await store.versions(session)) == 2
        assert await store.delete(session)
        assert await store.delete(fork.session)
        node.execute_command("ACL", "SETUSER", "hope", "-hset")
        with pytest.raises(StoreUnavailable, match="refuses the user"):
            await store.create(session)
    assert "refuses the user" in await refusal(store_at(url, tmp_path, "other:"))


@pytest.mark.parametrize(
    "url",
    ["http://h", "redis+tls://h", "unix+cluster://h", "redis://:secret@h:port", "redis://:secret@h/0?ssl_nonsense=1"],
)
async def test_urls_that_cannot_be_are_refused_without_repeating_them(url: str, tmp_path: Path) -> None:
    """A wrong scheme, port or option is a ValueError that holds no password."""
    with pytest.raises(ValueError, match=r"Redis|URL") as caught:
        await store_at(url, tmp_path).open()
    assert "secret" not in str(caught.value)


def test_versions_without_what_the_store_needs_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Redis before 7.0 is refused; one whose Lua has known faults, or without a log on disk, is warned of."""
    with pytest.raises(StoreUnavailable, match=r"7\.0"):
        check(ServerFacts((6, 2, 20), False, False, False, 0, "noeviction", True), "Redis", False, False)
    check(SOUND, "Redis", False, False)
    assert caplog.text == ""
    for version in ((7, 0, 15), (7, 2, 10), (7, 4, 5), (8, 0, 3)):
        caplog.clear()
        check(ServerFacts(version, False, False, False, 0, "noeviction", True), "Redis", False, False)
        assert "Lua" in caplog.text
    for facts in (
        ServerFacts((8, 0, 4), False, False, False, 0, "noeviction", False),
        ServerFacts((8, 1, 0), True, False, False, 0, "noeviction", False),
    ):
        caplog.clear()
        check(facts, "Redis", False, False)
        assert "append-only" in caplog.text and "Lua" not in caplog.text


def test_open_store_knows_every_kind_of_redis(tmp_path: Path) -> None:
    """Each scheme gives a Redis store; a time to live needs one."""
    vault = Vault.beside(tmp_path / "s.db")
    for scheme in ("redis", "rediss", "redis+cluster", "rediss+cluster", "REDIS"):
        assert isinstance(open_store(f"{scheme}://localhost:7000", vault=vault, session_ttl_seconds=60), RedisStore)
    assert isinstance(open_store("unix:///run/redis.sock", vault=vault), RedisStore)
    with pytest.raises(ValueError, match="session_ttl_seconds"):
        open_store(str(tmp_path / "sessions.db"), session_ttl_seconds=60)
