"""Cases of the matrix memory: its kernels beside float64, each configuration by itself. Nothing that fails is timed.

Shapes: H heads, C tokens of a chunk, K key size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from gpu_checks import Case, Check, error, near, same, true
from gpu_oracle import Tokens, address, products_in_tf32, write
from gpu_rows import NAMES, compare, copied, draw, expect
from gpu_timing import capture
from hope_kernels.dgd_memory import gpu, reference
from hope_kernels.dgd_memory.layout import Layout
from torch.nn import functional

ADAPTIVE = ("k", "v", "q", "lr", "retention")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the gate goes through: (key size, heads), chunk sizes and types."""

    heads: tuple[tuple[int, int], ...]
    chunks: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]


DEVICE = Sizes(((64, 9), (128, 16)), (16, 64), (torch.bfloat16, torch.float32, torch.float16))
TOY = Sizes(((16, 1),), (4,), (torch.float32, torch.float16))
"""Triton's interpreter multiplies bfloat16 wrongly."""


def check_oracle(device: torch.device) -> list[Check]:
    """The oracle of this gate beside the package's own token-by-token reference, both in float64 on a CPU."""
    checks = []
    for layout in (Layout(16), Layout(16, adaptive=ADAPTIVE, has_momentum=True)):
        rows = draw(layout, 2, (11,), torch.float32, torch.device("cpu"))
        out, pool, momenta = expect(rows, 4)
        for slot, tokens in rows.used():
            for head in range(2):
                parts = [part[tokens, head].double() for part in rows.inputs]
                momentum = None if rows.surprises is None else rows.surprises[slot, head].double()
                memory = rows.pool[slot, head].double()
                found = reference.advance_tokens(
                    layout, memory, momentum, parts[0], parts[1], parts[2], parts[3], 4, head=head
                )
                checks.append(Check("outputs", error(out[tokens, head], found[0]), 1e-12))
                checks.append(Check("memories", error(pool[slot, head], found[1]), 1e-12))
                if momenta is not None and found[2] is not None:
                    checks.append(Check("momenta", error(momenta[slot, head], found[2]), 1e-12))
    return checks


def check_advance(
    layout: Layout,
    heads: int,
    chunk_size: int,
    dtype: torch.dtype,
    correlation: float,
    slow: tuple[float, float] | None,
    device: torch.device,
) -> list[Check]:
    """Rows of 1, C - 1, C, C + 1 and 2 C + 1 tokens, advanced over at once."""
    lengths = (1, max(chunk_size - 1, 2), chunk_size, chunk_size + 1, 2 * chunk_size + 1)
    rows = draw(layout, heads, lengths, dtype, device, correlation=correlation, slow=slow)
    before = copied(rows)
    found = gpu.advance(rows.pool, rows.slots, *rows.inputs, rows.bounds, layout, chunk_size, surprises=rows.surprises)
    return compare(rows, before, chunk_size, found, rows.pool, rows.surprises)


def check_decode(
    layout: Layout, heads: int, chunk_size: int, dtype: torch.dtype, is_captured: bool, device: torch.device
) -> list[Check]:
    """Tokens read one at a time and written a chunk at a time, the last ones by force; captured: out of a graph."""
    steps = 2 * chunk_size + 3 if device.type == "cuda" else chunk_size + 1
    rows = draw(layout, heads, (steps, steps), dtype, device)
    # As a network's own product gives them.
    rows = replace(rows, inputs=(*rows.inputs[:3], rows.inputs[3].to(dtype)))
    before = copied(rows)
    ring = gpu.Ring.empty(len(rows.pool), heads, chunk_size, layout, dtype, device)
    static = [part[:3].clone() for part in rows.inputs]
    out = torch.zeros_like(static[0])

    def step() -> None:
        query, key, value, rates = static
        out.copy_(gpu.read_step(rows.pool, rows.slots, query, key, value, rates, ring, layout))
        gpu.flush(rows.pool, rows.slots, ring, layout, surprises=rows.surprises)

    run = capture(step, device)[0] if is_captured else step
    # What a capture ran to warm up is undone.
    rows.pool.copy_(before.pool)
    if rows.surprises is not None and before.surprises is not None:
        rows.surprises.copy_(before.surprises)
    ring.cursors.zero_()
    found = torch.zeros_like(rows.inputs[0])
    for t in range(steps):
        places = torch.tensor([t, steps + t, 2 * steps], device=device)
        for held, part in zip(static, rows.inputs, strict=True):
            held.copy_(part[places])
        run()
        found[places] = out
    cursors = ring.cursors[rows.slots[:-1].long()].tolist()
    gpu.flush(rows.pool, rows.slots, ring, layout, is_forced=True, surprises=rows.surprises)
    checks = compare(rows, before, chunk_size, found, rows.pool, rows.surprises)
    return [*checks, true("cursors", cursors == [steps % chunk_size] * 2 and not bool(ring.cursors.any()))]


