"""A fake server, and a load driven by hand: scenarios without Locust."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtests import courier
from loadtests.checks import Findings, check_everything
from loadtests.courier import TurnRefused
from loadtests.ledger import Account, Ledger, read_ledgers
from loadtests.plan import Plan
from loadtests.scenarios import Scenario
from loadtests.scenarios_with_pasts import ALL
from loadtests.survey import Survey
from tests.loadtests.fake_server import FakeServer


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that wait do not wait long."""
    monkeypatch.setattr(courier, "_BACKOFF_SECONDS", (0.001, 0.002))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that keeps its promises until it is told otherwise."""
    with FakeServer().running() as running:
        yield running


class Load:
    """Users of one process, driven one step at a time."""

    def __init__(self, url: str, folder: Path) -> None:
        self.plan = Plan(url, str(folder), keys=("a", "b"), users=2, sessions=4, document_tokens=20, max_tokens=3)
        self.folder = folder
        self.measured: list[tuple[str, float, str | None]] = []
        self.ledger = Ledger(folder / "ledger.jsonl")
        self._places: list[Scenario] = []

    def place(self, name: str, number: int = 0) -> Scenario:
        """A user's place."""

        def observe(what: str, milliseconds: float, error: str | None) -> None:
            self.measured.append((what, milliseconds, error))

        self._places.append(ALL[name](self.plan, number, self.ledger, observe))
        return self._places[-1]

    def run(self, name: str, num_steps: int, number: int = 0) -> Scenario:
        """Take steps; a turn that is refused for good is over."""
        place = self.place(name, number)
        for _ in range(num_steps):
            try:
                place.step()
            except TurnRefused:
                continue
        return place

    def account(self) -> Account:
        """The ledger so far."""
        return read_ledgers(self.folder)

    def checked(self, turn_seconds: float = 0.2) -> Findings:
        """Settle, look, check."""
        survey = Survey(self.plan, self.ledger)
        survey.settle(self.account(), turn_seconds)
        seen = survey.look(list(self.account().sessions()))
        survey.close()
        return check_everything(self.account(), seen)

    def broken(self) -> set[str]:
        """The promises that the checks find broken."""
        return {promise for promise, faults in self.checked().faults.items() if faults}

    def close(self) -> None:
        """Close files and connections."""
        for place in self._places:
            place.close()
        self.ledger.close()


@pytest.fixture
def make_load(server: FakeServer, tmp_path: Path) -> Iterator[Callable[[], Load]]:
    """Make loads that are closed at the end."""
    loads: list[Load] = []

    def make() -> Load:
        loads.append(Load(server.url, tmp_path))
        return loads[-1]

    yield make
    for load in loads:
        load.close()


@pytest.fixture
def load(make_load: Callable[[], Load]) -> Load:
    """A load on the fake server."""
    return make_load()
