"""A process of its own that the crash tests start, and kill: `python sqlite_writer.py VERB FILE [NUMBER]`.

loop FILE        commit turn after turn and print `number version` after each acknowledged commit, until killed
race FILE N      add 1 to the session's counter N times against rivals; print the version of each acknowledged commit
sweep FILE       do each operation on a copy of FILE, killed before its first, second, … statement
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from hope_memory import Array, Level, Request, SessionId, Snapshot, SqliteStore, VersionConflict

SESSION = SessionId("acme", "chat-1")
NUM_BYTES = 400_000


def snapshot_of(turn: int, num_bytes: int = NUM_BYTES) -> Snapshot:
    """Return a state whose two levels both say the turn."""
    level = Level({"w": Array("uint8", (num_bytes,), bytes([turn % 256]) * num_bytes)})
    return Snapshot("toy-1", {"info": {"turn": turn}}, {"fast": level, "slow": level})


async def loop(path: Path) -> None:
    """Commit on and on."""
    store = SqliteStore(path)
    await store.open()
    record, _ = await store.create(SESSION)
    head = record.head
    while True:
        turn = head.number + 1 if head else 1
        head = await store.commit(SESSION, head and head.version, snapshot_of(turn), request=Request(f"r-{turn}"))
        print(head.number, head.version, flush=True)


async def race(path: Path, num_turns: int) -> None:
    """Read, add one, commit; on a conflict read again."""
    store = SqliteStore(path, keep_versions=1000)
    await store.open()
    while num_turns:
        loaded = await store.load(SESSION)
        try:
            info = await store.commit(SESSION, loaded.info.version, snapshot_of(loaded.info.meta["turn"] + 1, 64))
        except VersionConflict:
            continue
        num_turns -= 1
        print(info.version, flush=True)
    await store.close()


async def commit(store: SqliteStore) -> None:
    """Replace the head, keeping one of its levels."""
    head = (await store.get(SESSION)).head
    await store.commit(SESSION, head and head.version, snapshot_of(9, 5000), frozenset({"slow"}), Request("r-9"))


async def rollback(store: SqliteStore) -> None:
    """Go back to the oldest version."""
    await store.rollback(SESSION, (await store.versions(SESSION))[-1].version)


async def fork(store: SqliteStore) -> None:
    """Make a second session of the head."""
    await store.fork(SESSION, "fork")


async def delete(store: SqliteStore) -> None:
    """Remove the session."""
    await store.delete(SESSION)


async def create(store: SqliteStore) -> None:
    """Make an empty session."""
    await store.create(SessionId("acme", "empty"))


OPERATIONS: dict[str, Callable[[SqliteStore], Awaitable[None]]] = {
    verb.__name__: verb for verb in (commit, create, delete, fork, rollback)
}


async def killed_before(path: Path, operation: str, statement: int) -> None:
    """Do one operation and die by SIGKILL before the given statement of it (1 is the first)."""
    num_statements = 0
    # One operation takes the opening of the store along; it need not be killed again with each of the others.
    is_counting = operation == "create"

    def count(_: str) -> None:
        nonlocal num_statements
        num_statements += is_counting
        if num_statements == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    connect = sqlite3.connect

    def connect_and_count(database: Path, timeout: float, isolation_level: None) -> sqlite3.Connection:
        db = connect(database, timeout=timeout, isolation_level=isolation_level)
        db.set_trace_callback(count)
        return db

    sqlite3.connect = connect_and_count  # type: ignore[assignment]
    store = SqliteStore(path, keep_versions=2)
    await store.open()
    is_counting = True
    await OPERATIONS[operation](store)


def sweep(path: Path) -> None:
    """For each operation and each n: copy FILE to FILE.operation.n, do the operation there, die before statement n."""
    for operation in OPERATIONS:
        statement, status = 0, signal.SIGKILL
        while status == signal.SIGKILL:
            statement += 1
            copy = path.with_name(f"{path.name}.{operation}.{statement}")
            shutil.copy(path, copy)
            for suffix in (".key", ".keys.db"):
                shutil.copy(path.with_suffix(suffix), f"{copy}{suffix}")
            child = os.fork()
            if child == 0:
                asyncio.run(killed_before(copy, operation, statement))
                os._exit(0)
            status = os.waitpid(child, 0)[1]
        if status:
            sys.exit(f"{operation} failed at statement {statement} with status {status}")


if __name__ == "__main__":
    verb, file, *number = sys.argv[1:]
    if verb == "sweep":
        sweep(Path(file))
    elif verb == "loop":
        asyncio.run(loop(Path(file)))
    else:
        asyncio.run(race(Path(file), int(number[0])))
