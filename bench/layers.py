"""Tokens per second of one memory layer, forward, ours over other people's. Run by `make bench-layers`.

    python bench/layers.py [--quick] [--rounds N] [--json NAME]

Every side has a process of its own with one compute thread and its own processor time as clock. A round times both
sides of a case, in turns the first to go; the figure is the ratio of a round, its median and range over the rounds.
Nothing is printed unless what we compute, on the tensors that are timed, equals a token-by-token recurrence in float64.
The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from layer_case import HEAD_DIM, NUM_HEADS, WIDTH, Case
from machine import ROOT, describe, median, say

PEERS = ROOT / ".peers" / "bin" / "python"
# A heap given back after every chunk is fetched again page by page, on every side: what is timed is arithmetic.
HEAP = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "33554432"}
GATE = 1e-4
"""Largest relative error of our float32 output: roundings of 6e-8 grow in memories that make their own keys."""


class Process:
    """One side in its own process."""

    def __init__(self, python: Path | str, words: list[str]) -> None:
        environment = os.environ | HEAP | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        folder = Path(__file__).parent
        self._process = subprocess.Popen(
            [str(python), *words], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, do: str, **facts: object) -> Any:
        """Send a request and wait for its answer. Raises RuntimeError where the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **facts}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended while it was asked to {do} {facts}; its last words are above")
        return json.loads(line)


def cases(is_quick: bool) -> list[tuple[str, Case]]:
    """The peer and the shapes of every figure."""
    out: list[tuple[str, Case]] = []
    for chunk_size in (64, 16):
        for num_rows in (1, 4):
            shapes = {"num_rows": num_rows, "num_tokens": 256 if is_quick else 512, "chunk_size": chunk_size}
            titans = (
                Case("matrix", **shapes, num_memories=1, has_momentum=True, form="renewed"),
                Case("mlp", **shapes, num_memories=1, form="renewed"),
                Case("matrix", **shapes, form="renewed"),
                Case("mlp", **shapes, form="renewed"),
                Case("matrix", **shapes),
            )
            out += [("titans-pytorch", case) for case in titans]
            out.append(("nested-learning", Case("mlp", **shapes | {"num_tokens": 128})))
    return [*out, ("nested-learning", Case("mlp", 1, 64, 64, form="wide"))]


def main() -> int:
    """Measure every case and print the table; 1 where our layer is not what it should be, 2 without the peers."""
    args = _arguments()
    if not PEERS.exists():
        print(f"{PEERS.relative_to(ROOT)} does not exist; run scripts/peers.sh")
        return 2
    chosen = [(peer, case) for peer, case in cases(args.quick) if args.peer in (None, peer)]
    rows: list[dict[str, Any]] = []
    faults: dict[str, dict[str, float | None]] = {}
    with ExitStack() as stack:
        ours = stack.enter_context(Process(sys.executable, ["layer_ours.py"]))
        peers = {
            name: stack.enter_context(Process(PEERS, ["layer_peers.py", name])) for name in {peer for peer, _ in chosen}
        }
        for peer, case in chosen:
            say(f"{peer}: {_title(case)} …")
            error = ours.ask("open", case=asdict(case))
            if not error <= GATE:
                print(f"{_title(case)}: our layer is off by {error:.1e}, the limit is {GATE:g}: nothing is measured")
                return 1
            peers[peer].ask("open", case=asdict(case))
            rows.append({"peer": peer, "case": asdict(case), "error": error} | _timed(case, ours, peers[peer], args))
        small = Case("mlp", 2, 256, 64)
        for name, process in {"hope-server": ours, **peers}.items():
            process.ask("open", case=asdict(small))
            faults[name] = process.ask("faults")
    result = describe(1) | {"dtype": "float32", "quick": args.quick, "rows": rows, "faults": faults}
    result["versions"] = dict(result["versions"]) | {name: _version(name) for name in peers}  # type: ignore[call-overload]
    _print(result, rows, faults)
    if args.json:
        path = ROOT / "bench" / "results" / f"{args.json}.json"
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half as many tokens, 3 rounds")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each case (9; with --quick 3)")
    parser.add_argument("--peer", choices=("titans-pytorch", "nested-learning"), help="compare with this one only")
    parser.add_argument("--json", metavar="NAME", help="also write bench/results/NAME.json")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 9)
    return args


def _timed(case: Case, ours: Process, theirs: Process, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of both sides, and the ratio of every round."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(args.rounds):
        sides = [("ours", ours), ("theirs", theirs)]
        for name, process in sides if number % 2 == 0 else reversed(sides):
            seconds[name].append(process.ask("time", repeats=2))
    tokens = case.num_rows * case.num_tokens
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "ours": tokens / median(seconds["ours"]),
        "theirs": tokens / median(seconds["theirs"]),
        "ratio": median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def _title(case: Case) -> str:
    words = [f"{case.num_memories} x {case.memory}"]
    words += ["momentum"] * case.has_momentum
    words += [{"renewed": "renewed each chunk", "wide": "as wide as the model", "": "as is"}[case.form]]
    return f"{', '.join(words)}; chunk {case.chunk_size}, batch {case.num_rows}, {case.num_tokens} tokens"


def _version(name: str) -> str:
    words = [str(PEERS), "-c", f"from importlib import metadata; print(metadata.version({name!r}))"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def _print(result: dict[str, object], rows: list[dict[str, Any]], faults: dict[str, dict[str, float | None]]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in dict(result["versions"]).items())  # type: ignore[call-overload]
    print(f"{result['cpu']}, {result['cores']} cores, 1 thread a side, its own processor time; {result['system']}")
    print(f"python {result['python']}, {versions}; float32; {' '.join(f'{k}={v}' for k, v in HEAP.items())}")
    print(f"commit {result['commit']}; {result['command']}")
    print(f"width {WIDTH}, {NUM_HEADS} heads x {HEAD_DIM}; one layer, forward, from an empty memory, memories written")
    print(f"largest error of ours against float64, token by token: {max(row['error'] for row in rows):.1e}")
    print("ours: 5 memories a head (keys, values, step size, retention, what is remembered), or 1 (Titans).")
    print(
        "titans-pytorch: 1 a head, written with gradients at the chunk's start (renewed each chunk), as ours are, or,"
    )
    print("as is, with gradients at the start of the whole input; nested-learning: 5, no heads: each of ours is a row.")
    print(f"\n{'tokens per second':<76}{'ours':>9}{'theirs':>9}{'ratio':>8}   least to most")
    for row in rows:
        title = f"{row['peer']}: {_title(Case(**row['case']))}"
        span = f"{row['least']:.2f} to {row['most']:.2f}"
        print(f"{title:<76}{row['ours']:>9.0f}{row['theirs']:>9.0f}{row['ratio']:>8.2f}   {span}")
    print(f"\n{'relative change of the output, when':<44}" + "".join(f"{name:>18}" for name in faults))
    for key, title in (
        ("other_rows", "the other row of its batch has another text"),
        ("split", "a text comes in two pieces, cut at a chunk"),
        ("split_inside", "a text comes in two pieces, cut in a chunk"),
    ):
        values = [found[key] for found in faults.values()]
        print(f"{title:<44}" + "".join(f"{'an error' if v is None else f'{v:.1e}':>18}" for v in values))


if __name__ == "__main__":
    sys.exit(main())
