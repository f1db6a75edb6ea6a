"""`hope eval TASK`: train and measure families on a task, and write the report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from hope_server.cli.console import CommandError, say

_MAX_JOBS = 256
_FOLDERS = frozenset({"--work", "--out", "--weights"})


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hope eval`."""
    parser.add_argument("task", metavar="TASK", nargs="?", help="what to measure (default: list the tasks)")
    parser.add_argument("--quick", action="store_true", help="a small version in under a minute, from shipped weights")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each family (default: 3)")
    parser.add_argument(
        "--families", metavar="A,B", help="families, variants or optimizers to run (default: the task's)"
    )
    parser.add_argument("--parts", metavar="A,B", help="parts of the task to run (default: all)")
    parser.add_argument("--lengths", metavar="N,M", help="test lengths in tokens (default: the task's)")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="updates of a training (default: the task's)")
    parser.add_argument("--model", default="", metavar="NAME", help="model to measure, for perplexity and dialogue")
    parser.add_argument("--text", default="", metavar="FILE", help="UTF-8 text, for perplexity, ablation, optimizers")
    parser.add_argument(
        "--out", default="docs/results", metavar="DIR", help="folder of reports (default: docs/results)"
    )
    parser.add_argument("--work", metavar="DIR", help="folder of finished cells (default: eval in HOPE_CACHE_DIR)")
    parser.add_argument("--fresh", action="store_true", help="run finished cells again")
    parser.add_argument("--keep", action="store_true", help="ship the first seed's weights for --quick")
    parser.add_argument("--weights", metavar="DIR", help="folder of shipped weights (default: the package's)")
    parser.add_argument("--no-plot", action="store_true", help="write no plot")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at once, one thread each (default: 1)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda (default: cpu)")
    parser.set_defaults(run=run_eval)


def run_eval(args: argparse.Namespace) -> int:
    """Run one task; the table goes to stdout, progress to stderr. Raises CommandError."""
    from hope_server.evaluation.registry import TASKS

    if args.task is None:
        print("\n".join(f"{name:12} {text}" for name, text in TASKS.items()))
        return 0
    if args.task not in TASKS:
        raise CommandError(f"there is no task {args.task!r}; valid are {', '.join(TASKS)}", 2)
    if args.seeds < 1 or args.steps < 0 or not 1 <= args.jobs <= _MAX_JOBS:
        raise CommandError(f"--seeds must be at least 1, --steps not negative, --jobs 1 to {_MAX_JOBS}", 2)

    import torch

    from hope_server.evaluation.outcome import Options
    from hope_server.evaluation.report import table
    from hope_server.evaluation.runner import evaluate
    from hope_server.evaluation.weights import FOLDER

    if args.device != "cpu" and not (args.device.startswith("cuda") and torch.cuda.is_available()):
        raise CommandError(f"the device {args.device!r} is not there; valid here: cpu", 2)
    torch.set_num_threads(1)
    options = Options(
        task=args.task,
        out=Path(args.out),
        work=_work_folder(args.work),
        weights=Path(args.weights) if args.weights else FOLDER,
        seeds=tuple(range(args.seeds)),
        columns=_names(args.families),
        parts=_names(args.parts),
        lengths=_lengths(args.lengths),
        steps=args.steps,
        is_quick=args.quick,
        is_fresh=args.fresh or args.quick,
        keeps_weights=args.keep,
        plots=not args.no_plot,
        jobs=args.jobs,
        device=args.device,
        model=args.model,
        text=args.text,
        command=shlex.join(["hope", *shareable(sys.argv[1:])]),
    )
    try:
        report, paths = evaluate(options, say)
    except ValueError as exc:
        raise CommandError(str(exc), 2) from exc
    print("\n".join(table(report.suite, report.outcomes)))
    say(f"written: {', '.join(map(str, paths))}")
    return 0


def shareable(words: list[str]) -> list[str]:
    """The words of a command line without folders, which are those of one machine."""
    kept, is_value = [], False
    for word in words:
        name, _, value = word.partition("=")
        if not is_value and name not in _FOLDERS:
            kept.append(word)
        is_value = not is_value and name in _FOLDERS and not value
    return kept


def _work_folder(given: str | None) -> Path:
    cache = os.environ.get("HOPE_CACHE_DIR") or "~/.cache/hope"
    return Path(given) if given else Path(cache).expanduser() / "eval"


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _lengths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as exc:
        raise CommandError(f"--lengths {text!r} are not whole numbers with commas between them", 2) from exc
