"""`hope chat` and `hope learn`: what a person says to a running server, over HTTP."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hope_client import ConnectionFailed, HopeError, MemoryOptions, Receipt, Reply, Session

from hope_server.cli.console import (
    CommandError,
    connect,
    learn_progress,
    print_json,
    printable,
    say,
    stderr_console,
)


def run_chat(args: argparse.Namespace) -> int:
    """Chat in a session: one message, the lines of a pipe, or a conversation at the terminal."""
    with connect(args) as client:
        session = client.session(args.session)
        if args.session is None and not args.json:
            say(f"session {session.id}; come back to it with: hope chat --session {session.id}")
        if args.message is not None:
            _one_turn(session, args.message, args)
        elif not sys.stdin.isatty():
            for line in sys.stdin:
                if line.strip():
                    _one_turn(session, line.strip(), args)
        else:
            _converse(session, args)
    return 0


def _converse(session: Session, args: argparse.Namespace) -> None:
    say("type a message and Enter; Ctrl-C stops an answer, Ctrl-D ends")
    for text in _typed_lines():
        try:
            _one_turn(session, text, args)
        except KeyboardInterrupt:
            say("stopped; nothing of this turn was kept")
        except ConnectionFailed:
            raise
        except HopeError as exc:
            say(f"hope: {exc.message}")


def _typed_lines() -> Iterator[str]:
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")
            continue
        if text:
            yield text


def _one_turn(session: Session, text: str, args: argparse.Namespace) -> None:
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
        say(f"  [{receipt_line(stream.receipt)}]")


def reply_object(reply: Reply) -> dict[str, Any]:
    """Return a reply as JSON-ready object."""
    return {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": None if reply.usage is None else dataclasses.asdict(reply.usage),
        "memory": None if reply.receipt is None else dataclasses.asdict(reply.receipt),
    }


def receipt_line(receipt: Receipt) -> str:
    """Return in one line what a turn did to the memory."""
    if receipt.discarded is not None:
        return f"nothing learned: {receipt.discarded}"
    if receipt.mode != "write":
        return f"memory {receipt.mode}: nothing learned"
    words = [f"learned {receipt.tokens_learned} of {receipt.tokens_read} tokens in {receipt.steps} steps"]
    if receipt.replayed:
        words.insert(0, "answered before, not learned again")
    if receipt.loss_before is not None and receipt.loss_after is not None:
        words.append(f"loss {receipt.loss_before:.2f} to {receipt.loss_after:.2f}")
    if receipt.version_after is not None:
        words.append(f"version {receipt.version_after[:8]}")
    else:
        words.append("not stored yet")
    return ", ".join(words)


def run_learn(args: argparse.Namespace) -> int:
    """Have a session study a file."""
    text = read_text(args.file)
    with connect(args) as client:
        session = client.session(args.session)
        console = stderr_console()
        with learn_progress(console, is_shown=not args.json) as report:
            result = session.learn(text, args.passes, report)
        if args.json:
            receipt = None if result.receipt is None else dataclasses.asdict(result.receipt)
            usage = None if result.usage is None else dataclasses.asdict(result.usage)
            print_json({"session_id": session.id, "usage": usage, "memory": receipt})
            return 0
        if result.receipt is not None:
            print(f"session {session.id}: {receipt_line(result.receipt)}")
        if args.session is None:
            say(f"ask about it with: hope chat --session {session.id}")
    return 0


def read_text(name: str) -> str:
    """Return the text of a UTF-8 file, or of stdin for `-`. Raises CommandError with what is wrong with it."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
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
