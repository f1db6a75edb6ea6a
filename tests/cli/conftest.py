"""What all commands are tested with: a clean environment, a free port, and the one line of a failure."""

from __future__ import annotations

import os
import socket

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """Settings of the shell that runs the tests must not reach them."""
    for name in [name for name in os.environ if name.startswith("HOPE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def free_port():
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def failure_line(capsys):
    """Return the one line that a failed command wrote; nothing else may be there."""

    def read() -> str:
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("hope: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return read
