"""The kernels on a GPU: right first, then how fast, beside cuBLAS, copies, fla and the floors. Run by `make bench-gpu`.

    python bench/gpu.py [--seconds N] [--json NAME] [--commit ID] [--dry-run]

Needs torch, Triton and one CUDA device, nothing else; ends with 2 where there is none. Every configuration is compared
with float64 before anything is timed, and what fails is not timed. Cases and sections run in processes of their own,
the most important first, until the time is over. Ends with 1 where a case or a section failed; a missed target is no
failure. The last line of the output is one JSON object. --dry-run does all of it with toys on a CPU, in Triton's
interpreter: that shows that the program runs, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_report as report
import torch
from gpu_run import Found, check_all, run_section
from machine import ROOT, commit, version

SECTIONS = ("decode 135M", "chunk", "bandwidth", "decode 1.3B", "rest")
"""In the order of their importance."""
GATE_SHARE = 0.5
"""The most of the time that the gate may take."""
MAX_WORKERS = 12
SHOWN_CLOCKS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


def main() -> int:
    """Check, measure, print; see above for what is returned."""
    args = _arguments()
    started = time.monotonic()
    if not args.dry_run and not torch.cuda.is_available():
        print("bench-gpu: there is no CUDA device; --dry-run runs everything with toys on a CPU", file=sys.stderr)
        return 2
    show = report.Printer(is_dry=args.dry_run)
    result = _environment(args)
    for name, fact in result.items():
        show.plain(f"{name:<12} {fact}")
    deadline = started + args.seconds
    workers = 1 if args.dry_run else max(1, min(MAX_WORKERS, (os.cpu_count() or 2) - 2))
    show.plain(f"\ncorrectness: {workers} processes …")
    gate, unchecked = check_all(started + GATE_SHARE * args.seconds, workers, is_toy=args.dry_run)
    show.gate(gate, unchecked, time.monotonic() - started)
    barriers = {found.name: "failed" for found in gate if found.faults()}
    barriers |= dict.fromkeys(unchecked, "was not checked, the time was over")
    sections: dict[str, Found] = {}
    skipped = []
    for name in SECTIONS:
        left = deadline - time.monotonic()
        if left <= 0:
            skipped.append(name)
            show.plain(f"\n{name}: skipped, the {args.seconds:g} seconds are over")
            continue
        show.plain(f"\n{name} …")
        show.header(name)
        sections[name] = run_section(name, left, barriers, show.record, is_toy=args.dry_run)
        show.section(sections[name])
    targets = report.targets([record for found in sections.values() for record in found.records], args.dry_run)
    show.targets(targets)
    failures = [found.name for found in gate if found.faults()]
    failures += [name for name, found in sections.items() if report.has_failed(found)]
    result |= {
        "seconds": round(time.monotonic() - started, 1),
        "gate": report.summary(gate, unchecked),
        "sections": {name: found.records for name, found in sections.items()},
        "errors": {name: found.error for name, found in sections.items() if found.error},
        "skipped": skipped,
        "targets": targets,
        "failed": failures,
    }
    kernels = {label: facts for found in (*gate, *sections.values()) for label, facts in found.kernels.items()}
    cases = [{"name": f.name, "seconds": round(f.seconds, 2), "error": f.error, "checks": f.checks} for f in gate]
    _save(args, result | {"kernels": kernels, "cases": cases})
    if failures:
        show.plain(f"\nbench-gpu: failed: {', '.join(failures)}")
    print(json.dumps(result), flush=True)
    return int(bool(failures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=420.0, help="time for everything (420); what is left is skipped"
    )
    parser.add_argument("--json", metavar="NAME", help="also write bench/results/NAME.json")
    parser.add_argument("--commit", help="what was measured, where the folder has no git to say it")
    parser.add_argument("--dry-run", action="store_true", help="everything with toys on a CPU; measures nothing")
    return parser.parse_args()


def _environment(args: argparse.Namespace) -> dict[str, Any]:
    """Device, driver, versions, commit and command of this run, clocks where they can be read."""
    found: dict[str, Any] = {"dry_run": args.dry_run}
    if torch.cuda.is_available() and not args.dry_run:
        facts = torch.cuda.get_device_properties(0)
        found |= {
            "device": facts.name,
            "capability": f"{facts.major}.{facts.minor}",
            "memory_bytes": facts.total_memory,
            "processors": facts.multi_processor_count,
            "cache_bytes": getattr(facts, "L2_cache_size", None),
            "nvidia_smi": _nvidia_smi(),
        }
        found["driver"] = found["nvidia_smi"].get("driver_version", "unknown")
    else:
        found |= {"device": "cpu, Triton's interpreter", "driver": "none"}
    return found | {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "commit": args.commit or commit(),
        "command": " ".join(["python", *sys.argv]),
    }


def _nvidia_smi() -> dict[str, str]:
    """What the driver says of the first device; only read, and empty where it cannot be."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={SHOWN_CLOCKS}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(
        zip(SHOWN_CLOCKS.split(","), (part.strip() for part in answer.splitlines()[0].split(",")), strict=False)
    )


def _save(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Everything, with each case and kernel: into bench/results if it is a measurement, into $OUT if that is set."""
    text = json.dumps(result, indent=2) + "\n"
    places = [ROOT / "bench" / "results" / f"{args.json}.json"] if args.json and not args.dry_run else []
    if os.environ.get("OUT"):
        places.append(Path(os.environ["OUT"]) / f"{args.json or 'gpu'}.json")
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        except OSError as exc:
            print(f"bench-gpu: cannot write {place}: {exc}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
