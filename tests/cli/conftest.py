"""What all commands are tested with: a clean environment, a free port, and the one line of a failure."""

from __future__ import annotations

import json
import os
import socket
from types import SimpleNamespace

import httpx
import pytest
from hope_client import HopeClient

SESSION = {
    "id": "s1",
    "created": 1,
    "updated": 2,
    "version": "v1" * 16,
    "turn": 3,
    "num_tokens": 1234,
    "tokens_learned": 7,
    "state_bytes": {"fast": 4_500_000, "window": 12_000_000, "journal": 1_000},
    "frozen": False,
    "ttl": 3600.0,
    "expires": 3602,
    "metadata": {"who": "ada"},
    "tags": {"before": "ab99"},
    "model": "toy",
}
RECEIPT = {
    "session_id": "s1",
    "mode": "write",
    "version_before": None,
    "version_after": "abcdef0123456789",
    "turn": 1,
    "tokens_read": 5,
    "tokens_learned": 4,
    "steps": 2,
    "loss_before": 3.5,
    "loss_after": 1.25,
    "durability": "commit",
    "restored_from": "store",
}
VERSIONS = [
    {"version": "abcdef0123", "created": 2, "turn": 3, "num_tokens": 9, "num_bytes": 1_500_000},
    {"version": "ab99", "created": 1},
]


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


def _events(*payloads: object) -> httpx.Response:
    lines = [f"data: {json.dumps(payload)}\n\n" for payload in payloads]
    return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))


class FakeServer:
    """Answers like a HOPE Server with one session; keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict]] = []
        self.chat_texts = ["Hel", "lo\x1b[2J"]
        self.session = dict(SESSION)
        self.receipt = dict(RECEIPT)
        self.learn_faults: list[httpx.Response] = []
        self.keys: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        is_json = request.headers.get("content-type") == "application/json"
        body = json.loads(request.content) if is_json else {"content": request.content} if request.content else {}
        self.asked.append((f"{request.method} {request.url.path}", body))
        if request.url.path == "/v1/sessions":
            if request.method == "GET":
                return httpx.Response(200, json={"data": [self.session], "has_more": False})
            return httpx.Response(200, json={**self.session, "id": body.get("id", "sess_new")})
        if request.url.path == "/v1/chat/completions":
            return self._chat(body)
        if request.url.path.endswith("/learn"):
            self.keys.append(request.headers["idempotency-key"])
            if self.learn_faults:
                return self.learn_faults.pop(0)
            progress = {"tokens_done": 2, "tokens_total": 4, "steps_done": 1, "steps_total": 2, "loss": None}
            done = {"object": "session.learn", "memory": self.receipt}
            return _events({"object": "session.learn.progress", **progress}, done)
        if request.url.path == "/v1/sessions/s1/versions":
            return httpx.Response(200, json={"data": VERSIONS})
        if request.url.path.startswith("/v1/sessions/s1/snapshots"):
            return self._snapshots(request.method, body)
        if request.url.path.endswith("freeze"):
            return httpx.Response(200, json={**self.session, "frozen": not request.url.path.endswith("unfreeze")})
        if request.url.path == "/v1/sessions/s1/memory":
            level = {"num_writes": 1_234, "num_bytes": 4_500_000, "norm": 0.25}
            return httpx.Response(200, json={"levels": {"fast": level}})
        if request.url.path == "/v1/sessions/s1/rollback":
            return httpx.Response(200, json={**self.session, "version": "new"})
        if request.url.path == "/v1/sessions/s1/fork":
            return httpx.Response(201, json={**self.session, "id": body.get("id", "sess_new")})
        if request.url.path == "/v1/sessions/s1/export":
            return httpx.Response(200, content=b"archive of " + request.url.params.get("version", "head").encode())
        if request.url.path == "/v1/sessions/import":
            return httpx.Response(201, json={**self.session, "id": request.url.params.get("id", "sess_new")})
        if request.url.path == "/v1/sessions/s1":
            return httpx.Response(200, json=self.session)
        error = {"message": f"no session\n{request.url.path.rsplit('/')[-1]!r}", "code": "session_not_found"}
        return httpx.Response(404, json={"error": error}, headers={"x-request-id": "req_1"})

    def _snapshots(self, method: str, body: dict) -> httpx.Response:
        if method == "GET":
            return httpx.Response(200, json={"data": [{"tag": "before", "version": "ab99", "created": 1}]})
        tags = {**self.session["tags"], body.get("tag", ""): body.get("version", self.session["version"])}
        return httpx.Response(200, json={**self.session, "tags": tags})

    def _chat(self, body: dict) -> httpx.Response:
        if not body.get("stream"):
            choice = {"message": {"content": "".join(self.chat_texts)}, "finish_reason": "stop"}
            return httpx.Response(200, json={"choices": [choice], "memory": self.receipt})
        deltas = [{"choices": [{"delta": {"content": text}}]} for text in self.chat_texts]
        return _events(*deltas, {"choices": [{"delta": {}, "finish_reason": "stop"}], "memory": self.receipt})


@pytest.fixture
def server(monkeypatch):
    """A fake server behind every client command."""
    server = FakeServer()

    def connect(_args):
        return HopeClient("http://h", transport=httpx.MockTransport(server))

    monkeypatch.setattr("hope_server.cli.talk.connect", connect)
    monkeypatch.setattr("hope_server.cli.sessions.connect", connect)
    return server


@pytest.fixture
def stored():
    """The fake server's session and its kept versions."""
    return SimpleNamespace(session=SESSION, versions=VERSIONS)
