"""How a case of the gate is judged: errors beside limits, what was compiled for it, and allocations full of poison."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from hope_kernels.launch import KernelConfig

FLOOR = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Limits of the root mean square error over that of the expected values: float32 sums of up to 128 products are off by
3e-7, half precision by what its outputs and products in tf32 are rounded to; a wrong formula is off by 1e-3 or more."""
CEILING = {torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""However much a case amplifies rounding, no more than this passes."""
SHARE = 4.0
"""How many times plain torch's own error in that precision, on the same tensors, a kernel may have."""
POISON = 0x5A
UNUSED = 1e30
"""What slots that no row owns are full of: they must stay so, bit for bit."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison; an error that is NaN passes no limit."""

    what: str
    error: float
    limit: float

    @property
    def passes(self) -> bool:
        """Whether it is within its limit."""
        return self.error <= self.limit


Case = Callable[[torch.device], list[Check]]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of the difference over that of the expected values."""
    if found.shape != exact.shape:
        raise ValueError(f"has shape {list(found.shape)}, not {list(exact.shape)}")
    if not exact.numel():
        return 0.0
    difference, exact = found.double() - exact.double(), exact.double()
    scale = exact.square().mean().sqrt() if bool(exact.any()) else torch.ones((), dtype=torch.float64)
    return float(difference.square().mean().sqrt() / scale.to(difference.device))


def limit(dtype: torch.dtype, twin: float = 0.0) -> float:
    """The floor of a type, or what plain torch's error `twin` on the same tensors allows, up to the ceiling."""
    return max(FLOOR[dtype], min(SHARE * twin, CEILING[dtype]))


def near(what: str, found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype, twin: float = 0.0) -> Check:
    """Whether a result is as near as its type allows."""
    return Check(what, error(found, exact), limit(dtype, twin))


def same(what: str, found: torch.Tensor, expected: torch.Tensor) -> Check:
    """Whether every element is equal; NaN equals nothing."""
    return Check(f"{what}, bit for bit", 0.0 if torch.equal(found, expected) else torch.inf, 0.0)


def true(what: str, is_so: bool) -> Check:
    """Whether a claim holds."""
    return Check(what, 0.0 if is_so else torch.inf, 0.0)


def barred(title: str, barriers: dict[str, str], *starts: str) -> dict[str, Any] | None:
    """The record of a row that is not timed, for a case whose name starts so failed or was not checked; None if none.

    barriers: what became of those cases, by name.
    """
    for name, fate in barriers.items():
        if name.startswith(starts):
            return {"kind": "barred", "title": title, "reason": f"not timed: the case {name!r} {fate}"}
    return None


def attempts(title: str, run: Callable[[], Iterable[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The records of some rows; one that says why instead where they break off, so that the next rows are measured."""
    try:
        yield from run()
    except Exception as exc:  # noqa: BLE001
        reason = (str(exc).strip().splitlines() or [""])[0]
        yield {"kind": "failed", "title": title, "reason": f"FAILED: {type(exc).__name__}: {reason}"}


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what torch's empty, empty_like and new_empty give: a kernel that leaves a hole shows it."""

    def filled(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def fill(*arguments: Any, **options: Any) -> torch.Tensor:
            tensor = allocate(*arguments, **options)
            if tensor.is_floating_point():
                return tensor.fill_(torch.nan)
            if tensor.dtype in (torch.int32, torch.int64):
                return tensor.fill_(int.from_bytes(bytes([POISON] * tensor.element_size()), "little"))
            return tensor

        return fill

    before = torch.empty, torch.empty_like, torch.Tensor.new_empty
    torch.empty, torch.empty_like = filled(before[0]), filled(before[1])
    torch.Tensor.new_empty = filled(before[2])  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.empty, torch.empty_like = before[0], before[1]
        torch.Tensor.new_empty = before[2]  # type: ignore[method-assign]


class Compiled:
    """Every kernel that was launched since the last call of `take`, and what Triton says of its machine code."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, int | None]] = {}
        self._launch = KernelConfig.launch
        note, launch = self._note, self._launch

        def noted(config: KernelConfig, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
            known = _binaries(config.kernel)
            launch(config, grid, arguments)
            note(config, [binary for key, binary in _binaries(config.kernel).items() if key not in known])

        KernelConfig.launch = noted  # type: ignore[method-assign, assignment]

    def take(self) -> dict[str, dict[str, int | None]]:
        """Registers, spilled words and shared bytes of the worst binary of each label; None where Triton has none."""
        found, self._found = self._found, {}
        return found

    def _note(self, config: KernelConfig, binaries: list[Any]) -> None:
        # One label may stand for other head counts and chunk sizes, and a binary for each alignment of its numbers.
        constants = config.constants
        sizes = [f"{name}={constants[name]}" for name in ("H", "C") if constants.get(name)]
        operator = [*str(getattr(config.kernel.fn, "__module__", "")).split("."), ""][1]
        label = " ".join([operator, config.label, *sizes])
        for binary in binaries:
            facts = {
                "registers": getattr(binary, "n_regs", None),
                "spills": getattr(binary, "n_spills", None),
                "shared": getattr(getattr(binary, "metadata", None), "shared", None),
            }
            worst = self._found.get(label)
            if worst is None or (facts["spills"] or 0, facts["registers"] or 0) > (
                worst["spills"] or 0,
                worst["registers"] or 0,
            ):
                self._found[label] = facts
        if os.environ.get("TRITON_INTERPRET") == "1":
            self._found.setdefault(label, {"registers": None, "spills": None, "shared": None})


def _binaries(kernel: Any) -> dict[Any, Any]:
    """What Triton has compiled of a kernel so far; nothing where it keeps that elsewhere, or interprets."""
    try:
        return {
            (device, key): binary for device, kept in kernel.device_caches.items() for key, binary in kept[0].items()
        }
    except (AttributeError, TypeError, IndexError, KeyError):
        return {}
