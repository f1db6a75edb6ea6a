"""Processes that die or fail at the worst moment leave exactly the state before or the state after."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hope_memory
import pytest
from hope_memory import CommitInfo, Request, SessionId, Snapshot, SqliteStore, StoreFull, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.memory_store.conftest import CommitChain, MakeSnapshot, SqliteBackend

pytestmark = pytest.mark.anyio

SCRIPT = Path(__file__).with_name("sqlite_writer.py")
PACKAGES = Path(hope_memory.__file__).parents[1]


def start(verb: str, *arguments: object) -> subprocess.Popen[str]:
    """Start the writer script."""
    command = [sys.executable, str(SCRIPT), verb, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(PACKAGES)})


async def contents(store: SqliteStore) -> dict[str, list[tuple[int, Snapshot]]]:
    """Return every kept state of every session by name, newest first, each checked byte by byte by `load`."""
    found: dict[str, list[tuple[int, Snapshot]]] = {}
    for record in await store.list("acme"):
        versions = await store.versions(record.session)
        assert record.head == (versions[0] if versions else None)
        loaded = [await store.load(record.session, info.version) for info in versions]
        found[record.session.name] = [(state.info.number, state.snapshot) for state in loaded]
    return found


def check_blobs(path: Path) -> None:
    """Assert that every stored blob is named by a commit, and that SQLite finds the file in order."""
    db = sqlite3.connect(path)
    named = db.execute("SELECT COUNT(*) FROM (SELECT DISTINCT origin, level FROM commit_levels)").fetchone()
    assert db.execute("SELECT COUNT(*) FROM blobs").fetchone() == named
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()


async def test_a_kill_before_any_statement_leaves_the_state_before_or_after(
    sqlite_backend: SqliteBackend, session: SessionId, commit_chain: CommitChain, make_snapshot: MakeSnapshot
) -> None:
    """Every operation, killed before each of its statements, is found undone or done; once done it stays done."""
    path = sqlite_backend.path
    store = sqlite_backend.store(keep_versions=2)
    await store.open()
    await commit_chain(store, session, 2)
    before = await contents(store)
    await store.close()
    with start("sweep", path) as sweep:
        assert sweep.wait(30) == 0
    runs = [copy.name.split(".")[-2:] for copy in path.parent.glob("*") if copy.suffix[1:].isdigit()]
    for operation, num_kills in Counter(operation for operation, _ in runs).items():
        assert num_kills > 8
        was_done = False
        for statement in range(1, num_kills + 1):
            copy = SqliteStore(path.with_name(f"{path.name}.{operation}.{statement}"), keep_versions=2)
            await copy.open()
            after = await contents(copy)
            check_blobs(copy.path)
            assert was_done <= (after != before)
            was_done = after != before
            if was_done:
                assert after == expected_after(operation, before, after)
            await copy.commit(SessionId("acme", "later"), None, make_snapshot(1))
            await copy.close()
        assert was_done


def expected_after(
    operation: str, before: dict[str, list[tuple[int, Snapshot]]], after: dict[str, list[tuple[int, Snapshot]]]
) -> dict[str, list[tuple[int, Snapshot]]]:
    """Return what the writer's operation makes of the state before it."""
    (number, head), (_, oldest) = before["chat-1"]
    if operation == "delete":
        return {}
    if operation == "create":
        return before | {"empty": []}
    if operation == "fork":
        return before | {"fork": [(number + 1, head)]}
    if operation == "rollback":
        return {"chat-1": [(number + 1, oldest), (number, head)]}
    written = after["chat-1"][0][1]
    assert (written.info, written.levels["slow"]) == ({"turn": 9}, head.levels["slow"])
    assert bytes(written.levels["fast"].arrays["w"].data) == b"\x09" * 5000
    return {"chat-1": [(number + 1, written), (number, head)]}


async def test_no_acknowledged_commit_is_lost_to_kill_9(sqlite_backend: SqliteBackend, session: SessionId) -> None:
    """A process killed at random moments of its commits has lost nothing that it reported, and left nothing torn."""
    rng = random.Random(7)
    acked = 0
    for _ in range(10):
        with start("loop", sqlite_backend.path) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline()]
            time.sleep(rng.uniform(0.0, 0.15))
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        # The last line may be half written: it was then not acknowledged, though it may have been committed.
        number, version = next(line.split() for line in reversed(lines) if line.endswith("\n"))
        assert int(number) > acked
        acked = int(number)
        store = sqlite_backend.store()
        await store.open()
        head = (await store.get(session)).head
        assert head is not None
        assert head.number in (acked, acked + 1)
        assert version in (head.version, head.parent)
        for info in await store.versions(session):
            loaded = await store.load(session, info.version)
            data = {bytes(level.arrays["w"].data) for level in loaded.snapshot.levels.values()}
            assert data == {bytes([info.number % 256]) * 400_000}
            assert info.meta == {"turn": info.number}
        acked = head.number
        await store.close()
        check_blobs(sqlite_backend.path)
    assert acked > 20


