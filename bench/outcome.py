"""Prints what a long bench found, and keeps it as one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from machine import ROOT, describe, say
from target import Target


def arguments(duty: str) -> argparse.ArgumentParser:
    """The arguments that all long benches take."""
    # Servers are ended at the end of their blocks, which a signal must reach too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=duty.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a toy model, short texts, no peers: shows that it runs")
    parser.add_argument("--rounds", type=int, default=0, help="repeats of each figure (5; with --quick 2)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="compute threads of every side")
    parser.add_argument("--json", metavar="NAME", help="also write bench/results/NAME.json")
    return parser


def head(args: argparse.Namespace, **more: object) -> dict[str, object]:
    """What the run is of: machine, versions, commit, command, and `more`."""
    return {**describe(args.threads), "quick": args.quick, "rounds": args.rounds, **more}


def print_head(result: Mapping[str, object], versions: Mapping[str, str]) -> None:
    """Print what was measured on what."""
    print(f"{result['cpu']}, {result['cores']} cores, {result['threads']} threads a side; {result['system']}")
    print(f"python {result['python']}, {', '.join(f'{name} {version}' for name, version in versions.items())}")
    print(f"commit {result['commit']}; {result['command']}")
    if result["quick"]:
        print("a toy model or short texts: the figures show that the bench runs, and nothing else")


def target_lines(targets: Sequence[Target], figures: Mapping[str, float]) -> list[str]:
    """Return a line for every target: reached, missed, or not measured."""
    return [
        target.line(figures[target.name])[1] if target.name in figures else f"no figure {target.meaning}"
        for target in targets
    ]


def finish(result: Mapping[str, object], name: str | None) -> None:
    """Write the result where a name is given, and print it on one line."""
    if name:
        path = ROOT / "bench" / "results" / f"{Path(name).stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        say(f"wrote {path.relative_to(ROOT)}")
    print(json.dumps(result))
