"""From demand and constants to servers, memory and network, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hope_server.capacity.constants import Constants
from hope_server.capacity.demand import Demand

__all__ = ["Needs", "engine_seconds", "needs"]

_STORE_OVERHEAD = 1.25
"""What a Redis takes beside its data: fragmentation, buffers of replicas, and copies while it rewrites its log."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a demand takes.

    engine_seconds: of a turn; of them `read`, `decode`, `study` and `rest`. busy: of all servers' time, at the peak.
    in_step: replies that are written together on one server, on average. store_bytes: on all nodes, copies included.
    traffic_bytes: a second, between servers and store. host_bytes: memory of one server for states.
    """

    turns_per_second: float
    servers: int
    cores: int
    busy: float
    in_step: float
    engine_seconds: float
    read: float
    decode: float
    study: float
    rest: float
    store_bytes: float
    traffic_bytes: float
    host_bytes: float


def engine_seconds(demand: Demand, constants: Constants, in_step: float) -> tuple[float, float, float, float]:
    """Seconds of an engine that a turn takes: reading, writing beside `in_step - 1` others, study, and the rest.

    Writing has the chunks that a reply completes with it; the rest, other threads do on the same cores.
    """
    whole = max(1, math.floor(in_step))
    step = constants.decode(whole) + (in_step - whole) * (constants.decode(whole + 1) - constants.decode(whole))
    return (
        constants.prompt(demand.prompt_tokens),
        demand.reply_tokens * (step / max(1.0, in_step) + constants.read_token_seconds),
        demand.studied_tokens * constants.study_token_seconds,
        constants.turn_seconds,
    )


def needs(demand: Demand, constants: Constants, *, busy: float = 0.6, copies: int = 1) -> Needs:
    """Return what a demand takes where servers are to be busy for at most a share `busy` of the peak hour.

    copies: replicas of each primary of the store. The more a server is asked, the more replies it writes in one step,
    so the number of servers is the smallest at which the share holds with the replies that are then under way.
    """
    rate = demand.turns_per_second

    def at(servers: int) -> tuple[float, float, tuple[float, float, float, float]]:
        """Share of the time that each server is busy, replies in a step, and a turn's seconds."""
        in_step = 1.0
        for _ in range(50):
            parts = engine_seconds(demand, constants, in_step)
            share = rate / servers * sum(parts)
            # Of the turns under way, by Little's law, those that are being written; slots bound them.
            under_way = rate / servers * parts[1] * in_step / max(0.05, 1 - min(share, 0.95))
            following = min(max(1.0, under_way), float(constants.num_slots))
            if abs(following - in_step) < 1e-6:
                break
            in_step = (in_step + following) / 2
        return share, in_step, parts

    servers = 1
    while at(servers)[0] > busy:
        servers *= 2
    low = servers // 2
    while servers - low > 1:
        middle = (servers + low) // 2
        if at(middle)[0] > busy:
            low = middle
        else:
            servers = middle
    share, in_step, (read, decode, study, rest) = at(servers)
    return Needs(
        turns_per_second=rate,
        servers=servers,
        cores=servers * constants.num_threads,
        busy=share,
        in_step=in_step,
        engine_seconds=read + decode + study + rest,
        read=read,
        decode=decode,
        study=study,
        rest=rest,
        store_bytes=demand.sessions * constants.stored_bytes * (1 + copies) * _STORE_OVERHEAD,
        traffic_bytes=rate * constants.traffic_bytes,
        host_bytes=constants.num_slots * constants.state_bytes,
    )
