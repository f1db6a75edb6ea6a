"""Loads and commits through a real store: what one engine keeps, another finds, or is told why not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import pytest
import torch
from hope_memory.snapshot import Snapshot
from hope_vllm.answers import Answer, Ask
from hope_vllm.codec import StateCodec
from hope_vllm.errors import ShardMissing
from hope_vllm.keeper import Keeper
from hope_vllm.options import read_options
from test_codec import CODEC, CONFIG, random_state, shards_of

from hope_server.errors import (
    IdempotencyKeyReused,
    MemoryRolledBack,
    SessionConflict,
    StartupError,
    StateCorrupt,
    StateIncompatible,
)


class Opened:
    """Keepers on one store, closed when the test is over."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sessions.db"
        self._keepers: list[Keeper] = []

    def keeper(self, codec: StateCodec = CODEC) -> Keeper:
        """An engine's."""
        # Host memory off: every load reads the store.
        keeper = Keeper(read_options({"store": str(self.path), "host_cache_bytes": 0}), codec)
        keeper.open()
        self._keepers.append(keeper)
        return keeper

    def close(self) -> None:
        """Close them all."""
        for keeper in self._keepers:
            keeper.close()
        self._keepers.clear()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A store of the test's own."""
    opened = Opened(tmp_path)
    yield opened
    opened.close()


def teach(keeper: Keeper, num_tokens: int, num_ranks: int = 1) -> str:
    """Commit a state after so many tokens; returns its version."""
    start = keeper.load("ada").result()
    shards = shards_of(random_state(num_tokens), num_ranks)
    return keeper.commit("ada", start, shards, num_tokens - start.num_tokens).result().info.version


def test_a_new_session_has_no_state(opened: Opened) -> None:
    """It begins at no tokens, with a tip that its first commit names."""
    start = opened.keeper().load("ada").result()

    assert start.state is None and start.num_tokens == 0 and start.tip == start.birth


def test_what_one_engine_keeps_another_finds(opened: Opened) -> None:
    """The state of four ranks, bit for bit, with counts of turns and tokens."""
    version = teach(opened.keeper(), 21, num_ranks=4)

    start = opened.keeper().load("ada").result()

    assert start.tip == version and start.num_tokens == 21
    assert start.state.info["turn"] == 1 and start.state.info["tokens_learned"] == 21
    for block, tensors in random_state(21).blocks.items():
        assert all(torch.equal(start.state.blocks[block][name], tensor) for name, tensor in tensors.items())


def test_the_second_of_two_engines_is_refused(opened: Opened) -> None:
    """Both went on from one version: the later commit is a conflict and changes nothing."""
    first, second = opened.keeper(), opened.keeper()
    starts = [keeper.load("ada").result() for keeper in (first, second)]
    kept = first.commit("ada", starts[0], shards_of(random_state(5), 1), 5).result()

    with pytest.raises(SessionConflict):
        second.commit("ada", starts[1], shards_of(random_state(7), 1), 7).result()

    assert second.load("ada").result().tip == kept.info.version


def test_another_model_is_refused(opened: Opened) -> None:
    """A session learned with other weights, or another version of the format, is not begun anew."""
    teach(opened.keeper(), 5)

    with pytest.raises(StateIncompatible):
        opened.keeper(StateCodec(CONFIG, "0" * 32)).load("ada").result()


def test_a_missing_shard_is_refused(opened: Opened) -> None:
    """A stored state that lacks a rank's heads."""

    class Losing(StateCodec):
        def encode(self, *args: object) -> Snapshot:  # type: ignore[override]
            whole = super().encode(*args)  # type: ignore[arg-type]
            return Snapshot(whole.fingerprint, whole.meta, {"rank.0": whole.levels["rank.0"]})

    teach(opened.keeper(Losing(CONFIG, CODEC.fingerprint)), 5, num_ranks=2)

    with pytest.raises(ShardMissing, match="shard 1 of 2"):
        opened.keeper().load("ada").result()


def test_damaged_bytes_are_refused(opened: Opened) -> None:
    """A flipped byte of a stored level is found, and no older version takes its place unasked."""
    keeper = opened.keeper()
    teach(keeper, 5)
    teach(keeper, 9)
    opened.close()
    with sqlite3.connect(opened.path) as db:
        table, column = _blobs(db)
        ((row, data),) = db.execute(f"SELECT rowid, {column} FROM {table} ORDER BY rowid DESC LIMIT 1").fetchall()
        flipped = bytes([*data[:-1], data[-1] ^ 1])
        db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (flipped, row))
    db.close()

    with pytest.raises(StateCorrupt):
        opened.keeper().load("ada").result()


def test_a_store_that_went_back_is_noticed(opened: Opened, tmp_path: Path) -> None:
    """An engine that has seen a version refuses the session where the store no longer knows it."""
    keeper = opened.keeper()
    teach(keeper, 5)
    # SQLite's own copy, as its log holds what the file has not.
    with sqlite3.connect(opened.path) as db, sqlite3.connect(tmp_path / "old.db") as old:
        db.backup(old)
    db.close(), old.close()
    teach(keeper, 9)
    with sqlite3.connect(tmp_path / "old.db") as old, sqlite3.connect(opened.path) as db:
        old.backup(db)
    db.close(), old.close()

    with pytest.raises(MemoryRolledBack):
        keeper.load("ada").result()


def test_a_request_with_a_name_is_learned_once(opened: Opened) -> None:
    """Its answer is kept with the commit and found by any engine; another body under the name is refused."""
    ask, other = (Ask.of("mine", prompt, "greedy") for prompt in ([1, 2], [1, 3]))
    answer = Answer((4, 5, 6), "stop", 6)
    first, second = opened.keeper(), opened.keeper()
    begun = second.load("ada", ask).result()
    start = first.load("ada", ask).result()
    kept = first.commit("ada", start, shards_of(random_state(5), 1), 5, (ask, answer)).result()

    again = second.load("ada", ask).result()

    assert again.answer == replace(answer, version=kept.info.version)
    with pytest.raises(IdempotencyKeyReused):
        second.load("ada", other).result()
    # The same request in two engines at once: the slower one learns nothing.
    with pytest.raises(SessionConflict, match="answered the same request first"):
        second.commit("ada", begun, shards_of(random_state(7), 1), 7, (ask, answer)).result()
    assert second.load("ada").result().tip == kept.info.version


def test_a_store_that_cannot_be_opened_ends_the_start(tmp_path: Path) -> None:
    """A path that is no database: one line says so."""
    copyfile(__file__, tmp_path / "sessions.db")
    keeper = Keeper(read_options({"store": str(tmp_path / "sessions.db")}), CODEC)

    with pytest.raises(StartupError):
        keeper.open()


def _blobs(db: sqlite3.Connection) -> tuple[str, str]:
    """Where the file keeps sealed levels: the table and column with the largest values."""
    found = []
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for _, column, kind, *_ in db.execute(f"PRAGMA table_info({table})"):
            if kind.upper() == "BLOB":
                (size,) = db.execute(f"SELECT max(length({column})) FROM {table}").fetchone()
                found.append((size or 0, table, column))
    _, table, column = max(found)
    return table, column
