"""`hope sessions`: what is shown, sent and written."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest

from hope_server.cli import main


def test_sessions_are_listed_with_their_sizes(server, capsys):
    """The table has one row a session; memory does not count the window and the journal."""
    assert main(["sessions"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["session", "updated", "turns", "tokens", "learned", "memory"]
    assert row.split()[0] == "s1"
    assert row.split()[-5:] == ["3", "1,234", "7", "4.5", "MB"]


def test_a_long_name_is_whole_in_a_pipe(server, capsys):
    """What reads the table line by line gets names that it can use."""
    name = "customer-" + "7" * 60
    server.session["id"] = name
    assert main(["sessions"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == name


def test_sessions_as_json(server, stored, capsys):
    """--json is understood before and behind the action."""
    assert main(["sessions", "--json"]) == 0
    assert main(["sessions", "ls", "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert json.loads(first)[0]["state_bytes"] == stored.session["state_bytes"]


def test_a_session_is_shown_and_deleted(server, capsys):
    """Show looks the session up without making it; rm deletes it, also where nothing can be looked up any more."""
    assert main(["sessions", "show", "s1"]) == 0
    shown = capsys.readouterr().out
    for line in ("1,234, of which 7 learned", "3,600 s after its last turn, until", "who=ada", "before ab99"):
        assert line in shown
    assert main(["sessions", "rm", "s1"]) == 0
    assert [path for path, _ in server.asked][-1] == "DELETE /v1/sessions/s1"


def test_an_unknown_session_is_one_line(server, failure_line):
    """A server's error becomes one line, even when its message has several."""
    assert main(["sessions", "show", "nobody"]) == 1
    assert failure_line() == "hope: no session 'nobody'\n"


def test_versions_are_listed_whole(server, capsys):
    """Each kept version is a row with the name that other commands take."""
    assert main(["sessions", "versions", "s1"]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert (first.split()[0], second.split()[0]) == ("abcdef0123", "ab99")
    assert first.split()[-4:] == ["3", "9", "1.5", "MB"]
    assert second.split()[-1] == "before"


def test_a_version_is_named_by_its_first_letters(server, capsys):
    """Roll-back sends the whole name of the one version that begins so, and tells the new version."""
    assert main(["sessions", "rollback", "s1", "abc"]) == 0
    assert capsys.readouterr().out == "session s1 is as it was at abcdef0123; this is version new\n"
    assert server.asked[-1] == ("POST /v1/sessions/s1/rollback", {"version": "abcdef0123"})


@pytest.mark.parametrize(("start", "why"), [("ab", "several versions begin"), ("x", "no kept version begins")])
def test_first_letters_that_name_no_version_are_refused(server, failure_line, start, why):
    """Nothing is sent, and the line says where the names are listed."""
    assert main(["sessions", "rollback", "s1", start]) == 1
    assert f"{why} with {start}; see: hope sessions versions s1" in failure_line()
    assert not any("rollback" in path for path, _ in server.asked)


def test_a_version_is_named_by_its_snapshot(server, capsys):
    """A tag goes before first letters."""
    assert main(["sessions", "rollback", "s1", "before", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "new"
    assert server.asked[-1] == ("POST /v1/sessions/s1/rollback", {"version": "ab99"})


def test_sessions_are_frozen_and_unfrozen(server, capsys):
    """The line says what the session does now."""
    assert main(["sessions", "freeze", "s1"]) == 0
    assert main(["sessions", "unfreeze", "s1"]) == 0
    assert capsys.readouterr().out == "session s1 answers without learning\nsession s1 learns\n"
    assert main(["sessions", "freeze", "s1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frozen"] is True


def test_snapshots_are_made_listed_and_removed(server, capsys, failure_line):
    """Without a name they are listed; a version is given by its first letters."""
    assert main(["sessions", "snapshot", "s1", "after", "--version", "abc"]) == 0
    assert capsys.readouterr().out == "session s1 keeps version abcdef01 as after\n"
    assert server.asked[-1] == ("POST /v1/sessions/s1/snapshots", {"tag": "after", "version": "abcdef0123"})
    assert main(["sessions", "snapshot", "s1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["before", "ab99"]
    assert main(["sessions", "snapshot", "s1", "before", "--rm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "s1", "tag": "before", "deleted": True}
    assert "DELETE /v1/sessions/s1/snapshots/before" in [path for path, _ in server.asked]
    assert main(["sessions", "snapshot", "s1", "--rm"]) == 2
    assert "name the snapshot" in failure_line()


def test_a_fork_takes_an_id_and_a_version(server, capsys):
    """Both may be left to the server."""
    assert main(["sessions", "fork", "s1", "s2", "--version", "ab9"]) == 0
    assert main(["sessions", "fork", "s1"]) == 0
    assert capsys.readouterr().out == "made session s2, version v1v1v1v1\nmade session sess_new, version v1v1v1v1\n"
    forks = [body for path, body in server.asked if path.endswith("/fork")]
    assert forks == [{"id": "s2", "version": "ab99"}, {}]


def test_an_export_is_written_once_and_for_its_owner(server, capsys, failure_line, tmp_path, monkeypatch):
    """The file is named after the session, readable by its owner only, and never overwritten."""
    monkeypatch.chdir(tmp_path)
    assert main(["sessions", "export", "s1", "--version", "ab9"]) == 0
    written = tmp_path / "s1.hope"
    assert written.read_bytes() == b"archive of ab99"
    assert written.stat().st_mode & 0o777 == 0o600
    assert "it is not encrypted" in capsys.readouterr().err
    assert main(["sessions", "export", "s1"]) == 1
    assert "exists already" in failure_line()
    assert written.read_bytes() == b"archive of ab99"


def test_an_import_sends_the_file_as_it_is(server, capsys, tmp_path, monkeypatch):
    """From a file or from a pipe, under a given id or one that the server chooses."""
    file = tmp_path / "s1.hope"
    file.write_bytes(b"\x00\xff")
    assert main(["sessions", "import", str(file), "s3"]) == 0
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"piped")))
    assert main(["sessions", "import", "-", "s1", "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "made session s3, version v1v1v1v1"
    assert json.loads(second)["id"] == "s1"
    sent = [body for path, body in server.asked if path.endswith("/import")]
    assert sent == [{"content": b"\x00\xff"}, {"content": b"piped"}]
