"""The operators on a CPU, one thread: each over its slower forms and over a peer's. Run by `make bench-kernels`.

    python bench/kernels.py [--quick] [--rounds N] [--json NAME]

Sides are timed in turns, the first to go changing from round to round, by their own processor time; the figure is the
ratio of a round, its median and range over the rounds. Nothing is timed before what is computed, on the very tensors,
equals float64. "of sgemm" is what the operator's own products take of the rate at which the same processor multiplies
large matrices (`arithmetic.py`), and in brackets what the target would take. The last line of the output is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from arithmetic import flops_of_head, sgemm_seconds
from hope_kernels import native
from kernel_parts import GATE, Forms, MemoryCase, Network, Reads, seconds
from layer_case import HEAD_DIM, NUM_HEADS, Case
from layers import PEERS, Process
from machine import ROOT, describe, median, say, version

TARGETS = {"recurrence": 15.0, "eager": 3.0, "titans-pytorch": 8.0, "bandwidth": 0.6, "memories": 0.3}


def main() -> int:
    """Measure everything and print it; 1 where something is not what float64 says, 2 without compiler or peers."""
    args = _arguments()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if native.library() is None:
        print("there is no C++ compiler: nothing to measure")
        return 2
    if not PEERS.exists():
        print(f"{PEERS.relative_to(ROOT)} does not exist; run scripts/peers.sh")
        return 2
    rows: list[dict[str, Any]] = []
    for measure in (_forms, _peers, _reads, _network):
        for row in measure(args):
            if not row.get("error", 0.0) <= GATE:
                print(f"{row['title']}: off by {row['error']:.1e} from float64, the limit is {GATE:g}")
                return 1
            rows.append(row)
    result = describe(1) | {"instructions": native.variant(), "quick": args.quick, "rows": rows}
    _print(result, rows)
    if args.json:
        path = ROOT / "bench" / "results" / f"{args.json}.json"
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds, half as many tokens")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each case (9; with --quick 3)")
    parser.add_argument("--json", metavar="NAME", help="also write bench/results/NAME.json")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 9)
    return args


def _in_turns(rounds: int, sides: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of every side in every round, after one run of each that does not count."""
    for run in sides.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            taken[name].append(sides[name]())
    return taken


def _row(title: str, target: str, ours: list[float], theirs: list[float], work: float, unit: str) -> dict[str, Any]:
    """One figure: how many times as fast ours is. work: what one run does, in units."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "title": title,
        "over": target,
        "ours": work / median(ours),
        "theirs": work / median(theirs),
        "unit": unit,
        "ratio": median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def _share(row: dict[str, Any], flops: float, sgemm: list[float]) -> dict[str, Any]:
    """What of this processor's rate of large products the figure takes, and what its target would."""
    rate = 2 * 512**3 / median(sgemm)
    return {
        "of_sgemm": row["ours"] * flops / rate,
        "target_of_sgemm": row["theirs"] * TARGETS[row["over"]] * flops / rate,
    }