async def test_rival_processes_make_one_linear_history(sqlite_backend: SqliteBackend, session: SessionId) -> None:
    """Three processes that count together lose no count, and every acknowledged commit is in the one chain."""
    store = SqliteStore(sqlite_backend.path, keep_versions=1000)
    await store.open()
    first = await store.commit(session, None, Snapshot("toy-1", {"info": {"turn": 0}}, {}))
    rivals = [start("race", sqlite_backend.path, 25) for _ in range(3)]
    acked = [line.strip() for rival in rivals for line in rival.communicate(timeout=30)[0].splitlines()]
    assert [rival.returncode for rival in rivals] == [0, 0, 0]
    chain = (await store.versions(session))[::-1]
    assert [info.meta["turn"] for info in chain] == list(range(76))
    assert [info.parent for info in chain] == [None, *(info.version for info in chain[:-1])]
    assert sorted(info.version for info in chain) == sorted([first.version, *acked])
    await store.close()


class Faulty(sqlite3.Connection):
    """A connection on which some statements in a row fail as on a full or broken disk."""

    fails = range(0)
    code = sqlite3.SQLITE_FULL
    num_statements = 0

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self._count()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        self._count()
        return super().executemany(*arguments)

    def _count(self) -> None:
        Faulty.num_statements += 1
        if Faulty.num_statements in Faulty.fails:
            error = sqlite3.OperationalError("injected")
            error.sqlite_errorcode = Faulty.code
            raise error


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[range, int], None]:
    """Return a function that makes some of the statements from now on (1 is the next) fail with a code."""
    connect = sqlite3.connect

    def connect_faulty(path: Path, **options: Any) -> sqlite3.Connection:
        return connect(path, **options) if path.name.endswith(".keys.db") else connect(path, factory=Faulty, **options)

    monkeypatch.setattr(sqlite3, "connect", connect_faulty)

    def fail(statements: range, code: int) -> None:
        Faulty.num_statements, Faulty.fails, Faulty.code = 0, statements, code

    fail(range(0), 0)
    return fail


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE], ids=["full", "broken"])
@pytest.mark.parametrize("num_failures", [1, 2], ids=["once", "and the roll-back too"])
async def test_a_failure_of_any_statement_changes_nothing(
    sqlite_backend: SqliteBackend,
    session: SessionId,
    commit_chain: CommitChain,
    make_snapshot: MakeSnapshot,
    faulty: Callable[[range, int], None],
    code: int,
    num_failures: int,
) -> None:
    """A commit whose n-th statement fails raises, for every n, and the same store commits at the next try."""
    store = sqlite_backend.store(keep_versions=2)
    await store.open()
    head: CommitInfo = (await commit_chain(store, session, 2))[-1]
    error = StoreFull if code == sqlite3.SQLITE_FULL else StoreUnavailable
    statement = 0
    while True:
        statement += 1
        before = await contents(store)
        faulty(range(statement, statement + num_failures), code)
        try:
            info = await store.commit(
                session, head.version, make_snapshot(statement), frozenset({"slow"}), Request("r")
            )
        except error:
            faulty(range(0), 0)
            assert await contents(store) == before
            head = await store.commit(session, head.version, make_snapshot(100), frozenset({"slow"}))
            check_blobs(sqlite_backend.path)
            continue
        break
    faulty(range(0), 0)
    assert statement > 12
    assert (await store.get(session)).head == info
    await store.close()


async def test_opening_outlasts_a_rival_that_opens_and_leaves_nothing_half_made(
    tmp_path: Path, faulty: Callable[[range, int], None]
) -> None:
    """Whichever statement of opening a new file fails, the next try opens it; a busy switch to WAL is waited for."""
    waited = []
    for statement in range(1, 40):
        store = SqliteStore(tmp_path / f"{statement}.db")
        faulty(range(statement, statement + 1), sqlite3.SQLITE_BUSY)
        try:
            await store.open()
            waited += [statement] if Faulty.num_statements >= statement else []
        except StoreUnavailable:
            faulty(range(0), 0)
            await store.open()
        faulty(range(0), 0)
        await store.ping()
        check_blobs(store.path)
        await store.close()
    assert len(waited) == 1
