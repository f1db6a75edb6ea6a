"""`hope serve` with a toy model in a process of its own, for tests that look at a server from outside."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 120


def project_environ() -> dict[str, str]:
    """The environment of a process that runs this project from its tree, without settings of the shell."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("HOPE_")}
    paths = [str(ROOT / part) for part in ("", "kernels", "memory_store", "clients")]
    return {**settings, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def toy_server(folder: Path, *flags: str) -> Iterator[str]:
    """Serve until the block ends, with store and log in `folder`; yields the URL once turns are taken."""
    log = folder / "log"
    command = [sys.executable, "-m", "tests.chaos.server", "--port=0", f"--store={folder / 'sessions.db'}", *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=project_environ(), stdout=output, stderr=output)
    try:
        yield _url_when_ready(process, log)
    finally:
        process.terminate()
        process.wait(30)


def _url_when_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:[1-9][0-9]*", log.read_text(errors="replace"))
        if found is not None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{found[0]}/ready").status_code == 200:
                    return found[0]
        time.sleep(0.1)
    raise AssertionError(f"the server did not start: {log.read_text(errors='replace')}")