def _forms(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A layer's five memories: fused, over torch in chunks, over torch token by token."""
    rows = []
    for memory, has_momentum in (("matrix", False), ("matrix", True), ("mlp", False)):
        for chunk_size in (16, 64):
            for num_rows in (1, 4):
                case = MemoryCase(memory, num_rows, chunk_size, 128 if args.quick else 256, has_momentum)
                title = _title(case)
                say(f"{title} …")
                forms = Forms(case)
                found = {"error": forms.gate()}
                sides: dict[str, Callable[[], float]] = {
                    "fused": lambda forms=forms: seconds(forms.fused),
                    "eager": lambda forms=forms: seconds(forms.eager),
                }
                sides["sgemm"] = sgemm_seconds
                if memory == "matrix":
                    sides["recurrence"] = lambda forms=forms: seconds(forms.recurrence)
                taken = _in_turns(args.rounds, sides)
                tokens = case.num_rows * case.num_tokens
                flops = NUM_HEADS * flops_of_head(memory, 5, HEAD_DIM, chunk_size, has_momentum)
                for name in [name for name in sides if name in TARGETS]:
                    row = _row(title, name, taken["fused"], taken[name], tokens, "tokens/s")
                    rows.append(found | row | _share(row, flops, taken["sgemm"]))
    return rows


def _title(case: MemoryCase) -> str:
    momentum = ", momentum" if case.has_momentum else ""
    return f"5 x {case.memory}{momentum}; chunk {case.chunk_size}, batch {case.num_rows}"


def _peers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole layers as wide as one head, so that memories are nearly all there is to do: ours over titans-pytorch."""
    rows = []
    with (
        Process(sys.executable, ["layer_ours.py"]) as ours,
        Process(PEERS, ["layer_peers.py", "titans-pytorch"]) as peer,
    ):
        for memory, num_memories in (("matrix", 1), ("matrix", 5), ("mlp", 1)):
            for chunk_size in (16, 64):
                for num_rows in (1, 4):
                    tokens = 128 if args.quick else 256
                    case = Case(memory, num_rows, tokens, chunk_size, num_memories, form="renewed", is_narrow=True)
                    title = (
                        f"{num_memories} x {memory}, whole layer of one head; chunk {chunk_size}, batch 9 x {num_rows}"
                    )
                    say(f"titans-pytorch: {title} …")
                    found = {"error": ours.ask("open", case=asdict(case))}
                    peer.ask("open", case=asdict(case))
                    sides = {
                        name: lambda side=side: side.ask("time", repeats=1) for name, side in (("o", ours), ("t", peer))
                    }
                    sides["s"] = sgemm_seconds
                    taken = _in_turns(args.rounds, sides)
                    row = _row(title, "titans-pytorch", taken["o"], taken["t"], num_rows * tokens, "tokens/s")
                    flops = NUM_HEADS * flops_of_head(memory, num_memories, HEAD_DIM, chunk_size, is_whole_layer=True)
                    rows.append(found | row | _share(row, flops, taken["s"]))
    return rows


def _reads(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Decoding: bytes of state read a second, over what a plain pass over the same bytes reaches."""
    rows = []
    for num_rows in (1, 16):
        reads = Reads(num_rows)
        title = f"decode reads 30 layers of 9 heads; {num_rows} rows, {reads.num_bytes / 1e6:.0f} MB"
        say(f"{title} …")
        found = {"error": reads.gate()}
        taken = _in_turns(
            max(9, args.rounds),
            {
                name: lambda run=run: seconds(run)
                for name, run in (("r", reads.read), ("c", reads.copy), ("s", reads.sum))
            },
        )
        # A copy moves every byte twice; the better of both plain passes is what the machine can do.
        plain = [min(c / 2, s) for c, s in zip(taken["c"], taken["s"], strict=True)]
        rows.append(found | _row(title, "bandwidth", taken["r"], plain, reads.num_bytes / 1e9, "GB/s"))
    return rows


def _network(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The 135M shape: what memories in all 30 layers cost, as shares of the time of reading without them."""
    tokens = 128 if args.quick else 256
    say("135M with memories in 30 layers …")
    network = Network(tokens)
    own: list[float] = []

    def titans() -> float:
        taken = seconds(network.run_titans)
        own.append(network.memory_seconds)
        return taken

    taken = _in_turns(args.rounds, {"plain": lambda: seconds(network.run_plain), "titans": titans})
    own = own[1:]
    title = f"135M, memories beside attention in 30 layers, {tokens} tokens: "
    memories = _row(title + "learning in the memories alone", "memories", taken["plain"], own, tokens, "tokens/s")
    added = [b - a for a, b in zip(taken["plain"], taken["titans"], strict=True)]
    branch = _row(title + "the whole branch, its projections too", "branch", taken["plain"], added, tokens, "tokens/s")
    return [memories, branch]


def _print(result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    peer = PEERS.parent / "python"
    versions = ", ".join(f"{name} {found}" for name, found in result["versions"].items())
    print(f"{result['cpu']}, {result['instructions']}, 1 thread, its own processor time; {result['system']}")
    print(f"python {result['python']}, {versions}, titans-pytorch {_peer_version(peer)}; float32")
    print(f"commit {result['commit']}; {result['command']}")
    print(f"largest error against float64: {max(row.get('error', 0.0) for row in rows):.1e} (limit {GATE:g})")
    print(f"\n{'':<84}{'over':>15}{'ours':>10}{'theirs':>10}{'ratio':>8}   least to most   target   of sgemm")
    for row in rows:
        target = TARGETS.get(row["over"])
        sign = "<=" if row["over"] == "memories" else ">="
        goal = f"{sign} {target:g}" if target else "-"
        span = f"{row['least']:.2f} to {row['most']:.2f}"
        share = f"{row['of_sgemm']:.2f} ({row['target_of_sgemm']:.2f})" if "of_sgemm" in row else ""
        print(
            f"{row['title']:<84}{row['over']:>15}{row['ours']:>10,.0f}{row['theirs']:>10,.0f}{row['ratio']:>8.2f}   "
            f"{span:<15} {goal:<8} {share}"
        )


def _peer_version(python: Path) -> str:
    folder = next(python.parent.parent.glob("lib/python*/site-packages/titans_pytorch-*.dist-info"), None)
    return folder.name.split("-")[1].removesuffix(".dist") if folder else version("titans-pytorch")


if __name__ == "__main__":
    sys.exit(main())
