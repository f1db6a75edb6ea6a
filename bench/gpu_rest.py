"""Times of the other operators, each beside torch's own form of the same work or a plain copy of the same bytes.

Shapes: B rows, S slots, I inputs, O outputs, r rank, P weights of a level.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_checks import attempts, barred
from gpu_timing import Clock, Run, capture, ratio_row
from hope_kernels.cms_update import ElementRule, LevelWrite
from hope_kernels.cms_update import gpu as cms_gpu
from hope_kernels.cms_update import rows as cms_rows
from hope_kernels.fast_linear import gpu as linear_gpu
from hope_kernels.newton_schulz import QUINTIC, bmm
from hope_kernels.newton_schulz import gpu as newton_gpu
from hope_kernels.pack_state import pack, unpack_

Rows = Iterator[dict[str, Any]]


def measure(clock: Clock, device: torch.device, barriers: dict[str, str]) -> Rows:
    """Rows of the section "rest"; an operator that fails says so and does not hide the others."""
    parts: dict[str, Callable[[Clock, torch.device], Rows]] = {
        "pack_state": _packs,
        "fast_linear": _linear,
        "newton_schulz": _newton,
        "cms_update": _levels,
        "mlp_memory": _mlp,
    }
    for name, part in parts.items():
        barrier = barred(name, barriers, name)
        if barrier is not None:
            yield barrier
            continue
        yield from attempts(name, partial(part, clock, device))


def _packs(clock: Clock, device: torch.device) -> Rows:
    """A session's state of the 1.3B shape into one buffer and back, called as the server does: host time counts."""
    toy = clock.is_toy
    shape = (3, 2, 16, 50) if toy else (3, 16, 128, 386)
    tensors = [torch.randn(shape, device=device) for _ in range(2 if toy else 24)]
    buffer = pack(tensors, [1])
    num_bytes = 2 * buffer.numel()
    sides: dict[str, Run] = {
        "pack": lambda: pack(tensors, [1]),
        "unpack": lambda: unpack_(buffer, tensors, [2]),
        "copy": clock.copy_of(num_bytes),
    }
    taken = clock.in_turns(sides)
    if not all(torch.equal(tensor[1], tensor[2]) for tensor in tensors):
        raise RuntimeError("what came back is not what was packed")
    for name in ("pack", "unpack"):
        title = f"pack_state: {name} one session, {buffer.numel() / 1e6:,.0f} MB"
        row = ratio_row(title, "copy, same bytes", taken[name], taken["copy"], num_bytes / 1e9, "GB/s")
        yield row | {"mode": "eager", "operator": f"{name}_state"}


def _linear(clock: Clock, device: torch.device) -> Rows:
    """One token a row through a shared weight and the row's own low-rank one."""
    rows, width, rank = (2, 32, 4) if clock.is_toy else (64, 2048, 16)
    dtype = torch.float16 if clock.is_toy else torch.bfloat16
    x, base = torch.randn(rows, 1, width, device=device).to(dtype), torch.randn(width, width, device=device).to(dtype)
    a, b = (
        torch.randn(rows, rank, width, device=device).to(dtype),
        torch.randn(rows, width, rank, device=device).to(dtype),
    )
    slots = torch.randperm(rows).to(device, torch.int32)
    chosen = slots.long()

    def ours() -> torch.Tensor:
        return linear_gpu.fast_linear(x, base, None, (a, b), slots)

    def plain() -> torch.Tensor:
        return torch.nn.functional.linear(x, base) + (x @ a[chosen].mT) @ b[chosen].mT

    difference = float((ours().double() - plain().double()).norm() / plain().double().norm())
    if not difference <= 2e-2:
        raise RuntimeError(f"differs from torch by {difference:.1e}")
    yield _pair(
        clock, device, f"fast_linear: {rows} rows, {width} square, rank {rank}", ours, plain, rows / 1e6, "M rows/s"
    )


def _newton(clock: Clock, device: torch.device) -> Rows:
    """Five steps of many square matrices."""
    count, side = (2, 16) if clock.is_toy else (256, 64)
    matrix = torch.randn(count, side, side, device=device)
    ours = _bound(newton_gpu.newton_schulz, matrix, 5, QUINTIC, None)
    plain = _bound(bmm.newton_schulz, matrix, 5, QUINTIC, None)
    yield _pair(clock, device, f"newton_schulz: {count} of {side} square, float32", ours, plain, count / 1e6, "M/s")


