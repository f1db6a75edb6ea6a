"""What makes secrets, asks for health and fills an image, run as it would be."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hope_kernels import native
from hope_memory.key_file import KeyRing

from hope_server.model.checkpoint import resolve_model
from tests.deploy.conftest import load_script


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A folder with the script alone, in which it may make files."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(repository / "scripts/containers.sh", tmp_path / "scripts")
    return tmp_path


def make_secrets(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run the script in a checkout."""
    command = ["bash", str(checkout / "scripts/containers.sh"), "secrets"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_secrets_are_made_for_every_service(checkout: Path, compose: dict[str, Any]) -> None:
    """Every file that compose.yaml mounts as a secret is made, and the password that it asks for."""
    assert make_secrets(checkout).returncode == 0

    assert [each["file"] for each in compose["secrets"].values() if not (checkout / each["file"]).is_file()] == []
    assert re.fullmatch(r"REDIS_PASSWORD=[0-9a-f]{64}\n", (checkout / ".env").read_text())


def test_the_key_file_is_one(checkout: Path) -> None:
    """A server reads the key file that was made, and its two secrets differ."""
    make_secrets(checkout)
    ring = KeyRing.load(checkout / "deploy/secrets/hope.key")

    assert len({ring.names, *ring.keys.values()}) == 2


def test_redis_lets_in_who_has_the_password(repository: Path, checkout: Path) -> None:
    """Redis is told the hash of the servers' password and the rights of docs/STORE.md; others may ping."""
    make_secrets(checkout)
    password = (checkout / ".env").read_text().strip().partition("=")[2]
    everyone, ours = (checkout / "deploy/secrets/redis.acl").read_text().splitlines()
    guide = (repository / "docs/STORE.md").read_text(encoding="utf-8")
    told = re.search(r"ACL SETUSER hope on (.*?)```", guide, re.DOTALL)
    assert told is not None

    assert everyone == "user default on nopass resetkeys resetchannels -@all +ping"
    assert f"#{hashlib.sha256(password.encode()).hexdigest()}" in ours.split() and password not in ours
    granted = {word for word in ours.split() if word[0] in "+~"}
    assert granted == {word for word in told[1].split() if word[0] in "+~"}


def test_secrets_are_kept_from_others_and_shown_to_containers(checkout: Path) -> None:
    """Only the owner can enter the folder; inside it, a container's own user can read the files."""
    make_secrets(checkout)
    folder = checkout / "deploy/secrets"

    assert folder.stat().st_mode & 0o777 == 0o700 and (checkout / ".env").stat().st_mode & 0o777 == 0o600
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_secrets_that_are_there_stay(checkout: Path) -> None:
    """A second run changes nothing: sessions that were stored need the key that they were stored with."""
    make_secrets(checkout)
    files = [checkout / ".env", *sorted((checkout / "deploy/secrets").iterdir())]
    before = [path.read_bytes() for path in files]

    assert make_secrets(checkout).returncode == 0
    assert [path.read_bytes() for path in files] == before


def test_an_environment_without_the_password_is_refused(checkout: Path) -> None:
    """A .env of somebody's own is not written to, and the script says what it lacks."""
    (checkout / ".env").write_text("API_KEY_FILE=\n")
    done = make_secrets(checkout)

    assert done.returncode == 1 and "REDIS_PASSWORD" in done.stderr
    assert (checkout / ".env").read_text() == "API_KEY_FILE=\n"


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Answer every request with a status; gives the port."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def check_health(repository: Path, port: int, path: str = "/ready") -> int:
    """Run the health check; return its exit code."""
    command = [sys.executable, str(repository / "deploy/health.py"), path]
    # A proxy that answers nothing: the check must not ask it.
    environ = {**os.environ, "HOPE_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    return subprocess.run(command, env=environ, capture_output=True, check=False, timeout=30).returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_is_what_the_server_answers(repository: Path, status: int, code: int) -> None:
    """The check passes on 200 and fails on anything else, whatever proxies the environment names."""
    with answering(status) as port:
        assert check_health(repository, port) == code


def test_a_server_that_is_gone_is_not_healthy(repository: Path) -> None:
    """The check fails where nobody answers."""
    with answering(200) as port:
        assert check_health(repository, port, "/other") == 1

    assert check_health(repository, port) == 1


def test_a_baked_model_is_served_in_place_by_anyone(repository: Path, tmp_path: Path) -> None:
    """The converted folder can be read by every user, and a server uses it where it lies, writing nothing."""
    bake = load_script(repository / "deploy/bake.py")
    before = os.umask(0o077)
    try:
        bake.bake_model("hope-nano", tmp_path / "model")
    finally:
        os.umask(before)

    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {0o644} and (tmp_path / "model").stat().st_mode & 0o777 == 0o755
    assert resolve_model(str(tmp_path / "model"), tmp_path / "cache") == tmp_path / "model"
    assert not (tmp_path / "cache").exists()


def test_operators_are_baked_for_every_processor(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On x86-64 all variants are compiled, as the image may run on another processor; elsewhere the plain one."""
    bake = load_script(repository / "deploy/bake.py")
    compiled: list[tuple[str, Path]] = []

    def compile_library(name: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        compiled.append((name, folder))

    monkeypatch.setattr(native, "compile_library", compile_library)
    monkeypatch.setattr(bake.platform, "machine", lambda: "x86_64")
    bake.bake_operators(tmp_path)

    assert compiled == [(name, tmp_path / "operators") for name in native.VARIANTS]
    assert bake.variants("aarch64") == ["DEFAULT"]
