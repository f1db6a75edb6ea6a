"""Runs other people's clients against a live server on the real model, and prints one line a case.

    python conformance/run.py [--url http://127.0.0.1:8000] [--only PART …] [--json FILE]

Each part is a program of its own in `clients/`, run by the environment that has its clients (`make conformance` makes
them). Without --url a server with an empty store is started on a free port, and stopped at the end. Exit status 1 where
a case fails.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = ROOT / "conformance" / "clients"
ENVIRONMENTS = ROOT / ".conformance"
START_SECONDS = 300
PART_SECONDS = 1200
# Part: the environment that has its clients.
PARTS = {
    "openai_chat": "openai",
    "openai_more": "openai",
    "open_responses": "openai",
    "open_webui": "openai",
    "langchain": "openai",
    "litellm_client": "litellm",
}


def main() -> int:
    """Run the chosen parts; return the exit status."""
    args = _arguments()
    with _server(args.url) as url:
        results = [result for part in args.only or PARTS for result in _run_part(part, url)]
    print(_table(results))
    failed = [result for result in results if not result["ok"]]
    print(f"\n{len(results) - len(failed)} of {len(results)} cases passed")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if failed or not results else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--url", help="a running server (default: one is started)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", metavar="FILE", help="write every case as JSON too")
    return parser.parse_args()


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    """The address of a server that is ready: the one that was given, or one of our own."""
    if url is not None:
        yield url.rstrip("/")
        return
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="hope-conformance-") as name:
        log = Path(name) / "server.log"
        command = [sys.executable, "-m", "hope_server", "serve", "--port", str(port), "--store", f"{name}/sessions.db"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_ready(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server takes turns; end the program where it does not."""
    print(f"starting a server on {url} …", flush=True)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"the server was not ready within {START_SECONDS} s:\n{log.read_text()[-2000:]}")


def _run_part(part: str, url: str) -> list[dict[str, Any]]:
    """Run one program of cases; a program that breaks off is a failed case of its own."""
    python = ENVIRONMENTS / PARTS[part] / "bin" / "python"
    command: Sequence[str] = [str(python), str(CLIENTS / f"{part}.py"), url]
    # No client may reach for the network, or for keys of the machine it runs on.
    names = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
    try:
        done = subprocess.run(
            command, cwd=CLIENTS, env=environment, capture_output=True, text=True, check=False, timeout=PART_SECONDS
        )
        status, output, errors = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        status, output, errors = -1, "", f"no end after {PART_SECONDS} s"
    results = [{"part": part, **json.loads(line)} for line in output.splitlines() if line.startswith("{")]
    if status != 0 and not any(not result["ok"] for result in results):
        last = (errors.strip().splitlines() or ["no output"])[-1]
        results.append({"part": part, "case": "runs to its end", "ok": False, "seconds": 0.0, "detail": last})
    for result in results:
        print(f"{'ok    ' if result['ok'] else 'FAILED'} {part}: {result['case']}", flush=True)
    return results


def _table(results: Sequence[dict[str, Any]]) -> str:
    lines = ["", f"{'client':<16}{'case':<66}{'s':>6}  result"]
    for result in results:
        shown = "ok" if result["ok"] else f"FAILED: {result['detail']}"
        lines.append(f"{result['part']:<16}{result['case']:<66}{result['seconds']:>6.1f}  {shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
