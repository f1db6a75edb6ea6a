"""Routers before several servers: other people's programs, and the configuration that each is run with."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
_ENVIRONMENT = ROOT / ".router"


def vllm_router(folder: Path, port: int, spare_port: int, servers: Sequence[int]) -> list[str]:
    """vllm-router: hashes `X-Session-ID`. It passes headers on for chats and completions, and for nothing else."""
    program = _program("vllm-router")
    urls = [f"http://127.0.0.1:{server}" for server in servers]
    # A server that comes back is used again within seconds; the defaults take a minute.
    checks = ["--health-check-endpoint=/ready", "--health-check-interval-secs=1", "--health-check-timeout-secs=2"]
    checks += ["--health-failure-threshold=1", "--health-success-threshold=1", "--cb-timeout-duration-secs=2"]
    # Below this level its log names sessions.
    start = ["--worker-startup-check-interval=1", f"--prometheus-port={spare_port}", "--log-level=error"]
    return [program, f"--port={port}", "--policy=consistent_hash", *start, *checks, "--worker-urls", *urls]


def nginx(folder: Path, port: int, spare_port: int, servers: Sequence[int]) -> list[str]:
    """Nginx with deploy/nginx/hope.conf, whose servers, port and places are changed."""
    text = (ROOT / "deploy" / "nginx" / "hope.conf").read_text(encoding="utf-8")
    lines = "\n".join(f"        server 127.0.0.1:{server} max_fails=1 fail_timeout=2s;" for server in servers)
    text, count = re.subn(r"(?m)(^ +server server-[a-z]:8000 [^\n]*\n)+", lines + "\n", text)
    if count != 1:
        raise RuntimeError("deploy/nginx/hope.conf lists its servers in another way than it did")
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("/tmp/", f"{folder}/nginx-")
    config = folder / "nginx.conf"
    config.write_text(text, encoding="utf-8")
    return [_program("nginx"), "-c", str(config), "-e", str(folder / "nginx-error.log"), "-g", "daemon off;"]


def envoy(folder: Path, port: int, spare_port: int, servers: Sequence[int]) -> list[str]:
    """Envoy with deploy/envoy/hope.yaml, whose servers and ports are changed."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "envoy" / "hope.yaml").read_text(encoding="utf-8"))
    resources = found["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    found["admin"]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": spare_port}
    resources["clusters"][0]["load_assignment"]["endpoints"] = [
        {
            "lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": server}}}}
                for server in servers
            ]
        }
    ]
    config = folder / "envoy.yaml"
    config.write_text(yaml.safe_dump(found), encoding="utf-8")
    return [_program("envoy"), "-c", str(config), "--log-level", "warning", "--use-dynamic-base-id"]


ROUTERS: dict[str, Callable[[Path, int, int, Sequence[int]], list[str]]] = {
    "vllm": vllm_router,
    "nginx": nginx,
    "envoy": envoy,
}
"""The command line of each, from the run's folder, its port, a port to spare, and the servers' ports."""

PASSES_ALL = {"nginx", "envoy"}
"""Those that pass every path on with its headers."""


def version_of(router: str) -> str:
    """What a router says that it is."""
    if router == "vllm":
        words = [str(Path(_program("vllm-router")).parent / "pip"), "show", "vllm-router"]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        return "vllm-router " + text.partition("Version: ")[2].split()[0]
    flag = "-v" if router == "nginx" else "--version"
    done = subprocess.run([_program(router), flag], capture_output=True, text=True, check=True)
    match = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    return f"{router} {match[0] if match else 'of unknown version'}"


def _program(name: str) -> str:
    """Where a router is. Raises RuntimeError where it is nowhere."""
    found = shutil.which(name, path=str(_ENVIRONMENT / "bin")) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"there is no {name}; scripts/router.sh makes .router with all of them")
    return found
