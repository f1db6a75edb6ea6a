"""What a measurement was taken on, and the resident memory of a process. Sizes in bytes."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("hope-server", "torch", "transformers", "tokenizers", "safetensors")
MIB = 2**20


def describe(num_threads: int) -> dict[str, object]:
    """Hardware, versions, commit and command of this run."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": num_threads,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
    }


def cpu_name() -> str:
    """The processor's name, with family and model where the name alone says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    found = {key: value.strip() for key, value in facts.items()}
    return f"{found.get('model name', 'unknown')} (family {found.get('cpu family')}, model {found.get('model')})"


def version(name: str) -> str:
    """The installed version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit that was measured, marked where the tree differs from it."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("-dirty" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def resident(pid: int | str = "self") -> dict[str, int]:
    """`rss_bytes` now and `peak_bytes` since the start of a process. Raises OSError where there is no /proc."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"rss_bytes": kilobytes["VmRSS"] * 1024, "peak_bytes": kilobytes["VmHWM"] * 1024}


def median(values: Sequence[float]) -> float:
    """The middle of some repeats."""
    return float(statistics.median(values))


def say(text: str) -> None:
    """Say on stderr what is being measured."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
