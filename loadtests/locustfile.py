"""The only module that knows Locust: its users drive scenarios, its shape asks ours, its events get our measurements.

    LOADTEST_PLAN=plan.json locust -f loadtests/locustfile.py --headless     (python -m loadtests.run does all of it)

Locust's own timers stop where a stream begins, so that times to the first token, between tokens and to the end are
events of ours.
"""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from locust import LoadTestShape, User, events, task
from locust.env import Environment

from loadtests.courier import TurnRefused
from loadtests.ledger import Ledger
from loadtests.plan import END_FILE, Plan
from loadtests.scenarios import Scenario
from loadtests.scenarios_with_pasts import ALL
from loadtests.shapes import spawn_rate, users_at

PLAN = Plan.of_environment()
_RESTLESS_SECONDS = 0.05


class Measured(Exception):
    """An error as Locust counts it."""


class Places:
    """The scenarios of this process; a user that starts takes up what one that stopped has left."""

    def __init__(self) -> None:
        self._free: dict[str, list[Scenario]] = defaultdict(list)
        self._num_made: dict[str, int] = defaultdict(int)
        self._ledger: Ledger | None = None

    def take(self, name: str, environment: Environment) -> Scenario:
        """The free place that was left first, or a new one."""
        if self._free[name]:
            return self._free[name].pop(0)
        process = max(0, int(getattr(environment.runner, "worker_index", 0)))
        number = self._num_made[name] * PLAN.processes + process
        self._num_made[name] += 1

        def observe(what: str, milliseconds: float, error: str | None) -> None:
            environment.events.request.fire(
                request_type=name,
                name=what,
                response_time=milliseconds,
                response_length=0,
                exception=None if error is None else Measured(error),
                context={},
            )

        return ALL[name](PLAN, number, self.ledger, observe)

    def give_back(self, place: Scenario) -> None:
        """Leave a place to the next user."""
        place.client.close()
        self._free[place.name].append(place)

    @property
    def ledger(self) -> Ledger:
        """This process' own; opened late, after Locust has forked."""
        if self._ledger is None:
            self._ledger = Ledger(Path(PLAN.folder) / f"ledger-{os.getpid()}.jsonl")
        return self._ledger


PLACES = Places()


class PlaceUser(User):
    """Drives one scenario."""

    abstract = True
    scenario = ""
    place: Scenario

    def on_start(self) -> None:
        """Take a place."""
        self.place = PLACES.take(self.scenario, self.environment)

    def on_stop(self) -> None:
        """Leave it."""
        PLACES.give_back(self.place)

    def wait_time(self) -> float:
        """Seconds until the next step: around the mean that the plan has, for those that think."""
        if not self.place.thinks or PLAN.think_seconds == 0:
            return _RESTLESS_SECONDS
        return min(self.place.chance.expovariate(1 / PLAN.think_seconds), 10 * PLAN.think_seconds)

    @task
    def step(self) -> None:
        """Take one turn; what was refused is in the ledger."""
        with suppress(TurnRefused):
            self.place.step()


def _user_class(name: str, weight: float) -> type:
    # Locust's weights are whole numbers; a hundredth is small enough.
    return type(f"{name.title()}User", (PlaceUser,), {"scenario": name, "weight": max(1, round(100 * weight))})


# Locust drives the user classes that a module has names for.
globals().update({f"{name}_user": _user_class(name, weight) for name, weight in PLAN.scenarios})


class PlannedShape(LoadTestShape):
    """The plan's shape."""

    def tick(self) -> tuple[int, float] | None:
        """Users and their rate, None at the end."""
        if (Path(PLAN.folder) / END_FILE).exists():
            return None
        users = users_at(PLAN.shape, float(self.get_run_time()), PLAN.seconds, PLAN.users)
        return None if users is None else (users, spawn_rate(PLAN.shape, PLAN.users))


@events.user_error.add_listener
def _note_fault_of_a_user(exception: BaseException, **_facts: Any) -> None:
    PLACES.ledger.fault("surprises", f"a user failed: {type(exception).__name__}: {exception}")
