"""`hope chat` in a real terminal with a real server: what a person sees, and what Ctrl-C leaves in the session."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hope_client import HopeClient
from toy_server import ROOT, project_environ, toy_server

SECONDS = 60


class Terminal:
    """A program at one end of a pseudo-terminal; `screen` is all that it wrote."""

    def __init__(self, *command: str) -> None:
        self._keyboard, end = pty.openpty()
        environ = {**project_environ(), "TERM": "xterm", "PYTHONUNBUFFERED": "1"}
        # A session of its own makes the terminal the one whose Ctrl-C it gets.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, *command],
            cwd=ROOT,
            env=environ,
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)
        self.screen = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._keyboard, text.encode())

    def wait_for(self, text: str, behind: int = 0) -> None:
        """Wait until `text` is on the screen, behind that many characters."""
        deadline = time.monotonic() + SECONDS
        while text not in self.screen[behind:]:
            assert time.monotonic() < deadline, f"{text!r} never came:\n{self.screen}"
            if select.select([self._keyboard], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.screen += os.read(self._keyboard, 65536).decode(errors="replace")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._keyboard)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS)


# A shell starts what runs in the background with Ctrl-C ignored, and that is inherited; who sits at a terminal has it.
_RUN = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
from hope_server.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process with a toy model and a store of its own."""
    with toy_server(tmp_path_factory.mktemp("server")) as url:
        yield url


def test_a_conversation_in_a_terminal(server_url: str, tmp_path: Path) -> None:
    """Turns are learned and told; Ctrl-C stops a long one and the session keeps its version; /quit ends."""
    book = tmp_path / "book.txt"
    book.write_text("A word. " * 20_000, encoding="utf-8")
    command = ("chat", "--session", "ada", "--max-tokens", "8", "--url", server_url)
    with Terminal(*command) as terminal, HopeClient(server_url) as hope:
        terminal.wait_for("> ")
        terminal.type("hello\n")
        terminal.wait_for("[learned ")
        terminal.wait_for("> ", behind=terminal.screen.index("[learned "))
        session = hope.get_session("ada")
        version = session.version
        assert version is not None and version[:8] in terminal.screen
        terminal.type(f"/learn {book}\n")
        terminal.wait_for("reading")
        terminal.type("\x03")
        terminal.wait_for("stopped; the session is as it was")
        time.sleep(0.5)
        assert session.info().version == version
        terminal.type("/fre\t\n")
        terminal.wait_for("frozen: answers are not learned")
        terminal.type("hello again\n")
        terminal.wait_for("[nothing learned: frozen]")
        terminal.type("/quit\n")
        assert terminal.process.wait(SECONDS) == 0