def _levels(clock: Clock, device: torch.device) -> Rows:
    """Adam on a level of every row; called plainly, for both forms make tables or look at values on the host."""
    rows, size = (2, 2000) if clock.is_toy else (16, 2**20)

    def level() -> LevelWrite:
        return LevelWrite(
            weights=torch.randn(rows, size, device=device),
            initial=torch.randn(size, device=device),
            moments={name: torch.rand(rows, size, device=device) for name in ("first_moment", "second_moment")},
            accumulator=torch.zeros(rows, 0, device=device),
            num_steps=torch.arange(rows, device=device),
            gradient=torch.randn(rows, size, device=device),
            num_taught=torch.ones(rows, dtype=torch.int64, device=device),
            is_due=torch.ones(rows, dtype=torch.bool, device=device),
            max_update_norm=1.0,
            norm_cap=60.0,
            step=_adam,
            element_rule=ElementRule("adam", 0.01),
        )

    mine, theirs = level(), level()
    finite = torch.ones(rows, dtype=torch.bool, device=device)
    taken = clock.in_turns(
        {"ours": lambda: cms_gpu.write_([mine], finite, None), "torch": lambda: cms_rows.write_([theirs], finite, None)}
    )
    title = f"cms_update: Adam, {rows} rows of {size:,} weights"
    yield ratio_row(title, "torch", taken["ours"], taken["torch"], rows * size / 1e9, "G weights/s") | {"mode": "eager"}


def _adam(
    moments: dict[str, torch.Tensor], gradient: torch.Tensor, num_steps: torch.Tensor, drift: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What ElementRule("adam", 0.01) stands for, in torch. Source: NL eq. 101-105."""
    first = 0.9 * moments["first_moment"] + 0.1 * gradient
    second = 0.99 * moments["second_moment"] + 0.01 * gradient.square()
    first_left, second_left = (1 - beta ** num_steps[:, None].double() for beta in (0.9, 0.99))
    root = (second / second_left.float()).clamp_min(1e-32).sqrt() + 1e-8
    return -0.01 * (first / first_left.float()) / root, {"first_moment": first, "second_moment": second}


def _mlp(clock: Clock, device: torch.device) -> Rows:
    """One token a row read from a two-layer memory, over a copy of its bytes."""
    if importlib.util.find_spec("hope_kernels.mlp_memory.gpu") is None:
        print("mlp_memory: has no GPU form, not timed", flush=True)
        return
    gpu = importlib.import_module("hope_kernels.mlp_memory.gpu")
    rows, heads, size = (2, 1, 16) if clock.is_toy else (64, 9 * 30, 64)
    dtype = torch.float16 if clock.is_toy else torch.bfloat16
    first, second = (torch.randn(rows, heads, 1, size, size, device=device) / size**0.5 for _ in range(2))
    slots = torch.arange(rows, dtype=torch.int32, device=device)
    query = torch.nn.functional.normalize(torch.randn(rows, heads, size, device=device), dim=-1).to(dtype)
    run, mode = capture(lambda: gpu.read(first, second, slots, 0, query), device)
    num_bytes = 2 * first.numel() * 4
    taken = clock.in_turns({"ours": run, "copy": clock.copy_of(num_bytes)})
    title = f"mlp_memory: read of one token, {rows} rows of {heads} heads, {num_bytes / 1e6:,.0f} MB"
    yield ratio_row(title, "copy, same bytes", taken["ours"], taken["copy"], num_bytes / 1e9, "GB/s") | {"mode": mode}


def _bound(run: Callable[..., object], *arguments: object) -> Run:
    return lambda: run(*arguments)


def _pair(
    clock: Clock, device: torch.device, title: str, ours: Run, plain: Run, work: float, unit: str
) -> dict[str, Any]:
    """Both as graphs where both can be, else both plainly."""
    mine, theirs = capture(ours, device), capture(plain, device)
    is_fair = mine[1] == theirs[1]
    sides = {"ours": mine[0], "torch": theirs[0]} if is_fair else {"ours": ours, "torch": plain}
    taken = clock.in_turns(sides)
    row = ratio_row(title, "torch", taken["ours"], taken["torch"], work, unit)
    return row | {"mode": mine[1] if is_fair else "eager"}
