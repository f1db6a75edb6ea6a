"""The parts of a load run that are neither scenarios nor checks: plan, shapes, ledger, client, samples, report."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.charts import bins, markdown_to_html, page
from loadtests.checks import check_everything
from loadtests.courier import Refusal
from loadtests.http_client import BROKEN, Client, sse_objects
from loadtests.ledger import Account, Ledger, Turn, read_ledgers
from loadtests.plan import ENVIRONMENT, Plan, parse_scenarios
from loadtests.report import Run, figures, has_passed, markdown, percentiles
from loadtests.sampler import Samples, floor, parse_metrics, slope
from loadtests.shapes import SHAPES, spawn_rate, users_at
from tests.loadtests.conftest import Load
from tests.loadtests.fake_server import FakeServer

PLAN = Plan("http://127.0.0.1:1", "", keys=("secret-key",), scenarios=(("chat", 1.0),), users=10, seconds=100.0)


# -- plan and shapes ---


def test_a_plan_goes_through_json(tmp_path: Path) -> None:
    """What the driver writes is what a Locust process reads."""
    path = tmp_path / "plan.json"
    path.write_text(PLAN.to_json())
    assert Plan.of_environment({ENVIRONMENT: str(path)}) == PLAN


@pytest.mark.parametrize("change", [{"shape": "square"}, {"users": 0}, {"seconds": -1.0}, {"think_seconds": -1.0}])
def test_a_plan_refuses_what_cannot_be(change: dict[str, object]) -> None:
    """The error names the number."""
    with pytest.raises(ValueError, match=next(iter(change))):
        Plan.from_json(json.dumps(json.loads(PLAN.to_json()) | change))


def test_scenarios_have_weights() -> None:
    """One is the weight that is not given."""
    assert parse_scenarios("chat=3, hot") == (("chat", 3.0), ("hot", 1.0))


@pytest.mark.parametrize("text", ["", "dance", "chat=much", "chat=0", "chat=nan"])
def test_scenarios_that_cannot_be_are_refused(text: str) -> None:
    """Unknown names and weights that are no weights."""
    with pytest.raises(ValueError, match="scenario"):
        parse_scenarios(text)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_users_until_its_end(shape: str) -> None:
    """At least one, at most all, and all at some time; then none."""
    users = [users_at(shape, at, 100, 40) for at in range(100)]
    assert all(count is not None and 1 <= count <= 40 for count in users) and 40 in users
    assert users_at(shape, 100, 100, 40) is None
    assert spawn_rate(shape, 40) >= 1


def test_shapes_have_their_shape() -> None:
    """A ramp never falls, a spike comes twice, a soak is flat after its start."""
    ramp = [users_at("ramp", at, 100, 40) for at in range(100)]
    assert ramp == sorted(ramp, key=lambda count: count or 0) and (ramp[0], ramp[-1]) == (4, 40)
    spike = [users_at("spike", at, 100, 40) == 40 for at in range(100)]
    assert sum(now and not before for before, now in zip([False, *spike], spike, strict=False)) == 2
    assert spike.count(True) == 20
    assert {users_at("soak", at, 100, 40) for at in range(5, 100)} == {40}
    assert {users_at("steady", at, 100, 40) for at in range(100)} == {40}


# -- ledger ---


def test_a_ledger_survives_the_end_of_its_process(tmp_path: Path) -> None:
    """A turn without an end is open with no body; half a last line is left out; one that ended early can be sent."""
    ledger = Ledger(tmp_path / "a.jsonl")
    turns = [Turn(0, "s", key, "chat", "/path", {"n": 1}) for key in ("k1", "k2")]
    ledger.begin(turns[0], "chat")
    ledger.begin(turns[1], "chat")
    ledger.end(turns[1], ())
    ledger.close()
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"event": "fau')
    account = read_ledgers(tmp_path)

    assert [record.is_open for record in account.turns.values()] == [True, True]
    assert [record.turn for record in account.turns.values()] == [None, turns[1]]


# -- client ---


def test_a_stream_is_read_as_it_comes(server: FakeServer) -> None:
    """The first event is there before the last one was sent; the connection is used again after [DONE]."""
    client = Client(server.url)
    for _ in range(2):
        headers = {"X-Session-ID": "s", "Idempotency-Key": str(time.monotonic_ns())}
        with client.open("POST", "/v1/chat/completions", {}, headers) as response:
            events = sse_objects(response)
            next(events)
            assert server.sessions.get(("", "s")) is None or len(server.sessions["", "s"].turns) < 2
            assert len(list(events)) == 3
        assert client._idle is not None
    client.close()


def test_leaving_a_stream_closes_its_connection(server: FakeServer) -> None:
    """The server is to notice it."""
    client = Client(server.url)
    headers = {"X-Session-ID": "s", "Idempotency-Key": "k"}
    with client.open("POST", "/v1/chat/completions", {}, headers) as response:
        next(sse_objects(response))
    assert client._idle is None


def test_a_stream_without_its_end_is_broken(server: FakeServer) -> None:
    """A connection that ends before [DONE] is no answer."""
    server.faults.script = ["cut before"]
    client = Client(server.url)
    headers = {"X-Session-ID": "s", "Idempotency-Key": "k"}
    with (
        pytest.raises(BROKEN),
        client.open("POST", "/v1/chat/completions", {}, headers) as response,
    ):
        list(sse_objects(response))


def test_a_client_wants_an_http_address() -> None:
    """Others are refused by name."""
    with pytest.raises(ValueError, match="url is"):
        Client("127.0.0.1:8000")


@pytest.mark.parametrize(
    ("refusal", "is_honest", "is_final"),
    [
        (Refusal(503, "store_unavailable", 1.0), True, False),
        (Refusal(503, "startup_error"), False, False),
        (Refusal(500, "internal_error"), False, False),
        (Refusal(507, "store_full"), False, False),
        (Refusal(429, "overloaded", 1.0), True, False),
        (Refusal(409, "session_busy", 1.0), True, False),
        (Refusal(409, "memory_rolled_back"), True, True),
        (Refusal(404, "session_not_found"), True, True),
        (Refusal(None, "store_unavailable"), True, False),
        (Refusal(None, "internal_error"), False, False),
        (Refusal(None, "prompt_too_long"), True, True),
    ],
    ids=str,
)
def test_refusals_are_judged(refusal: Refusal, is_honest: bool, is_final: bool) -> None:
    """Honest: no 5xx but a 503 that says when to come back. Final: what would be refused again."""
    assert (refusal.is_honest, refusal.is_final) == (is_honest, is_final)


# -- samples ---


def test_the_slope_is_that_of_the_line() -> None:
    """Two bytes a second on a thousand; the warm-up does not count."""
    line = slope([(float(at), 1000.0 + 2 * at) for at in range(100)], warm_up=0.0)
    assert line is not None
    assert (line.per_hour, line.percent_per_hour) == (pytest.approx(7200), pytest.approx(720))
    warm = slope([(float(at), 0.0 if at < 20 else 500.0) for at in range(100)])
    assert warm is not None and warm.per_hour == pytest.approx(0)


def test_the_floor_is_what_is_left_between_peaks() -> None:
    """A leak of 1 a second shows in the lowest points however high the peaks are; a stretch cut short has none."""
    points = [(float(at), 1000.0 + at + (0.0 if at % 60 == 30 else 1e6 * (at % 7 + 1))) for at in range(330)]
    lowest = floor(points)
    line = slope(lowest, warm_up=0.0)

    assert lowest == [(30.0 + 60 * minute, 1030.0 + 60 * minute) for minute in range(5)]
    assert line is not None and line.per_hour == pytest.approx(3600)
    assert floor([]) == [] and floor(points[:40]) == []


@pytest.mark.parametrize("points", [[], [(0.0, 1.0)], [(1.0, 1.0)] * 5])
def test_too_few_points_have_no_slope(points: list[tuple[float, float]]) -> None:
    """None instead of a number that means nothing."""
    assert slope(points) is None


def test_metrics_are_read() -> None:
    """Gauges and counters by name and labels; no buckets, no creation times, no comments."""
    text = (
        '# HELP x\nhope_slots_hot 2.0\nhope_turns_total{outcome="stop"} 5.0\nhope_a_bucket{le="1"} 1\nhope_a_created 9'
    )
    assert parse_metrics(text) == {"hope_slots_hot": 2.0, 'hope_turns_total{outcome="stop"}': 5.0}


# -- report ---


def test_percentiles_are_nearest_ranks() -> None:
    """Of a hundred values the 95th is the 95th."""
    assert percentiles(range(100, 0, -1)) == {"count": 100, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert percentiles([7.0]) == {"count": 1, "p50": 7.0, "p95": 7.0, "p99": 7.0, "max": 7.0}
    assert percentiles([]) == {"count": 0}


def a_run(load: Load, *, spoil: str | None = None) -> Run:
    """A run of a few turns; `spoil` is a promise that it breaks."""
    began = time.time()
    load.run("chat", 6)
    load.run("retry", 4)
    account = load.account()
    findings = load.checked()
    if spoil is not None:
        findings.add(spoil, "<planted>")
    samples = Samples([(float(at), 5e8 + 1e4 * at) for at in range(10)], [(float(at), 14.0) for at in range(10)])
    samples.metrics["hope_slots_hot"] = [(0.0, 1.0), (5.0, 2.0)]
    return Run("x", PLAN, "toy", 8, account, samples, findings, began, time.time(), False, 0, 0)


def test_a_report_tells_what_was_measured(load: Load) -> None:
    """Counts and times of the turns that were taken, memory's slope, no API key and no folder."""
    run = a_run(load)
    run = replace(run, plan=replace(run.plan, folder="of-the-ledgers"))
    found = figures(run)
    text = markdown(found)

    assert found["passed"] and has_passed(run)
    assert found["times_ms"]["chat time to first token"]["count"] == len(run.account.turns)
    assert found["turns"]["begun"] == len(run.account.turns) == found["checks"]["acknowledged"]
    assert found["process"]["rss_slope"]["mb_per_hour"] == pytest.approx(3600 * 1e4 / 2**20)
    assert "passed" in text and "| chat time per output token |" in text and "MiB/h" in text
    assert "secret-key" not in json.dumps(found) + text
    assert "of-the-ledgers" not in json.dumps(found)


