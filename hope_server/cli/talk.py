"""`hope chat` and `hope learn`: what a person says to a running server, over HTTP."""

from __future__ import annotations

import argparse
import secrets
import shlex
import sys
from functools import partial
from pathlib import Path

from hope_client import HopeError, MemoryOptions, Session

from hope_server.cli.chat_room import ChatRoom
from hope_server.cli.console import (
    CommandError,
    connect,
    learn_progress,
    print_json,
    printable,
    remark,
    say,
    stderr_console,
)
from hope_server.cli.words import learn_line, learn_object, receipt_line, reply_object


def run_chat(args: argparse.Namespace) -> int:
    """Chat in a session: one message, the lines of a pipe, or a conversation at the terminal."""
    with connect(args) as client:
        session = client.session(args.session)
        if args.session is None and not args.json:
            say(f"session {session.id}; come back to it with: hope chat --session {session.id}")

        if args.message is not None:
            one_turn(args, session, args.message)
        elif not sys.stdin.isatty():
            for line in sys.stdin:
                if line.strip():
                    one_turn(args, session, line.strip())
        else:
            room = ChatRoom(client, session, partial(one_turn, args), read_text, is_json=args.json)
            room.converse()
    return 0


def one_turn(args: argparse.Namespace, session: Session, text: str) -> None:
    """Take one turn: the answer as it comes and a line on what was learned, or one JSON object."""
    memory: MemoryOptions | None = None if args.memory is None else {"mode": args.memory}
    if args.json:
        reply = session.chat(text, temperature=args.temperature, max_tokens=args.max_tokens, memory=memory)
        print_json({"session_id": session.id, **reply_object(reply)})
        return
    with session.stream(text, temperature=args.temperature, max_tokens=args.max_tokens, memory=memory) as stream:
        try:
            for piece in stream:
                print(printable(piece), end="", flush=True)
        finally:
            # Whatever comes next, an error too, starts a line of its own.
            print(flush=True)
    if stream.receipt is not None:
        remark(f"  [{receipt_line(stream.receipt)}]")


def run_learn(args: argparse.Namespace) -> int:
    """Have a session study a file."""
    text = read_text(args.file)
    key = args.key or secrets.token_hex(16)
    with connect(args) as client:
        session = client.session(args.session)
        try:
            with learn_progress(stderr_console(), is_shown=not args.json) as report:
                result = session.learn(text, args.passes, report, key)
        except (HopeError, KeyboardInterrupt) as exc:
            if not args.json and _can_go_on(exc):
                say(f"go on with: hope learn {shlex.quote(args.file)} --session {session.id} --key {shlex.quote(key)}")
            raise
        if args.json:
            print_json({"session_id": session.id, **learn_object(result)})
            return 0
        print(f"session {session.id}: {learn_line(result)}")
        if args.session is None:
            say(f"ask about it with: hope chat --session {session.id}")
    return 0


def _can_go_on(exc: HopeError | KeyboardInterrupt) -> bool:
    """Whether the same call may go well later: nothing in it was found to be wrong."""
    return isinstance(exc, KeyboardInterrupt) or exc.is_retryable or exc.status is None or exc.status >= 500


def read_text(name: str) -> str:
    """Return the text of a UTF-8 file, or of stdin for `-`. Raises CommandError with what is wrong with it."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).expanduser().read_bytes()
    except FileNotFoundError as exc:
        raise CommandError(f"{name}: no such file") from exc
    except IsADirectoryError as exc:
        raise CommandError(f"{name} is a folder; name one text file") from exc
    except OSError as exc:
        raise CommandError(f"{name} cannot be read: {exc.strerror}") from exc
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise CommandError(f"{name} is not UTF-8 text (byte {exc.start:,} is not); convert it first") from exc
    if "\0" in text:
        raise CommandError(f"{name} is a binary file; only text can be learned")
    if not text.strip():
        raise CommandError(f"{name} has no text to learn")
    return text
