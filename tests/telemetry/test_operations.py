"""The dashboard and the operator's page name what a running engine publishes, and leave out nothing of it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
NAME = re.compile(r"\b(?:hope|process)_[a-z0-9_]+\b")
SELECTOR = re.compile(r"\b((?:hope|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")
PARTS = {"histogram": ("_bucket", "_sum", "_count")}
# What the collecting Prometheus adds by itself.
ADDED_LABELS = {"instance", "job"}


@pytest.fixture
async def published(serve_toy) -> AsyncIterator[str]:
    """The text of /metrics after a turn that learned, one that failed and one that was refused."""
    async with serve_toy(max_prompt_tokens=64) as client:
        await _use(client)
        yield (await client.get("/metrics")).text


async def _use(client: httpx.AsyncClient) -> None:
    turn = {"messages": [{"role": "user", "content": "Mira keeps a violin."}], "max_tokens": 2, "session_id": "mira"}
    assert (await client.post(CHAT, json=turn)).status_code == 200
    turn["messages"] = [{"role": "user", "content": "x" * 500}]
    assert (await client.post(CHAT, json=turn)).status_code == 400


def names_in(text: str) -> set[str]:
    """Every name that a query may use, by the types that the server gives."""
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        found |= {name + part for part in PARTS.get(kind, ("",))}
    return found


def metrics_in(text: str) -> set[str]:
    """Every metric of ours, by the name that the page's table uses."""
    names = re.findall(r"^# TYPE (hope_\S+) \S+$", text, re.MULTILINE)
    return {name for name in names if not name.endswith("_created")}


def labels_in(text: str) -> dict[str, set[str]]:
    """The labels that each sample of the server had."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^([a-z0-9_]+)\{(.*)\} \S+$", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r"(\w+)=\"", labels))
    return found


def queries_of(panels: list[dict[str, Any]]) -> list[str]:
    """Every query of a dashboard's panels."""
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


@pytest.fixture
def dashboard(repository: Path) -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    found = json.loads((repository / "deploy/grafana/dashboards/hope.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.fixture
def page(repository: Path) -> str:
    """The operator's page."""
    return (repository / "docs/OPERATIONS.md").read_text(encoding="utf-8")


@pytest.fixture
def queries(dashboard: dict[str, Any], page: str) -> list[str]:
    """Every query of the dashboard and of the page's two tables of them."""
    tables = page.split("### Queries")[1].split("## The dashboard")[0]
    told = [code.replace(r"\|", "|") for code in re.findall(r"`([^`]+)`", tables) if NAME.search(code)]
    found = queries_of(dashboard["panels"]) + told
    assert len(told) > 15 and len(found) > 45
    return found


async def test_every_query_names_what_is_published(published: str, queries: list[str]) -> None:
    """No query asks for a name that a running engine does not publish."""
    known = names_in(published)

    assert {name for query in queries for name in NAME.findall(query)} - known == set()


async def test_every_query_asks_for_labels_that_there_are(published: str, queries: list[str]) -> None:
    """Selectors and groupings use labels that the named metrics have."""
    known = labels_in(published)
    unknown = set()
    for query in queries:
        for name, selector in SELECTOR.findall(query):
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            unknown |= {(name, label) for label in asked - known.get(name, set()) - ADDED_LABELS}
        grouped = {label for group in re.findall(r"\bby \(([^)]*)\)", query) for label in re.split(r",\s*", group)}
        named = set().union(*(known.get(name, set()) for name, _ in SELECTOR.findall(query)))
        unknown |= {(query, label) for label in grouped - named - ADDED_LABELS}

    assert unknown == set()


async def test_the_page_has_a_row_for_every_metric(published: str, page: str) -> None:
    """The table of metrics has each of ours and no other."""
    table = page.split("## Metrics")[1].split("### The stages")[0]
    rows = {name for line in table.splitlines() if line[:1] == "|" for name in NAME.findall(line.split("|")[1])}

    assert {name for name in rows if name.startswith("hope_")} == metrics_in(published)


async def test_the_dashboard_shows_every_metric(published: str, dashboard: dict[str, Any]) -> None:
    """Each metric of ours is in some panel."""
    shown = {name for query in queries_of(dashboard["panels"]) for name in NAME.findall(query)}
    bases = shown | {name.removesuffix(part) for name in shown for part in PARTS["histogram"]}

    assert metrics_in(published) - bases == set()


async def test_every_stage_is_explained(published: str, page: str) -> None:
    """The page's table of stages has those that the histogram has, in their order."""
    table = page.split("### The stages of a turn")[1].split("### Queries")[0]
    told = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)

    assert [stage for stage in told if stage != "stage"] == list(
        dict.fromkeys(re.findall(r'hope_stage_seconds_count\{stage="(\w+)"\}', published))
    )


def test_the_dashboard_is_one_that_grafana_lays_out(dashboard: dict[str, Any]) -> None:
    """Panels have numbers of their own, do not overlap, and ask the data source that the reader chose."""
    panels = dashboard["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    asked = [panel["datasource"] for panel in panels if panel["type"] != "row"]

    assert len({panel["id"] for panel in panels}) == len(panels) > 15
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) == 23
    assert asked == [{"type": "prometheus", "uid": "${datasource}"}] * len(asked)
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource", "instance"]


def test_every_label_has_bounded_values(page: str) -> None:
    """Labels are those few whose values the code itself chooses."""
    table = page.split("## Metrics")[1].split("### The stages")[0]
    labels = {label for group in re.findall(r"`hope_\w+\{([^}]*)\}`", table) for label in group.split(",")}

    assert labels == {"outcome", "code", "route", "status", "stage", "kind", "source"}