def test_a_report_of_a_broken_promise_fails(load: Load) -> None:
    """The verdict, the count and the fault are in it."""
    run = a_run(load, spoil="lost")
    text = markdown(figures(run))

    assert not has_passed(run)
    assert "FAILED" in text and "| 1 | acknowledged turns lost |" in text and "- lost: <planted>" in text


def test_a_load_that_did_nothing_does_not_pass() -> None:
    """Nothing acknowledged is no success, and the report can be made all the same."""
    run = Run("x", PLAN, "toy", 8, Account(), Samples(), check_everything(Account(), {}), 0.0, 1.0, True, 0, 0)

    assert run.findings.is_clean and not has_passed(run)
    assert "FAILED" in markdown(figures(run))
    assert page(run, "# x").count("<img") == 6


def test_a_page_needs_no_other_host(load: Load) -> None:
    """Plots are in the page, text is escaped, nothing is fetched."""
    run = a_run(load, spoil="lost")
    text = page(run, markdown(figures(run)))

    assert text.count('src="data:image/png;base64,') == 6
    assert "&lt;planted&gt;" in text and "<planted>" not in text
    assert re.findall(r"(?:src|href)=\"(?!data:)", text) == [] and "http" not in re.sub(r"base64,[^\"]*", "", text)


def test_tables_become_tables() -> None:
    """Headings, tables, items and paragraphs."""
    text = markdown_to_html("# T\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- item\nwords\n")
    assert Counter(re.findall(r"<(\w+)", text)) == {"h1": 1, "table": 1, "tr": 2, "th": 2, "td": 2, "p": 2}


def test_values_fall_into_equal_parts() -> None:
    """What is outside the run is left out."""
    parts = bins([(-1.0, 9.0), (0.0, 1.0), (9.9, 2.0), (10.0, 9.0)], 10.0, num_bins=2)
    assert parts == [(2.5, [1.0]), (7.5, [2.0])]
