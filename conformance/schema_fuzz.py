"""Sends thousands of generated requests, valid and not, to a toy server, as its OpenAPI document describes them.

    python conformance/schema_fuzz.py [--cases 10000] [--seed N]

Schemathesis makes the requests and checks every answer against the document; the server's own log tells how many there
were, how each ended and how long it took (kept as out/schema_fuzz.log). The server has an operator's limits on the
length of replies and on rehearsals, and answers with the durability that it reached. Exit status 1 for an answer that
the document does not allow, for any 5xx, or for an answer slower than LIMIT_SECONDS.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from run import ENVIRONMENTS, ROOT, free_port, wait_ready

LIMIT_SECONDS = 2.5
# What fits the document may still be refused for what is stored: a used key, a version that is gone, a damaged archive.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
)
FLAGS = (
    "--max-waiting-turns=512",
    "--max-completion-tokens=32",
    "--max-passes=3",
    "--durability-unmet=degrade",
)
# Python 3.11 raises it where deep recursion meets its compiler; Schemathesis compiles what it generates.
_TOOL_FAULT = "SystemError: AST constructor recursion depth mismatch"
_EXAMPLES = 120
_MAX_ROUNDS = 20


def main() -> int:
    """Run rounds of requests until there were enough; return the exit status."""
    args = _arguments()
    log, port = ROOT / "out" / "schema_fuzz.log", free_port()
    log.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hope-schema-") as name:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        flags = ["--port", str(port), "--store", f"{name}/sessions.db", *FLAGS]
        command = [sys.executable, "-m", "tests.chaos.server", *flags]
        with log.open("wb") as output:
            server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_ready(url, server, log)
            status, requests = 0, []
            for round_number in range(_MAX_ROUNDS):
                status = _round(url, args.seed + round_number) or status
                requests = _requests(log)
                print(f"round {round_number + 1}: {len(requests):,} requests so far", flush=True)
                if status or len(requests) >= args.cases:
                    break
        finally:
            server.terminate()
            server.wait(30)
    return _report(requests, status, args.cases)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="how many requests at least (10000)")
    parser.add_argument("--seed", type=int, default=1, help="of the generated requests (1)")
    return parser.parse_args()


def _round(url: str, seed: int) -> int:
    """Let Schemathesis send one round; returns its exit status."""
    program = ENVIRONMENTS / "schemathesis" / "bin" / "schemathesis"
    options = ["--checks", CHECKS, "--max-response-time", str(LIMIT_SECONDS), "--max-examples", str(_EXAMPLES)]
    options += ["--phases", "examples,coverage,fuzzing", "--seed", str(seed), "--workers", "2", "--continue-on-failure"]
    options += ["--suppress-health-check", "all", "--warnings", "off", "--no-color"]
    command = [str(program), "run", f"{url}/openapi.json", *options]
    with tempfile.TemporaryDirectory(prefix="hope-schemathesis-") as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    report = ROOT / "out" / f"schemathesis-{seed}.txt"
    report.write_text(done.stdout + done.stderr, encoding="utf-8")
    if (
        done.returncode
        and _TOOL_FAULT in done.stdout
        and "Runtime Error: 1\n" in done.stdout
        and "ST1" not in done.stdout
    ):
        print(f"Schemathesis met a fault of Python's in its own generator, and no other: {report.relative_to(ROOT)}")
        return 0
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-2000:], f"the whole report: {report.relative_to(ROOT)}", sep="\n")
    return done.returncode


def _requests(log: Path) -> list[dict[str, Any]]:
    """What the server logged of each request."""
    found = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("{"):
            record = json.loads(line)
            if record.get("event") == "request":
                found.append(record)
    return found


def _report(requests: list[dict[str, Any]], status: int, wanted: int) -> int:
    """Print what came of the requests; returns the exit status."""
    routes: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for record in requests:
        # Methods that a route does not have are one line together.
        known = record["status"] != 405
        routes[f"{record['method']} {record['route']}" if known else "any other method"].append(record)
    print(f"\n{'route':<52}{'requests':>9}{'2xx':>7}{'4xx':>7}{'5xx':>5}{'slowest s':>11}")
    for route, records in sorted(routes.items()):
        kinds = collections.Counter(int(record["status"] or 0) // 100 for record in records)
        slowest = max(float(record["seconds"]) for record in records)
        print(f"{route:<52}{len(records):>9}{kinds[2]:>7}{kinds[4]:>7}{kinds[5]:>5}{slowest:>11.2f}")
    failed = [record for record in requests if int(record["status"] or 0) >= 500]
    slow = [record for record in requests if float(record["seconds"]) > LIMIT_SECONDS]
    print(f"\n{len(requests):,} requests, {len(failed)} of them 5xx, {len(slow)} slower than {LIMIT_SECONDS} s")
    for record in failed[:5] + slow[:5]:
        print(json.dumps(record))
    if len(requests) < wanted:
        print(f"fewer than the {wanted:,} that were wanted")
    print("PASS" if not (status or failed or slow or len(requests) < wanted) else "FAIL")
    return 1 if status or failed or slow or len(requests) < wanted else 0


if __name__ == "__main__":
    sys.exit(main())
