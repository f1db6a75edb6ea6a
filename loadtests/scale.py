"""Loads several servers behind a router while servers and nodes of their Redis Cluster die, then checks every session.

    python -m loadtests.scale [--model toy] [--router vllm|nginx|envoy] [--servers N] [--users N] [--seconds S]

Exit status 1 where a promise was broken: an acknowledged turn lost or learned twice, an answer from an old version, a
moved session that says another thing than one that stayed.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from hope_server.capacity.constants import load_constants
from hope_server.errors import HopeError
from loadtests.checks import check_everything
from loadtests.cores import cores_of_others
from loadtests.faults import FaultThread, plan_faults
from loadtests.fleet import Fleet
from loadtests.forecast import forecast
from loadtests.http_client import BROKEN
from loadtests.ledger import Account, Ledger, read_ledgers
from loadtests.moves import compare_moves
from loadtests.plan import SCENARIOS, Plan, parse_scenarios
from loadtests.report import Run, has_passed
from loadtests.routers import PASSES_ALL, ROUTERS, version_of
from loadtests.run import Interrupt, say
from loadtests.sampler import Samples
from loadtests.scale_report import Scale, report
from loadtests.server import ROOT, TOY
from loadtests.survey import Survey
from loadtests.swarm import LOCUST, Swarm

_CHATS = "chat=8,many=8,hot=2,disconnect=6,retry=4,edit=4,look=4"
_ALL = f"{_CHATS},learn=1,fork=2,tenants=2"


def main() -> int:
    """Run; return the exit status."""
    args = _arguments()
    interrupt = Interrupt()
    folder = Path(tempfile.mkdtemp(prefix="hope-scale-"))
    try:
        if not args.locust.exists():
            raise RuntimeError(f"there is no {args.locust}; scripts/load.sh installs it")
        model = args.model or "the default model"
        say(f"starting {args.servers} servers ({model}), six nodes of Redis, {args.router} …")
        fleet = Fleet(folder, args.model, args.servers, args.slots, args.router)
        with fleet:
            run, scale = _run(args, folder, fleet, interrupt)
        for name in fleet.unclean:
            run.findings.add("exits", f"{name} did not end well when it was told to")
    except (RuntimeError, ValueError, HopeError, *BROKEN) as exc:
        say(f"{type(exc).__name__}: {exc}")
        say(f"logs: {folder}")
        return 2
    text = _write(run, scale, ROOT / args.out)
    print(text)
    if has_passed(run) and not args.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        say(f"ledgers, logs and the store: {folder}")
    return 0 if has_passed(run) else 1


def _run(args: argparse.Namespace, folder: Path, fleet: Fleet, interrupt: Interrupt) -> tuple[Run, Scale]:
    """Load, mend, settle, look, compare."""
    plan = _plan(args, folder, fleet)
    faults = [] if args.no_faults else plan_faults(plan.seconds, args.servers, 3, plan.seed)
    driver = Ledger(folder / "survey.jsonl")
    say(f"{plan.users} users for {plan.seconds:g} s, {len(faults)} faults …")
    with FaultThread(faults, fleet.begin) as breaking:
        began, times_before = time.time(), fleet.core_times()
        swarm = Swarm(plan, folder, args.locust, args.grace_seconds)
        status = swarm.wait(lambda: interrupt.was_asked or breaking.error is not None)
        ended, times_after = time.time(), fleet.core_times()
    if breaking.error is not None:
        raise RuntimeError(f"what was broken could not be mended: {breaking.error}")
    for name in fleet.ended():
        driver.fault("exits", f"{name} ended by itself")
    fleet.cluster.wait_until_whole()
    account = read_ledgers(folder)
    # Straight to a server: not every router passes these paths on.
    survey = Survey(replace(plan, url=fleet.servers[0].url), driver)
    say(f"{len(account.turns)} turns; sending again what was not answered …")
    num_settled = survey.settle(account)
    names = list(account.sessions())
    say(f"looking at {len(names)} sessions …")
    seen = survey.look(names)
    survey.close()
    held, bytes_before = fleet.store_bytes()
    say("comparing sessions that move with sessions that stay …")
    urls = [server.url for server in fleet.servers]
    moves = compare_moves(urls, fleet.keys[0], args.moved_sessions, args.moved_turns, plan.prefix)
    _, bytes_after = fleet.store_bytes()
    driver.close()
    account = read_ledgers(folder)
    router_errors = _set_router_errors_apart(account)
    if status != 0:
        account.faults.append(("surprises", f"Locust ended with status {status}"))
    findings = check_everything(account, seen)
    for what in moves.stale:
        findings.add("stale", what)
    for what in moves.differences:
        findings.add("moved", what)
    if moves.num_moves == 0:
        findings.add("moved", "no session was found in the store: none had moved")
    run = Run(
        name=args.name or f"{args.model or 'default'}-{args.router}",
        plan=plan,
        model=args.model or "default",
        num_slots=args.slots,
        account=account,
        samples=Samples(),
        findings=findings,
        began=began,
        ended=ended,
        was_stopped=interrupt.was_asked,
        num_settled=num_settled,
        locust_status=status,
    )
    expected = None
    if args.constants is not None:
        others = cores_of_others(times_before, times_after)
        expected = forecast(run, load_constants(args.constants), args.servers, os.cpu_count() or 1, others)
    router = version_of(args.router)
    return run, Scale(
        router, args.servers, breaking.noted, router_errors, held, bytes_after - bytes_before, moves, expected
    )


def _set_router_errors_apart(account: Account) -> int:
    """Take out of the dishonest answers those that no server of ours gave: ours all have an error object."""
    ours = [what for what in account.dishonest if not what.endswith("no error object")]
    num_others = len(account.dishonest) - len(ours)
    account.dishonest[:] = ours
    return num_others


def _plan(args: argparse.Namespace, folder: Path, fleet: Fleet) -> Plan:
    scenario = args.scenario or (_ALL if args.router in PASSES_ALL else _CHATS)
    return Plan(
        url=fleet.router.url,
        folder=str(folder),
        keys=fleet.keys,
        scenarios=parse_scenarios(scenario),
        users=args.users,
        seconds=args.seconds,
        seed=args.seed,
        sessions=args.sessions,
        max_tokens=args.max_tokens,
        think_seconds=args.think_seconds,
        prefix=f"{secrets.token_hex(3)}-",
    )


def _write(run: Run, scale: Scale, out: Path) -> str:
    found, text = report(run, scale)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"scale-{run.name}"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    say(f"report: {stem.with_suffix('.md')}, .json")
    return text


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scale",
        description=str(__doc__).splitlines()[0],
        epilog="scenarios: " + "; ".join(f"{name}: {text}" for name, text in SCENARIOS.items()),
    )
    parser.add_argument("--model", help=f"the servers' model (default: the default model; {TOY}: a toy network)")
    parser.add_argument("--router", choices=ROUTERS, default="vllm", help="what stands before them (%(default)s)")
    parser.add_argument("--scenario", default="", help=f"scenarios and weights ({_CHATS}; more where the router can)")
    numbers = {
        "servers": (3, "servers"),
        "slots": (8, "sessions that each holds ready"),
        "users": (40, "users at once"),
        "sessions": (100, "sessions that they have together, about"),
        "seconds": (180.0, "length of the load"),
        "seed": (1, "of what users say and of what goes wrong"),
        "max_tokens": (24, "longest reply"),
        "think_seconds": (3.0, "mean pause between a user's turns"),
        "moved_sessions": (2, "sessions that move after the load, and as many that stay"),
        "moved_turns": (7, "turns of each of them"),
        "grace_seconds": (60, "for the last turns to end"),
    }
    for name, (value, text) in numbers.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, type=type(value), default=value, help=f"{text} (%(default)s)")
    parser.add_argument("--no-faults", action="store_true", help="let everything live")
    parser.add_argument(
        "--constants", type=Path, metavar="FILE", help="simulate the run from these, of `make bench-capacity`"
    )
    parser.add_argument("--name", help="of the report: scale-NAME (default: model and router)")
    parser.add_argument("--out", default="bench/results", help="folder of the report (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep ledgers, logs and the store")
    parser.add_argument("--locust", type=Path, default=LOCUST, help="the program (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
