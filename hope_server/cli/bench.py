"""`hope bench learning`: measures what sessions learn, keep and harm, over HTTP against a real server."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from hope_server.cli.console import CommandError, default_key, print_json, say
from hope_server.cli.evaluate import shareable

_MAX_SEEDS = 1000
_MAX_ITEMS = 500
_MAX_DELAY = 32_768


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hope bench`."""
    benches = parser.add_subparsers(title="benches", required=True, metavar="BENCH")
    learning = benches.add_parser("learning", help="what sessions learn, keep and harm", allow_abbrev=False)
    learning.add_argument("--seeds", type=int, metavar="N", help="rounds of fresh facts (default: 5; with --quick 1)")
    learning.add_argument("--seed-start", type=int, default=0, metavar="S", help="the first seed (default: 0)")
    learning.add_argument("--parts", metavar="A,B", help="parts to run (default: all)")
    learning.add_argument("--quick", action="store_true", help="8 facts, one seed, no baselines: minutes, not hours")
    learning.add_argument(
        "--choice-items", type=int, metavar="N", help="items of each multiple-choice set (default: 100; --quick: 20)"
    )
    learning.add_argument(
        "--delays", metavar="N,N", help="tokens read before asking again (default: 2048,8192,32768; --quick: 2048,8192)"
    )
    learning.add_argument("--baselines", metavar="A,B", help="what to compare with (default: all)")
    learning.add_argument("--no-baselines", action="store_true", help="compare with nothing")
    learning.add_argument("--url", default="", help="measure this server (default: one of our own, on an empty store)")
    learning.add_argument("--api-key", default=default_key(os.environ), metavar="KEY", help="API key for --url")
    learning.add_argument(
        "--out", default="docs/results", metavar="DIR", help="folder of the report (default: docs/results)"
    )
    learning.add_argument("--work", metavar="DIR", help="folder of finished parts (default: bench in HOPE_CACHE_DIR)")
    learning.add_argument("--fresh", action="store_true", help="run finished parts again")
    learning.add_argument("--json", action="store_true", help="write the figures as one line of JSON at the end")
    learning.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> int:
    """Run the bench; tables go to stdout, progress to stderr. Raises CommandError."""
    from hope_server.evaluation.learning_trials import PARTS

    seeds = args.seeds if args.seeds is not None else 1 if args.quick else 5
    if not 1 <= seeds <= _MAX_SEEDS or args.seed_start < 0:
        raise CommandError(f"--seeds must be 1 to {_MAX_SEEDS} and --seed-start not negative", 2)
    items = args.choice_items if args.choice_items is not None else 20 if args.quick else 100
    if not 1 <= items <= _MAX_ITEMS:
        raise CommandError(f"--choice-items must be 1 to {_MAX_ITEMS}", 2)
    delays = None if args.delays is None else _delays(args.delays)
    parts = _chosen("part", args.parts, tuple(PARTS))
    if args.url and not args.url.startswith(("http://", "https://")):
        raise CommandError(f"--url {args.url!r} must begin with http:// or https://", 2)

    from hope_server.evaluation.learning_baselines import BASELINES
    from hope_server.evaluation.learning_bench import LearningOptions, run_learning
    from hope_server.evaluation.learning_report import lines, summary, write_learning_report
    from hope_server.evaluation.learning_trials import Sizes

    sizes = Sizes.quick(items) if args.quick else Sizes(choices=items)
    no_baselines = args.no_baselines or (args.baselines is None and (args.quick or bool(args.url)))
    cache_dir = Path(os.environ.get("HOPE_CACHE_DIR") or "~/.cache/hope").expanduser()
    options = LearningOptions(
        seeds=tuple(range(args.seed_start, args.seed_start + seeds)),
        parts=parts,
        baselines=() if no_baselines else _chosen("baseline", args.baselines, tuple(BASELINES)),
        sizes=sizes if delays is None else replace(sizes, delays=delays),
        out=Path(args.out),
        work=Path(args.work) if args.work else cache_dir / "bench",
        cache_dir=cache_dir,
        url=args.url,
        api_key=args.api_key,
        is_quick=args.quick,
        is_fresh=args.fresh,
        command=shlex.join(["hope", *_without_key(shareable(sys.argv[1:]))]),
    )
    found = run_learning(options, say)
    print("\n".join(lines(options, found)))
    say(f"written: {', '.join(map(str, write_learning_report(options, found)))}")
    if args.json:
        print_json(summary(options, found))
    return 0


def _without_key(words: list[str]) -> list[str]:
    """The words of a command line without an API key, which no report may tell."""
    kept = [word for word in words if not word.startswith("--api-key=")]
    while "--api-key" in kept:
        place = kept.index("--api-key")
        del kept[place : place + 2]
    return kept


def _delays(text: str) -> tuple[int, ...]:
    """Numbers of tokens, each more than the one before it."""
    words = [word.strip() for word in text.split(",")]
    delays = tuple(int(word) if word.isascii() and word.isdecimal() else 0 for word in words)
    if not all(1 <= delay <= _MAX_DELAY for delay in delays) or any(a >= b for a, b in pairwise(delays)):
        raise CommandError(f"--delays must be rising numbers of tokens, 1 to {_MAX_DELAY:,}, not {text!r}", 2)
    return delays


def _chosen(what: str, text: str | None, valid: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return valid
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in valid]
    if unknown or not names:
        raise CommandError(f"there is no {what} {(unknown or [text])[0]!r}; valid are {', '.join(valid)}", 2)
    return tuple(name for name in valid if name in names)
