"""`hope doctor`, `hope --help`, and where commands look for the server."""

from __future__ import annotations

import asyncio
import json

import pytest
from hope_memory import SessionId
from hope_memory.key_file import KeyRing

from hope_server.cli import console, main
from hope_server.cli.doctor import check_keys, check_store
from hope_server.engine.stores import build_store
from hope_server.settings import Settings


def test_doctor_finds_faults_and_says_so_by_its_exit_code(capsys, tmp_path, free_port):
    """Each check is a line; a model folder that is not there fails, with what to do."""
    flags = ["--store", str(tmp_path / "s.db"), "--model", str(tmp_path / "none"), "--port", str(free_port)]
    assert main(["doctor", *flags]) == 1
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == ["python", "torch", "settings", "threads", "model", "store", "keys", "port", "server"]
    assert lines["model"].startswith("fail")
    assert "neither a known name" in lines["model"]
    assert lines["store"].startswith("ok")
    assert lines["server"].startswith("note")
    assert list(tmp_path.iterdir()) == []


def test_doctor_refuses_wrong_settings_in_its_own_way(capsys):
    """A setting that cannot be parsed is a failed check, and what depends on it is left out."""
    assert main(["doctor", "--port", "many", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["checks"][-1]["name"] == "settings"


def test_doctor_expects_a_server_where_it_is_told_to_look(capsys, tmp_path, free_port):
    """A URL that was given must answer, and a file that is no database is no store."""
    store = tmp_path / "s.db"
    store.write_bytes(b"not a database, but long enough to look like one" * 100)
    flags = ["--store", str(store), "--url", f"http://127.0.0.1:{free_port}", "--port", "0", "--json"]
    assert main(["doctor", *flags]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["store"]["status"] == "fail"
    assert checks["server"]["status"] == "fail"
    assert "hope serve" in checks["server"]["detail"]


def test_help_names_every_command(capsys):
    """`hope --help` lists the six commands and exits with 0; no command at all is a wrong argument."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("serve", "chat", "learn", "sessions", "vault", "doctor"))
    with pytest.raises(SystemExit) as refused:
        main([])
    assert refused.value.code == 2


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"HOPE_HOST": "0.0.0.0", "HOPE_PORT": "9"}, "http://127.0.0.1:9"),
        ({"HOPE_HOST": "::1", "HOPE_PORT": "x"}, "http://[::1]:8000"),
    ],
)
def test_the_client_looks_where_the_server_was_told_to_listen(environ, url):
    """HOPE_HOST and HOPE_PORT serve both sides."""
    assert console.default_url(environ) == url


def test_doctor_looks_at_the_keys(capsys, tmp_path):
    """A key file is fine when its owner alone reads it; others, leftovers and a missing one are told with a way out."""
    settings = Settings(store=str(tmp_path / "s.db"))

    async def start_once() -> None:
        store = build_store(settings)
        await store.open()
        await store.create(SessionId("default", "ada"))
        await store.close()

    assert check_keys(settings).status == "note"
    asyncio.run(start_once())
    path = tmp_path / "s.key"
    assert (check_store(settings).status, check_keys(settings).status) == ("ok", "ok")
    KeyRing.load(path).with_new_key().save(path)
    assert "hope vault prune" in check_keys(settings).detail
    path.chmod(0o644)
    assert "chmod 600" in check_keys(settings).detail
    path.unlink()
    missing = check_keys(settings)
    assert (missing.status, "restore it" in missing.detail, path.exists()) == ("fail", True, False)
