"""`hope serve`: what it checks before it loads, when it says that it is ready, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from hope_client import HopeClient

from hope_server.cli import main
from hope_server.cli.serve import apart, warn_if_open
from hope_server.engine.turn import TokenText, TurnFinished, Usage
from hope_server.errors import CheckpointError, StartupError, StoreUnavailable
from hope_server.settings import Settings


def test_serve_says_that_the_port_is_taken_before_it_loads_anything(failure_line, monkeypatch):
    """Who starts a second server by mistake hears of it at once, in one line."""
    monkeypatch.setitem(sys.modules, "hope_server.engine.assembly", None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1 port {port}: another program listens there" in failure_line()


@pytest.mark.parametrize(
    ("flags", "exit_code", "message"),
    [
        (["--port", "many"], 2, "--port is 'many'"),
        (["--store", "mysql://x"], 2, "stores of kind mysql:// are not served"),
        (["--host", "no.such.host.invalid"], 1, "is no address of this machine"),
        (["--host", "192.0.2.1"], 1, "that is no address of this machine"),
    ],
)
def test_serve_refuses_what_it_cannot_use(failure_line, flags, exit_code, message):
    """Settings, store and address are checked before anything is loaded."""
    assert main(["serve", *flags]) == exit_code
    assert message in failure_line()


@pytest.mark.parametrize(
    ("fields", "is_warned"),
    [
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "192.168.1.7"}, True),
        ({"host": "0.0.0.0", "api_keys": ("k",)}, False),
        ({"host": "0.0.0.0", "api_key_file": "/some/file"}, False),
    ],
)
def test_a_server_for_others_without_a_key_is_warned_of_loudly(capsys, fields, is_warned):
    """Who opens the server to a network is told what that means and what to do; this machine alone is no reason."""
    warn_if_open(Settings(**fields))
    written = capsys.readouterr().err
    assert ("WARNING" in written and "HOPE_API_KEYS" in written and "hope keys create" in written) is is_warned
    assert bool(written) is is_warned


def test_a_key_file_that_cannot_be_used_stops_the_start(serve_with, capsys, free_port, tmp_path):
    """The reason is one line; a server that forgot its keys must not run."""
    serve_with(FakeEngine())
    path = tmp_path / "keys.jsonl"
    path.write_text("{")
    assert main(["serve", "--port", str(free_port), "--api-key-file", str(path)]) == 1
    assert f"hope: line 1 of the API key file {path}" in capsys.readouterr().err.splitlines()[-1]


class FakeEngine:
    """Starts when told to, and answers every chat with one word."""

    model_id = "toy"
    created = 1

    def __init__(self, start_error: Exception | None = None) -> None:
        self.is_ready = False
        self.start_error = start_error
        self.has_stopped = False

    async def start(self) -> None:
        await asyncio.sleep(0)
        if self.start_error is not None:
            raise self.start_error
        self.is_ready = True

    async def stop(self) -> None:
        self.has_stopped = True

    async def chat(self, request):
        yield TokenText("Hello")
        yield TurnFinished("stop", Usage(1, 1), None)

    def stats(self) -> dict[str, float]:
        return {}


@pytest.fixture
def serve_with(monkeypatch):
    """Have `hope serve` build this engine, or fail with this error."""

    def set_up(engine):
        def build_engine(settings, progress):
            progress("reading", 0.5)
            if isinstance(engine, Exception):
                raise engine
            return engine

        monkeypatch.setitem(sys.modules, "hope_server.engine.assembly", SimpleNamespace(build_engine=build_engine))

    monkeypatch.setattr("hope_server.telemetry.configure_logging", lambda level: None)
    return set_up


def _fail_to_start():
    raise StartupError("no model")


def test_the_model_is_loaded_in_a_thread_that_ends():
    """What it returns and what it raises come back; the thread that serves computes nothing itself."""
    found = apart(threading.current_thread)
    assert found is not threading.main_thread() and not found.is_alive()
    with pytest.raises(StartupError, match="no model"):
        apart(_fail_to_start)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_tells_where_it_listens_answers_and_ends_by_a_signal(serve_with, capsys, free_port, number):
    """The banner comes when turns are taken, with a request to try; a signal ends the engine and the exit is clean."""
    engine = FakeEngine()
    serve_with(engine)
    answers: list[str] = []

    def visit() -> None:
        with HopeClient(f"http://127.0.0.1:{free_port}") as client:
            deadline = time.monotonic() + 10
            while not answers and time.monotonic() < deadline:
                time.sleep(0.05)
                if engine.is_ready:
                    answers.append(client.models()[0].id)
        time.sleep(0.15)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        assert main(["serve", "--port", str(free_port)]) == 0
    finally:
        visitor.join()
    assert answers == ["toy"]
    assert engine.has_stopped
    assert signal.getsignal(number) is before
    out = capsys.readouterr().out
    assert f"hope: toy is ready at http://127.0.0.1:{free_port}\n" in out
    assert f"  curl http://127.0.0.1:{free_port}/v1/chat/completions " in out


@pytest.mark.parametrize(
    "engine",
    [CheckpointError("no such model; give a folder"), FakeEngine(StoreUnavailable("no such model; give a folder"))],
)
def test_serve_ends_with_one_line_when_the_engine_cannot_start(serve_with, capsys, free_port, engine):
    """Whether it fails while building or while starting, the reason is the last line and the exit code is 1."""
    serve_with(engine)
    assert main(["serve", "--port", str(free_port)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "hope: no such model; give a folder"
