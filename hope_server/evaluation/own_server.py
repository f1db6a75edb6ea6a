"""A `hope serve` process of our own, on a free port and a store of its own, to be started, killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hope_client import ConnectionFailed, HopeClient

from hope_server.errors import StartupError

__all__ = ["READY_SECONDS", "OwnServer"]

READY_SECONDS = 300.0
"""How long a server may take to be ready; the very first start converts the model."""

_POLL_SECONDS = 0.1
_REMIND_SECONDS = 10.0
_STOP_SECONDS = 60.0
# Where it listens, what it keeps and who may ask is this module's choice, whatever the shell has set.
_OUR_SETTINGS = ("HOPE_HOST", "HOPE_PORT", "HOPE_STORE", "HOPE_API_KEYS", "HOPE_API_KEY_FILE")
_SERVE = ("-m", "hope_server", "serve")


class OwnServer:
    """A server process and its store, which outlives the process.

    folder: holds store and log, made if missing. settings: HOPE_<NAME> to text, over those of the environment.
    command: arguments of Python that serve; tests serve toys. Nobody else knows the port, and it is on 127.0.0.1.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, str] | None = None, *, command: Sequence[str] = _SERVE
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self.store = folder / "sessions.db"
        self.log = folder / "server.log"
        self._settings = dict(settings or {})
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def process_id(self) -> int | None:
        """The process, None before the first start."""
        return None if self._process is None else self._process.pid

    def start(self, say: Callable[[str], None] = lambda _: None, ready_seconds: float = READY_SECONDS) -> HopeClient:
        """Start the process, wait until it takes turns, and return a client of it, which the caller closes.

        say: gets a line now and then while it waits. Raises StartupError with the server's own last words.
        """
        if self._process is not None and self._process.poll() is None:
            raise ValueError("the server runs already; kill or stop it first")
        environ = {name: value for name, value in os.environ.items() if name not in _OUR_SETTINGS}
        command = [sys.executable, *self._command, "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--store", str(self.store)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**environ, **self._settings}
            )
        client = HopeClient(self.url)
        try:
            self._wait(client, say, ready_seconds)
        except BaseException:
            client.close()
            self.kill()
            raise
        return client

    def check(self, wait_seconds: float = 0.0) -> None:
        """Raise StartupError with the server's last words when its process has ended, or ends within a time."""
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(wait_seconds)
            raise StartupError(f"the server ended with code {code}: {self.last_words()}")

    def kill(self) -> None:
        """End the process the hard way (SIGKILL): it gets no chance to save anything."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Ask the process to end, as an operator does, and wait; kill it when it does not."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def last_words(self) -> str:
        """Return the last line of the server's log that is meant for people, else the last line."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        spoken = [line for line in lines if line.startswith("hope: ")] or [line for line in lines if line.strip()]
        return spoken[-1].strip() if spoken else "it said nothing"

    def _wait(self, client: HopeClient, say: Callable[[str], None], ready_seconds: float) -> None:
        began = reminded = time.monotonic()
        while not _is_ready(client):
            now = time.monotonic()
            self.check()
            if now - began > ready_seconds:
                raise StartupError(f"the server was not ready within {ready_seconds:.0f} s: {self.last_words()}")
            if now - reminded > _REMIND_SECONDS:
                reminded = now
                say("still waiting; the very first start converts the model, which takes about a minute")
            time.sleep(_POLL_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _is_ready(client: HopeClient) -> bool:
    try:
        return client.health().is_ready
    except ConnectionFailed:
        return False
