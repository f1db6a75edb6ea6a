"""Sides stand still while others are measured, and end with all that they started."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import sides
from sides import Served, Worker

COUNTS = "import sys\nfor line in sys.stdin: print(len(line), flush=True)"
"""Answers every line with its length."""


def worker(code: str) -> Worker:
    """A side that runs this code."""
    return Worker("worker", [sys.executable, "-c", code], os.environ)


def state(pid: int) -> str:
    """The letter that /proc has for a process; empty where it has ended and was waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


def wait_for(pid: int, states: str) -> None:
    """Return once the process is in one of the states."""
    deadline = time.monotonic() + 10
    while state(pid) not in states.split("|"):
        assert time.monotonic() < deadline, state(pid)
        time.sleep(0.005)


def test_a_side_stands_still_but_for_its_block() -> None:
    """A paused side is stopped, runs in the block of `awake`, and is stopped again."""
    with worker(COUNTS) as side:
        side.pause()
        wait_for(side.process.pid, "T")
        with side.awake():
            assert side.ask(text="violin") == len('{"text": "violin"}\n')
        wait_for(side.process.pid, "T")


def test_a_side_ends_with_all_that_it_started() -> None:
    """What a side started ends with it, also while it stands still."""
    child = "import subprocess, sys, time\nsys.stdin.readline()\n"
    child += "print(subprocess.Popen(['sleep', '60']).pid, flush=True)\ntime.sleep(60)"
    with worker(child) as side:
        started = side.ask()
        side.pause()

    wait_for(started, "|Z")
    assert side.process.returncode is not None


def test_a_worker_that_ended_is_an_error() -> None:
    """Nobody waits for an answer that cannot come."""
    with worker("import sys; sys.stdin.readline()") as side, pytest.raises(RuntimeError, match="worker ended"):
        side.ask()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The error has the last words of the log."""
    with (
        Served("toy", [sys.executable, "-c", "print('no such model')"], os.environ, tmp_path, "/ready") as side,
        pytest.raises(RuntimeError, match="no such model"),
    ):
        side.wait_ready()


def test_without_vllm_the_benches_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where vLLM was not installed, a bench that needs it ends with a line about it."""
    import context
    import engine

    monkeypatch.setattr(sides, "VLLM", tmp_path)
    for bench in (context, engine):
        monkeypatch.setattr(sys, "argv", ["bench"])
        assert bench.main() == 2
        assert "scripts/vllm.sh" in capsys.readouterr().out
