"""`hope top` against a live toy server, and what it says where there is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from toy_server import toy_server

from hope_server.cli import main


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A toy server that asks for a key."""
    with toy_server(tmp_path_factory.mktemp("top"), "--api-keys=good") as found:
        yield found


def test_one_look_is_a_table(url, capsys):
    """--once prints a line for each thing and ends; nothing ran, so quantiles have no value."""
    assert main(["top", "--once", "--interval", "0.1", "--url", url, "--api-key", "good"]) == 0
    lines = {line[:12].strip(): line[12:].split("   ") for line in capsys.readouterr().out.splitlines()}

    assert list(lines) == [
        "turns",
        "slots",
        "tokens/s",
        "first text",
        "whole turn",
        "time in",
        "engine",
        "states/s",
        "memory",
        "errors/s",
    ]
    assert "8 in all" in "".join(lines["slots"])
    assert "p50 –" in "".join(lines["whole turn"])


def test_one_look_as_json(url, capsys, monkeypatch):
    """--json prints the same as one object; a turn that ends meanwhile is in it."""
    body = {"messages": [{"role": "user", "content": "Mira keeps a violin."}], "max_tokens": 2, "session_id": "mira"}
    headers = {"Authorization": "Bearer good"}

    def talk(_seconds: float) -> None:
        httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers).raise_for_status()

    monkeypatch.setattr("hope_server.cli.top.time.sleep", talk)
    assert main(["top", "--once", "--json", "--url", url, "--api-key", "good"]) == 0
    seen = json.loads(capsys.readouterr().out)

    assert seen["turns"]["ended_per_second"] > 0.0
    assert seen["tokens_per_second"]["completion"] > 0.0
    assert seen["turn_seconds"]["p50"] > 0.0
    assert seen["restores_per_second"]["new"] > 0.0
    assert sum(seen["stage_shares"].values()) == pytest.approx(1.0)
    assert seen["memory"]["resident_bytes"] > 1e7


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--interval", "0"], 2, "--interval is 0; use 0.1 seconds or more"),
        (["--interval", "nan"], 2, "--interval is nan"),
        (["--url", "ftp://x"], 2, "ftp://x"),
        (["--url", "http://127.0.0.1:9"], 1, "no server answers at http://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_asked(flags, code, said, capsys):
    """A wrong flag ends with 2, a server that is not there with 1, and one line says why."""
    assert main(["top", "--once", *flags]) == code
    assert said in capsys.readouterr().err


def test_a_key_that_may_not_look(url, capsys):
    """The server's own words are shown where the key is not good for /metrics."""
    assert main(["top", "--once", "--url", url, "--api-key", "bad"]) == 1
    assert "key" in capsys.readouterr().err


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"go_goroutines 7\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_another_program_at_the_address(capsys):
    """Metrics of something else are no HOPE Server's."""
    server = HTTPServer(("127.0.0.1", 0), _Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert main(["top", "--once", "--url", f"http://127.0.0.1:{server.server_port}"]) == 1
    finally:
        server.shutdown()
        server.server_close()
    assert "is not that of a HOPE Server" in capsys.readouterr().err


def test_ctrl_c_is_the_way_to_end_it(url, capsys, monkeypatch):
    """Without --once it looks again and again; Ctrl-C ends it well, after at least the looks that were taken."""
    naps = iter([0.0, 0.0, None])

    def nap(_seconds: float) -> None:
        if next(naps) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("hope_server.cli.top.time.sleep", nap)
    assert main(["top", "--url", url, "--api-key", "good"]) == 0
    assert capsys.readouterr().out.count("in all") == 2


def test_top_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`hope top --help` names its flags."""
    with pytest.raises(SystemExit) as ended:
        main(["top", "--help"])
    shown = capsys.readouterr().out

    assert ended.value.code == 0
    for flag in ("--interval", "--once", "--url", "--api-key", "--json"):
        assert flag in shown
