"""`hope plan`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hope_server.capacity.constants import DEFAULT, Constants, load_constants
from hope_server.cli import main

CONSTANTS = Constants(
    "two cores", "a model", "c", 2, {1: 0.04, 8: 0.08}, 0.002, 0.0015, 0.02, 0.5, 0.1, 0.02, 0.05, 0.01, 1e7, 2e7, 5e6
)


@pytest.fixture
def constants(tmp_path: Path) -> str:
    """A file of constants."""
    path = tmp_path / "constants.json"
    path.write_text(CONSTANTS.to_json())
    return str(path)


def test_a_plan_says_servers_store_network_and_waits(constants: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In words, with what it was reckoned from."""
    assert main(["plan", "--sessions", "1000", "--constants", constants]) == 0
    said = capsys.readouterr().out

    for words in ("servers", "memory of the store", "between servers and store", "first token", "a model on two cores"):
        assert words in said
    assert "50000.0 MB" in said


def test_a_plan_as_json_has_every_figure(constants: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that programs read; one server's share of the turns is about what was asked of it."""
    assert main(["plan", "--sessions", "1000", "--think-seconds", "5", "--constants", constants, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert found["needs"]["store_bytes"] == 1000 * 2e7 * 2 * 1.25
    asked = found["needs"]["turns_per_second"] / found["needs"]["servers"]
    assert found["one_server"]["turns_per_second"] == pytest.approx(asked, rel=0.3)
    assert found["one_server"]["ttft_seconds"]["p50"] <= found["one_server"]["ttft_seconds"]["p95"]


def test_a_million_sessions_are_planned_in_no_time(constants: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One server is simulated, not all of them."""
    assert main(["plan", "--sessions", "1000000", "--constants", constants, "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["needs"]["servers"] > 1000


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--sessions", "0"], "sessions is 0"),
        (["--sessions", "5", "--busy", "1"], "--busy is 1"),
        (["--sessions", "5", "--copies", "-1"], "--copies is -1"),
        (["--sessions", "5", "--taught", "2"], "taught is 2"),
        (["--sessions", "5", "--constants", "none.json"], "none.json"),
    ],
)
def test_what_cannot_be_planned_is_refused(flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, with an exit code that is not 0."""
    assert main(["plan", *flags]) != 0

    assert reason in capsys.readouterr().err


def test_the_constants_that_come_with_it_are_of_the_default_model() -> None:
    """Measured, not made up: they name the machine and the commit that they are of."""
    found = load_constants(DEFAULT)

    assert found.model == "default" and found.commit and found.machine
    assert 0 < found.read_token_seconds < found.decode(1) < found.decode(8)
