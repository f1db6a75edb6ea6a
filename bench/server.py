"""A server process of its own: seconds from its start until it takes turns, and its resident memory under work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from machine import median, resident, say

START_LIMIT_SECONDS = 300.0
TURN_LIMIT_SECONDS = 600.0
POLL_SECONDS = 0.02
NUM_CHATS = 8
CHAT_TOKENS = 48


class Server:
    """A `hope serve` process on a free port with a store of its own."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "hope_server", "serve", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--store", str(folder / "server.db"), "--num-threads", str(num_threads)]
        environ = {name: value for name, value in os.environ.items() if name != "HOPE_API_KEYS"}
        self._log = (folder / "server.log").open("ab")
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=environ)

    def wait_ready(self) -> None:
        """Return when the server takes turns. Raises RuntimeError when it ended or took too long."""
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.process.returncode}; see {self._log.name}")
            try:
                if httpx.get(f"{self.url}/ready", timeout=2.0).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(POLL_SECONDS)
        raise RuntimeError(f"the server was not ready after {START_LIMIT_SECONDS:.0f} s")

    def post(self, path: str, body: dict[str, object]) -> None:
        """Send a request and wait for its answer. Raises httpx.HTTPStatusError when it is refused."""
        httpx.post(f"{self.url}{path}", json=body, timeout=TURN_LIMIT_SECONDS).raise_for_status()

    def stop(self) -> None:
        """End the process and wait for it."""
        self.process.terminate()
        self.process.wait(timeout=60)
        self._log.close()


def measure_server(folder: Path, text: str, num_threads: int, *, starts: int) -> dict[str, object]:
    """Median seconds to ready, and memory after each kind of work. `text` is what the server is taught."""
    seconds: list[float] = []
    memory: dict[str, dict[str, int]] = {}
    for number in range(starts):
        say(f"server, start {number + 1} of {starts} …")
        place = folder / f"start-{number}"
        place.mkdir()
        begin = time.perf_counter()
        server = Server(place, num_threads)
        try:
            server.wait_ready()
            seconds.append(time.perf_counter() - begin)
            if number == starts - 1:
                memory = _work(server, text)
        finally:
            server.stop()
    peak = max(entry["peak_bytes"] for entry in memory.values())
    return {"start_seconds": median(seconds), "server_memory": memory, "server_peak_bytes": peak}


def _work(server: Server, text: str) -> dict[str, dict[str, int]]:
    pid = server.process.pid
    found = {"ready": resident(pid)}
    _chat(server, "first")
    found["chat"] = resident(pid)
    say("server, learning a text with the default passes …")
    server.post("/v1/sessions/first/learn", {"text": text})
    found["learn"] = resident(pid)
    say(f"server, {NUM_CHATS} chats at once …")
    with ThreadPoolExecutor(NUM_CHATS) as pool:
        list(pool.map(lambda number: _chat(server, f"chat-{number}"), range(NUM_CHATS)))
    found["chats"] = resident(pid)
    return found


def _chat(server: Server, session: str) -> None:
    message = {"role": "user", "content": f"My name is {session}. What do you know about rivers?"}
    body = {"messages": [message], "max_tokens": CHAT_TOKENS, "session_id": session}
    server.post("/v1/chat/completions", body)
