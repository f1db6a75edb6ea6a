"""A few seconds of chaos in which every promise is kept; `make chaos` goes on for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.checks import Findings
from tests.chaos.run import ChaosRun, report

SECONDS = 8.0
SEED = 11


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nothing_is_lost_and_nothing_learned_twice(tmp_path: Path, anyio_backend: str) -> None:
    """Servers, Redis and connections die while eight writers teach; afterwards every promise is kept."""
    run = ChaosRun(tmp_path, SECONDS, SEED, num_servers=2)
    findings = await run.run()

    assert findings.faults == Findings().faults, report(run, findings, SECONDS)
    assert sum(turn.is_acked for turn in run.journal.turns) > 20
    assert findings.num_learned >= sum(turn.is_acked for turn in run.journal.turns if turn.session[:4] != "gone")
    assert sum(run.nemesis.done.values()) == len(run.nemesis.plan) > 5
