"""What is read out of two looks at a server's metrics."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from hope_server.cli.readings import Change, Reading, summary


def reading(at: float, **samples: float) -> Reading:
    """A moment in which the server said these numbers; `name__value` is a sample with a label."""
    lines = ["hope_slots_total 4"]
    labels = {"hope_tokens_total": "kind", "hope_turns_total": "outcome", "hope_http_requests_total": "status"}
    for name, number in samples.items():
        metric, _, value = name.partition("__")
        label = labels.get(metric, "stage")
        lines.append(f'{metric}{{{label}="{value}"}} {number}' if value else f"{metric} {number}")
    return Reading.parse("\n".join(lines) + "\n", at)


def test_rates_are_growth_a_second() -> None:
    """A counter's growth is divided by the seconds between the looks; gauges are as they are now."""
    before = reading(10.0, hope_tokens_total__prompt=100, hope_turns_running=5)
    after = reading(12.0, hope_tokens_total__prompt=150, hope_turns_running=1, hope_slots_busy=3)
    seen = summary(Change(before, after))

    assert seen["tokens_per_second"] == {"prompt": 25.0}
    assert seen["turns"]["running"] == 1.0
    assert seen["slots"] == {"total": 4.0, "busy": 3.0, "hot": 0.0}


def test_a_new_process_counts_from_zero() -> None:
    """A counter that fell belongs to a server that began again: what it has now is what grew."""
    seen = summary(Change(reading(0.0, hope_tokens_total__prompt=900), reading(2.0, hope_tokens_total__prompt=10)))

    assert seen["tokens_per_second"] == {"prompt": 5.0}


def test_shares_of_the_stages() -> None:
    """Stages share the time that grew in all of them; without any, all shares are zero."""
    before = reading(0.0, hope_stage_seconds_sum__decode=5)
    after = reading(1.0, hope_stage_seconds_sum__decode=8, hope_stage_seconds_sum__learn=1)
    shares = summary(Change(before, after))["stage_shares"]

    assert (shares["decode"], shares["learn"], shares["queue"]) == (0.75, 0.25, 0.0)
    assert set(summary(Change(after, after))["stage_shares"].values()) == {0.0}


def test_errors_are_turns_and_statuses() -> None:
    """Finish reasons, answers given again and clients that left are no errors; a stream's error has status 200."""
    before = reading(0.0)
    after = reading(
        1.0,
        hope_turns_total__stop=7,
        hope_turns_total__cancelled=6,
        hope_turns_total__overloaded=2,
        hope_http_requests_total__200=9,
        hope_http_requests_total__429=3,
        hope_http_requests_total__503=1,
    )

    assert summary(Change(before, after))["errors_per_second"] == {"turns": 2.0, "http_4xx": 3.0, "http_5xx": 1.0}


def histogram(at: float, *values: float) -> Reading:
    """A moment in which a histogram has observed these values."""
    registry = CollectorRegistry()
    found = Histogram("hope_turn_seconds", "x", buckets=(1.0, 2.0, 4.0), registry=registry)
    for value in values:
        found.observe(value)
    return Reading.parse("hope_slots_total 4\n" + generate_latest(registry).decode(), at)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        # Of four new values two are in (0, 1], one in (1, 2], one above 4: by rank, inside the bucket.
        (0.25, 0.5),
        (0.5, 1.0),
        (0.75, 2.0),
        (0.95, 4.0),
    ],
)
def test_quantiles_of_what_came_between(share: float, expected: float) -> None:
    """Old values do not count, and what is above the last bound counts as that bound."""
    before = histogram(0.0, 3.0, 3.0, 3.0)
    after = histogram(1.0, 3.0, 3.0, 3.0, 0.5, 0.6, 1.5, 9.0)

    assert Change(before, after).quantile("hope_turn_seconds", share) == pytest.approx(expected)


def test_no_quantile_of_nothing() -> None:
    """Where nothing was observed in between there is no quantile."""
    assert Change(histogram(0.0, 3.0), histogram(1.0, 3.0)).quantile("hope_turn_seconds", 0.5) is None


@pytest.mark.parametrize("text", ["<html>", "go_goroutines 7\n", ""])
def test_other_texts_are_no_readings(text: str) -> None:
    """What is no metrics text, or that of another program, is refused."""
    with pytest.raises(ValueError, match=r"hope_slots_total|Invalid|invalid|could not|unpack"):
        Reading.parse(text, 0.0)
