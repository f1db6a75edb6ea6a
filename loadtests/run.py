"""Loads a server, checks every session afterwards, and writes a report.

    python -m loadtests.run [--model toy] [--url URL] [--shape SHAPE] [--scenario chat=3,hot] [--users N] [--seconds S]

Exit status 1 where a promise was broken: an acknowledged turn lost or learned twice, a dishonest 5xx, …
Ctrl-C ends the load early; what was seen until then is checked and reported too.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from loadtests.charts import page
from loadtests.checks import check_everything
from loadtests.ledger import Ledger, read_ledgers
from loadtests.plan import DEFAULT_SCENARIOS, SCENARIOS, Plan, parse_scenarios
from loadtests.report import Run, figures, has_passed, markdown
from loadtests.sampler import Sampler
from loadtests.server import ROOT, Served, is_ready, started
from loadtests.shapes import SHAPES
from loadtests.survey import Survey
from loadtests.swarm import LOCUST, Swarm

KEYS = "LOADTEST_API_KEYS"
"""The variable that names the API keys of a server that is not ours, comma-separated."""

_DEFAULTS = Plan("http://localhost", "")


class Interrupt:
    """Notes Ctrl-C and SIGTERM; the second one is as it always is."""

    def __init__(self) -> None:
        self.was_asked = False
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.was_asked = True
        say("ending early; the checks and the report follow (once more to leave them)")
        for each, handler in self._before.items():
            signal.signal(each, handler)


def main() -> int:
    """Run; return the exit status."""
    args = _arguments()
    interrupt = Interrupt()
    folder = Path(tempfile.mkdtemp(prefix="hope-load-"))
    out = ROOT / args.out
    try:
        # Before the seconds that a server takes to start.
        _plan(args, folder, Served("", None))
        if not args.locust.exists():
            raise RuntimeError(f"there is no {args.locust}; scripts/load.sh installs it")
        with _served(args, folder) as served:
            run = _run(args, folder, served, interrupt)
            served.stop()
            if not served.stopped_cleanly:
                run.findings.add("exits", "the server's process")
    except (RuntimeError, ValueError) as exc:
        say(str(exc))
        shutil.rmtree(folder, ignore_errors=True)
        return 2
    text = _write(run, out)
    print(text)
    say(f"report: {out / f'load-{run.name}.html'}, .md, .json")
    if has_passed(run) and not args.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        say(f"ledgers, logs and the store: {folder}")
    return 0 if has_passed(run) else 1


def _run(args: argparse.Namespace, folder: Path, served: Served, interrupt: Interrupt) -> Run:
    """Load the server, settle what was left open, look at every session, check."""
    plan = _plan(args, folder, served)
    driver = Ledger(folder / "survey.jsonl")
    survey = Survey(plan, driver)
    say(f"{plan.users} users, {plan.shape}, {plan.seconds:g} s on {plan.url} …")
    with Sampler(served.url, served.pid, served.metrics_key) as sampler:
        began = time.time()
        swarm = Swarm(plan, folder, args.locust, args.grace_seconds)
        status = swarm.wait(lambda: interrupt.was_asked or not served.is_up)
        ended = time.time()
    if not served.is_up:
        driver.fault("exits", "the server ended during the load")
    account = read_ledgers(folder)
    say(f"{len(account.turns)} turns; sending again what was not answered …")
    num_settled = survey.settle(account) if served.is_up else 0
    names = list(account.sessions())
    say(f"looking at {len(names)} sessions …")
    seen = survey.look(names) if served.is_up else {}
    survey.close()
    driver.close()
    account = read_ledgers(folder)
    if status != 0:
        account.faults.append(("surprises", f"Locust ended with status {status}: {_tail(folder / 'locust.log')}"))
    return Run(
        name=args.name or f"{args.model or 'default'}-{plan.shape}",
        plan=plan,
        model=args.model or ("of the server" if args.url else "default"),
        num_slots=args.slots,
        account=account,
        samples=sampler.samples,
        findings=check_everything(account, seen),
        began=began,
        ended=ended,
        was_stopped=interrupt.was_asked,
        num_settled=num_settled,
        locust_status=status,
    )


@contextmanager
def _served(args: argparse.Namespace, folder: Path) -> Iterator[Served]:
    """The server that was named, or one of our own."""
    if args.url is None:
        say(f"starting a server ({args.model or 'the default model'}) …")
        with started(folder, args.model, args.slots, args.tenants, on_redis=args.redis) as served:
            yield served
        return
    url = args.url.rstrip("/")
    if not is_ready(url):
        raise RuntimeError(f"no server is ready at {url}")
    keys = tuple(key for key in os.environ.get(KEYS, "").split(",") if key)
    yield Served(url, args.pid, keys, keys[0] if keys else None)


def _plan(args: argparse.Namespace, folder: Path, served: Served) -> Plan:
    return Plan(
        url=served.url,
        folder=str(folder),
        keys=served.keys,
        scenarios=parse_scenarios(args.scenario),
        shape=args.shape,
        users=args.users,
        seconds=args.seconds,
        seed=args.seed,
        sessions=args.sessions,
        max_tokens=args.max_tokens,
        think_seconds=args.think_seconds,
        document_tokens=args.document_tokens,
        piece_tokens=args.piece_tokens,
        learn_passes=args.learn_passes,
        silence_seconds=args.silence_seconds,
        processes=args.processes,
        prefix=f"{secrets.token_hex(3)}-",
    )


def _write(run: Run, out: Path) -> str:
    """Write the three reports; return the Markdown."""
    found = figures(run)
    text = markdown(found)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"load-{run.name}"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".html").write_text(page(run, text), encoding="utf-8")
    return text


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-1000:]


def say(text: str) -> None:
    """Say on stderr what is going on."""
    print(f"load: {text}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.run",
        description=str(__doc__).splitlines()[0],
        epilog="scenarios: " + "; ".join(f"{name}: {text}" for name, text in SCENARIOS.items()),
    )
    parser.add_argument("--model", help="the server's model (default: the default model; toy: a toy network)")
    parser.add_argument("--url", help=f"a running server instead of one of our own; its keys are read from {KEYS}")
    parser.add_argument("--pid", type=int, help="process of the server at --url, to sample its memory")
    parser.add_argument("--redis", action="store_true", help="keep sessions in a Redis of the run's own, not SQLite")
    parser.add_argument("--slots", type=int, default=8, help="sessions that the server holds ready (%(default)s)")
    parser.add_argument(
        "--tenants", type=int, default=2, help="API keys that are made; 0: an open server (%(default)s)"
    )
    parser.add_argument("--shape", choices=SHAPES, default=_DEFAULTS.shape, help="users over time (%(default)s)")
    parser.add_argument("--scenario", default=DEFAULT_SCENARIOS, help="scenarios and weights (%(default)s)")
    numbers = {
        "users": "users at once, at most",
        "sessions": "sessions that they have together, about",
        "seconds": "length of the load",
        "seed": "of what users say and do",
        "max_tokens": "longest reply",
        "think_seconds": "mean pause between a user's turns",
        "document_tokens": "tokens of a document that is fed",
        "piece_tokens": "tokens of one request of it",
        "learn_passes": "rehearsals of a piece; 0: the server's choice",
        "silence_seconds": "how long a client waits for a byte",
        "processes": "Locust processes that send requests",
    }
    for name, text in numbers.items():
        value = getattr(_DEFAULTS, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, type=type(value), default=value, help=f"{text} (%(default)s)")
    parser.add_argument("--grace-seconds", type=int, default=30, help="for the last turns to end (%(default)s)")
    parser.add_argument("--name", help="of the report: load-NAME (default: model and shape)")
    parser.add_argument("--out", default="bench/results", help="folder of the report (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep ledgers, logs and the store")
    parser.add_argument("--locust", type=Path, default=LOCUST, help="the program (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
