"""`hope sessions`: lists, shows, sets back, copies, moves and deletes the sessions of a running server, over HTTP."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from hope_client import HopeClient, Session, SessionInfo
from rich.console import Console
from rich.table import Table

from hope_server.cli.console import CommandError, connect, print_json, say

_PIPE_COLUMNS = 160


def run_sessions(args: argparse.Namespace) -> int:
    """Do one thing with the server's sessions."""
    actions: dict[str, Callable[[HopeClient, argparse.Namespace], None]] = {
        "ls": lambda client, args: _list_sessions(list(client.sessions()), args.json),
        "show": lambda client, args: _show_session(client.get_session(args.id), args.json),
        "rm": _delete,
        "versions": lambda client, args: _list_versions(client.get_session(args.id), args.json),
        "rollback": _rollback,
        "fork": _fork,
        "export": _export,
        "import": _import,
    }
    with connect(args) as client:
        actions[args.action](client, args)
    return 0


def _delete(client: HopeClient, args: argparse.Namespace) -> None:
    for session_id in args.ids:
        client.delete(session_id)
        if args.json:
            print_json({"id": session_id, "deleted": True})
        else:
            say(f"deleted {session_id}")


def _rollback(client: HopeClient, args: argparse.Namespace) -> None:
    session = client.get_session(args.id)
    version = _whole_version(session, args.version)
    info = session.rollback(version)
    if args.json:
        print_json(dataclasses.asdict(info))
    else:
        print(f"session {info.id} is as it was at {version}; this is version {info.version}")


def _fork(client: HopeClient, args: argparse.Namespace) -> None:
    session = client.get_session(args.id)
    version = None if args.version is None else _whole_version(session, args.version)
    _tell_made(session.fork(args.new_id, version), args.json)


def _export(client: HopeClient, args: argparse.Namespace) -> None:
    session = client.get_session(args.id)
    version = None if args.version is None else _whole_version(session, args.version)
    data = session.export(version)
    if args.file == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    path = Path(args.file or f"{session.id}.hope")
    try:
        # Whoever reads the file knows what the session knows.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    except FileExistsError as exc:
        raise CommandError(f"{path} exists already; name another file") from exc
    except OSError as exc:
        raise CommandError(f"{path} cannot be written: {exc.strerror}") from exc
    if args.json:
        print_json({"id": session.id, "file": str(path), "num_bytes": len(data)})
    else:
        say(f"wrote {path}, {_megabytes(len(data))}; it is not encrypted")


def _import(client: HopeClient, args: argparse.Namespace) -> None:
    try:
        data = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
    except OSError as exc:
        raise CommandError(f"{args.file} cannot be read: {exc.strerror}") from exc
    _tell_made(client.import_(data, args.id), args.json)


def _tell_made(session: Session, is_json: bool) -> None:
    if is_json:
        print_json(dataclasses.asdict(session.info()))
    else:
        print(f"made session {session.id}, version {(session.version or 'none yet')[:8]}")


def _whole_version(session: Session, start: str) -> str:
    """The one kept version that begins with `start`, as lists show only the first letters."""
    found = [each.version for each in session.versions() if each.version.startswith(start)]
    if len(found) != 1:
        why = "several versions begin" if found else "no kept version begins"
        raise CommandError(f"{why} with {start}; see: hope sessions versions {session.id}")
    return found[0]


def _list_versions(session: Session, is_json: bool) -> None:
    versions = session.versions()
    if is_json:
        print_json([dataclasses.asdict(each) for each in versions])
        return
    table = Table(box=None)
    table.add_column("version", no_wrap=True)
    table.add_column("created", no_wrap=True)
    for name in ("turns", "tokens", "stored"):
        table.add_column(name, justify="right")
    for each in versions:
        cells = (str(each.turn), f"{each.num_tokens:,}", _megabytes(each.num_bytes))
        table.add_row(each.version, _when(each.created), *cells)
    _print_table(table)


def _list_sessions(found: list[SessionInfo], is_json: bool) -> None:
    if is_json:
        print_json([dataclasses.asdict(info) for info in found])
        return
    if not found:
        say("no sessions yet; make one with: hope chat")
        return
    table = Table(box=None)
    table.add_column("session", no_wrap=True)
    table.add_column("updated", no_wrap=True)
    for name in ("turns", "tokens", "learned", "memory"):
        table.add_column(name, justify="right")
    for info in found:
        table.add_row(
            info.id,
            _when(info.updated),
            str(info.turn),
            f"{info.num_tokens:,}",
            f"{info.tokens_learned:,}",
            _megabytes(info.memory_bytes),
        )
    _print_table(table)


def _print_table(table: Table) -> None:
    console = Console(highlight=False)
    # A pipe has no width; a table that is cut to 80 columns there would lose the ends of long names.
    console.print(table, width=None if console.is_terminal else _PIPE_COLUMNS)


def _show_session(session: Session, is_json: bool) -> None:
    info, versions = session.info(), session.versions()
    if is_json:
        print_json({**dataclasses.asdict(info), "versions": [dataclasses.asdict(each) for each in versions]})
        return
    lines = {
        "session": info.id,
        "model": info.model or "unknown",
        "created": _when(info.created),
        "updated": _when(info.updated),
        "turns": str(info.turn),
        "tokens": f"{info.num_tokens:,}, of which {info.tokens_learned:,} learned",
        "state": ", ".join(f"{name} {_megabytes(size)}" for name, size in info.state_bytes.items()) or "empty",
        "version": info.version or "none yet",
        "kept": ", ".join(each.version[:8] for each in versions) or "none",
    }
    for name, value in lines.items():
        print(f"{name:<8} {value}")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
