"""Runs cases and sections of `gpu.py` in worker processes, and goes on with the next when one of them dies or hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import ROOT

MARK = "@@"
GRACE_SECONDS = 45.0
"""How much longer than it was given a request may take before its process is ended: one compilation, one large case."""


@dataclass(slots=True)
class Found:
    """What came of one case or section; error: None where it ran to its end."""

    name: str
    checks: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    kernels: dict[str, dict[str, int | None]] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    is_late: bool = False

    def faults(self) -> list[str]:
        """What is wrong with a case: an error, a check beyond its limit, a kernel that spills."""
        found = [] if self.error is None else [self.error]
        found += [f"{c['what']}: off by {c['error']}, limit {c['limit']:g}" for c in self.checks if not c["ok"]]
        return found + [f"{label} spills {k['spills']} words" for label, k in self.kernels.items() if k["spills"]]


class Worker:
    """One process; `cases` are the names of what it can check."""

    def __init__(self, *, is_toy: bool) -> None:
        environment = dict(os.environ)
        # What is given comes last: a folder of wheels may hold packages of these names.
        paths = [str(ROOT / "kernels"), str(ROOT / "bench"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        environment.pop("TRITON_INTERPRET", None)
        if is_toy:
            # Triton 3.6's interpreter turns arrays of one element into numbers, which numpy warns of each time.
            environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("gpu_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self.cases: list[str] = []
        self._answer(Found("start"), GRACE_SECONDS * 4)

    @property
    def is_alive(self) -> bool:
        """Whether it can take another request."""
        return self._process.poll() is None

    def ask(
        self,
        kind: str,
        name: str,
        seconds: float,
        barriers: dict[str, str] | None = None,
        note: Callable[[dict[str, Any]], None] | None = None,
    ) -> Found:
        """Run one case or section; barriers: cases that forbid a time; note: called with every record as it comes."""
        found = Found(name)
        request = {"kind": kind, "name": name, "seconds": seconds, "barriers": barriers or {}}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            found.error = f"its process had ended: {self._last_words()}"
            return found
        self._answer(found, seconds + GRACE_SECONDS, note)
        return found

    def close(self) -> None:
        """Let it end, or end it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self, found: Found, seconds: float, note: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Read until the request is done."""
        assert self._process.stdout is not None
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            for line in self._process.stdout:
                if not line.startswith(MARK):
                    print(line, end="", flush=True)
                    continue
                message = json.loads(line[len(MARK) :])
                if "cases" in message:
                    self.cases = message["cases"]
                    return
                found.checks += message.get("checks", [])
                found.is_late |= message.get("late", False)
                if "record" in message:
                    found.records.append(message["record"])
                    if note is not None:
                        note(message["record"])
                if "done" in message:
                    found.error, found.kernels, found.seconds = (
                        message[key] for key in ("error", "kernels", "seconds")
                    )
                    return
            self._process.wait()
            found.error = f"its process ended with status {self._process.returncode}: {self._last_words()}"
        finally:
            timer.cancel()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


def check_all(deadline: float, num_workers: int, *, is_toy: bool) -> tuple[list[Found], list[str]]:
    """Run every case, some at a time; returns what came of them, and the names of those left undone."""
    first = Worker(is_toy=is_toy)
    if not first.cases:
        found = first.ask("case", "the start of a process", 1.0)
        first.close()
        return [found], []
    order, waiting = list(first.cases), deque(first.cases)
    done: list[Found] = []

    def serve(worker: Worker | None) -> None:
        while waiting and time.monotonic() < deadline:
            try:
                name = waiting.popleft()
            except IndexError:
                break
            worker = worker if worker is not None and worker.is_alive else Worker(is_toy=is_toy)
            done.append(worker.ask("case", name, max(deadline - time.monotonic(), 1.0)))
            if done[-1].error is not None:
                # Its process may not be what it was.
                worker.close()
                worker = None
        if worker is not None:
            worker.close()

    threads = [threading.Thread(target=serve, args=(first if number == 0 else None,)) for number in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.sort(key=lambda found: order.index(found.name))
    return done, list(waiting)


def run_section(
    name: str, seconds: float, barriers: dict[str, str], note: Callable[[dict[str, Any]], None], *, is_toy: bool
) -> Found:
    """Measure a section in a process of its own."""
    worker = Worker(is_toy=is_toy)
    found = worker.ask("section", name, seconds, barriers, note)
    worker.close()
    return found