def check_apart(layout: Layout, heads: int, chunk_size: int, dtype: torch.dtype, device: torch.device) -> list[Check]:
    """What memories make of inputs, then its write, in two calls."""
    rows = draw(layout, heads, (chunk_size, chunk_size), dtype, device)
    tokens, used = slice(0, 2 * chunk_size), rows.slots[:-1].long()
    raw = Tokens.of(tuple(part[tokens] for part in rows.inputs), 2, torch.float64)
    exact = address(layout, rows.pool[used].double(), raw)
    with products_in_tf32():
        half = Tokens(*(part.float() for part in (raw.query, raw.key, raw.value, raw.rates)))
        twin = address(layout, rows.pool[used], half)
    before = copied(rows)
    query, key, value, rates = gpu.address(rows.pool, rows.slots, *rows.inputs, rows.bounds, layout)
    checks = []
    for name, found in (("query", query), ("key", key), ("value", value), ("rates", rates)):
        wanted = getattr(exact, name)
        loss = 0.0 if dtype == torch.float32 else error(getattr(twin, name), wanted)
        own = found[tokens].unflatten(0, (2, -1)).transpose(1, 2)
        checks.append(near(name, own, wanted, dtype, loss))
    gpu.write_chunk(rows.pool, rows.slots, key, value, rates, rows.bounds, layout, rows.surprises)
    written = expect(before, chunk_size)[1][used]
    with products_in_tf32():
        loss = 0.0 if dtype == torch.float32 else error(expect(before, chunk_size, torch.float32)[1][used], written)
    return [*checks, near("memories", rows.pool[used], written, dtype, loss), rows.kept(rows.pool)]


def check_residuals(
    size: int, heads: int, columns: int, dtype: torch.dtype, has_delta: bool, device: torch.device
) -> list[Check]:
    """Memories of any number of columns, written with given residuals, around a tile of 16 tokens."""
    rows = draw(Layout(size), heads, (1, 15, 16, 17, 40) if device.type == "cuda" else (1, 17), dtype, device)
    pool = rows.pool[..., :1].expand(-1, -1, -1, columns).contiguous()
    own = rows.slots[:-1].long()
    pool[own] = torch.randn(len(own), heads, size, columns, device=device) / size**0.5
    tokens = len(rows.inputs[1])
    given = torch.randn(tokens, heads, columns, device=device).to(dtype)
    rates = torch.rand(tokens, heads, 3, device=device)
    rates[..., 1] = functional.logsigmoid(torch.randn(tokens, heads, device=device) + 3)
    before = pool.clone()
    gpu.write_residuals(pool, rows.slots, rows.inputs[1], given, rates, rows.bounds, has_delta=has_delta)
    checks = [rows.kept(pool)]
    for slot, span in rows.used():
        written = []
        for precision in (torch.float64, torch.float32):
            keys, errors, gates = (
                part[None, span].transpose(1, 2).to(precision) for part in (rows.inputs[1], given, rates)
            )
            with products_in_tf32():
                memory = before[slot, None].to(precision)
                written.append(write(memory, None, keys, errors, gates, has_delta=has_delta)[0])
        twin = 0.0 if dtype == torch.float32 else error(written[1], written[0])
        checks.append(near(f"{span.stop - span.start} tokens", pool[slot, None], written[0], dtype, twin))
    return checks


def check_nothing(heads: int, size: int, device: torch.device) -> list[Check]:
    """Tokens with lr 0 and retention 1 leave every bit of the memory."""
    rows = draw(Layout(size, adaptive=()), heads, (20,), torch.float32, device, slow=(-200.0, -200.0))
    before = rows.pool.clone()
    gpu.advance(rows.pool, rows.slots, *rows.inputs, rows.bounds, rows.layout, 16)
    return [same("memories", rows.pool, before)]


def cases(is_toy: bool) -> dict[str, Case]:
    """All cases of the matrix memory by name, the most important first."""
    sizes = TOY if is_toy else DEVICE
    found: dict[str, Case] = {"oracle": check_oracle}
    for dtype in sizes.dtypes:
        for size, heads in sizes.heads:
            name = f"{NAMES[dtype]} K={size} H={heads}"
            for chunk in reversed(sizes.chunks):
                layout = Layout(size)
                found[f"decode {name} C={chunk}"] = partial(check_decode, layout, heads, chunk, dtype, False)
                found[f"advance {name} C={chunk}"] = partial(check_advance, layout, heads, chunk, dtype, 0.0, None)
                if dtype != torch.float16:
                    found[f"apart {name} C={chunk}"] = partial(check_apart, layout, heads, chunk, dtype)
            found[f"captured {name}"] = partial(check_decode, Layout(size), heads, sizes.chunks[-1], dtype, True)
            for has_delta in (True, False):
                kind = "" if has_delta else ", no decay along the key"
                columns = 3 * size
                found[f"residuals {name}{kind}"] = partial(check_residuals, size, heads, columns, dtype, has_delta)
    chunk = sizes.chunks[-1]
    for size, heads in sizes.heads:
        for dtype in sizes.dtypes[:2]:
            name = f"{NAMES[dtype]} K={size} H={heads}"
            full = Layout(size, adaptive=ADAPTIVE)
            found[f"queries too {name}"] = partial(check_advance, full, heads, chunk, dtype, 0.0, None)
            found[f"queries too, decode {name}"] = partial(check_decode, full, heads, chunk, dtype, False)
            if size <= 64:
                layout = Layout(size, has_momentum=True)
                found[f"momentum {name}"] = partial(check_advance, layout, heads, chunk, dtype, 0.0, None)
        fp32, full_step = torch.float32, (9.0, -9.0)
        for correlation in (0.9, 1.0):
            title = f"keys of correlation {correlation:g} K={size} H={heads}"
            found[title] = partial(check_advance, Layout(size), heads, chunk, fp32, correlation, full_step)
        found[f"no step, no decay K={size} H={heads}"] = partial(check_nothing, heads, size)
    return found
