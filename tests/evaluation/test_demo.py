"""The demo from start to end, with an engine that remembers word for word in place of the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE_ENGINE = Path(__file__).parent / "fake_engine"


def _run_demo(*flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(FAKE_ENGINE), str(ROOT), os.environ.get("PYTHONPATH")]))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOPE_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), *flags],
        env={**clean, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_the_demo_teaches_kills_restarts_and_measures():
    """The last line has every figure, told apart by condition; the server was killed and started twice."""
    done = _run_demo()
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    seconds = figures.pop("seconds")
    assert 0 < seconds < 60
    assert figures == {
        "rank_accuracy": 1.0,
        "baseline_rank_accuracy": 0.0,
        "in_prompt_rank_accuracy": 1.0,
        "with_window_rank_accuracy": 1.0,
        "free_answer_accuracy": 1.0,
        "logprob_gain_nats": 6.0,
        "unrelated_loss_change_percent": 0.0,
        "memory_bytes": 4_000_000,
        "snapshot_bytes": 13_000_500,
    }
    assert done.stdout.count("server ready after") == 2
    assert "reached  log-probability gained per token" in done.stdout
    assert "missed   rank accuracy above that with the facts in the prompt" in done.stdout


def test_a_server_that_does_not_start_ends_the_demo_with_its_reason():
    """What the server says about its end is repeated in one line."""
    done = _run_demo(HOPE_NUM_SLOTS="none")
    assert done.returncode == 1
    assert done.stderr.startswith("demo: the server ended with code 2: hope: HOPE_NUM_SLOTS is 'none'")
    assert done.stderr.count("\n") == 1


def test_a_facts_file_that_cannot_be_read_is_named(tmp_path):
    """Nothing is started for a file with a fault; the line is named."""
    facts = tmp_path / "facts.txt"
    facts.write_text("teach: x\nask: y\n", encoding="utf-8")
    done = _run_demo("--facts", str(facts))
    assert done.returncode == 1
    assert done.stderr == f"demo: {facts}: line 1: the block lacks `answer:`\n"
