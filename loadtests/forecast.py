"""What the capacity simulation says of a run that was made, beside what was measured."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hope_server.capacity.constants import Constants
from hope_server.capacity.simulation import TurnSize, Users, simulate
from loadtests.ledger import Answer
from loadtests.report import Run
from loadtests.scenarios import FACTS, MANY
from loadtests.scenarios_with_pasts import ALL

SCENARIOS = {"chat", "many"}
"""Scenarios that the simulation has: each user takes turns one after the other, in sessions of its own."""

TOLERANCE = 0.15
_WARM_UP = 0.2
_NUM_SEEDS = 5
_RESTLESS_SECONDS = 0.05
_LEAST_CORES = 0.1


def forecast(
    run: Run, constants: Constants, num_servers: int, num_cores: int, cores_of_others: float = 0.0
) -> dict[str, Any]:
    """Simulate the run's users and return figures of both, and simulated over measured.

    cores_of_others: of the `num_cores`, that were busy with what is no engine. The first fifth of the run is left out
    of both. Raises ValueError for scenarios that cannot be simulated, and for a run without answers.
    """
    names = {name for name, _ in run.plan.scenarios}
    if not names <= SCENARIOS:
        raise ValueError(f"{', '.join(sorted(names - SCENARIOS))} cannot be simulated; use {', '.join(SCENARIOS)}")
    answers = _answers(run)
    if not answers:
        raise ValueError("nothing was answered; there is nothing to compare")
    first = min(record.began for record in run.account.turns.values())
    length = run.ended - first
    start = first + _WARM_UP * length
    counted = [answer for kind in answers.values() for answer in kind if answer.at >= start]
    measured = {
        "turns_per_second": len(counted) / (run.ended - start),
        "answer_seconds": sum(answer.total_ms for answer in counted) / max(1, len(counted)) / 1e3,
        "ttft_seconds": _mean([answer.ttft_ms / 1e3 for answer in counted if answer.ttft_ms is not None]),
    }
    users = _users(run, answers)
    runs = [
        simulate(
            users,
            constants,
            num_servers=num_servers,
            num_cores=max(_LEAST_CORES, num_cores - cores_of_others),
            seconds=length,
            warm_up=_WARM_UP * length,
            seed=seed,
        )
        for seed in range(_NUM_SEEDS)
    ]
    simulated = {
        "turns_per_second": _mean([each.turns_per_second for each in runs]),
        "answer_seconds": _mean([each.mean_answer_seconds for each in runs]),
        "ttft_seconds": _mean([_mean(each.ttft_seconds) for each in runs]),
    }
    return {
        "measured": measured,
        "simulated": simulated,
        "ratio": {name: simulated[name] / value if value else 0.0 for name, value in measured.items()},
        "cores": {"all": num_cores, "others": cores_of_others},
        "constants": {"machine": constants.machine, "commit": constants.commit, "num_threads": constants.num_threads},
    }


def _answers(run: Run) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = defaultdict(list)
    for record in run.account.turns.values():
        for answer in record.answers[:1]:
            if not answer.is_replay and answer.at <= run.ended:
                found[record.scenario].append(answer)
    return found


def _users(run: Run, answers: dict[str, list[Answer]]) -> list[Users]:
    """The run's users as the simulation knows them, with turns of the sizes that theirs had."""
    whole = sum(weight for _, weight in run.plan.scenarios)
    found = []
    for name, weight in run.plan.scenarios:
        kind = answers[name]
        if not kind:
            continue
        first = [_size(answer) for answer in kind if answer.turn == 1]
        found.append(
            Users(
                count=max(1, round(run.plan.users * weight / whole)),
                sessions=run.plan.sessions_each * (MANY if name == "many" else 1),
                turns=[_size(answer) for answer in kind if answer.turn > 1] or first,
                first_turns=first,
                think_seconds=run.plan.think_seconds if ALL[name].thinks else _RESTLESS_SECONDS,
                is_in_order=name != "many",
            )
        )
    return found


def _size(answer: Answer) -> TurnSize:
    # What is learned online is the user's words and the reply; of the words, questions are not studied.
    taught = FACTS * max(0, answer.tokens_learned - answer.num_tokens)
    return TurnSize(max(1, answer.tokens_read - answer.num_tokens), max(1, answer.num_tokens), taught)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
