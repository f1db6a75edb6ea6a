"""What all commands share: their errors, how they talk to the terminal, and how they reach a server."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hope_client import HopeClient, LearnProgress
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hope_server.settings import Settings

_KEPT_CONTROLS = frozenset("\n\t")
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})
_DEFAULT_PORT = 8000


class CommandError(Exception):
    """A command that cannot do what was asked; the message is one line that says what to do."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def printable(text: str) -> str:
    """Return `text` without the control characters by which it could steer the terminal."""
    return "".join(char for char in text if char.isprintable() or char in _KEPT_CONTROLS)


def say(text: str) -> None:
    """Write a remark to stderr, so that stdout holds nothing but results."""
    print(printable(text), file=sys.stderr, flush=True)


def remark(text: str) -> None:
    """Write a remark of little weight to stderr: dim where that is a terminal that can show it."""
    stderr_console().print(printable(text), style="dim", markup=False, soft_wrap=True)


def print_json(value: Mapping[str, Any] | list[Any]) -> None:
    """Write one line of JSON to stdout; numbers that JSON does not have become null by the caller's care."""
    print(json.dumps(value, ensure_ascii=True), flush=True)


def stderr_console() -> Console:
    """Return a console for bars and tables beside the results."""
    return Console(stderr=True, highlight=False)


def server_url(host: str, port: int) -> str:
    """Return the URL at which a client on this machine reaches a server that listens on `host`."""
    near = "127.0.0.1" if host in _ANY_ADDRESS else host
    return f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"


def default_url(environ: Mapping[str, str]) -> str:
    """Return the URL of the server that HOPE_HOST and HOPE_PORT describe."""
    port = environ.get("HOPE_PORT", "")
    return server_url(environ.get("HOPE_HOST", "127.0.0.1"), int(port) if port.isdecimal() else _DEFAULT_PORT)


def default_key(environ: Mapping[str, str]) -> str | None:
    """Return the first of HOPE_API_KEYS, by which the machine that serves can also talk to itself."""
    return next((key.strip() for key in environ.get("HOPE_API_KEYS", "").split(",") if key.strip()), None)


def add_connection_flags(parser: argparse.ArgumentParser, *, has_defaults: bool = True) -> None:
    """Add --url, --api-key and --json; without defaults for a subcommand whose parent has the same flags."""
    key = default_key(os.environ) if has_defaults else argparse.SUPPRESS
    url = default_url(os.environ)
    parser.add_argument(
        "--url",
        default=url if has_defaults else argparse.SUPPRESS,
        help=f"address of the server (default: HOPE_HOST and HOPE_PORT, {url})".replace("%", "%%"),
    )
    parser.add_argument("--api-key", default=key, metavar="KEY", help="API key (default: the first of HOPE_API_KEYS)")
    parser.add_argument(
        "--json",
        action="store_true",
        default=False if has_defaults else argparse.SUPPRESS,
        help="write the result as JSON, one object a line",
    )


def add_settings_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per setting of the server; their values are read as text by `load_settings`."""
    group = parser.add_argument_group("settings", "each can also be set as HOPE_<NAME> in the environment")
    for option in Settings.options():
        shown = ",".join(option.default) if isinstance(option.default, tuple) else option.default
        group.add_argument(
            option.flag,
            dest=option.field,
            default=argparse.SUPPRESS,
            metavar={int: "N", float: "X"}.get(option.type, "TEXT"),
            help=f"{option.help} (default: {shown if shown != '' else 'none'})".replace("%", "%%"),
        )


def load_settings(args: argparse.Namespace) -> Settings:
    """Return the settings of flags, environment and defaults. Raises SettingsError."""
    given = vars(args)
    return Settings.load({option.field: given[option.field] for option in Settings.options() if option.field in given})


def connect(args: argparse.Namespace) -> HopeClient:
    """Return a client of the server that --url names. Raises CommandError for a URL or key that cannot be used."""
    try:
        return HopeClient(args.url, args.api_key)
    except ValueError as exc:
        raise CommandError(str(exc), exit_code=2) from exc


@contextmanager
def stage_progress(console: Console) -> Iterator[Callable[[str, float], None]]:
    """Show the stages of one long job, each as a bar, or as a line where there is no terminal."""
    with _bars(console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
                if not console.is_terminal:
                    say(f"{stage} …")
            bars.update(tasks[stage], completed=fraction)

        yield report


@contextmanager
def learn_progress(console: Console, is_shown: bool) -> Iterator[Callable[[LearnProgress], None]]:
    """Show how far a learn call has come: tokens read, then steps of rehearsal with their loss."""
    with _bars(console) as bars:
        reading = bars.add_task("reading", total=None, visible=is_shown)
        rehearsing = bars.add_task("rehearsing", total=None, visible=False)

        def report(progress: LearnProgress) -> None:
            part = f" {progress.part} of {progress.num_parts}" if progress.num_parts > 1 else ""
            bars.update(
                reading,
                completed=progress.tokens_done,
                total=progress.tokens_total,
                description=f"reading{part}",
            )
            loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
            bars.update(
                rehearsing,
                completed=progress.steps_done,
                total=progress.steps_total,
                description=f"rehearsing{part}{loss}",
                visible=is_shown and progress.steps_total > 0,
            )

        yield report


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
