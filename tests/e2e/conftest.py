"""Engines on every kind of store: a SQLite file, and a real Redis that the tests start."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis_server import RedisServer
from toys import toy_engine

from hope_server.engine.engine import Engine


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests that need one; each works under a prefix of its own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def on_redis(redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    """Settings by which engines of one test share a Redis store and its keys."""
    return {
        "store": redis_server.url,
        "store_prefix": f"test-{secrets.token_hex(6)}:",
        "key_file": str(tmp_path / "hope.key"),
        "key_store": str(tmp_path / "keys.db"),
    }


@pytest.fixture(params=["sqlite", "redis"])
def make_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Engine]:
    """Make toy engines that share one store; keywords change their settings."""
    shared = {"store": str(tmp_path / "store.db")} if request.param == "sqlite" else request.getfixturevalue("on_redis")

    def make(**changes: object) -> Engine:
        return toy_engine(**(shared | changes))

    return make
