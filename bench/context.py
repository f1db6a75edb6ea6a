"""Measures one session from 1,024 tokens absorbed to 65,536 or more, beside peers that read it all again each turn.

    python bench/context.py [--most N] [--passes N] [--folder F] [--no-peers] [--quick] [--rounds N] [--json NAME]

The session absorbs chat turns over HTTP from a `hope serve`, its online level learning all of them. At each doubling,
turns of fixed length on a fork of it alternate with turns on a fork kept from the first length, so that a ratio is of
values taken side by side. Up to `--most-peers` tokens transformers and vLLM take turns in the same rounds, with the
same weights, type and threads, and the whole history in the prompt; every side stands still while another computes.
With `--folder` what was measured stays there, and the same command goes on where it ended.
The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from asking import Asking
from context_peers import NAMES, Peers
from context_report import figures_of, print_report
from growth import doubled
from machine import say
from outcome import arguments, finish, head
from session_turns import SessionTurns
from sides import HOPE, NO_VLLM, TOY, Served, has_vllm, serve_hope, vllm_versions
from wording import real_model, toy_model

FIRST, MOST, MOST_PEERS = 1024, 65_536, 8192
NUM_QUESTION, NUM_REPLY, NUM_ABSORBED = 32, 64, 480
QUICK = {"most": 512, "first": 256}
REST_SECONDS = 1.0
"""Until what the last commits needed is handed back: resident memory is of a server at rest."""
# Two sessions are compared, so two slots; what lies in host memory beside them would grow with the number of turns.
FLAGS = ("--num-slots", "2", "--host-cache-bytes", "0")


def main() -> int:
    """Measure and print; 2 where vLLM is missing or `--folder` holds another run."""
    args = _arguments()
    if not args.no_peers and not has_vllm():
        print(NO_VLLM)
        return 2
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hope-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        if (reason := _differs(folder, args)) is not None:
            print(reason)
            return 2
        rows = _measure(stack, folder, args)
    versions = {} if args.no_peers else vllm_versions()
    figures = figures_of(rows)
    result = head(
        args, dtype=args.dtype, passes=args.passes, first=args.first, peers=versions, rows=rows, figures=figures
    )
    print_report(result, rows, figures)
    finish(result, args.json)
    return 0


def _arguments() -> argparse.Namespace:
    parser = arguments(str(__doc__))
    parser.add_argument("--most", type=int, default=MOST, help="tokens that the session absorbs")
    parser.add_argument("--most-peers", type=int, default=MOST_PEERS, help="longest history that peers read")
    parser.add_argument(
        "--passes", type=int, default=0, help="rehearsals of what is absorbed, 0: the online level alone"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="weights of every side")
    parser.add_argument("--folder", type=Path, help="keep the session and what was measured here, and go on from it")
    parser.add_argument("--no-peers", action="store_true", help="leave transformers and vLLM out")
    args = parser.parse_args()
    args.first = QUICK["first"] if args.quick else FIRST
    if args.quick:
        args.most, args.no_peers = min(args.most, QUICK["most"]), True
    args.rounds = args.rounds or (2 if args.quick else 5)
    if args.most < args.first or args.passes < 0:
        parser.error(f"--most must be at least {args.first} and --passes not negative")
    return args


def _differs(folder: Path, args: argparse.Namespace) -> str | None:
    """Note what the folder's run is of; a sentence where it is of something else already."""
    names = ("quick", "rounds", "threads", "passes", "dtype", "no_peers", "most_peers")
    facts = {name: getattr(args, name) for name in names}
    path = folder / "run.json"
    if not path.exists():
        path.write_text(json.dumps(facts), encoding="utf-8")
    kept = json.loads(path.read_text(encoding="utf-8"))
    changed = [f"{name} {kept.get(name)}" for name in names if kept.get(name) != facts[name]]
    return (
        f"{folder} holds a run with {', '.join(changed)}; go on with that, or name another folder" if changed else None
    )


def _measure(stack: ExitStack, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = read_rows(folder / "rows.jsonl")
    missing = [length for length in doubled(args.first, args.most) if length not in {row["length"] for row in rows}]
    if not missing:
        return rows
    wording, bias, model = toy_model() if args.quick else real_model()
    flags = [*FLAGS, "--passes-user", str(args.passes)]
    if args.dtype != "float32":
        flags += ["--dtype", args.dtype]
    say("starting our server …")
    server = serve_hope(folder, args.threads, flags, serve=TOY if args.quick else HOPE)
    stack.enter_context(server)
    server.wait_ready()
    turns = SessionTurns(Asking(server.url, bias), wording, NUM_QUESTION, NUM_REPLY, NUM_ABSORBED)
    server.pause()
    peers: Peers | None = None
    for length in missing:
        wanted = not args.no_peers and length <= args.most_peers
        if wanted and peers is None:
            assert model is not None
            peers = stack.enter_context(Peers(model, folder, wording, args.threads, args.dtype, args.most_peers))
        if not wanted and peers is not None:
            peers.__exit__(None, None, None)
            peers = None
        row = _row(length, server, turns, peers, args)
        rows.append(row)
        with (folder / "rows.jsonl").open("a", encoding="utf-8") as kept:
            kept.write(json.dumps(row) + "\n")
    return rows


def _row(
    length: int, server: Served, turns: SessionTurns, peers: Peers | None, args: argparse.Namespace
) -> dict[str, Any]:
    """Let the session grow to `length`, and measure it there."""
    say(f"absorbing up to {length} tokens …")
    with server.awake():
        seconds = turns.absorb("long", length)
        if length == args.first:
            turns.fork("long", "near")
        info = turns.look("long")
        forks = {"near": turns.begin("near", length), "far": turns.begin("long", length)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("near", "far", *(NAMES if peers else ()))}
    for number in range(args.rounds):
        say(f"{length} tokens, round {number + 1} of {args.rounds} …")
        with server.awake():
            # In turns the first to go.
            for name in sorted(forks, reverse=number % 2 == 1):
                found[name].append(turns.timed(forks[name], seed=number))
        if peers is not None:
            for name, turn in peers.timed(length, NUM_QUESTION, NUM_REPLY, seed=1000 * length + 10 * number).items():
                found[name].append(turn)
    with server.awake():
        for fork in forks.values():
            turns.forget(fork)
        time.sleep(REST_SECONDS)
        rss = server.resident_bytes()
    parts = info["state_bytes"]
    return {
        "length": length,
        "num_tokens": info["num_tokens"],
        "absorbed_seconds": seconds,
        "process": os.getpid(),
        "rss_bytes": rss,
        "state_bytes": sum(parts.values()),
        "parts": parts,
        "turns": {name: _columns(values) for name, values in found.items()},
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return what was measured before; a last line that was cut off is left out, and measured again."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _columns(turns: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [turn[name] for turn in turns] for name in ("first", "token", "turn")}


if __name__ == "__main__":
    sys.exit(main())
