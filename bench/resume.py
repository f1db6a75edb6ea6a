"""Measures the first token of a session that comes back from a Redis, beside reading its history again.

    PYTHONPATH=tests/support python bench/resume.py [--tokens N] [--quick] [--rounds N] [--json NAME]

A session reads a history in chat turns, learning online, and lies in a Redis of its own. Copies of it are then asked a
question when their state is in no slot, because other sessions took them all or because the server was started anew.
In the same rounds the server reads the history and the question in one prompt, without memory: what a server that
keeps nothing has to do before its first token. States held in host memory are switched off, so that a copy comes from
the store. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from asking import Asking, Heard
from growth import middle_ratio
from machine import median, say
from outcome import arguments, finish, head, print_head, target_lines
from redis_server import RedisServer
from session_turns import SessionTurns
from sides import HOPE, TOY, Served, serve_hope
from target import Target
from wording import Wording, real_model, toy_model

NUM_TOKENS, NUM_QUICK = 8192, 512
NUM_QUESTION, NUM_REPLY, NUM_ABSORBED = 32, 4, 480
NUM_SLOTS = 2
TARGETS = (
    Target("ratio_evicted", "first token, restored after eviction / after reading the history", 0.05, at_least=False),
    Target(
        "ratio_restarted", "first token, restored after a restart / after reading the history", 0.05, at_least=False
    ),
)


def main() -> int:
    """Measure and print; the exit status is 0 whatever the figures are."""
    args = _arguments()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hope-bench-")))
        redis = stack.enter_context(RedisServer(folder / "redis"))
        figures = _measure(folder, redis.url, args)
    result = head(args, dtype="float32", tokens=args.tokens, figures=figures)
    print_head(result, dict(result["versions"]))  # type: ignore[call-overload]
    print(
        f"a session of {figures['num_tokens']:.0f} tokens, {figures['state_bytes'] / 1e6:.1f} MB in a Redis on loopback"
    )
    print(f"questions of {NUM_QUESTION} tokens; without memory the prompt holds {args.tokens} tokens more\n")
    for name, title in (
        ("reread", "the history read again, no memory"),
        ("hot", "its state in a slot"),
        ("evicted", "restored: other sessions took the slots"),
        ("restarted", "restored: the server was started anew"),
    ):
        print(f"first token, {title:<44}{figures[f'{name}_seconds'] * 1e3:>10.1f} ms")
    first = figures["first_of_server_seconds"] * 1e3
    print(f"first token, {'the very first turn of the new server':<44}{first:>10.1f} ms\n")
    print("\n".join(target_lines(TARGETS, figures)))
    finish(result, args.json)
    return 0


def _arguments() -> argparse.Namespace:
    parser = arguments(str(__doc__))
    parser.add_argument("--tokens", type=int, default=0, help=f"length of the history ({NUM_TOKENS})")
    args = parser.parse_args()
    args.tokens = args.tokens or (NUM_QUICK if args.quick else NUM_TOKENS)
    args.rounds = args.rounds or (2 if args.quick else 5)
    return args


def _measure(folder: Path, store: str, args: argparse.Namespace) -> dict[str, float]:
    wording, bias, _ = toy_model() if args.quick else real_model()
    history = wording.text(args.tokens, seed=1)
    times: dict[str, list[float]] = {}
    server, asked = _start(folder, store, bias, args)
    try:
        turns = SessionTurns(asked, wording, NUM_QUESTION, NUM_REPLY, NUM_ABSORBED)
        say(f"absorbing {args.tokens} tokens …")
        turns.absorb("long", args.tokens)
        found = turns.look("long")
        for number in range(args.rounds):
            for kind in ("evicted", "restarted"):
                turns.fork("long", f"{kind}-{number}")
        for number in range(args.rounds):
            say(f"after eviction, round {number + 1} of {args.rounds} …")
            name = f"evicted-{number}"
            _ask(asked, wording, name, number, "")
            times.setdefault("hot", []).append(_ask(asked, wording, name, 50 + number, "hot").first_seconds)
            _evict(asked, wording)
            times.setdefault("evicted", []).append(_ask(asked, wording, name, 100 + number, "store").first_seconds)
            times.setdefault("reread", []).append(_reread(asked, wording, history, number))
    finally:
        server.stop()
    say("starting the server anew …")
    server, asked = _start(folder, store, bias, args)
    again: list[float] = []
    try:
        first = asked.chat(wording.text(NUM_QUESTION, seed=2), NUM_REPLY).first_seconds
        for number in range(args.rounds):
            say(f"after a restart, round {number + 1} of {args.rounds} …")
            name = f"restarted-{number}"
            times.setdefault("restarted", []).append(_ask(asked, wording, name, number, "store").first_seconds)
            again.append(_reread(asked, wording, history, 100 + number))
    finally:
        server.stop()
    figures = {f"{name}_seconds": median(values) for name, values in times.items()}
    return figures | {
        "num_tokens": float(found["num_tokens"]),
        "state_bytes": float(sum(found["state_bytes"].values())),
        "first_of_server_seconds": first,
        "reread_after_restart_seconds": median(again),
        "ratio_evicted": middle_ratio(times["evicted"], times["reread"]),
        "ratio_restarted": middle_ratio(times["restarted"], again),
    }


def _start(folder: Path, store: str, bias: dict[str, float], args: argparse.Namespace) -> tuple[Served, Asking]:
    # The keys are files that outlive the server, as the Redis does.
    flags = ["--key-file", str(folder / "hope.key"), "--key-store", str(folder / "keys.db")]
    flags += ["--num-slots", str(NUM_SLOTS), "--host-cache-bytes", "0", "--passes-user", "0"]
    server = serve_hope(folder, args.threads, flags, serve=TOY if args.quick else HOPE, store=store)
    try:
        server.wait_ready()
    except BaseException:
        server.stop()
        raise
    return server, Asking(server.url, bias)


def _ask(asked: Asking, wording: Wording, session: str, seed: int, restored: str) -> Heard:
    """Ask a session. Raises RuntimeError where its state was found elsewhere than in `restored`; empty: anywhere."""
    text = wording.text(NUM_QUESTION, seed=10_000 + seed)
    heard = asked.chat(text, NUM_REPLY, session_id=session, memory={"mode": "write"})
    found = (heard.memory or {}).get("restored_from")
    if restored and found != restored:
        raise RuntimeError(f"{session} was restored from {found}, not from {restored}; its time is another thing's")
    return heard


def _evict(asked: Asking, wording: Wording) -> None:
    """Have other sessions take every slot."""
    for number in range(NUM_SLOTS):
        _ask(asked, wording, f"other-{number}", number, "")


def _reread(asked: Asking, wording: Wording, history: str, number: int) -> float:
    """Seconds to the first token where the history stands in the prompt and nothing is remembered."""
    return asked.chat(f"{wording.text(NUM_QUESTION, seed=number)} {history}", NUM_REPLY).first_seconds


if __name__ == "__main__":
    sys.exit(main())
