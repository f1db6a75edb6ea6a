"""From rows of the context bench to its figures, targets and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from context import read_rows
from context_report import TARGETS, figures_of
from outcome import target_lines


def row(length: int, far: float, process: int = 1, **peers: float) -> dict[str, Any]:
    """A row whose near turns take a second; `far` and peers' turns take as many as given."""
    seconds = {"near": 1.0, "far": far, **peers}
    turns = {name: {part: [value, value] for part in ("first", "token", "turn")} for name, value in seconds.items()}
    size = 1000 + length
    return {
        "length": length,
        "num_tokens": length + 5,
        "process": process,
        "rss_bytes": size,
        "state_bytes": size,
        "turns": turns,
    }


def test_times_are_the_far_end_over_the_near_fork() -> None:
    """The ratios of times are those of the last row's own rounds; bytes are the last row's over the first's."""
    figures = figures_of([row(1000, 1.0), row(2000, 4.0), row(3000, 2.0)])

    assert (figures["ratio_first"], figures["ratio_token"], figures["far_tokens"]) == (2.0, 2.0, 3005.0)
    assert figures["ratio_state"] == figures["ratio_rss"] == 2.0


def test_memory_of_another_process_is_not_compared() -> None:
    """Where the run was taken up by another process, there is no ratio of resident bytes."""
    assert "ratio_rss" not in figures_of([row(1000, 1.0), row(2000, 1.0, process=2)])


def test_peers_are_compared_where_they_were_measured() -> None:
    """The crossover and the ratio are over the rows that a peer has, whatever comes after."""
    rows = [row(1000, 2.0, vllm=1.0), row(2000, 2.0, vllm=3.0), row(4000, 9.0)]
    figures = figures_of(rows)

    assert figures["crossover_vllm"] == 1500.0
    assert figures["ratio_vllm"] == pytest.approx(2 / 3)
    assert figures["longest_vllm"] == 2000.0
    assert "crossover_transformers" not in figures


def test_a_peer_that_stays_faster_has_no_crossover() -> None:
    """None stands for a crossover that was not found."""
    assert figures_of([row(1000, 2.0, vllm=1.0), row(2000, 2.0, vllm=1.5)])["crossover_vllm"] is None


def test_nothing_measured_is_an_error() -> None:
    """Figures of no rows are refused."""
    with pytest.raises(ValueError, match="nothing was measured"):
        figures_of([])


def test_targets_say_reached_missed_and_not_measured() -> None:
    """A figure at its limit is reached, beyond it missed, and one that is not there is said to be missing."""
    lines = target_lines(TARGETS, {"ratio_token": 1.05, "ratio_first": 1.06, "ratio_state": 1.0})

    assert [line.split()[0] for line in lines] == ["reached", "missed", "reached", "no"]


def test_rows_are_read_up_to_one_that_was_cut_off(tmp_path: Path) -> None:
    """What a run wrote when it was killed is not taken for a row."""
    path = tmp_path / "rows.jsonl"
    kept = [row(1000, 1.0), row(2000, 1.0)]
    lines = [json.dumps(each) for each in kept]
    path.write_text("\n".join([*lines, lines[0][:40]]))

    assert read_rows(path) == kept
    assert read_rows(tmp_path / "none") == []
