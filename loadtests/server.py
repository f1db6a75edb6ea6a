"""The server under load: a `hope serve` of our own, its store and keys in one folder, perhaps with a Redis."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.http_client import BROKEN, Client

ROOT = Path(__file__).resolve().parents[1]
TOY = "toy"
_START_SECONDS = 900.0
_STOP_SECONDS = 60.0
_REDIS_SECONDS = 20.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:[1-9][0-9]*")


@dataclass(slots=True)
class Served:
    """A server that takes turns. pid: None where its process is not known. metrics_key: None: none is needed."""

    url: str
    pid: int | None
    keys: tuple[str, ...] = ()
    metrics_key: str | None = None
    process: subprocess.Popen[bytes] | None = None
    stopped_cleanly: bool = True

    @property
    def is_up(self) -> bool:
        """Whether its process runs; True where that is not ours to know."""
        return self.process is None or self.process.poll() is None

    def stop(self) -> None:
        """End a process of ours as a supervisor would, and note whether it ended well."""
        if self.process is None:
            return
        was_up = self.is_up
        self.process.terminate()
        try:
            self.stopped_cleanly = self.process.wait(_STOP_SECONDS) == 0 and was_up
        except subprocess.TimeoutExpired:
            self.stopped_cleanly = False
            self.process.kill()
            self.process.wait()
        self.process = None


def project_environ() -> dict[str, str]:
    """The environment of a process that runs this project from its tree, without settings of the shell."""
    kept = {name: value for name, value in os.environ.items() if name[:5] != "HOPE_" or name == "HOPE_CACHE_DIR"}
    paths = [str(ROOT / part) for part in ("", "kernels", "memory_store", "clients")]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def started(folder: Path, model: str | None, num_slots: int, num_tenants: int, *, on_redis: bool) -> Iterator[Served]:
    """Serve until the block ends. Raises RuntimeError with the end of the log where the server does not start.

    model: `toy` is a toy network, None the default model. num_tenants: keys that are made; 0: the server is open.
    """
    flags = ["--port=0", f"--num-slots={num_slots}"]
    with ExitStack() as stack:
        if on_redis:
            flags += [f"--store={stack.enter_context(_redis(folder))}"]
            flags += [f"--key-file={folder / 'hope.key'}", f"--key-store={folder / 'keys.db'}"]
        else:
            flags += [f"--store={folder / 'sessions.db'}"]
        keys: tuple[str, ...] = ()
        metrics_key = None
        if num_tenants:
            file = folder / "api-keys"
            keys = tuple(make_key(file, f"load-{index}") for index in range(num_tenants))
            metrics_key = make_key(file, "load-metrics", "--scopes", "admin")
            flags += [f"--api-key-file={file}"]
        command = command_of(model, flags)
        log = folder / "server.log"
        with log.open("wb") as output:
            # A session of its own: Ctrl-C is for the driver, which ends the server after the checks.
            process = subprocess.Popen(
                command, cwd=ROOT, env=project_environ(), stdout=output, stderr=output, start_new_session=True
            )
        served = Served("", process.pid, keys, metrics_key, process)
        stack.callback(served.stop)
        served.url = _url_when_ready(process, log)
        yield served


def command_of(model: str | None, flags: Sequence[str]) -> list[str]:
    """The command line of a server. model: `toy` is a toy network, None the default model."""
    if model == TOY:
        return [sys.executable, "-m", "tests.chaos.server", *flags]
    named = [] if model is None else [f"--model={model}"]
    return [sys.executable, "-m", "hope_server", "serve", *named, *flags]


def _url_when_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = _ADDRESS.search(log.read_text(errors="replace"))
        if found is not None and is_ready(found[0]):
            return found[0]
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def is_ready(url: str) -> bool:
    """Whether a server takes turns."""
    client = Client(url, silence_seconds=10.0)
    try:
        return client.request("GET", "/ready").status == 200
    except BROKEN:
        return False
    finally:
        client.close()


def make_key(file: Path, name: str, *flags: str) -> str:
    """Make an API key in a file of keys and return it. Raises RuntimeError where that fails."""
    command = [sys.executable, "-m", "hope_server", "keys", "create", name, f"--api-key-file={file}", "--json", *flags]
    made = subprocess.run(command, cwd=ROOT, env=project_environ(), capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise RuntimeError(f"no API key was made: {made.stderr.strip()}")
    return str(json.loads(made.stdout)["key"])


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """A redis-server without persistence; yields its URL. Raises RuntimeError where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("--redis needs redis-server on the PATH (Debian, Ubuntu: apt-get install redis-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "redis.log").open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_for_port(port, process)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_SECONDS)


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _REDIS_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("redis-server did not start")
