"""A server of our own: started, killed, started again on its store, and told of when it fails."""

from __future__ import annotations

import os

import pytest
from toy_server import project_environ

from hope_server.errors import StartupError
from hope_server.evaluation.own_server import OwnServer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")


def test_what_was_committed_outlives_a_kill(tmp_path):
    """The second process on the same store has the session; the first one is gone, and its end is told."""
    server = OwnServer(tmp_path / "room", project_environ(), command=("-m", "tests.chaos.server"))
    try:
        with server.start() as client:
            version = client.session("ada").learn("The barn is red.", passes=1).receipt.version_after
            first = server.process_id
        server.kill()
        with pytest.raises(StartupError, match="the server ended with code -9: "):
            server.check()
        with server.start() as client:
            assert client.get_session("ada").version == version
            assert server.process_id != first
            with pytest.raises(ValueError, match="runs already"):
                server.start()
    finally:
        server.stop()
    assert "hope: stopped" in server.last_words()


def test_a_server_that_ends_is_told_with_its_own_words(tmp_path):
    """The code and the last line meant for people make one line."""
    server = OwnServer(tmp_path, command=("-c", "print('noise\\nhope: no model\\nmore noise'); raise SystemExit(3)"))
    with pytest.raises(StartupError) as caught:
        server.start()
    assert caught.value.message == "the server ended with code 3: hope: no model"


def test_a_server_that_is_never_ready_is_ended(tmp_path):
    """It gets the time that was given, and leaves no process."""
    server = OwnServer(tmp_path, command=("-c", "import time; time.sleep(60)"))
    with pytest.raises(StartupError, match="not ready within 0 s: it said nothing"):
        server.start(ready_seconds=0.3)
    with pytest.raises(StartupError, match="code -9"):
        server.check()
    OwnServer(tmp_path).check()


def test_settings_go_over_those_of_the_shell_and_ours_over_all(tmp_path, monkeypatch):
    """HOPE_STORE and keys of the shell do not reach it; what it is given does."""
    monkeypatch.setenv("HOPE_STORE", "redis://elsewhere")
    monkeypatch.setenv("HOPE_API_KEYS", "secret")
    monkeypatch.setenv("HOPE_WINDOW", "1")
    show = "import os; print('hope:', sorted((n, v) for n, v in os.environ.items() if n.startswith('HOPE_W')), "
    show += "[n for n in os.environ if n in ('HOPE_STORE', 'HOPE_API_KEYS')])"
    server = OwnServer(tmp_path, {"HOPE_WINDOW": "2"}, command=("-c", show))
    with pytest.raises(StartupError, match="ended with code 0"):
        server.start()
    assert server.last_words() == "hope: [('HOPE_WINDOW', '2')] []"
