"""Measures the session stores beside plain reads and writes of the same bytes. Run by `make bench-store`.

    PYTHONPATH=tests/support python bench/store.py [--quick] [--json NAME]

States are ten levels of random bytes. Each store's commits and loads take turns with a plain SET and GET (Redis) or a
plain row (SQLite) of as many bytes, through the same kind of client, on the same server or file system, in one run.
Redis runs on loopback without persistence; SQLite syncs every commit. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis.asyncio
from fault_proxy import FaultProxy
from hope_memory import Array, Level, SessionId, Snapshot, SnapshotStore, StoreUnavailable, open_store
from hope_memory.key_store import SqliteKeyStore
from hope_memory.vault import Vault
from machine import ROOT, describe, say
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis_server import RedisServer
from target import Target

NUM_LEVELS = 10
LEVEL_BYTES = 1_200_000
SESSION = SessionId("bench", "whole")
CHANGED = SessionId("bench", "changed")
SMALL = SessionId("bench", "small")
PAUSE_SECONDS = 0.05
NUM_HANGS = 3

Job = Callable[[], Awaitable[object]]

TARGETS = (
    Target("redis_commit_1_p50", "Redis, commit of 1.2 MB changed of 12, median ms", 2, at_least=False),
    Target("redis_commit_1_p99", "Redis, commit of 1.2 MB changed of 12, p99 ms", 10, at_least=False),
    Target("redis_commit_12_p50", "Redis, commit of 12 MB, median ms", 20, at_least=False),
    Target("hang_seconds", "longest answer while Redis hangs, s", 2.5, at_least=False),
    Target("ping_busy_p99", "another client's PING during 12 MB commits, p99 ms", 10, at_least=False),
)


@dataclass
class Plain:
    """Plain writes and reads of bytes under a key, for comparison."""

    write: Callable[[str, bytes], Awaitable[object]]
    read: Callable[[str], Awaitable[object]]


def main() -> int:
    """Measure and print; the exit status is 0 whatever the figures are."""
    args = _arguments()
    repeats = 15 if args.quick else 100
    with tempfile.TemporaryDirectory(prefix="hope-bench-") as name:
        figures = asyncio.run(_measure(Path(name), repeats))
    result = describe(1) | {"quick": args.quick, "repeats": repeats, "figures": figures}
    _print(result, figures)
    if args.json:
        path = ROOT / "bench" / "results" / f"{Path(args.json).stem}.json"
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        say(f"wrote {path.relative_to(ROOT)}")
    print(json.dumps(result))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", metavar="NAME", help="also write bench/results/NAME.json")
    return parser.parse_args()


async def _measure(folder: Path, repeats: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    say("SQLite: commits and loads …")
    store = open_store(str(folder / "sessions.db"), max_snapshot_bytes=64 << 20)
    figures |= await _times("sqlite", store, _plain_rows(folder / "plain.db"), repeats)
    server = RedisServer(folder / "redis")
    server.start()
    try:
        say("Redis: commits and loads …")
        # As the store's own client: no retries.
        client = redis.asyncio.Redis(port=server.port, retry=Retry(NoBackoff(), 0))
        figures |= await _times("redis", _redis(folder, server.port), Plain(client.set, client.get), repeats)
        await client.aclose()
        say("Redis: another client's pings …")
        figures |= await _pings(folder, server.port, repeats)
        say("Redis: hanging …")
        figures["hang_seconds"] = await _hang(folder, server.port)
    finally:
        server.stop()
    return figures


def _redis(folder: Path, port: int) -> SnapshotStore:
    vault = Vault(folder / "hope.key", SqliteKeyStore(folder / "redis-keys.db"))
    return open_store(f"redis://127.0.0.1:{port}/0", vault=vault)


def _plain_rows(path: Path) -> Plain:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "CREATE TABLE kv (k PRIMARY KEY, v)"):
        db.execute(statement).fetchall()

    def write(key: str, data: bytes) -> None:
        db.execute("REPLACE INTO kv VALUES (?, ?)", (key, data))

    def read(key: str) -> object:
        return db.execute("SELECT v FROM kv WHERE k = ?", (key,)).fetchone()

    return Plain(lambda key, data: asyncio.to_thread(write, key, data), lambda key: asyncio.to_thread(read, key))


def _snapshot(num_levels: int = NUM_LEVELS) -> Snapshot:
    levels = {
        f"level-{index}": Level({"w": Array("uint8", (LEVEL_BYTES,), os.urandom(LEVEL_BYTES))})
        for index in range(num_levels)
    }
    return Snapshot("bench", {"info": {"turn": 1}}, levels)


async def _times(name: str, store: SnapshotStore, plain: Plain, repeats: int) -> dict[str, float]:
    """Medians and p99 in ms of each job, the jobs taking turns, the plain ones in between."""
    await store.open()
    kept = frozenset(f"level-{index}" for index in range(1, NUM_LEVELS))
    whole, changed = _snapshot(), _snapshot(1)
    # A session for each kind of commit: what a commit drops is as large as what it writes.
    await store.commit(SMALL, None, changed)
    tips = {session: (await store.commit(session, None, whole)).version for session in (SESSION, CHANGED)}
    small, large = os.urandom(LEVEL_BYTES), os.urandom(LEVEL_BYTES * NUM_LEVELS)
    times: dict[str, list[float]] = {}

    async def commit(session: SessionId, snapshot: Snapshot, unchanged: frozenset[str]) -> None:
        tips[session] = (await store.commit(session, tips[session], snapshot, unchanged)).version

    jobs: dict[str, Job] = {
        "commit_12": lambda: commit(SESSION, whole, frozenset()),
        "plain_write_12": lambda: plain.write("large", large),
        "commit_1": lambda: commit(CHANGED, changed, kept),
        "plain_write_1": lambda: plain.write("small", small),
        "load_12": lambda: store.load(SESSION),
        "plain_read_12": lambda: plain.read("large"),
        "load_1": lambda: store.load(SMALL),
        "plain_read_1": lambda: plain.read("small"),
    }
    for count in range(repeats + 1):
        for job, work in jobs.items():
            began = time.perf_counter()
            await work()
            if count:  # the first round warms up
                times.setdefault(job, []).append((time.perf_counter() - began) * 1e3)
    await store.close()
    return {f"{name}_{job}_{kind}": value for job, found in times.items() for kind, value in _summary(found).items()}


async def _pings(folder: Path, port: int, repeats: int) -> dict[str, float]:
    """Another client's PING in ms, alone and while 12 MB are committed every 50 ms."""
    store = _redis(folder, port)
    await store.open()
    session = SessionId("bench", "paced")
    tip, whole = (await store.create(session))[0].tip, _snapshot()
    figures: dict[str, float] = {}
    for state in ("idle", "busy"):
        pinger = subprocess.Popen(
            [sys.executable, str(ROOT / "bench" / "pinger.py"), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert pinger.stdout is not None
        await asyncio.to_thread(pinger.stdout.readline)
        for _ in range(max(20, repeats)):
            if state == "busy":
                tip = (await store.commit(session, tip, whole)).version
            await asyncio.sleep(PAUSE_SECONDS)
        output, _ = await asyncio.to_thread(pinger.communicate, "")
        figures |= {f"ping_{state}_{kind}": value for kind, value in _summary(json.loads(output)).items()}
    await store.close()
    return figures


async def _hang(folder: Path, port: int) -> float:
    """The longest that any operation takes to be answered while Redis accepts bytes and says nothing, in seconds."""
    longest = 0.0
    async with FaultProxy(port) as proxy:
        for _ in range(NUM_HANGS):
            store = _redis(folder, proxy.port)
            await store.open()
            tip = (await store.get(SESSION)).tip
            jobs: list[Job] = [
                lambda store=store, tip=tip: store.commit(SESSION, tip, _snapshot(1)),
                lambda store=store: store.load(SESSION),
                lambda store=store: store.get(SESSION),
            ]
            proxy.up.hold()
            for job in jobs:
                began = time.perf_counter()
                try:
                    await job()
                except StoreUnavailable:
                    longest = max(longest, time.perf_counter() - began)
                else:
                    raise RuntimeError("a store answered although Redis hangs")
            proxy.heal()
            await store.close()
    return longest


def _summary(times: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {"p50": statistics.median(ordered), "p99": ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]}


def _print(result: dict[str, object], figures: dict[str, float]) -> None:
    print(f"{result['cpu']}, {result['cores']} cores; {result['system']}; python {result['python']}")
    print(f"commit {result['commit']}; {result['repeats']} repeats; {NUM_LEVELS} levels of {LEVEL_BYTES / 1e6:g} MB")
    print("\nmilliseconds                        ours p50    p99    plain p50    p99   ratio of medians")
    for name, title in (("redis", "Redis"), ("sqlite", "SQLite")):
        for ours, theirs, what in (
            ("commit_1", "plain_write_1", "commit, 1.2 MB changed of 12"),
            ("commit_12", "plain_write_12", "commit, 12 MB"),
            ("load_1", "plain_read_1", "load, 1.2 MB"),
            ("load_12", "plain_read_12", "load, 12 MB"),
        ):
            found = [figures[f"{name}_{job}_{kind}"] for job in (ours, theirs) for kind in ("p50", "p99")]
            ratio = found[0] / found[2]
            print(f"{title:<7}{what:<30}{found[0]:>7.1f}{found[1]:>7.1f}{found[2]:>13.1f}{found[3]:>7.1f}{ratio:>9.2f}")
    for state in ("idle", "busy"):
        middle, slowest = (figures[f"ping_{state}_{kind}"] for kind in ("p50", "p99"))
        print(f"PING of another client, {state}: {middle:.2f}, p99 {slowest:.2f}")
    print(f"longest answer while Redis hangs: {figures['hang_seconds']:.2f} s\n")
    for target in TARGETS:
        print(target.line(figures[target.name])[1])


if __name__ == "__main__":
    sys.exit(main())
