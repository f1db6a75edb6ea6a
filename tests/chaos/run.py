"""Chaos: servers, Redis and connections die while clients teach; then every promise is checked against what is stored.

    python -m tests.chaos.run [--seconds 60] [--seed N] [--servers 3] [--keep]

Prints what was done, what went wrong by promise, the seed, and PASS or FAIL; exit status 1 on FAIL. The faults and the
clients' choices depend on the seed; which of them meets which turn depends on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from hope_memory import SessionId, SessionMissing, SnapshotStore, StoreUnavailable

from tests.chaos.checks import PROMISES, Findings, Sightings, check_everything
from tests.chaos.clients import TURN_SECONDS
from tests.chaos.nemesis import Nemesis
from tests.chaos.plan import make_plan
from tests.chaos.turns import API_KEYS, Journal
from tests.chaos.world import World
from tests.chaos.writers import WRITERS, Writer

_LOOK_SECONDS = 0.05
_RECENT = 40


class ChaosRun:
    """One run: its world, its clients, its faults, its findings."""

    def __init__(self, folder: Path, seconds: float, seed: int, num_servers: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.seed = seed
        self.journal = Journal(folder / "turns.jsonl")
        self.seen = Sightings()
        self.world = World(folder, num_servers, seed)
        self.nemesis = Nemesis(self.world, make_plan(seed, seconds, num_servers))
        self._ending = asyncio.Event()

    async def run(self) -> Findings:
        """Do it all and return what was found."""
        async with self.world:
            store = self.world.store()
            await store.open()
            try:
                return await self._run(store)
            finally:
                await store.close()
                self.journal.close()

    async def _run(self, store: SnapshotStore) -> Findings:
        writers = [Writer(index, spec, self.world.urls, self.journal, self.seed) for index, spec in enumerate(WRITERS)]

        async def delete(tenant: str, name: str) -> None:
            await self._delete(store, tenant, name)

        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(store))
                writing = [group.create_task(writer.write(self._ending, delete)) for writer in writers]
                began = time.monotonic()
                await self.nemesis.strike()
                await asyncio.sleep(max(0.0, began + self.seconds - time.monotonic()))
                await self.world.heal()
                self._ending.set()
                await asyncio.wait(writing, timeout=2 * TURN_SECONDS)
                watching.cancel()
        finally:
            for writer in writers:
                await writer.close()
        for server in self.world.servers:
            await self.world.stop_server(server)
        return await check_everything(store, self.journal, self.seen, self.world.num_late_exits)

    async def _watch(self, store: SnapshotStore) -> None:
        """Read sessions that are being written, all the time."""
        chance = random.Random(f"watch {self.seed}")
        while True:
            recent = list(dict.fromkeys((turn.tenant, turn.session) for turn in self.journal.turns[-_RECENT:]))
            if recent:
                name = chance.choice(recent)
                if name not in self.journal.deleted:
                    await self.seen.look(store, name)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _delete(self, store: SnapshotStore, tenant: str, name: str) -> None:
        """Delete a session in the store, as a server would, and remember which incarnation it was."""
        session = SessionId(tenant, name)
        while True:
            with suppress(StoreUnavailable):
                try:
                    birth = (await store.get(session)).birth
                except SessionMissing:
                    return
                self.journal.deleted[tenant, name] = birth
                await store.delete(session)
                self.journal.counts["sessions deleted"] += 1
                return
            await asyncio.sleep(0.2)


def report(run: ChaosRun, findings: Findings, took_seconds: float) -> str:
    """The lines that tell what was done and what was found."""
    turns = run.journal.turns
    acked = [turn for turn in turns if turn.is_acked]
    replays = sum(answer.is_replay for turn in turns for answer in turn.answers)
    retries = sum(turn.num_tries - 1 for turn in turns if turn.num_tries)
    resets = sum(proxy.num_resets for proxy in (*run.world.store_proxies, *run.world.client_proxies))
    lines = [
        f"chaos: seed {run.seed}, {run.seconds:g} s of faults ({took_seconds:.0f} s in all), "
        f"{len(run.world.servers)} servers, {len(WRITERS)} writers, {len(API_KEYS)} tenants",
        f"turns {len(turns)}, acknowledged {len(acked)}, learned {findings.num_learned}, tried again {retries}, "
        f"replayed {replays}, connections reset {resets}",
        *(f"{text}: {count}" for text, count in sorted(run.journal.counts.items())),
        f"read while faults went on: {run.seen.num_reads}; checked at the end: {findings.num_sessions} sessions, "
        f"{findings.num_versions} versions",
        "faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(run.nemesis.done.items())),
        "refusals: " + ", ".join(f"{what} {count}" for what, count in sorted(run.journal.refusals.items())),
        "",
        *(f"{len(findings.faults[promise]):>6}  {text}" for promise, text in PROMISES.items()),
    ]
    for promise, faults in findings.faults.items():
        lines += [f"  {promise}: {fault}" for fault in faults[:8]]
    lines.append(f"\n{'PASS' if findings.is_clean and acked else 'FAIL'} (seed {run.seed})")
    return "\n".join(lines)


def main() -> int:
    """Run, print, and keep the logs where something was found."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults go on")
    parser.add_argument("--seed", type=int, help="of the faults and the clients' choices (default: by chance)")
    parser.add_argument("--servers", type=int, default=3, help="server processes, two at least")
    parser.add_argument("--keep", action="store_true", help="keep the folder of logs, Redis files and turns")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    folder = Path(tempfile.mkdtemp(prefix="hope-chaos-"))
    began = time.monotonic()
    run = ChaosRun(folder, args.seconds, seed, max(2, args.servers))
    findings = asyncio.run(run.run())
    print(report(run, findings, time.monotonic() - began))
    is_good = findings.is_clean and any(turn.is_acked for turn in run.journal.turns)
    if is_good and not args.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"logs, turns and Redis files: {folder}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
