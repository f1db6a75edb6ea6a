"""Compiles every shipped kernel configuration without a GPU and refuses those that would not fit one.

    python -m hope_kernels.aot [--op NAME] [--arch 80]

A configuration passes when it keeps everything in registers (no stack, no local loads or stores) and its shared memory
is within what one block may have. Where Triton may compile anew for integers that are multiples of 16, that form is
checked, too ("16n"). It says nothing of results: a miscompiled kernel passes as well.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hope_kernels
from hope_kernels.launch import ALIGNMENT, KernelConfig

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one block may have, by compute capability."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a compiled kernel needs.

    registers of a thread; shared bytes of a block; stack bytes of a thread; spill stores and loads, and tensor core
    products, counted in the machine code; seconds of compilation.
    """

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int
    products: int
    seconds: float

    def fits(self, arch: int) -> bool:
        """Whether the kernel keeps to registers, and to the shared memory of this architecture."""
        return self.shared <= SHARED_LIMITS[arch] and self.stack == self.spill_stores == self.spill_loads == 0


def specialized(config: KernelConfig) -> list[str]:
    """Integer arguments of a configuration for whose multiples of 16 Triton compiles another form."""
    fixed = {parameter.name for parameter in config.kernel.params if parameter.do_not_specialize}
    return [name for name, kind in config.signature.items() if kind in ("i32", "i64") and name not in fixed]


def measure(config: KernelConfig, arch: int, aligned: Sequence[str] = ()) -> Footprint:
    """Compile a configuration for compute capability arch / 10 and read its footprint from the machine code.

    aligned: integer arguments that are multiples of 16.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = config.kernel.arg_names
    signature = {name: config.signature.get(name, "constexpr") for name in names}
    pointers = [name for name, kind in config.signature.items() if kind.startswith("*")]
    attributes = {(names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in (*pointers, *aligned)}
    source = ASTSource(fn=config.kernel, signature=signature, constexprs=config.constants, attrs=attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    started = time.perf_counter()
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    seconds = time.perf_counter() - started
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"{config.label}: cuobjdump names no registers:\n{usage[-800:]}")

    def count(pattern: str) -> int:
        return len(re.findall(rf"\b(?:{pattern})\b", code))

    return Footprint(
        registers=int(found[1]),
        # The dynamic part, which is all that Triton uses, is not in the machine code.
        shared=compiled.metadata.shared,
        stack=int(found[2]),
        spill_stores=count("STL"),
        spill_loads=count("LDL"),
        products=count("HMMA|HGMMA"),
        seconds=seconds,
    )


def operators() -> dict[str, str]:
    """The module of every operator that has GPU kernels, by the operator's name."""
    found = {}
    for package in pkgutil.iter_modules(hope_kernels.__path__):
        for home in hope_kernels.__path__:
            if package.ispkg and (Path(home) / package.name / "gpu.py").exists():
                found[package.name] = f"hope_kernels.{package.name}.gpu"
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns 0 when every configuration fits, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m hope_kernels.aot", description="Compile every GPU kernel, no GPU needed."
    )
    known = operators()
    parser.add_argument("--op", choices=sorted(known), help="this operator alone")
    parser.add_argument(
        "--arch", type=int, choices=sorted(SHARED_LIMITS), help="this compute capability alone, times ten"
    )
    chosen = parser.parse_args(arguments)
    # Read when a kernel is decorated: an interpreted one cannot be compiled.
    os.environ.pop("TRITON_INTERPRET", None)
    refused = 0
    with tempfile.TemporaryDirectory(prefix="hope-aot-") as cache:
        # What another version left in a common cache must not stand in for a compilation.
        os.environ["TRITON_CACHE_DIR"] = cache
        import triton

        print(f"triton {triton.__version__}")
        print(f"{'operator':<14} {'configuration':<48} arch warps regs  shared stack spills  mma seconds", flush=True)
        for name in [chosen.op] if chosen.op else sorted(known):
            for config in importlib.import_module(known[name]).configs():
                for arch in [chosen.arch] if chosen.arch else sorted(SHARED_LIMITS):
                    for aligned in _forms(config):
                        refused += not _report(name, config, arch, aligned)
    if refused:
        print(f"aot: {refused} configurations spill, use stack or ask for too much shared memory", file=sys.stderr)
    return int(refused > 0)


def _forms(config: KernelConfig) -> list[list[str]]:
    """Which integers are multiples of 16: none, and all, where that makes another form."""
    aligned = specialized(config)
    return [[], aligned] if aligned else [[]]


def _report(name: str, config: KernelConfig, arch: int, aligned: list[str]) -> bool:
    """Print the row of one form; returns whether it fits."""
    found = measure(config, arch, aligned)
    fits = found.fits(arch)
    spills = f"{found.spill_stores}/{found.spill_loads}"
    label = f"{config.label} 16n" if aligned else config.label
    print(
        f"{name:<14} {label:<48} {arch:>4} {config.num_warps:>5} {found.registers:>4}"
        f" {found.shared:>7} {found.stack:>5} {spills:>6} {found.products:>4} {found.seconds:>7.1f}"
        f"{'' if fits else '  REFUSED'}",
        flush=True,
    )
    return fits


def _output(tool: Path, *arguments: str) -> str:
    return subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
