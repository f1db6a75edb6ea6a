"""The long benches in their small form: a toy server, short texts, no peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(repository: Path, name: str, *words: str) -> tuple[dict[str, Any], str]:
    """Run a bench; returns the object of its last line, and all that it printed."""
    paths = [repository / part for part in ("", "kernels", "memory_store", "clients", "tests/support")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, f"bench/{name}.py", "--quick", "--threads", "1", "--rounds", "1", *words]
    done = subprocess.run(command, cwd=repository, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, done.stdout


def test_context_measures_and_goes_on(repository: Path, tmp_path: Path) -> None:
    """A session grows and is measured at each length; the same folder is gone on from without measuring again."""
    folder = ("--folder", str(tmp_path))
    first, _ = run(repository, "context", "--most", "256", *folder)
    second, printed = run(repository, "context", *folder)

    assert [row["length"] for row in second["rows"]] == [256, 512]
    assert second["rows"][0] == first["rows"][0]
    assert all(row["num_tokens"] >= row["length"] for row in second["rows"])
    assert second["figures"]["ratio_token"] > 0
    assert "nothing rehearsed" in printed and "target <= 1.05" in printed


def test_context_refuses_the_folder_of_another_run(repository: Path, tmp_path: Path) -> None:
    """Rows of other settings are not mixed with this run's."""
    (tmp_path / "run.json").write_text(json.dumps({"quick": True, "passes": 3}))
    with pytest.raises(AssertionError):
        run(repository, "context", "--folder", str(tmp_path))

    assert not (tmp_path / "rows.jsonl").exists()


def test_engine_measures_every_part_of_ours(repository: Path) -> None:
    """Learning on and off, beside a consolidation, and mixed sessions all have a figure."""
    found, printed = run(repository, "engine")

    names = ("decode_on_off", "read_on_off", "beside_consolidation", "mixed_chat", "mixed_reading")
    assert all(found["figures"][f"ratio_{name}"] > 0 for name in names)
    assert "no figure 1 session, decode, ours / vLLM" in printed


def test_resume_restores_from_the_store(repository: Path) -> None:
    """After an eviction and after a restart the first token comes from a state that lay in Redis."""
    found, printed = run(repository, "resume")

    assert found["figures"]["num_tokens"] >= found["tokens"] == 512
    assert all(found["figures"][f"{name}_seconds"] > 0 for name in ("hot", "evicted", "restarted", "reread"))
    assert "target <= 0.05" in printed
