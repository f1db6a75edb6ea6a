"""Whether the store answers: a server that cannot reach it says so, and one failover does not make it."""

from __future__ import annotations

import asyncio

import pytest

from hope_server.engine.pulse import Pulse
from hope_server.errors import StoreUnavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only."""
    return "asyncio"


class Store:
    """A store and the time: each ping takes a second of it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.is_up = True
        self.num_pings = 0
        self.asked = asyncio.Event()

    def clock(self) -> float:
        """Seconds."""
        return self.now

    async def ping(self) -> None:
        """Answer or not."""
        self.now += 1.0
        self.num_pings += 1
        self.asked.set()
        if not self.is_up:
            raise StoreUnavailable("it is away")

    async def asked_again(self, times: int) -> None:
        """Return when it was asked so often from now on."""
        for _ in range(times):
            self.asked.clear()
            await self.asked.wait()
        # The beat goes on behind its ping before anything else is looked at.
        await asyncio.sleep(0)


async def test_a_store_that_is_away_for_long_is_noticed_and_one_that_is_back_too() -> None:
    """Up to five seconds nothing is said, then the server is not ready, until the store answers."""
    store = Store()
    pulse = Pulse(store.ping, every_seconds=0.001, patience_seconds=5.0, clock=store.clock)
    pulse.start()
    try:
        await store.asked_again(3)
        assert pulse.is_felt
        store.is_up = False
        await store.asked_again(4)
        assert pulse.is_felt
        await store.asked_again(3)
        assert not pulse.is_felt
        store.is_up = True
        await store.asked_again(2)
        assert pulse.is_felt
    finally:
        await pulse.stop()


async def test_nothing_is_asked_before_the_start_and_after_the_end() -> None:
    """A server that is stopped leaves no task behind."""
    store = Store()
    pulse = Pulse(store.ping, every_seconds=0.001, clock=store.clock)
    await asyncio.sleep(0.01)
    assert store.num_pings == 0 and pulse.is_felt
    pulse.start()
    await store.asked_again(1)
    await pulse.stop()
    asked = store.num_pings
    await asyncio.sleep(0.01)
    assert store.num_pings == asked
    await pulse.stop()
