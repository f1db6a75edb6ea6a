"""Rows of drawn tokens for the gate's cases of the matrix memory, and what plain torch makes of them.

Shapes: B rows, H heads, T tokens, C tokens of a chunk, K key size, M columns, n slow rates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from gpu_checks import UNUSED, Check, error, near, same, true
from gpu_oracle import Tokens, advance, products_in_tf32
from hope_kernels.dgd_memory.layout import Layout
from torch.nn import functional

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows in a pool of twice their number and one, the others full of 1e30; the last row has no slot."""

    layout: Layout
    lengths: tuple[int, ...]
    pool: torch.Tensor
    surprises: torch.Tensor | None
    slots: torch.Tensor
    bounds: torch.Tensor
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

    def used(self) -> list[tuple[int, slice]]:
        """Slot and tokens of every row that has one."""
        stops = self.bounds.tolist()
        return [(slot, slice(stops[i], stops[i + 1])) for i, slot in enumerate(self.slots.tolist()) if slot >= 0]

    def kept(self, pool: torch.Tensor) -> Check:
        """Whether slots without a row are as they were."""
        others = torch.ones(len(pool), dtype=torch.bool, device=pool.device)
        others[self.slots[:-1].long()] = False
        return same("unused slots", pool[others], torch.full_like(pool[others], UNUSED))


def draw(
    layout: Layout,
    heads: int,
    lengths: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    correlation: float = 0.0,
    slow: tuple[float, float] | None = None,
) -> Rows:
    """Unit inputs, random rates; slow: lr and retention of every token instead."""
    lengths = (*lengths, 3)
    tokens, size, rows = sum(lengths), layout.head_dim, len(lengths)

    def vectors() -> torch.Tensor:
        common, own = torch.randn(1, heads, size, device=device), torch.randn(tokens, heads, size, device=device)
        mixed = correlation**0.5 * common + (1 - correlation) ** 0.5 * own
        return functional.normalize(mixed, dim=-1).to(dtype)

    rates = torch.randn(tokens, heads, layout.num_rates, device=device)
    rates[..., 1] -= 3
    if slow is not None:
        rates[..., 0], rates[..., 1] = slow
    slots = torch.randperm(2 * rows + 1)[:rows].int()
    slots[-1] = -1
    pools: list[torch.Tensor | None] = []
    for is_there in (True, layout.has_momentum):
        pool = torch.full((2 * rows + 1, heads, size, layout.num_columns), UNUSED, device=device)
        pool[slots[:-1].long()] = torch.randn(rows - 1, *pool.shape[1:], device=device) / size**0.5
        pools.append(pool if is_there else None)
    assert pools[0] is not None
    bounds = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    inputs = (vectors(), vectors(), vectors(), rates)
    return Rows(layout, lengths, pools[0], pools[1], slots.to(device), bounds, inputs)


def expect(
    rows: Rows, chunk_size: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Outputs [T, H, K], pool and momenta after all tokens of every row, in plain torch of this precision."""
    out = torch.zeros_like(rows.inputs[0], dtype=dtype)
    pool = rows.pool.to(dtype)
    momenta = None if rows.surprises is None else rows.surprises.to(dtype)
    for slot, tokens in rows.used():
        raw = Tokens.of(tuple(part[tokens] for part in rows.inputs), 1, dtype)
        before = None if momenta is None else momenta[slot, None]
        found, memory, momentum = advance(rows.layout, pool[slot, None], before, raw, chunk_size)
        out[tokens], pool[slot] = found[0].transpose(0, 1), memory[0]
        if momenta is not None and momentum is not None:
            momenta[slot] = momentum[0]
    return out, pool, momenta


def compare(
    rows: Rows, before: Rows, chunk_size: int, found: torch.Tensor, pool: torch.Tensor, momenta: torch.Tensor | None
) -> list[Check]:
    """Outputs, memories and momenta beside float64; limits from what plain torch loses on the same tensors."""
    dtype, used = rows.inputs[0].dtype, rows.slots[:-1].long()
    stop = int(rows.bounds[-2])
    exact = expect(before, chunk_size)
    if dtype == torch.float32:
        twin = expect(before, chunk_size, torch.float32)
    else:
        with products_in_tf32():
            twin = expect(before, chunk_size, torch.float32)
    checks = [
        near("outputs", found[:stop], exact[0][:stop], dtype, error(twin[0][:stop].to(dtype), exact[0][:stop])),
        near("memories", pool[used], exact[1][used], dtype, error(twin[1][used], exact[1][used])),
        true("rows without a slot give 0", not bool(found[stop : stop + 3].any())),
        rows.kept(pool),
    ]
    if momenta is not None and exact[2] is not None and twin[2] is not None:
        checks.append(near("momenta", momenta[used], exact[2][used], dtype, error(twin[2][used], exact[2][used])))
        checks.append(rows.kept(momenta))
    return checks


def copied(rows: Rows) -> Rows:
    """The same rows with pools of their own."""
    surprises = None if rows.surprises is None else rows.surprises.clone()
    return replace(rows, pool=rows.pool.clone(), surprises=surprises)
