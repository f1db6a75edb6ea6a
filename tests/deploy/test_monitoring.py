"""Prometheus, Grafana and the router: they look at servers that exist, for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import toy_engine

from hope_server.api.errors import codes_of_status
from hope_server.settings import Settings
from hope_server.telemetry import Metrics
from tests.deploy.conftest import num_bytes, seconds

# Prometheus' own.
MADE_BY_PROMETHEUS = {"up"}
FUNCTIONS = {"sum", "by", "rate", "histogram_quantile"}


@pytest.fixture(scope="module")
def prometheus(repository: Path) -> dict[str, Any]:
    """prometheus.yml."""
    found: dict[str, Any] = yaml.safe_load(
        (repository / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    )
    return found


@pytest.fixture(scope="module")
def rules(repository: Path) -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    found = yaml.safe_load((repository / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    return {rule["alert"]: rule for group in found["groups"] for rule in group["rules"]}


@pytest.fixture(scope="module")
def router(repository: Path) -> str:
    """hope.conf without its comments."""
    text = (repository / "deploy/nginx/hope.conf").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all series of a server that has finished a turn."""
    metrics = Metrics(toy_engine(tmp_path_factory.mktemp("metrics") / "store.db").stats)
    metrics.turn("chat").end("stop")
    lines = metrics.render().decode().splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}


