"""What a run tells: JSON lines that survive a resume, TensorBoard events, a plot, and a line for a reader."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from hope_server.training.checkpoints import Progress
from hope_server.training.logs import MetricsLog, missing_extras, plot_losses, read_metrics
from hope_server.training.progress import watch

needs_events = pytest.mark.skipif("tensorboardX" in missing_extras(), reason="the extra `plots` is not installed")
needs_plots = pytest.mark.skipif("matplotlib" in missing_extras(), reason="the extra `plots` is not installed")


def test_metrics_are_json_lines(tmp_path: Path) -> None:
    """One line a call, with the step; what JSON cannot say is null."""
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 2.5, "eval row accuracy": math.nan})
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 2.5, "eval row accuracy": None}]


def test_a_resumed_log_drops_what_is_made_again(tmp_path: Path) -> None:
    """Steps after the checkpoint go, and so does a line that was cut off."""
    log = MetricsLog(tmp_path)
    for step in range(1, 5):
        log.write(step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    log = MetricsLog(tmp_path, first_step=2)
    log.write(3, {"loss": 30.0})
    log.close()
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 30.0]


@needs_events
def test_events_are_in_the_files_that_tensorboard_reads(tmp_path: Path) -> None:
    """Every metric is a scalar of its step in a record file."""
    log = MetricsLog(tmp_path)
    log.write(7, {"loss": 2.5})
    log.close()
    (events,) = (tmp_path / "events").iterdir()
    assert events.name.startswith("events.out.tfevents.")
    assert b"loss" in events.read_bytes()


@needs_plots
def test_the_plot_is_a_png(tmp_path: Path) -> None:
    """Training and evaluated losses are drawn; without losses there is no picture."""
    metrics = [{"step": step, "loss": 1 / step} for step in range(1, 20)] + [{"step": 10, "eval loss": 0.2}]
    assert plot_losses(metrics, "toy", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not plot_losses([], "toy", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_without_a_terminal_lines_come_now_and_then(tmp_path: Path) -> None:
    """The first and the last step are lines, those between only after a while; loss is the mean of the last steps."""
    out = io.StringIO()
    with watch(Console(file=out, width=200)) as watcher:
        for step in range(1, 4):
            metrics = {"loss": 2.0 * step, "lr": 1e-3, "length": 64.0, "tokens per second": 1234.5}
            watcher.step(Progress(step), 3, metrics)
        watcher.evaluated(Progress(3), {"eval loss": 1.5})
        watcher.saved(tmp_path)
    lines = out.getvalue().splitlines()
    assert lines[0] == "step 1 of 3  loss 2.0000  lr 1.00e-03  length 64  1,234 tokens/s"
    assert lines[1].startswith("step 3 of 3  loss 4.14")
    assert lines[2:] == ["step 3: eval loss 1.5000", f"saved {tmp_path}"]


def test_on_a_terminal_one_line_lives(tmp_path: Path) -> None:
    """The bar shows step and loss, and steps add no lines."""
    out = io.StringIO()
    with watch(Console(file=out, width=160, force_terminal=True)) as watcher:
        for step in range(1, 30):
            metrics = {"loss": 2.0, "lr": 1e-3, "length": 64.0, "tokens per second": 1234.5}
            watcher.step(Progress(step), 30, metrics)
    assert "29/30" in out.getvalue()
    assert "loss 2.0000" in out.getvalue()
    assert out.getvalue().count("\n") < 5
