"""Plants every fault of the list, each in a copy of the tree, and demands that the tests notice.

    python -m tests.mutants.run [--only NAME …] [--jobs N] [--list]

The named tests must pass on an untouched copy first. Exit status 1 where a fault survives, 2 where one does not fit the
source any more or the tests cannot be run; the working tree is never changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant, PatchError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 300
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "results")
_PASSED, _FAILED = 0, 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one planted fault: verdict "killed", "SURVIVED" or "BROKEN", and what shows it."""

    mutant: Mutant
    verdict: str
    seconds: float
    shown_by: str


def main() -> int:
    """Run the chosen mutants, print the table, return the exit status."""
    args = _arguments()
    chosen = [mutant for mutant in MUTANTS if not args.only or mutant.name in args.only]
    if unknown := set(args.only) - {mutant.name for mutant in MUTANTS}:
        print(f"mutants: no mutant is called {', '.join(sorted(unknown))}; --list names them")
        return 2
    if args.list:
        print("\n".join(f"{mutant.name:<42}{mutant.meaning}" for mutant in chosen))
        return 0
    print(f"mutants: the tests without any fault ({len(chosen)} mutants follow) …", flush=True)
    code, output = _run_tests(None, sorted({test for mutant in chosen for test in mutant.tests}))
    if code != _PASSED:
        print(f"{output}\nmutants: these tests must pass before faults are planted")
        return 2
    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = list(pool.map(_try, chosen))
    print(f"\n{'planted fault':<42}{'verdict':<10}{'s':>6}  shown by")
    for outcome in outcomes:
        print(f"{outcome.mutant.name:<42}{outcome.verdict:<10}{outcome.seconds:>6.1f}  {outcome.shown_by}")
    num_killed = sum(outcome.verdict == "killed" for outcome in outcomes)
    print(f"\n{num_killed} of {len(outcomes)} killed")
    if any(outcome.verdict == "BROKEN" for outcome in outcomes):
        return 2
    return 0 if num_killed == len(outcomes) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="plant these faults only")
    parser.add_argument("--jobs", type=int, default=1, help="faults tried at once")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    return parser.parse_args()


def _try(mutant: Mutant) -> Outcome:
    began = time.monotonic()
    try:
        code, output = _run_tests(mutant, mutant.tests)
    except PatchError as exc:
        return Outcome(mutant, "BROKEN", time.monotonic() - began, str(exc))
    seconds = time.monotonic() - began
    failed = re.findall(r"^FAILED (\S+)", output, re.MULTILINE)
    if code == _PASSED:
        outcome = Outcome(mutant, "SURVIVED", seconds, f"not noticed by {', '.join(mutant.tests)}")
    elif code == _FAILED and failed:
        outcome = Outcome(mutant, "killed", seconds, failed[0])
    else:
        # Tests that cannot even be collected notice nothing: the fault was planted badly.
        last = [line for line in output.splitlines() if line.strip()][-1:]
        outcome = Outcome(mutant, "BROKEN", seconds, f"pytest ended with status {code}: {' '.join(last)}")
    print(f"{outcome.verdict:<10}{mutant.name}", flush=True)
    return outcome


def _run_tests(mutant: Mutant | None, tests: Iterable[str]) -> tuple[int, str]:
    """Run tests in a fresh copy of the tree, with the fault planted; returns pytest's status and output."""
    with tempfile.TemporaryDirectory(prefix="hope-mutant-") as name:
        copy = Path(name) / "tree"
        shutil.copytree(ROOT, copy, ignore=_NOT_COPIED)
        if mutant is not None:
            mutant.apply(copy)
        folders = [str(copy / folder) for folder in (".", "kernels", "memory_store", "clients")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
        _check_copy_is_used(copy, environment)
        # A cluster runs the same scripts, and takes longer to start than most faults take to be found.
        options = ("-x", "-q", "-p", "no:cacheprovider", "--timeout=60", "-m", "not slow", "-k", "not redis_cluster")
        command = [sys.executable, "-m", "pytest", *options, *tests]
        return _finished(command, copy, environment)


def _check_copy_is_used(copy: Path, environment: dict[str, str]) -> None:
    """Make sure that an installed tree does not come before the copy."""
    command = [sys.executable, "-c", "import hope_memory; print(hope_memory.__file__)"]
    found = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if found.returncode == 0 and not found.stdout.startswith(str(copy)):
        raise RuntimeError(f"the tests would use {found.stdout.strip()}, not the copy with the fault")


def _finished(command: Sequence[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end after {LIMIT_SECONDS} s"
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
