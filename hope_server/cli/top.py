"""`hope top`: what a running server does now, from its /metrics, again each second."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from hope_client.answers import Answer, read_error
from hope_client.transport import Address
from rich.console import Console
from rich.live import Live
from rich.table import Table

from hope_server.cli.console import CommandError, add_connection_flags, print_json
from hope_server.cli.readings import Change, Reading, summary
from hope_server.cli.words import megabytes

__all__ = ["add_top_arguments", "run_top"]

_LEAST_INTERVAL = 0.1
_TIMEOUT_SECONDS = 10.0
_PIPE_COLUMNS = 120


def add_top_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `hope top`."""
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="seconds between two looks (default: 1)"
    )
    parser.add_argument("--once", action="store_true", help="look for one interval, print what was seen, and end")
    add_connection_flags(parser)
    parser.set_defaults(run=run_top)


def run_top(args: argparse.Namespace) -> int:
    """Show what the server does until Ctrl-C. Raises CommandError, and hope_client's errors."""
    if not args.interval >= _LEAST_INTERVAL:
        raise CommandError(f"--interval is {args.interval:g}; use {_LEAST_INTERVAL:g} seconds or more", exit_code=2)
    try:
        address = Address(args.url, args.api_key, _TIMEOUT_SECONDS)
    except ValueError as exc:
        raise CommandError(str(exc), exit_code=2) from exc
    # A pipe has no width, and 80 columns would break lines.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    with httpx.Client(**address.http_options) as http:
        changes = _changes(http, address, args.interval)
        if args.once:
            _print(next(changes), console, args.json)
            return 0
        try:
            _follow(changes, console, args.json)
        except KeyboardInterrupt:
            # The way to end it.
            return 0
    return 0


def _follow(changes: Iterator[Change], console: Console, is_json: bool) -> None:
    if is_json or not console.is_terminal:
        for change in changes:
            _print(change, console, is_json)
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        for change in changes:
            live.update(table_of(summary(change)), refresh=True)


def _print(change: Change, console: Console, is_json: bool) -> None:
    if is_json:
        print_json(summary(change))
    else:
        console.print(table_of(summary(change)))


def _changes(http: httpx.Client, address: Address, interval: float) -> Iterator[Change]:
    """Look at the server again and again, `interval` seconds apart."""
    before = _read(http, address)
    while True:
        time.sleep(interval)
        after = _read(http, address)
        yield Change(before, after)
        before = after


def _read(http: httpx.Client, address: Address) -> Reading:
    with address.explained():
        response = http.get(f"{address.base_url}/metrics")
    if response.status_code != 200:
        raise read_error(Answer(response.content, response.status_code, response.headers))
    with _ours(address):
        return Reading.parse(response.text, time.monotonic())


@contextmanager
def _ours(address: Address) -> Iterator[None]:
    try:
        yield
    except ValueError as exc:
        message = f"{address.base_url}/metrics is not that of a HOPE Server; --url names another one"
        raise CommandError(message) from exc


def table_of(seen: dict[str, Any]) -> Table:
    """Return a summary as a table: a line for each thing, its parts side by side."""
    turns, slots, memory, errors = seen["turns"], seen["slots"], seen["memory"], seen["errors_per_second"]
    lines = {
        "turns": [
            f"{turns['running']:.0f} running",
            f"{turns['waiting']:.0f} waiting",
            f"{turns['ended_per_second']:.1f} ended/s",
        ],
        "slots": [f"{slots['busy']:.0f} busy", f"{slots['hot']:.0f} hot", f"{slots['total']:.0f} in all"],
        "tokens/s": [f"{rate:,.1f} {kind}" for kind, rate in seen["tokens_per_second"].items()],
        "first text": _times(seen["ttft_seconds"]),
        "whole turn": _times(seen["turn_seconds"]),
        "time in": [f"{stage} {share:.0%}" for stage, share in seen["stage_shares"].items()],
        "engine": [
            f"{seen['engine_busy_share']:.0%} busy with turns",
            f"{seen['idle_consolidation_share']:.0%} consolidating idly",
        ],
        "states/s": [f"{rate:.1f} {source}" for source, rate in seen["restores_per_second"].items()],
        "memory": [
            f"{megabytes(int(memory['resident_bytes']))} process",
            f"{megabytes(int(memory['slot_state_bytes']))} slots",
            f"{megabytes(int(memory['host_cache_bytes']))} host cache",
        ],
        "errors/s": [
            f"{errors['turns']:.1f} turns",
            f"{errors['http_4xx']:.1f} HTTP 4xx",
            f"{errors['http_5xx']:.1f} HTTP 5xx",
        ],
    }
    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, parts in lines.items():
        table.add_row(name, "   ".join(parts))
    return table


def _times(quantiles: dict[str, float | None]) -> list[str]:
    return [f"{name} {'–' if seconds is None else f'{seconds:.3f} s'}" for name, seconds in quantiles.items()]