def metrics_of(expression: str) -> set[str]:
    """The metrics that a query names."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby \([^)]*\)", "", expression)
    return set(re.findall(r"[a-z_][a-z_0-9]*", bare)) - FUNCTIONS


def test_every_metric_of_an_alert_exists(rules: dict[str, dict[str, Any]], published: set[str]) -> None:
    """A server publishes every metric that an alert looks at, under that name."""
    named = set().union(*(metrics_of(rule["expr"]) for rule in rules.values()))

    assert {"hope_turns_total", "hope_turns_waiting", "up"} <= named
    assert named - MADE_BY_PROMETHEUS - published == set()


def test_outcomes_that_alert_are_failures_of_the_service(rules: dict[str, dict[str, Any]]) -> None:
    """The outcomes that count as failures are codes of errors, and none that a caller is to blame for."""
    found = re.search(r'outcome=~"([^"]+)"', rules["HopeTurnsFail"]["expr"])
    assert found is not None

    ours = {code for status in (500, 503, 507) for code in codes_of_status(status)}
    assert set(found[1].split("|")) <= ours - {"loading", "shutting_down", "startup_error"}


def test_alerts_say_what_to_do(rules: dict[str, dict[str, Any]]) -> None:
    """Each alert waits before it fires, has a severity, and says what happened and what to do."""
    for rule in rules.values():
        assert seconds(rule["for"]) >= 30 and rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "do"}


def test_every_alert_is_tried(repository: Path, rules: dict[str, dict[str, Any]]) -> None:
    """promtool's tests of the alerts have a case for each of them in which it fires."""
    tests = yaml.safe_load((repository / "deploy/prometheus/alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]

    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(rules)


def test_the_alert_of_waiting_turns_comes_before_refusals(rules: dict[str, dict[str, Any]]) -> None:
    """The alert fires at half of the turns from which on new ones are refused."""
    limit = int(rules["HopeTurnsWaiting"]["expr"].split(">")[1])

    assert limit == Settings(store="x").max_waiting_turns // 2


def test_the_alert_of_memory_comes_before_its_limit(rules: dict[str, dict[str, Any]], servers: dict[str, Any]) -> None:
    """The alert fires at nine tenths of what compose.yaml lets a server have."""
    share, gibibytes = re.findall(r"> ([0-9.]+) \* ([0-9]+) \* 1024 \^ 3", rules["HopeMemoryNearItsLimit"]["expr"])[0]
    limits = {num_bytes(service["deploy"]["resources"]["limits"]["memory"]) for service in servers.values()}

    assert share == "0.9" and limits == {int(gibibytes) * 1024**3}


def test_every_server_is_scraped(prometheus: dict[str, Any], servers: dict[str, Any]) -> None:
    """Prometheus asks each server of compose.yaml by its name and the port inside its container."""
    job = next(job for job in prometheus["scrape_configs"] if job["job_name"] == "hope")
    targets = [target for config in job["static_configs"] for target in config["targets"]]

    assert targets == [f"{name}:{service['ports'][0].rsplit(':')[-1]}" for name, service in servers.items()]


def test_prometheus_finds_its_files(prometheus: dict[str, Any], compose: dict[str, Any]) -> None:
    """The rules and the key that prometheus.yml names are mounted there."""
    service = compose["services"]["prometheus"]
    mounted = {volume.split(":")[1] for volume in service["volumes"]}
    job = next(job for job in prometheus["scrape_configs"] if job["job_name"] == "hope")

    assert (
        set(prometheus["rule_files"]) <= mounted
        and "--config.file=/etc/prometheus/prometheus.yml" in service["command"]
    )
    assert (
        job["authorization"]["credentials_file"] == "/run/secrets/metrics_key" and "metrics_key" in service["secrets"]
    )


def test_grafana_reads_from_prometheus_and_shows_every_dashboard(repository: Path, compose: dict[str, Any]) -> None:
    """The data source is Prometheus' address in compose.yaml, and dashboards are looked for where they are mounted."""
    folder = repository / "deploy/grafana/provisioning"
    sources = yaml.safe_load((folder / "datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    providers = yaml.safe_load((folder / "dashboards/hope.yml").read_text(encoding="utf-8"))["providers"]
    mounted = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])

    assert [(source["url"], source["uid"]) for source in sources] == [("http://prometheus:9090", "prometheus")]
    assert providers[0]["options"]["path"] == mounted["./deploy/grafana/dashboards"]
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"


def test_dashboards_read_from_a_source_that_there_is(repository: Path) -> None:
    """Each dashboard is JSON, and its panels name the provisioned data source or a variable that finds it."""
    dashboards = sorted((repository / "deploy/grafana/dashboards").glob("*.json"))
    assert dashboards
    for path in dashboards:
        text = path.read_text(encoding="utf-8")
        variables = {f"${{{each['name']}}}" for each in json.loads(text).get("templating", {}).get("list", [])}
        named = set(re.findall(r'"datasource":\s*\{[^}]*"uid":\s*"([^"]+)"', text))
        assert named and named <= {"prometheus", "-- Grafana --", *variables}


def test_the_router_knows_every_server(router: str, servers: dict[str, Any]) -> None:
    """A session goes to one of the servers of compose.yaml, chosen by its name."""
    assert re.findall(r"server (server-\w+:\d+)", router) == [f"{name}:8000" for name in servers]
    assert "hash $place consistent;" in router and re.search(r"default\s+\$http_x_session_id;", router)


def test_the_router_holds_no_stream_back(router: str) -> None:
    """Server-sent events go on piece by piece, and a turn may be silent for minutes."""
    for directive in ("proxy_buffering off;", "gzip off;", "proxy_cache off;", "proxy_http_version 1.1;"):
        assert directive in router
    silence = re.search(r"proxy_read_timeout (\w+);", router)
    assert silence is not None and seconds(silence[1]) >= 600


def test_the_router_sends_no_turn_twice(router: str) -> None:
    """Only what was not sent, or may be sent twice, goes to another server."""
    assert re.findall(r"proxy_next_upstream ([^;]+);", router) == ["error timeout"]


def test_the_router_refuses_nothing_that_a_server_takes(router: str) -> None:
    """Bodies may be as large as a session that is imported, and connections end here before a server closes them."""
    settings = Settings(store="x")
    largest = re.search(r"client_max_body_size (\w+);", router)
    idle = re.search(r"keepalive_timeout (\w+);", router)
    assert largest is not None and idle is not None

    assert num_bytes(largest[1]) >= settings.max_snapshot_bytes + 2**20
    assert seconds(idle[1]) < settings.keep_alive_seconds


def test_the_router_passes_the_callers_host_on(router: str) -> None:
    """A server without keys sees the name that it was called by, so that rebinding of names is still refused."""
    assert "proxy_set_header Host $http_host;" in router
