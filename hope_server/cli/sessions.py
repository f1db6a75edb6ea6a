"""`hope sessions`: lists, shows, freezes, sets back, copies, moves and deletes the sessions of a running server."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from hope_client import HopeClient, Session, SessionInfo
from rich.console import Console
from rich.table import Table

from hope_server.cli.console import CommandError, connect, print_json, say
from hope_server.cli.versions import whole_version
from hope_server.cli.words import life_of, megabytes, short, when

_PIPE_COLUMNS = 160


def run_sessions(args: argparse.Namespace) -> int:
    """Do one thing with the server's sessions."""
    actions: dict[str, Callable[[HopeClient, argparse.Namespace], None]] = {
        "ls": lambda client, args: _list_sessions(list(client.sessions()), args.json),
        "show": lambda client, args: _show_session(client.get_session(args.id), args.json),
        "freeze": lambda client, args: _set_frozen(client.get_session(args.id), True, args.json),
        "unfreeze": lambda client, args: _set_frozen(client.get_session(args.id), False, args.json),
        "snapshot": _snapshot,
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


def _set_frozen(session: Session, is_frozen: bool, is_json: bool) -> None:
    info = session.freeze() if is_frozen else session.unfreeze()
    if is_json:
        print_json(dataclasses.asdict(info))
    else:
        print(f"session {info.id} {'answers without learning' if info.frozen else 'learns'}")


def _snapshot(client: HopeClient, args: argparse.Namespace) -> None:
    session = client.get_session(args.id)
    if args.tag is None:
        if args.rm or args.version is not None:
            raise CommandError("name the snapshot: hope sessions snapshot ID TAG", exit_code=2)
        _list_snapshots(session, args.json)
    elif args.rm:
        session.delete_snapshot(args.tag)
        if args.json:
            print_json({"id": session.id, "tag": args.tag, "deleted": True})
        else:
            say(f"removed snapshot {args.tag} of {session.id}")
    else:
        info = session.snapshot(args.tag, None if args.version is None else whole_version(session, args.version))
        if args.json:
            print_json(dataclasses.asdict(info))
        else:
            print(f"session {info.id} keeps version {short(info.tags.get(args.tag))} as {args.tag}")


def _list_snapshots(session: Session, is_json: bool) -> None:
    found = session.snapshots()
    if is_json:
        print_json([dataclasses.asdict(each) for each in found])
        return
    if not found:
        say(f"no snapshots yet; make one with: hope sessions snapshot {session.id} TAG")
        return
    table = Table(box=None)
    for name in ("snapshot", "version", "created"):
        table.add_column(name, no_wrap=True)
    for each in found:
        table.add_row(each.tag, each.version, when(each.created))
    _print_table(table)


def _rollback(client: HopeClient, args: argparse.Namespace) -> None:
    session = client.get_session(args.id)
    version = whole_version(session, args.version)
    info = session.rollback(version)
    if args.json:
        print_json(dataclasses.asdict(info))
    else:
        print(f"session {info.id} is as it was at {version}; this is version {info.version}")


def _fork(client: HopeClient, args: argparse.Namespace) -> None:
    session = client.get_session(args.id)
    version = None if args.version is None else whole_version(session, args.version)
    _tell_made(session.fork(args.new_id, version=version), args.json)


def _export(client: HopeClient, args: argparse.Namespace) -> None:
    session = client.get_session(args.id)
    version = None if args.version is None else whole_version(session, args.version)
    if args.file == "-":
        sys.stdout.buffer.write(session.export(version=version))
        sys.stdout.buffer.flush()
        return
    path = Path(args.file or f"{session.id}.hope")
    try:
        data = session.export(path, version=version)
    except FileExistsError as exc:
        raise CommandError(f"{path} exists already; name another file") from exc
    except OSError as exc:
        raise CommandError(f"{path} cannot be written: {exc.strerror}") from exc
    if args.json:
        print_json({"id": session.id, "file": str(path), "num_bytes": len(data)})
    else:
        say(f"wrote {path}, {megabytes(len(data))}; it is not encrypted")


def _import(client: HopeClient, args: argparse.Namespace) -> None:
    try:
        data = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
    except OSError as exc:
        raise CommandError(f"{args.file} cannot be read: {exc.strerror}") from exc
    _tell_made(client.import_session(data, args.id), args.json)


def _tell_made(session: Session, is_json: bool) -> None:
    if is_json:
        print_json(dataclasses.asdict(session.info()))
    else:
        print(f"made session {session.id}, version {short(session.version)}")


def _list_versions(session: Session, is_json: bool) -> None:
    versions = session.versions()
    if is_json:
        print_json([dataclasses.asdict(each) for each in versions])
        return
    tags = session.info().tags
    table = Table(box=None)
    table.add_column("version", no_wrap=True)
    table.add_column("created", no_wrap=True)
    for name in ("turns", "tokens", "stored"):
        table.add_column(name, justify="right")
    table.add_column("snapshots")
    for each in versions:
        names = ", ".join(tag for tag, version in tags.items() if version == each.version)
        cells = (str(each.turn), f"{each.num_tokens:,}", megabytes(each.num_bytes), names)
        table.add_row(each.version, when(each.created), *cells)
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
            when(info.updated),
            str(info.turn),
            f"{info.num_tokens:,}",
            f"{info.tokens_learned:,}",
            megabytes(info.memory_bytes),
        )
    _print_table(table)


def _print_table(table: Table) -> None:
    # A pipe has no width; a table that is cut to 80 columns there would lose the ends of long names.
    Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(table)


def _show_session(session: Session, is_json: bool) -> None:
    info, versions = session.info(), session.versions()
    if is_json:
        print_json({**dataclasses.asdict(info), "versions": [dataclasses.asdict(each) for each in versions]})
        return
    lines = {
        "session": info.id,
        "model": info.model or "unknown",
        "created": when(info.created),
        "updated": when(info.updated),
        "turns": str(info.turn),
        "tokens": f"{info.num_tokens:,}, of which {info.tokens_learned:,} learned",
        "state": ", ".join(f"{name} {megabytes(size)}" for name, size in info.state_bytes.items()) or "empty",
        "learns": "no, it is frozen" if info.frozen else "yes",
        "lives": life_of(info),
        "notes": ", ".join(f"{name}={value}" for name, value in info.metadata.items()) or "none",
        "version": info.version or "none yet",
        "kept": ", ".join(short(each.version) for each in versions) or "none",
        "tagged": ", ".join(f"{tag} {short(version)}" for tag, version in info.tags.items()) or "none",
    }
    for name, value in lines.items():
        print(f"{name:<8} {value}")
