"""A process of its own for cases and sections of `gpu.py`: what one of them breaks on the device ends with it.

Reads requests on stdin, one JSON object a line, {"kind": "case" or "section", "name": …, "seconds": …,
"barriers": …}; answers on
stdout in lines that begin with the mark: records as they are found, then {"done": true, …}. Other lines are for people.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

MARK = "@@"


def main() -> int:
    """Serve requests until stdin ends; 3 after a CUDA error, from which a process does not recover."""
    is_toy = os.environ.get("TRITON_INTERPRET") == "1"
    device = torch.device("cpu" if is_toy else "cuda")
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    if is_toy:
        torch.set_num_threads(1)
    else:
        # Several of these processes share the machine.
        torch.set_num_threads(2)
    import gpu_checks
    import gpu_gate
    import gpu_gate_others

    compiled = gpu_checks.Compiled()
    cases = gpu_gate.cases(is_toy) | gpu_gate_others.cases(is_toy)
    _answer({"cases": list(cases)})
    for line in sys.stdin:
        request = json.loads(line)
        problem, started = None, time.perf_counter()
        try:
            if request["kind"] == "case":
                with gpu_checks.poisoned():
                    checks = cases[request["name"]](device)
                _answer(
                    {
                        "checks": [
                            {"what": c.what, "error": _number(c.error), "limit": c.limit, "ok": c.passes}
                            for c in checks
                        ]
                    }
                )
            else:
                for record in _section(request["name"], device, request["barriers"], is_toy=is_toy):
                    _answer({"record": record})
                    if time.perf_counter() - started > request["seconds"]:
                        _answer({"late": True})
                        break
            if device.type == "cuda":
                torch.cuda.synchronize()
        except Exception as exc:  # noqa: BLE001
            problem = f"{type(exc).__name__}: {str(exc).strip().splitlines()[0] if str(exc).strip() else ''}"
            traceback.print_exc()
        _answer({"done": True, "error": problem, "kernels": compiled.take(), "seconds": time.perf_counter() - started})
        if problem is not None and "CUDA" in problem:
            return 3
        if device.type == "cuda":
            # A cache that cannot be emptied is an error of the case's, reported already.
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
    return 0


def _section(name: str, device: torch.device, barriers: dict[str, str], *, is_toy: bool) -> Iterator[dict[str, Any]]:
    from gpu_timing import Clock

    clock = Clock(device, is_toy=is_toy)
    if name == "chunk":
        import gpu_chunk

        return gpu_chunk.measure(clock, device, barriers)
    if name == "rest":
        import gpu_rest

        return gpu_rest.measure(clock, device, barriers)
    import gpu_decode

    sections = {f"decode {model}": partial(gpu_decode.measure, model) for model in gpu_decode.SHAPES}
    return (sections | {"bandwidth": gpu_decode.measure_reads})[name](clock, device, barriers)


def _number(value: float) -> float | str:
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else str(value)


def _answer(message: dict[str, Any]) -> None:
    print(MARK + json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(main())
