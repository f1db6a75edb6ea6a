"""compose.yaml: servers that share their sessions, and services that may do no more than they must."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hope_server.settings import Settings
from tests.deploy.conftest import num_bytes, seconds

SERVICES = ("server-a", "server-b", "redis", "prometheus", "grafana", "router")
PASSWORD = "0123456789abcdef"


def settings_of(service: dict[str, Any]) -> Settings:
    """The settings of a server, with what `.env` would give put in."""
    environ = {
        name: re.sub(r"\$\{API_KEY_FILE:-\}", "", re.sub(r"\$\{REDIS_PASSWORD:\?[^}]*\}", PASSWORD, text))
        for name, text in service["environment"].items()
    }
    assert not any("${" in text for text in environ.values())
    return Settings.load(environ=environ)


def redis_config(repository: Path) -> dict[str, str]:
    """The directives of redis.conf."""
    lines = (repository / "deploy/redis/redis.conf").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]
    return {pair[0]: pair[1] for pair in pairs}


def test_all_services_are_known(compose: dict[str, Any]) -> None:
    """The services are those that the tests of this file go through."""
    assert set(compose["services"]) == set(SERVICES)


def test_servers_differ_in_their_port_alone(servers: dict[str, Any]) -> None:
    """A session works on both servers, as both have one store, one key file and one key store."""
    first, second = ({**service, "ports": None} for service in servers.values())

    assert first == second
    ports = [service["ports"] for service in servers.values()]
    assert ports == [["127.0.0.1:8000:8000"], ["127.0.0.1:8001:8000"]]


def test_settings_of_the_servers_are_valid(servers: dict[str, Any]) -> None:
    """A server takes every variable that compose.yaml gives it, and keeps keys apart from sessions."""
    for service in servers.values():
        settings = settings_of(service)
        assert settings.store == f"redis://hope:{PASSWORD}@redis:6379/0"
        assert settings.key_file == "/run/secrets/hope_key" and "hope_key" in service["secrets"]
        assert settings.key_store.startswith("/var/lib/hope/") and "keys:/var/lib/hope" in service["volumes"]
        assert settings.api_key_file == ""


def test_no_password_has_a_default(repository: Path, compose: dict[str, Any]) -> None:
    """Without a password compose refuses to start, and none is written in a file that git has."""
    text = (repository / "compose.yaml").read_text(encoding="utf-8")

    assert re.findall(r"\$\{REDIS_PASSWORD[^}]*\}", text) == ["${REDIS_PASSWORD:?run scripts/containers.sh secrets}"]
    environment = compose["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana_admin_password"
    assert "GF_SECURITY_ADMIN_PASSWORD" not in environment
    assert {Path(secret["file"]).parent.as_posix() for secret in compose["secrets"].values()} == {"deploy/secrets"}


@pytest.mark.parametrize("name", SERVICES)
def test_services_may_do_little(compose: dict[str, Any], name: str) -> None:
    """Each service has a root that it cannot write, no capabilities, no new ones, and bounds on all that it takes."""
    service = compose["services"][name]
    limits = service["deploy"]["resources"]["limits"]

    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
    assert num_bytes(limits["memory"]) > 0 and float(limits["cpus"]) > 0 and limits["pids"] > 0
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_watched(compose: dict[str, Any], name: str) -> None:
    """Each service has a health check, and what waits for another waits until it is healthy."""
    service = compose["services"][name]

    assert len(service["healthcheck"]["test"]) > 1
    waits = service.get("depends_on", {})
    assert {found["condition"] for found in waits.values()} <= {"service_healthy"} and set(waits) <= set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_to_this_machine_only(compose: dict[str, Any], name: str) -> None:
    """No port of a service can be reached from another machine."""
    assert [port for port in compose["services"][name].get("ports", []) if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_versions(compose: dict[str, Any], name: str) -> None:
    """Each image of others has a version in full; ours is the one that is built."""
    service = compose["services"][name]
    if "build" in service:
        assert service["image"] == "${SERVER_IMAGE:-hope-server:local}"
    else:
        assert re.fullmatch(r"[a-z/]+:v?[0-9]+\.[0-9]+\.[0-9]+(-[a-z0-9.]+)?", service["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_exist(repository: Path, compose: dict[str, Any], name: str) -> None:
    """What is mounted out of the repository is there, and cannot be written; volumes and secrets are declared."""
    service = compose["services"][name]
    for volume in service.get("volumes", []):
        source, _, mode = (volume + ":").split(":", 2)
        if source.startswith("."):
            assert (repository / source).exists() and mode.startswith("ro")
        else:
            assert source in compose["volumes"]
    assert set(service.get("secrets", [])) <= set(compose["secrets"])


def test_a_stop_leaves_time_to_drain(servers: dict[str, Any]) -> None:
    """A server is not killed before its turns had their time, and a little more to commit."""
    for service in servers.values():
        assert seconds(service["stop_grace_period"]) >= settings_of(service).drain_seconds + 10


def test_servers_compute_with_the_cores_that_they_have(servers: dict[str, Any]) -> None:
    """There are as many threads as cores, which torch cannot see by itself."""
    for service in servers.values():
        assert settings_of(service).num_threads == float(service["deploy"]["resources"]["limits"]["cpus"])


def test_redis_is_what_the_store_asks_for(repository: Path, compose: dict[str, Any]) -> None:
    """Redis writes every commit to the disk, forgets nothing, and stays inside its container's memory as it does."""
    config, service = redis_config(repository), compose["services"]["redis"]

    assert (config["appendonly"], config["appendfsync"], config["maxmemory-policy"]) == ("yes", "always", "noeviction")
    assert service["entrypoint"] == ["redis-server", "/etc/redis/redis.conf"]
    assert config["aclfile"] == "/run/secrets/redis_acl" and "redis_acl" in service["secrets"]
    assert config["dir"] == "/data" and "redis:/data" in service["volumes"]
    assert num_bytes(service["deploy"]["resources"]["limits"]["memory"]) >= 2 * num_bytes(config["maxmemory"])


def test_only_servers_reach_redis(compose: dict[str, Any]) -> None:
    """Redis is in a network of its own that leads nowhere, with the servers and nobody else."""
    inside = {name for name, service in compose["services"].items() if "store" in service["networks"]}

    assert inside == {"redis", "server-a", "server-b"} and compose["networks"]["store"] == {"internal": True}
    assert compose["services"]["redis"]["networks"] == ["store"] and "ports" not in compose["services"]["redis"]


def test_the_router_is_optional(compose: dict[str, Any]) -> None:
    """Only the router needs a profile to be started."""
    profiles = {name: service["profiles"] for name, service in compose["services"].items() if "profiles" in service}

    assert profiles == {"router": ["router"]}
