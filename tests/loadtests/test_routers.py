"""Each router's own configuration, changed for the servers of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from loadtests import routers
from loadtests.routers import PASSES_ALL, ROUTERS, envoy, nginx, vllm_router


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every router is somewhere."""
    monkeypatch.setattr(routers, "_program", lambda name: f"/somewhere/{name}")


def test_those_that_pass_everything_are_routers() -> None:
    """The names go together."""
    assert set(ROUTERS) > PASSES_ALL


def test_vllm_router_hashes_sessions_over_all_servers(tmp_path: Path) -> None:
    """Its servers, its policy, and the path that tells whether a server takes turns."""
    words = vllm_router(tmp_path, 9000, 9001, (9002, 9003))

    assert words[0] == "/somewhere/vllm-router"
    assert words[-3:] == ["--worker-urls", "http://127.0.0.1:9002", "http://127.0.0.1:9003"]
    assert {"--policy=consistent_hash", "--port=9000", "--health-check-endpoint=/ready"} <= set(words)


def test_nginx_keeps_all_of_its_file_but_servers_port_and_places(tmp_path: Path) -> None:
    """What the load test runs is what operators are given."""
    words = nginx(tmp_path, 9000, 9001, (9002, 9003))
    made = (tmp_path / "nginx.conf").read_text(encoding="utf-8")
    given = (routers.ROOT / "deploy" / "nginx" / "hope.conf").read_text(encoding="utf-8")

    assert str(tmp_path / "nginx.conf") in words
    assert "server 127.0.0.1:9002 max_fails=1 fail_timeout=2s;" in made and "127.0.0.1:9003" in made
    assert (
        "server-a" not in made and "listen 127.0.0.1:9000;" in made and " /tmp/" not in made.replace(str(tmp_path), "")
    )
    changed = {line for line in given.splitlines() if line not in made.splitlines()}
    assert len(changed) <= 10
    assert "hash $place consistent;" in made and "proxy_buffering off;" in made


def test_envoy_keeps_all_of_its_file_but_servers_and_ports(tmp_path: Path) -> None:
    """What the load test runs is what operators are given."""
    envoy(tmp_path, 9000, 9001, (9002, 9003))
    made = yaml.safe_load((tmp_path / "envoy.yaml").read_text(encoding="utf-8"))
    given = yaml.safe_load((routers.ROOT / "deploy" / "envoy" / "hope.yaml").read_text(encoding="utf-8"))
    ports = [
        each["endpoint"]["address"]["socket_address"]["port_value"]
        for each in made["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ]

    assert ports == [9002, 9003]
    assert made["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] == 9000
    assert (
        made["static_resources"]["listeners"][0]["filter_chains"]
        == (given["static_resources"]["listeners"][0]["filter_chains"])
    )
