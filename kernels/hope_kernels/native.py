"""Compiles the C++ operators once for this processor, loads them, and says in one log line when there are none."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-O3", "-std=gnu++17", "-fPIC", "-shared")
VARIANTS = {"AVX512": ("-march=x86-64-v4",), "AVX2": ("-march=x86-64-v3",), "DEFAULT": ()}
"""Compiler flags for what torch says the processor can do; ATEN_CPU_CAPABILITY lowers both."""

logger = logging.getLogger("hope_kernels")


class BuildError(RuntimeError):
    """The operators could not be compiled or loaded; the message says why."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled operators, or None where they cannot be had; torch computes then.

    HOPE_NATIVE=0 leaves them out. HOPE_CXX names the compiler (default: g++, then c++ and clang++). What was compiled
    is kept in HOPE_CACHE_DIR (default ~/.cache/hope).
    """
    if os.environ.get("HOPE_NATIVE", "1") == "0":
        return None
    try:
        return _load(_built(variant()))
    except BuildError as exc:
        logger.warning("native_operators_missing reason=%r fallback=torch", str(exc))
        return None


def needed() -> ctypes.CDLL:
    """The compiled operators. Raises ValueError where there are none: `can_compute` says so beforehand."""
    found = library()
    if found is None:
        raise ValueError("there are no compiled operators on this machine; ask can_compute first")
    return found


def variant() -> str:
    """The instruction set that is used, a key of VARIANTS."""
    found = torch.backends.cpu.get_cpu_capability()
    return found if found in VARIANTS else "DEFAULT"


def compile_library(name: str, folder: Path) -> Path:
    """Compile all operators for a variant into folder; returns the file, which needs no compiler where it is used.

    Raises BuildError.
    """
    compiler = _compiler()
    units = sorted(str(path) for path in SOURCES.glob("*.cpp"))
    folder.mkdir(parents=True, exist_ok=True)
    # Another process may be compiling the same: whoever is last puts the same file there.
    handle, partial = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    target = folder / file_name(name)
    try:
        for threads in (("-fopenmp",), ()):
            words = [compiler, *FLAGS, *VARIANTS[name], *threads, *units, "-o", partial]
            done = subprocess.run(words, capture_output=True, text=True, timeout=300)
            if done.returncode == 0:
                os.replace(partial, target)
                return target
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BuildError(f"{compiler} could not be run: {exc}") from exc
    finally:
        Path(partial).unlink(missing_ok=True)
    raise BuildError(f"{compiler} failed: {done.stderr.strip()[-400:]}")


def _built(name: str) -> Path:
    folder = Path(os.environ.get("HOPE_CACHE_DIR", "~/.cache/hope")).expanduser() / "operators"
    known = folder / file_name(name)
    if known.exists():
        return known
    try:
        return compile_library(name, folder)
    except OSError as exc:
        raise BuildError(f"{folder} cannot be written: {exc}") from exc


def _compiler() -> str:
    wanted = os.environ.get("HOPE_CXX")
    for candidate in [wanted] if wanted else ["g++", "c++", "clang++"]:
        if found := shutil.which(candidate):
            return found
    raise BuildError(f"no C++ compiler found ({wanted or 'g++, c++ or clang++'})")


def file_name(name: str) -> str:
    """Under which a variant is kept: by what it depends on, sources, flags, instruction set, platform, HOPE_CXX."""
    parts = (FLAGS, VARIANTS[name], sys.platform, platform.machine(), os.environ.get("HOPE_CXX", ""))
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return f"operators-{digest.hexdigest()[:16]}.so"


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as exc:
        raise BuildError(f"{path.name} cannot be loaded: {exc}") from exc


def can_compute(*tensors: torch.Tensor) -> bool:
    """Whether the operators can do the work: float32 on the CPU, no gradients asked for, and a library."""
    if not all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return not torch.compiler.is_compiling() and library() is not None
