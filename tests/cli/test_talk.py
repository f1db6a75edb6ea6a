"""`hope chat` and `hope learn`: results on stdout, remarks and failures on stderr, and exit codes."""

from __future__ import annotations

import io
import json
import sys

import httpx
import pytest

from hope_server.cli import main

RECEIPT_LINE = "learned 4 of 5 tokens in 2 steps, loss 3.50 → 1.25, version abcdef01, durability commit"


def test_chat_streams_the_answer_and_tells_what_was_learned(server, capsys):
    """The answer goes to stdout without control characters, the remarks to stderr."""
    assert main(["chat", "hi", "--session", "s1", "--memory", "read", "--max-tokens", "9"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Hello[2J\n"
    assert captured.err == f"  [{RECEIPT_LINE}]\n"
    asked = server.asked[-1][1]
    assert (asked["memory"], asked["max_tokens"], "temperature" in asked) == ({"mode": "read"}, 9, False)


def test_chat_without_a_session_makes_one_and_names_it(server, capsys):
    """The name of a new session is told, so that one can come back to it."""
    assert main(["chat", "hi"]) == 0
    assert "hope chat --session sess_new" in capsys.readouterr().err
    assert server.asked[0] == ("POST /v1/sessions", {})


def test_chat_takes_each_line_of_a_pipe_as_a_message(server, capsys, monkeypatch):
    """Piped lines are turns of one session; empty ones are none. JSON output is one object a turn."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n"))
    assert main(["chat", "--session", "s1", "--json"]) == 0
    captured = capsys.readouterr()
    turns = [json.loads(line) for line in captured.out.splitlines()]
    assert [turn["text"] for turn in turns] == ["Hello\x1b[2J"] * 2
    assert turns[0]["memory"]["tokens_learned"] == 4
    assert [body["messages"][0]["content"] for path, body in server.asked if "chat" in path] == ["one", "two"]
    assert captured.err == ""


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"not_learned": "frozen", "mode": "read"}, "nothing learned: frozen"),
        ({"not_learned": "side_request", "mode": "read"}, "nothing learned: side request, it does not go on with"),
        ({"mode": "read"}, "nothing learned: memory is read"),
        ({"discarded": "not finite"}, "nothing learned: not finite"),
        ({"version_after": None, "durability": "async"}, "loss 3.50 → 1.25, not stored yet, durability async"),
        ({"replayed": True}, "answered before, not learned again, learned 4 of 5"),
    ],
)
def test_what_was_learned_or_why_not_is_one_line(server, capsys, changes, line):
    """Every reason not to learn has its words."""
    server.receipt |= changes
    assert main(["chat", "hi", "--session", "s1"]) == 0
    assert line in capsys.readouterr().err


def test_learn_studies_a_file(server, capsys, tmp_path):
    """The file's text and the passes are sent; the receipt is told in one line."""
    file = tmp_path / "facts.txt"
    file.write_text("\ufeffA fact: é.\n", encoding="utf-8")
    assert main(["learn", str(file), "--session", "s1", "--passes", "3"]) == 0
    assert capsys.readouterr().out == f"session s1: {RECEIPT_LINE}\n"
    assert server.asked[-1] == ("POST /v1/sessions/s1/learn", {"text": "A fact: é.\n", "passes": 3, "stream": True})


def test_learn_as_json_is_one_object(server, capsys, tmp_path):
    """Nothing but the result is written."""
    file = tmp_path / "facts.txt"
    file.write_text("A fact.", encoding="utf-8")
    assert main(["learn", str(file), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["session_id"] == "sess_new"
    assert captured.err == ""


def test_a_call_that_broke_off_tells_how_to_go_on(server, capsys, tmp_path):
    """With its key, which is then sent again; a call that is wrong as it is does not."""
    file = tmp_path / "my facts.txt"
    file.write_text("A fact.", encoding="utf-8")
    for code, status in (("store_full", 507), ("invalid_request", 400)):
        server.learn_faults.append(httpx.Response(status, json={"error": {"message": "no", "code": code}}))
    assert main(["learn", str(file), "--session", "s1"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"go on with: hope learn '{file}' --session s1 --key {server.keys[0]}"
    assert main(["learn", str(file), "--session", "s1", "--key", server.keys[0]]) == 1
    assert server.keys[1] == server.keys[0]
    assert capsys.readouterr().err == "hope: no\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"\xff\xfe\x00", "is not UTF-8 text (byte 0 is not)"),
        (b"text\0text", "is a binary file"),
        (b" \n", "has no text to learn"),
    ],
)
def test_a_file_that_cannot_be_learned_is_refused_before_anything_is_sent(
    server, failure_line, tmp_path, content, message
):
    """One line says what is wrong with the file, and no session is made for it."""
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    assert main(["learn", str(file)]) == 1
    assert message in failure_line()
    assert server.asked == []


def test_a_folder_is_not_a_file(failure_line, tmp_path):
    """A folder's name is refused as such."""
    assert main(["learn", str(tmp_path)]) == 1
    assert "is a folder" in failure_line()


def test_no_server_is_one_line_with_advice(failure_line, free_port):
    """The line names the address and the command that starts a server."""
    assert main(["sessions", "--url", f"http://127.0.0.1:{free_port}"]) == 1
    assert f"no server answers at http://127.0.0.1:{free_port}" in failure_line()


def test_a_url_that_is_none_is_a_wrong_argument(failure_line):
    """A URL without its scheme is refused with an example."""
    assert main(["chat", "hi", "--url", "localhost:8000"]) == 2
    assert "write it like http://127.0.0.1:8000" in failure_line()
