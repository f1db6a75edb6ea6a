"""The command line `hope`: reads the arguments, runs one command, and turns every failure into one line on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import hope_client

from hope_server.cli import bench, console, evaluate, keys, plan, sessions, talk, top, train
from hope_server.errors import HopeError, SettingsError

__all__ = ["main"]

_INTERRUPTED = 130
_VAULT_ACTIONS = {
    "rotate": "replace the key: new, rewrap and prune in one, for servers that share one key file",
    "new": "add a key to the key file; then copy the file to every server",
    "rewrap": "wrap every session's keys with the file's last key",
    "prune": "remove all keys but the last from the key file, once nothing needs them",
}


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
    _add_sessions(commands.add_parser("sessions", help="look after the sessions of a server", allow_abbrev=False))
    top.add_top_arguments(commands.add_parser("top", help="watch what a server does", allow_abbrev=False))
    keys.add_keys_arguments(commands.add_parser("keys", help="make and revoke API keys", allow_abbrev=False))
    _add_vault(commands.add_parser("vault", help="replace the key that protects stored sessions", allow_abbrev=False))
    evaluate.add_eval_arguments(commands.add_parser("eval", help="measure models on a task", allow_abbrev=False))
    bench.add_bench_arguments(commands.add_parser("bench", help="measure what sessions learn", allow_abbrev=False))
    train.add_train_arguments(commands.add_parser("train", help="train a model by a recipe", allow_abbrev=False))
    plan.add_plan_arguments(
        commands.add_parser("plan", help="how many servers so many sessions need", allow_abbrev=False)
    )
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
    parser.add_argument("--key", metavar="KEY", help="go on with a call that broke off, by the key that it told")
    console.add_connection_flags(parser)
    parser.set_defaults(run=talk.run_learn)


def _add_sessions(parser: argparse.ArgumentParser) -> None:
    console.add_connection_flags(parser)
    parser.set_defaults(run=sessions.run_sessions, action="ls")
    actions = parser.add_subparsers(title="actions", metavar="ACTION")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help, allow_abbrev=False)
        console.add_connection_flags(action, has_defaults=False)
        action.set_defaults(action=name)
        return action

    add("ls", "list all sessions (the default)")
    add("show", "show one session and its kept versions").add_argument("id", metavar="ID")
    add("freeze", "let a session answer without learning").add_argument("id", metavar="ID")
    add("unfreeze", "let a session learn again").add_argument("id", metavar="ID")
    tag = add("snapshot", "keep a version under a name, or list and remove such names")
    tag.add_argument("id", metavar="ID")
    tag.add_argument("tag", metavar="TAG", nargs="?", help="name to give (default: list the names there are)")
    tag.add_argument("--version", metavar="VERSION", help="version to keep (default: the newest)")
    tag.add_argument("--rm", action="store_true", help="remove the name; the version is no longer kept for it")
    add("rm", "delete sessions with all they learned").add_argument("ids", metavar="ID", nargs="+")
    add("versions", "list the kept versions of a session").add_argument("id", metavar="ID")
    back = add("rollback", "make the state of a kept version the newest")
    back.add_argument("id", metavar="ID")
    back.add_argument("version", metavar="VERSION", help="its first letters are enough, or a snapshot's name")
    fork = add("fork", "give a session's state a second name")
    fork.add_argument("id", metavar="ID")
    fork.add_argument("new_id", metavar="NEW_ID", nargs="?", help="(default: the server chooses)")
    fork.add_argument("--version", metavar="VERSION", help="version to start from (default: the newest)")
    out = add("export", "write a session's state to one file")
    out.add_argument("id", metavar="ID")
    out.add_argument("file", metavar="FILE", nargs="?", help="- for stdout (default: ID.hope)")
    out.add_argument("--version", metavar="VERSION", help="version to export (default: the newest)")
    into = add("import", "make a session of an exported file")
    into.add_argument("file", metavar="FILE", help="- for stdin")
    into.add_argument("id", metavar="ID", nargs="?", help="(default: the server chooses)")


def _add_vault(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION", dest="action")
    for name, text in _VAULT_ACTIONS.items():
        action = actions.add_parser(name, help=text, allow_abbrev=False)
        action.add_argument("--json", action="store_true", help="write the result as JSON")
        console.add_settings_flags(action)
        action.set_defaults(run=_run_vault)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    console.add_settings_flags(parser)
    parser.add_argument("--url", help="a running server to check (default: where `hope serve` would listen)")
    parser.add_argument("--api-key", default=console.default_key(os.environ), metavar="KEY", help="API key for --url")
    parser.add_argument("--json", action="store_true", help="write the result as JSON")
    parser.set_defaults(run=_run_doctor)


def _run_serve(args: argparse.Namespace) -> int:
    from hope_server.cli.serve import run_serve

    return run_serve(args)


def _run_vault(args: argparse.Namespace) -> int:
    from hope_server.cli.vault import run_vault

    return run_vault(args)


def _run_doctor(args: argparse.Namespace) -> int:
    from hope_server.cli.doctor import run_doctor

    return run_doctor(args)
