"""`hope plan`: how many servers, how large a store and how much network so many sessions need."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hope_server.capacity.arithmetic import Needs, needs
from hope_server.capacity.constants import DEFAULT, Constants, load_constants
from hope_server.capacity.demand import Demand
from hope_server.capacity.simulation import Outcome, TurnSize, Users, simulate
from hope_server.cli.console import CommandError, print_json
from hope_server.cli.words import megabytes

__all__ = ["add_plan_arguments", "run_plan"]

_SIMULATED_SECONDS = 900.0
_MOST_USERS = 2_000
_NUMBERS = {
    "turns_per_day": "turns of each session a day, on average",
    "peak": "how many times the average the busiest hour has",
    "prompt_tokens": "tokens of a turn's prompt, the chat template's included",
    "reply_tokens": "tokens of a reply",
    "taught": "share of the prompt that is studied",
    "think_seconds": "mean pause of a user between two turns",
}


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `hope plan`."""
    parser.add_argument("--sessions", type=int, required=True, metavar="N", help="sessions that exist")
    for name, text in _NUMBERS.items():
        value = Demand.__dataclass_fields__[name].default
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, type=float, default=value, metavar="X", help=f"{text} ({value:g})")
    parser.add_argument("--busy", type=float, default=0.6, metavar="SHARE", help="of the time, at most (0.6)")
    parser.add_argument("--copies", type=int, default=1, metavar="N", help="replicas of each primary of the store (1)")
    parser.add_argument(
        "--constants", type=Path, default=DEFAULT, metavar="FILE", help="of `make bench-capacity` (default: ours)"
    )
    parser.add_argument("--json", action="store_true", help="write one line of JSON")
    parser.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    """Reckon and print. Raises HopeError for numbers that cannot be."""
    if not 0.05 <= args.busy <= 0.95:
        raise CommandError(f"--busy is {args.busy:g}; give a share from 0.05 to 0.95", 2)
    if args.copies < 0:
        raise CommandError(f"--copies is {args.copies}; give 0 or more", 2)
    constants = load_constants(args.constants)
    demand = Demand(args.sessions, **{name: getattr(args, name) for name in _NUMBERS})
    found = needs(demand, constants, busy=args.busy, copies=args.copies)
    seen = one_server(demand, constants, found)
    if args.json:
        print_json(
            {
                "demand": asdict(demand),
                "constants": asdict(constants),
                "needs": asdict(found),
                "one_server": {
                    "turns_per_second": seen.turns_per_second,
                    "busy": seen.busy,
                    "ttft_seconds": _shares(seen.ttft_seconds),
                    "answer_seconds": _shares(seen.answer_seconds),
                },
            }
        )
        return 0
    _print(constants, found, seen)
    return 0


def one_server(demand: Demand, constants: Constants, found: Needs) -> Outcome:
    """Simulate one of the servers with its share of the busiest hour.

    Its users answer back: as many as give that many turns a second if answers took as long as they do alone.
    """
    rate = found.turns_per_second / found.servers
    written = demand.reply_tokens * (constants.decode(1) + constants.read_token_seconds)
    alone = found.read + written + found.rest + constants.commit_seconds
    count = max(1, min(_MOST_USERS, round(rate * (demand.think_seconds + alone))))
    users = Users(
        count,
        max(1, round(demand.sessions / found.servers / count)),
        (TurnSize(max(1, round(demand.prompt_tokens)), max(1, round(demand.reply_tokens)), demand.studied_tokens),),
        max(0.0, count / rate - alone),
    )
    return simulate([replace(users, sessions=min(users.sessions, 50))], constants, seconds=_SIMULATED_SECONDS)


def _print(constants: Constants, found: Needs, seen: Outcome) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    rows = [
        ("turns a second, busiest hour", f"{found.turns_per_second:,.2f}", ""),
        ("servers", f"{found.servers:,}", f"{found.cores:,} cores, busy for {found.busy:.0%} of the time"),
        ("engine seconds of a turn", f"{found.engine_seconds:.2f}", _parts(found)),
        (
            "memory of a server for states",
            megabytes(found.host_bytes),
            f"{constants.num_slots} slots; weights beside it",
        ),
        ("memory of the store", megabytes(found.store_bytes), "all nodes, copies and overhead included"),
        ("between servers and store", f"{megabytes(found.traffic_bytes)}/s", "in the busiest hour"),
        ("first token, s", _pair(seen.ttft_seconds), "p50, p95 of one server, simulated"),
        ("whole answer, s", _pair(seen.answer_seconds), f"its {seen.turns_per_second:.2f} turns a second"),
    ]
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"\nfrom: {constants.model} on {constants.machine}, {constants.num_threads} threads a server")


def _parts(found: Needs) -> str:
    return (
        f"read {found.read:.2f}, write {found.decode:.2f} ({found.in_step:.1f} at once), study {found.study:.2f}, "
        f"rest {found.rest:.2f}"
    )


def _shares(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    return {f"p{share}": ordered[min(len(ordered) - 1, share * len(ordered) // 100)] for share in (50, 95)}


def _pair(values: list[float]) -> str:
    shares = _shares(values)
    return f"{shares['p50']:.2f}, {shares['p95']:.2f}" if shares else "no turn ended"
