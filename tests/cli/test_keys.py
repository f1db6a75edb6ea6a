"""`hope keys`: makes a key once, lists without secrets, revokes; what it writes is what a server reads."""

from __future__ import annotations

import json
import time

import pytest

from hope_server.api.key_book import KeyBook
from hope_server.api.key_registry import KeyRegistry
from hope_server.cli import main


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The file of the keys, which the environment names."""
    path = tmp_path / "deep" / "keys.jsonl"
    monkeypatch.setenv("HOPE_API_KEY_FILE", str(path))
    return path


def _json(capsys, *words: str):
    assert main(["keys", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_key_is_shown_once_and_opens_the_server(path, capsys):
    """Stdout has the key alone, so that it can be piped; a book that reads the file knows it, with its scopes."""
    assert main(["keys", "create", "laptop"]) == 0
    captured = capsys.readouterr()
    key = captured.out.strip()
    assert key.startswith("hope_") and captured.out.count("\n") == 1
    assert key not in captured.err
    record = KeyBook((), KeyRegistry(path)).find(key.encode())
    assert record is not None
    assert (record.name, record.scopes) == ("laptop", ("chat", "sessions:read", "sessions:write"))
    assert key not in path.read_text()
    assert main(["keys", "list"]) == 0
    shown = capsys.readouterr().out
    assert record.id in shown and "good" in shown
    assert key not in shown and record.hash not in shown


def test_all_facts_of_a_key(path, capsys):
    """Scopes, tenant, expiry and limits are kept as given, and listed."""
    flags = ["--scopes", "admin, chat", "--tenant", "team", "--expires", "90d"]
    limits = ["--requests-per-minute", "60", "--max-sessions", "0", "--max-stored-bytes", "1000000"]
    made = _json(capsys, "create", "ci", *flags, *limits)
    assert made["key"].startswith("hope_")
    (listed,) = _json(capsys, "list")
    assert {**listed, "key": made["key"]} == made
    assert (listed["scopes"], listed["tenant"], listed["is_valid"]) == (["chat", "admin"], "team", True)
    assert abs(listed["expires"] - time.time() - 90 * 86_400) < 60
    assert (listed["limits"]["requests_per_minute"], listed["limits"]["max_sessions"]) == (60, 0)
    assert listed["limits"]["tokens_per_minute"] is None
    assert "hash" not in listed


def test_revoking_by_name_or_id(path, capsys):
    """A revoked key opens nothing and stays listed; its name is free again, and revoking twice changes nothing."""
    first, second = _json(capsys, "create", "a"), _json(capsys, "create", "b")
    revoked = _json(capsys, "revoke", "a")
    assert (revoked["id"], revoked["is_valid"]) == (first["id"], False)
    assert _json(capsys, "revoke", second["id"])["id"] == second["id"]
    assert _json(capsys, "revoke", first["id"])["revoked"] == revoked["revoked"]
    book = KeyBook((), KeyRegistry(path))
    assert book.find(first["key"].encode()) is None and book.num_keys == 0
    again = _json(capsys, "create", "a")
    assert [each["name"] for each in _json(capsys, "list")] == ["a", "b", "a"]
    assert KeyBook((), KeyRegistry(path)).find(again["key"].encode()) is not None


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (["create", "a", "--scopes", "root"], 2, "--scopes has root; use some of chat, sessions:read"),
        (["create", "a", "--scopes", ","], 2, "--scopes has none"),
        (["create", "a", "--tenant", "a/b"], 2, "--tenant is 'a/b'; use 1 to 64 letters"),
        (["create", "a", "--expires", "soon"], 2, "--expires is 'soon'; use a whole number of m, h, d or w"),
        (["create", ""], 2, "NAME must be 1 to 100 printable characters"),
        (["create", "a\x1b"], 2, "NAME must be"),
        (["revoke", "nobody"], 1, "has no key 'nobody'; see: hope keys list"),
    ],
)
def test_wrong_words_are_explained_in_one_line(path, failure_line, words, exit_code, message):
    """What cannot be done is said with what to do, and nothing is written."""
    assert main(["keys", *words]) == exit_code
    assert message in failure_line()
    assert not path.exists()


def test_a_taken_name_is_refused(path, capsys, failure_line):
    """Two good keys of one name could not be told apart when one is to be revoked."""
    _json(capsys, "create", "a")
    assert main(["keys", "create", "a"]) == 1
    assert "there is a key named 'a' already" in failure_line()


def test_without_a_file_the_setting_is_named(failure_line):
    """The command says which setting is missing; the flag names the file as well."""
    assert main(["keys", "list"]) == 2
    assert "HOPE_API_KEY_FILE" in failure_line()


def test_an_empty_list_says_how_to_begin(tmp_path, capsys):
    """A file that is not there yet is no fault."""
    assert main(["keys", "list", "--api-key-file", str(tmp_path / "none")]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "hope keys create" in captured.err


def test_the_servers_own_limits_are_not_a_keys(path, capsys, monkeypatch):
    """HOPE_REQUESTS_PER_MINUTE is the default of all keys and is not written into a new one."""
    monkeypatch.setenv("HOPE_REQUESTS_PER_MINUTE", "5")
    assert _json(capsys, "create", "a")["limits"]["requests_per_minute"] is None
