"""How much of a machine's cores went to what is no engine: clients, routers, stores, and the servers' own I/O."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK")
# Of a line of /proc/stat: user, nice, system, irq, softirq, and steal, which other machines took; no idle, no iowait.
_BUSY = (0, 1, 2, 5, 6, 7)
# Of a thread's stat, after its name: seconds in its own code and in the kernel.
_THREAD = (11, 12)


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """Seconds of processor time until `at`: of the machine, and of each thread of the servers."""

    at: float
    machine: float
    threads: dict[tuple[int, int], float]


def read_core_times(pids: Sequence[int]) -> CoreTimes | None:
    """Look at the machine and at the threads of servers. None where there is no /proc."""
    if not _STAT.exists():
        return None
    fields = [int(field) for field in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    return CoreTimes(time.monotonic(), sum(fields[place] for place in _BUSY) / _TICKS, _thread_times(pids))


def cores_of_others(first: CoreTimes | None, last: CoreTimes | None) -> float:
    """Cores that were busy on the average, without each server's busiest thread, its engine; 0 where nobody looked."""
    if first is None or last is None or last.at <= first.at:
        return 0.0
    engines: dict[int, float] = {}
    for (pid, thread), seconds in last.threads.items():
        spent = seconds - first.threads.get((pid, thread), 0.0)
        engines[pid] = max(engines.get(pid, 0.0), spent)
    return max(0.0, last.machine - first.machine - sum(engines.values())) / (last.at - first.at)


def _thread_times(pids: Sequence[int]) -> dict[tuple[int, int], float]:
    found = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/stat"):
            try:
                fields = task.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:
                # The thread ended meanwhile.
                continue
            found[pid, int(task.parent.name)] = sum(int(fields[place]) for place in _THREAD) / _TICKS
    return found
