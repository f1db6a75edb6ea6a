"""Locust in processes of its own, from the environment that has it: started, watched, told to end."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from loadtests.plan import END_FILE, ENVIRONMENT, Plan
from loadtests.server import ROOT

LOCUST = ROOT / ".load" / "bin" / "locust"
_POLL_SECONDS = 0.2
_EXTRA_SECONDS = 60.0


class Swarm:
    """A Locust master and its workers, without its web page."""

    def __init__(self, plan: Plan, folder: Path, program: Path, grace_seconds: int) -> None:
        """grace_seconds: how long users may end the turn that they are in."""
        path = folder / "plan.json"
        # It holds API keys.
        path.touch(mode=0o600)
        path.write_text(plan.to_json(), encoding="utf-8")
        self._end = folder / END_FILE
        self._limit_seconds = plan.seconds + grace_seconds + _EXTRA_SECONDS
        self._grace_seconds = grace_seconds
        port = str(_free_port())
        command = [str(program), "-f", str(ROOT / "loadtests" / "locustfile.py"), "--headless", "--loglevel", "WARNING"]
        # Failed tries are figures of the report, not a failure of Locust.
        command += ["--exit-code-on-error", "0"]
        # Started one by one: `--processes` would end before its workers have.
        master = [*command, "--only-summary", "--master", "--master-bind-port", port]
        master += ["--expect-workers", str(plan.processes), "--stop-timeout", str(max(1, grace_seconds))]
        worker = [*command, "--worker", "--master-port", port]
        self._log = (folder / "locust.log").open("wb")
        environ = _environ() | {ENVIRONMENT: str(path)}
        self._processes = [
            # Sessions of their own: Ctrl-C is for the driver, which lets users end their turns.
            subprocess.Popen(
                words, cwd=ROOT, env=environ, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
            )
            for words in (master, *([worker] * plan.processes))
        ]

    def wait(self, is_over: Callable[[], bool]) -> int:
        """Return the worst exit status when all processes have ended; `is_over` becoming true ends the load early."""
        master, *workers = self._processes
        deadline = time.monotonic() + self._limit_seconds
        while any(process.poll() is None for process in self._processes) and time.monotonic() < deadline:
            is_broken = any(worker.poll() is not None for worker in workers) and master.poll() is None
            if not self._end.exists() and (is_over() or is_broken or master.poll() is not None):
                self._end.touch()
                deadline = min(deadline, time.monotonic() + self._grace_seconds + _EXTRA_SECONDS)
            time.sleep(_POLL_SECONDS)
        for process in self._processes:
            # No request may come after the checks have begun.
            process.kill()
        self._log.close()
        return max(abs(process.wait()) for process in self._processes)


def _environ() -> dict[str, str]:
    """Locust's own settings could come from the shell; none may."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "HOPE_"))}
    return kept | {"PYTHONPATH": str(ROOT)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
