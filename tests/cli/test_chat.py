"""`hope chat` at a terminal: turns, commands with a slash, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import httpx
import pytest

from hope_server.cli import main

RECEIPT_LINE = "  [learned 4 of 5 tokens in 2 steps, loss 3.50 → 1.25, version abcdef01, durability commit]"


@pytest.fixture
def converse(server, monkeypatch, capsys):
    """Types lines (or raises what is no text), runs the chat, and returns stdout and the remarks behind the first."""

    def run(*typed: str | BaseException, flags: tuple[str, ...] = (), exit_code: int = 0):
        lines = iter([*typed, EOFError()])

        def type_in(_prompt=""):
            line = next(lines)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", type_in)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
        assert main(["chat", "--session", "s1", *flags]) == exit_code
        captured = capsys.readouterr()
        remarks = captured.err.replace("> ", "").splitlines()
        return captured.out, remarks if flags else remarks[1:]

    return run


def test_a_conversation_goes_on_after_a_refused_turn(server, converse, monkeypatch):
    """A turn's error is one line, an interrupted turn is left as it was, and the next message is asked for."""
    chat = server._chat
    busy = httpx.Response(409, json={"error": {"message": "busy", "code": "session_busy"}})
    faults = [busy, KeyboardInterrupt(), None]

    def answer(body):
        fault = faults.pop(0)
        if isinstance(fault, KeyboardInterrupt):
            raise fault
        return fault or chat(body)

    monkeypatch.setattr(server, "_chat", answer)
    out, remarks = converse("one", "", "two", KeyboardInterrupt(), "three")
    assert out == "Hello[2J\n"
    assert remarks == [
        "hope: busy",
        "stopped; the session is as it was, nothing of this turn was kept",
        "",
        RECEIPT_LINE,
        "",
    ]


def test_an_interrupt_that_came_too_late_says_so(server, converse, monkeypatch):
    """The turn was complete on the server, so it is kept."""

    def answer(_body):
        server.session["version"] = "fedcba9876"
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "_chat", answer)
    assert converse("one")[1][0] == "stopped; what was learned until then is kept as version fedcba98"


def test_a_server_that_is_gone_ends_the_conversation(server, converse, monkeypatch):
    """There is nobody to say anything to: the line says so, and nothing more is asked for."""
    monkeypatch.setattr("hope_client.transport.time.sleep", lambda _: None)

    def answer(_body):
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(server, "_chat", answer)
    _, remarks = converse("one", "never asked for", exit_code=1)
    assert len(remarks) == 1
    assert remarks[0].startswith("hope: no server answers at http://h (refused)")


def test_a_file_is_learned(server, converse, tmp_path):
    """The line behind it is that of a turn; a file that is none is one line too."""
    file = tmp_path / "facts.txt"
    file.write_text("A fact.", encoding="utf-8")
    _, remarks = converse(f"/learn {file}", "/learn nowhere.txt", "/learn")
    assert remarks[:3] == [RECEIPT_LINE, "hope: nowhere.txt: no such file", "hope: write it like: /learn FILE"]
    assert server.asked[1] == ("POST /v1/sessions/s1/learn", {"text": "A fact.", "stream": True})


def test_a_fork_is_where_the_conversation_goes_on(server, converse):
    """The session before stays, and the way back is told."""
    _, remarks = converse("/fork s2", "hello")
    assert remarks[0] == "now in s2, a copy; back with: hope chat --session s1"
    assert server.asked[-2] == ("POST /v1/sessions/s1/fork", {"id": "s2"})
    assert server.asked[-1][0] == "POST /v1/chat/completions"


def test_forgetting_is_asked_for_twice(server, converse):
    """Only a yes deletes; afterwards the session of that name is a new one."""
    _, remarks = converse("/forget", "no", "/forget", "yes")
    assert remarks[0].endswith("(yes/no) nothing deleted")
    assert remarks[1].endswith("(yes/no) deleted; s1 is a new session that knows nothing")
    deletions = [path for path, _ in server.asked if path.startswith("DELETE")]
    assert deletions == ["DELETE /v1/sessions/s1"]
    assert server.asked[-1] == ("POST /v1/sessions", {"id": "s1"})


def test_versions_are_listed_and_gone_back_to(server, converse):
    """By first letters or by a snapshot's name."""
    _, remarks = converse("/versions", "/rollback abc", "/rollback before", "/rollback zz", "/snapshot now")
    assert remarks[0].split() == ["abcdef01", *remarks[0].split()[1:3], "turn", "3"]
    assert remarks[1].endswith("turn 0, snapshot before")
    assert remarks[2] == "as it was at abcdef01; this is version new"
    assert remarks[3] == "as it was at ab99; this is version new"
    assert remarks[4].startswith("hope: no kept version begins with zz")
    assert remarks[5] == "version v1v1v1v1 is now now"
    assert [body for path, body in server.asked if path.endswith("rollback")] == [
        {"version": "abcdef0123"},
        {"version": "ab99"},
    ]


def test_the_memory_is_shown_and_frozen(server, converse):
    """Level by level; freezing says what it means."""
    _, remarks = converse("/memory", "/freeze", "/unfreeze")
    assert remarks[:3] == [
        "  fast: written 1,234 times, 4.5 MB, norm 0.25",
        "frozen: answers are not learned until /unfreeze",
        "learning again",
    ]


def test_help_names_every_command_and_quit_ends(server, converse):
    """What is behind /quit is not read any more; an unknown command is no message, a double slash is."""
    _, remarks = converse("/help", "/hlep", "//usr is a folder", "/quit", "never said")
    assert [line.split()[0] for line in remarks[:11]] == [
        "/learn",
        "/fork",
        "/forget",
        "/versions",
        "/rollback",
        "/snapshot",
        "/freeze",
        "/unfreeze",
        "/memory",
        "/help",
        "/quit",
    ]
    assert remarks[11].startswith("hope: there is no command /hlep")
    said = [body["messages"][0]["content"] for path, body in server.asked if "chat" in path]
    assert said == ["/usr is a folder"]


def test_as_json_everything_is_one_object_a_line(server, converse, monkeypatch):
    """Turns, commands and failures alike; nothing else is on stdout."""
    out, _ = converse("hello", "/versions", "/hlep", "/memory", "/freeze", flags=("--json",))
    said = [json.loads(line) for line in out.splitlines()]
    assert [each["session_id"] for each in said] == ["s1"] * 5
    assert said[0]["text"] == "Hello\x1b[2J"
    assert [each["version"] for each in said[1]["versions"]] == ["abcdef0123", "ab99"]
    assert said[2]["error"]["code"] == "command_error"
    assert said[3]["levels"]["fast"]["num_writes"] == 1_234
    assert said[4]["frozen"] is True
