"""A server in memory: as much of the API as load tests use. It keeps its promises until it is told to break one."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeSession:
    """One session: its commits, oldest first, and the answers by Idempotency-Key."""

    versions: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_learned: int = 0
    first_turn: int = 0

    def commit(self) -> dict[str, Any]:
        """Add a turn; return its receipt."""
        before = self.versions[-1]["version"] if self.versions else None
        number = self.versions[-1]["number"] + 1 if self.versions else 1
        turn = self.first_turn + len(self.turns) + 1
        version = uuid.uuid4().hex
        self.versions.append({"version": version, "parent": before, "number": number, "turn": turn})
        self.turns.append({"turn": turn, "tokens_read": 9, "tokens_learned": 5, "kind": "chat"})
        self.num_learned += 5
        receipt = {"version_before": before, "version_after": version, "turn": turn, "tokens_read": 9}
        return receipt | {
            "tokens_learned": 5,
            "replayed": False,
            "not_learned": None,
            "discarded": None,
            "restored_from": "hot",
        }

    def look(self, behind: int) -> dict[str, Any]:
        """Return the receipt of a turn that only reads, of a state so many versions behind the newest."""
        at = self.versions[-1 - behind]["version"] if len(self.versions) > behind else None
        counts = {"turn": self.first_turn + len(self.turns), "tokens_read": 9, "tokens_learned": 0}
        marks = {"replayed": False, "not_learned": None, "discarded": None, "restored_from": "hot"}
        return {"version_before": at, "version_after": at, **counts, **marks}

    def lose(self) -> None:
        """Forget the last turn, as a store does that goes back in time."""
        self.versions.pop()
        self.turns.pop()
        self.num_learned -= 5


@dataclass
class Faults:
    """What the server does wrong, or not often. `script`: what the next requests get, one word each, in order.

    Words: a status, "reset", "cut" (the stream ends early, the turn is kept), "cut before" (it is not), "internal".
    """

    forgets_keys: bool = False
    loses_every: int = 0
    knows_no_tenants: bool = False
    keeps_deleted: bool = False
    has_receipts: bool = True
    reads_behind: int = 0
    script: list[str] = field(default_factory=list)


class FakeServer:
    """Serves until the block ends; `faults` may be changed meanwhile."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.sessions: dict[tuple[str, str], FakeSession] = {}
        self.requests: Counter[str] = Counter()
        self.lock = threading.Lock()
        server = self

        class Handler(_Handler):
            fake = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        """Serve in a thread."""
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def take(self, name: tuple[str, str], key: str) -> dict[str, Any]:
        """Learn a turn, unless its key is known; return its receipt."""
        session = self.sessions.setdefault(name, FakeSession())
        if key in session.answers and not self.faults.forgets_keys:
            return session.answers[key] | {"replayed": True}
        receipt = session.answers[key] = session.commit()
        if self.faults.loses_every and len(session.turns) % self.faults.loses_every == 0:
            session.lose()
        return receipt


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeServer

    def log_message(self, *_args: object) -> None:
        pass

    def do_GET(self) -> None:
        name, verb = self._session()
        session = self.fake.sessions.get(name)
        if session is None:
            self._json(404, {"error": {"code": "session_not_found"}})
        elif verb == "versions":
            self._json(200, {"data": session.versions[:-9:-1]})
        elif verb == "turns":
            self._json(200, {"data": session.turns[:-33:-1]})
        else:
            head = session.versions[-1] if session.versions else {"version": None}
            turn = session.turns[-1]["turn"] if session.turns else session.first_turn
            self._json(200, {"version": head["version"], "turn": turn, "tokens_learned": session.num_learned})

    def do_DELETE(self) -> None:
        name, _ = self._session()
        if not self.fake.faults.keeps_deleted:
            self.fake.sessions.pop(name, None)
        self._json(200, {"deleted": True})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        word = self.fake.faults.script.pop(0) if self.fake.faults.script else ""
        name, verb = self._session()
        self.fake.requests[verb] += 1
        if word == "reset":
            self.close_connection = True
        elif word.isdigit():
            self._json(
                int(word), {"error": {"code": "scripted"}}, {"Retry-After": "0"} if word in ("429", "503") else {}
            )
        elif verb == "fork":
            self._fork(name, body["id"])
        else:
            self._stream(name, word, reads=body.get("memory") == {"mode": "read"})

    def _session(self) -> tuple[tuple[str, str], str]:
        key = "" if self.fake.faults.knows_no_tenants else self.headers.get("Authorization", "")
        parts = self.path.split("/")
        if parts[2] == "sessions":
            return (key, parts[3]), parts[4] if len(parts) > 4 else ""
        return (key, self.headers["X-Session-ID"]), "chat"

    def _fork(self, name: tuple[str, str], new: str) -> None:
        head = self.fake.sessions[name].versions[-1]
        birth = {"version": uuid.uuid4().hex, "parent": head["version"], "number": head["number"] + 1}
        fork = FakeSession([birth | {"turn": head["turn"]}], first_turn=head["turn"])
        fork.num_learned = self.fake.sessions[name].num_learned
        self.fake.sessions[name[0], new] = fork
        self._json(201, {"id": new, "version": birth["version"]})

    def _stream(self, name: tuple[str, str], word: str, *, reads: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for text in ("one ", "two ", "three "):
                self._event({"choices": [{"delta": {"content": text}}]})
                time.sleep(0.002)
            if word == "internal":
                self._event({"error": {"code": "internal_error"}})
                self._chunk(b"")
                return
            if word == "cut before":
                self.close_connection = True
                return
            with self.fake.lock:
                receipt = (
                    self.fake.sessions[name].look(self.fake.faults.reads_behind)
                    if reads
                    else self.fake.take(name, self.headers["Idempotency-Key"])
                )
            if word == "cut":
                self.close_connection = True
                return
            end = {"memory": receipt} if self.fake.faults.has_receipts else {}
            self._event({"choices": [], "usage": {"completion_tokens": 3}, **end})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            # The client went away.
            self.close_connection = True

    def _event(self, found: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(found).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _json(self, status: int, found: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(found).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)
