"""A few seconds of load, without Locust, on a live toy server; `make load` goes on for longer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from toy_server import toy_server

from loadtests.checks import check_everything
from loadtests.ledger import Ledger, read_ledgers
from loadtests.plan import SCENARIOS, Plan
from loadtests.sampler import Sampler
from loadtests.scenarios_with_pasts import ALL
from loadtests.survey import Survey

STEPS = 4


@pytest.mark.timeout(180)
def test_nothing_is_lost_under_all_scenarios_at_once(tmp_path: Path) -> None:
    """Two users of every scenario at once: each acknowledged turn is in its session once, and was measured."""
    measured: list[str] = []
    with toy_server(tmp_path, "--num-slots=3") as url:
        plan = Plan(url, str(tmp_path), users=2, sessions=4, max_tokens=6, document_tokens=200, piece_tokens=40)
        ledger = Ledger(tmp_path / "ledger.jsonl")

        def drive(name: str, number: int) -> None:
            place = ALL[name](plan, number, ledger, lambda what, _ms, _error: measured.append(what))
            for _ in range(STEPS):
                place.step()
            place.close()

        users = [threading.Thread(target=drive, args=(name, number)) for name in SCENARIOS for number in (0, 1)]
        with Sampler(url, None, None, every_seconds=0.5) as sampler:
            for user in users:
                user.start()
            for user in users:
                user.join()
        survey = Survey(plan, ledger)
        num_settled = survey.settle(read_ledgers(tmp_path))
        seen = survey.look(list(read_ledgers(tmp_path).sessions()))
        survey.close()
    ledger.close()
    account = read_ledgers(tmp_path)
    findings = check_everything(account, seen)

    assert findings.faults == {promise: [] for promise in findings.faults}
    assert (num_settled, findings.num_unknown) == (0, 0)
    assert findings.num_acknowledged > STEPS * len(SCENARIOS)
    assert {"chat ttft", "chat tpot", "chat turn", "learn turn"} <= set(measured)
    assert sampler.samples.metrics["hope_slots_total"][0][1] == 3.0
    assert any(answer.restored_from == "store" for record in account.turns.values() for answer in record.answers)
