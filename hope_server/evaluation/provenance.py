"""Where numbers come from: the commit of the code and the machine it ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["commit", "hardware"]


@cache
def commit() -> str:
    """Return the short commit of this source tree, with `+` behind it when files differ; else the package's version."""
    here = Path(__file__).parent
    try:
        found = _git(here, "rev-parse", "--short=10", "HEAD")
        return found + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        try:
            return f"version {version('hope-server')}"
        except PackageNotFoundError:
            return "unknown"


def hardware(device: str) -> str:
    """Return processor, cores and torch's version, and the GPU where one is used."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    text = f"{model}, {os.cpu_count()} cores, torch {torch.__version__}"
    return text if device == "cpu" else f"{torch.cuda.get_device_name(device)}; {text}"


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
