"""One turn at a time per session, first come first served, whoever gives up while waiting."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from hope_server.engine.gate import SessionGate
from hope_server.engine.turn import SessionKey
from hope_server.errors import SessionBusy

pytestmark = pytest.mark.anyio
KEY = SessionKey("t", "ada")


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only."""
    return "asyncio"


class Crowd:
    """Turns that enter a gate one after the other, hold it until told to leave, and note who was inside."""

    def __init__(self, gate: SessionGate, num_turns: int) -> None:
        self.inside: list[int] = []
        self.entered: list[int] = []
        self.most = 0
        self._gate = gate
        self.exits = [asyncio.Event() for _ in range(num_turns)]
        self.tasks = [asyncio.create_task(self._turn(number)) for number in range(num_turns)]

    async def _turn(self, number: int) -> None:
        await self._gate.enter(KEY)
        try:
            self.inside.append(number)
            self.entered.append(number)
            self.most = max(self.most, len(self.inside))
            await self.exits[number].wait()
        finally:
            self.inside.remove(number)
            self._gate.leave(KEY)


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def assert_is_free(gate: SessionGate) -> None:
    """Nobody is inside or waits: entering succeeds at once."""
    await asyncio.wait_for(gate.enter(KEY), 1)
    gate.leave(KEY)


async def test_turns_enter_one_at_a_time_in_the_order_they_came() -> None:
    """Each waits for all before it, and is let in as soon as they have left."""
    gate = SessionGate(10)
    crowd = Crowd(gate, 4)
    for number in range(4):
        await settle()
        assert crowd.inside == [number]
        crowd.exits[number].set()
    await asyncio.gather(*crowd.tasks)
    assert (crowd.entered, crowd.most) == ([0, 1, 2, 3], 1)
    await assert_is_free(gate)


async def test_sessions_do_not_wait_for_each_other() -> None:
    """The same id of another tenant is another session."""
    gate = SessionGate(0)
    await gate.enter(KEY)
    await asyncio.wait_for(gate.enter(SessionKey("other", "ada")), 1)
    await asyncio.wait_for(gate.enter(SessionKey("t", "bob")), 1)


async def test_a_full_queue_refuses_at_once() -> None:
    """Beyond the limit a turn is told to retry; those inside and in the queue are not disturbed."""
    gate = SessionGate(2)
    crowd = Crowd(gate, 3)
    await settle()
    with pytest.raises(SessionBusy) as caught:
        await gate.enter(KEY)
    assert caught.value.session_id == "ada"
    assert caught.value.retry_after_seconds > 0
    for leave in crowd.exits:
        leave.set()
    await asyncio.gather(*crowd.tasks)
    assert crowd.entered == [0, 1, 2]
    await assert_is_free(gate)


@pytest.mark.parametrize("victims", [v for n in (1, 2, 3) for v in itertools.combinations(range(4), n)])
@pytest.mark.parametrize("moment", ["waiting", "before the exit", "after the exit"])
async def test_a_turn_that_gives_up_leaves_the_gate_working(victims: tuple[int, ...], moment: str) -> None:
    """Cancelled while it waits, in the same breath in which the gate opens, or inside: the rest enter in order."""
    gate = SessionGate(10)
    crowd = Crowd(gate, 4)
    await settle()
    if moment == "after the exit":
        crowd.tasks[0].cancel()
        await asyncio.sleep(0)
    for victim in victims:
        crowd.tasks[victim].cancel()
    if moment == "waiting":
        await settle()
    gone = set(victims) | ({0} if moment == "after the exit" else set())
    for leave in crowd.exits:
        leave.set()
    results = await asyncio.wait_for(asyncio.gather(*crowd.tasks, return_exceptions=True), 2)
    assert {n for n, result in enumerate(results) if isinstance(result, asyncio.CancelledError)} == gone
    assert [result for n, result in enumerate(results) if n not in gone] == [None] * (4 - len(gone))
    assert (crowd.most, crowd.inside) == (1, [])
    assert [number for number in crowd.entered if number not in gone] == [n for n in range(4) if n not in gone]
    await assert_is_free(gate)


@pytest.mark.parametrize("is_granted_first", [False, True])
async def test_giving_up_in_the_breath_in_which_the_gate_opens(is_granted_first: bool) -> None:
    """Cancelled just before or just after it was let in, a turn ends as cancelled and passes the gate on."""
    gate = SessionGate(10)
    await gate.enter(KEY)
    waiting = asyncio.create_task(gate.enter(KEY))
    await settle()
    steps = [lambda: gate.leave(KEY), waiting.cancel]
    for action in steps if is_granted_first else steps[::-1]:
        action()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await assert_is_free(gate)


async def test_a_place_in_the_queue_is_free_again_after_giving_up() -> None:
    """Those who have left the queue do not count against its limit."""
    gate = SessionGate(1)
    await gate.enter(KEY)
    for _ in range(3):
        waiting = asyncio.create_task(gate.enter(KEY))
        await settle()
        waiting.cancel()
        await settle()
        assert waiting.cancelled()
