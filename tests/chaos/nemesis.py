"""Does the faults of a plan to a world."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Sequence

from fault_proxy import FaultProxy

from tests.chaos.plan import Fault
from tests.chaos.world import World

_LATENCY_SECONDS = 0.2
_BYTES_PER_SECOND = 200_000
_CUT_BYTES = 30_000


class Nemesis:
    """One plan against one world; `done` counts the faults by kind."""

    def __init__(self, world: World, plan: Sequence[Fault]) -> None:
        self.world = world
        self.plan = plan
        self.done: Counter[str] = Counter()
        self._redis_busy = asyncio.Lock()

    async def strike(self) -> None:
        """Do every fault at its time, and return when the last one is over."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in self.plan:
                await asyncio.sleep(max(0.0, began + fault.at_seconds - time.monotonic()))
                group.create_task(self._do(fault))

    async def _do(self, fault: Fault) -> None:
        if fault.kind == "kill redis":
            await self._kill_redis(fault)
        elif fault.kind.endswith("server"):
            await self._hit_server(fault)
        elif fault.kind.startswith(("reset", "cut")):
            self._hit_links(fault)
        else:
            await self._spoil_links(fault)
        self.done[fault.kind] += 1

    async def _kill_redis(self, fault: Fault) -> None:
        async with self._redis_busy:
            self.world.redis.kill()
            await asyncio.sleep(fault.seconds)
            await asyncio.to_thread(self.world.redis.start)

    async def _hit_server(self, fault: Fault) -> None:
        server = self.world.servers[fault.server]
        async with server.busy:
            if fault.kind == "freeze server":
                server.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.seconds)
                server.signal(signal.SIGCONT)
                return
            if fault.kind == "stop server":
                await self.world.stop_server(server)
            else:
                server.signal(signal.SIGKILL)
                await server.gone(5)
                await asyncio.sleep(fault.seconds * 0.3)
            await self.world.start_server(server)
            await self.world.until_ready(server)

    def _hit_links(self, fault: Fault) -> None:
        store, clients = self.world.store_proxies[fault.server], self.world.client_proxies[fault.server]
        match fault.kind:
            case "reset store links":
                store.reset()
            case "reset client links":
                clients.reset()
            case "cut store reply":
                store.cut_next_reply()
            case "cut client reply":
                clients.cut_next_reply()
            case "cut store mid-command":
                store.up.cut_after(int(fault.amount * _CUT_BYTES))
            case _:
                raise ValueError(f"no such fault: {fault.kind}")

    async def _spoil_links(self, fault: Fault) -> None:
        proxies = self.world.client_proxies if "clients" in fault.kind else self.world.store_proxies
        proxy = proxies[fault.server]
        match fault.kind:
            case "slow store" | "slow clients":
                _slow(proxy, fault.amount)
            case "store unheard" | "clients unheard":
                proxy.up.hold()
            case "store silent":
                proxy.down.hold()
            case "store bytes lost":
                proxy.up.lose()
            case "refuse store":
                proxy.is_refusing = True
                proxy.reset()
            case _:
                raise ValueError(f"no such fault: {fault.kind}")
        await asyncio.sleep(fault.seconds)
        proxy.heal()


def _slow(proxy: FaultProxy, amount: float) -> None:
    for lane in (proxy.up, proxy.down):
        lane.latency_seconds = amount * _LATENCY_SECONDS
        lane.jitter_seconds = amount * _LATENCY_SECONDS
        lane.bytes_per_second = _BYTES_PER_SECOND
