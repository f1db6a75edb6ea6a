"""The command line `hope`: reads the arguments, runs one command, and turns every failure into one line on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import hope_client

from hope_server.cli import console, talk
from hope_server.errors import HopeError, SettingsError

__all__ = ["main"]

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except console.CommandError as exc:
        return _fail(exc.message, exc.exit_code)
    except SettingsError as exc:
        return _fail(exc.message, 2)
    except HopeError as exc:
        return _fail(exc.message)
    except hope_client.HopeError as exc:
        where = f" (request {exc.request_id})" if exc.request_id and (exc.status or 500) >= 500 else ""
        return _fail(exc.message + where)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Who read the output has enough of it; what Python would still flush at its end has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(message: str, exit_code: int = 1) -> int:
    console.say(f"hope: {' '.join(message.split())}")
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hope", description="A language model server whose sessions learn.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"hope {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="start the server", allow_abbrev=False))
    _add_chat(commands.add_parser("chat", help="chat in a session of a running server", allow_abbrev=False))
    _add_learn(commands.add_parser("learn", help="have a session study a text file", allow_abbrev=False))
    _add_sessions(commands.add_parser("sessions", help="list, show and delete sessions", allow_abbrev=False))
    _add_doctor(commands.add_parser("doctor", help="check what a server needs on this machine", allow_abbrev=False))
    return parser


def _version() -> str:
    try:
        return version("hope-server")
    except PackageNotFoundError:
        return "(not installed)"


def _add_serve(parser: argparse.ArgumentParser) -> None:
    console.add_settings_flags(parser)
    parser.set_defaults(run=_run_serve)


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("message", nargs="?", help="say this and end; without it, each line of stdin is one message")
    parser.add_argument("--session", metavar="ID", help="session to chat in, made if it is new (default: a new one)")
    parser.add_argument("--memory", choices=("write", "read", "off"), help="what a turn may do with the memory")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 always takes the likeliest word")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
    console.add_connection_flags(parser)
    parser.set_defaults(run=talk.run_chat)


def _add_learn(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="UTF-8 text file, - for stdin")
    parser.add_argument("--session", metavar="ID", help="session that learns, made if it is new (default: a new one)")
    parser.add_argument("--passes", type=int, metavar="N", help="how often each piece is rehearsed, 0 to 1000")
    console.add_connection_flags(parser)
    parser.set_defaults(run=talk.run_learn)


def _add_sessions(parser: argparse.ArgumentParser) -> None:
    console.add_connection_flags(parser)
    parser.set_defaults(run=talk.run_sessions, action="ls")
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    listing = actions.add_parser("ls", help="list all sessions (the default)")
    show = actions.add_parser("show", help="show one session and its kept versions")
    show.add_argument("id", metavar="ID")
    remove = actions.add_parser("rm", help="delete sessions with all they learned")
    remove.add_argument("ids", metavar="ID", nargs="+")
    for action, name in ((listing, "ls"), (show, "show"), (remove, "rm")):
        console.add_connection_flags(action, has_defaults=False)
        action.set_defaults(action=name)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    console.add_settings_flags(parser)
    parser.add_argument("--url", help="a running server to check (default: where `hope serve` would listen)")
    parser.add_argument("--api-key", default=console.default_key(os.environ), metavar="KEY", help="API key for --url")
    parser.add_argument("--json", action="store_true", help="write the result as JSON")
    parser.set_defaults(run=_run_doctor)


def _run_serve(args: argparse.Namespace) -> int:
    from hope_server.cli.serve import run_serve

    return run_serve(args)


def _run_doctor(args: argparse.Namespace) -> int:
    from hope_server.cli.doctor import run_doctor

    return run_doctor(args)
