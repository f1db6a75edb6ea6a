"""Times of the chunk kernels: beside a cuBLAS product of as many operations, a copy of as many bytes, and fla's kernel.

Shapes: B rows, H heads, T tokens of a row, C tokens of a chunk, K key size, M columns of the tall matrix.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from gpu_checks import attempts, barred, error, limit
from gpu_oracle import Tokens, advance, products_in_tf32, write
from gpu_timing import Clock, Run, capture, ratio_row
from hope_kernels.dgd_memory import Gates, gpu
from hope_kernels.dgd_memory.gated_delta import as_gated_delta_rule
from hope_kernels.dgd_memory.layout import Layout
from torch.nn import functional

HEADS, CHUNK, TOKENS = 16, 64, 2048
DTYPE = torch.bfloat16


def write_flops(size: int, columns: int, tokens: int, chunk_size: int) -> float:
    """Operations of a head's write with given residuals: predictions, the triangle, its solution, the update."""
    per_chunk = 4 * chunk_size * size * columns + 2 * chunk_size**2 * size + chunk_size**3 / 3
    return (per_chunk + chunk_size**2 * columns) * tokens / chunk_size


def advance_flops(size: int, columns: int, tokens: int, chunk_size: int) -> float:
    """Operations of a head's whole work: also keys, values and rates (2 C K (2 K + 2)) and reads (2 C K K)."""
    made = 2 * chunk_size * size * (2 * size + 2) + 2 * chunk_size * size**2
    return made * tokens / chunk_size + write_flops(size, columns, tokens, chunk_size)


class Job:
    """Rows of T tokens and what is done with them; the pool is put back before each run."""

    def __init__(self, rows: int, heads: int, size: int, tokens: int, chunk_size: int, device: torch.device) -> None:
        self.rows, self.heads, self.size, self.tokens, self.chunk_size = rows, heads, size, tokens, chunk_size
        self.dtype = DTYPE if device.type == "cuda" else torch.float16
        self.device, self.layout = device, Layout(size)
        self.slots = torch.arange(rows, dtype=torch.int32, device=device)
        self.bounds = torch.arange(rows + 1, dtype=torch.int32, device=device) * tokens
        self.query, self.key, self.value = (self.unit() for _ in range(3))

    def unit(self) -> torch.Tensor:
        """Vectors of length 1, [B * T, H, K]."""
        drawn: torch.Tensor = torch.randn(
            self.rows * self.tokens, self.heads, self.size, dtype=self.dtype, device=self.device
        )
        unit: torch.Tensor = functional.normalize(drawn, dim=-1)
        return unit

    def pool(self, columns: int) -> torch.Tensor:
        """Memories [B, H, K, M]."""
        drawn: torch.Tensor = torch.randn(self.rows, self.heads, self.size, columns, device=self.device)
        return drawn.mul_(self.size**-0.5)


class Advance(Job):
    """The whole of a self-modifying memory: own keys, values and rates, reads and writes, chunk by chunk."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.rates = torch.randn(*self.key.shape[:2], 2, device=self.device)
        self.rates[..., 1] -= 3
        self.start = self.pool(self.layout.num_columns)
        self.memories = self.start.clone()

    def run(self) -> torch.Tensor:
        """Once over all tokens."""
        return gpu.advance(
            self.memories, self.slots, self.query, self.key, self.value, self.rates, self.bounds, self.layout,
            self.chunk_size, max_tokens=self.tokens,
        )  # fmt: skip

    def reset(self) -> None:
        """Put the memories back."""
        self.memories.copy_(self.start)

    def gate(self) -> float:
        """Error over limit of outputs and memories of the first and the last row, on the very tensors; at most 1."""
        self.reset()
        out = self.run()
        worst = 0.0
        for row in {0, self.rows - 1}:
            span = slice(row * self.tokens, (row + 1) * self.tokens)
            parts = tuple(part[span] for part in (self.query, self.key, self.value, self.rates))
            found = []
            for precision in (torch.float64, torch.float32):
                with products_in_tf32():
                    raw, memory = Tokens.of(parts, 1, precision), self.start[row, None].to(precision)
                    found.append(advance(self.layout, memory, None, raw, self.chunk_size))
            own = out[span].transpose(0, 1)[None], self.memories[row, None]
            for mine, exact, twin in zip(own, found[0], found[1], strict=False):
                assert exact is not None and twin is not None
                ratio = error(mine, exact) / limit(self.dtype, error(twin, exact))
                # NaN must not pass for the smaller of two.
                worst = ratio if not ratio <= worst else worst
        return worst

    def num_bytes(self) -> float:
        """Inputs read once, outputs written once, memories both."""
        heads, width = self.rows * self.heads, self.dtype.itemsize
        return heads * (self.tokens * (4 * self.size * width + 8) + 8 * self.size * self.layout.num_columns)

    def flops(self) -> float:
        """Of all heads."""
        one = advance_flops(self.size, self.layout.num_columns, self.tokens, self.chunk_size)
        return one * self.rows * self.heads


class Write(Job):
    """The gated delta rule alone: keys, residuals of M = 3 K columns and rates are given, nothing is read."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.columns = 3 * self.size
        self.residuals = torch.randn(*self.key.shape[:2], self.columns, dtype=self.dtype, device=self.device)
        self.rates = torch.rand(*self.key.shape[:2], 3, device=self.device)
        self.rates[..., 1] = functional.logsigmoid(torch.randn(self.key.shape[:2], device=self.device) + 3)
        self.rates[..., 0] *= self.rates[..., 1].exp()
        self.start = self.pool(self.columns)
        self.memories = self.start.clone()

    def run(self) -> None:
        """Once over all tokens: with given residuals a row of any length is one chunk."""
        gpu.write_residuals(self.memories, self.slots, self.key, self.residuals, self.rates, self.bounds)

    def reset(self) -> None:
        """Put the memories back."""
        self.memories.copy_(self.start)

    def gate(self) -> float:
        """Error over limit of the memories of the first and the last row; at most 1."""
        self.reset()
        self.run()
        worst = 0.0
        for row in {0, self.rows - 1}:
            span = slice(row * self.tokens, (row + 1) * self.tokens)
            found = []
            for precision in (torch.float64, torch.float32):
                parts = (
                    part[None, span].transpose(1, 2).to(precision) for part in (self.key, self.residuals, self.rates)
                )
                with products_in_tf32():
                    found.append(write(self.start[row, None].to(precision), None, *parts)[0])
            ratio = error(self.memories[row, None], found[0]) / limit(self.dtype, error(found[1], found[0]))
            worst = ratio if not ratio <= worst else worst
        return worst

    def num_bytes(self) -> float:
        """Inputs read once, memories read and written."""
        heads, width = self.rows * self.heads, self.dtype.itemsize
        per_token = (self.size + self.columns) * width + 12
        return heads * (self.tokens * per_token + 8 * self.size * self.columns)

    def flops(self) -> float:
        """Of all heads."""
        return write_flops(self.size, self.columns, self.tokens, self.chunk_size) * self.rows * self.heads


def product_of(flops: float, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[Run, float]:
    """A cuBLAS bmm of square matrices with about as many operations, and the share of them that it does."""
    side = max(16, round((flops / batch / 2) ** (1 / 3) / 16) * 16)
    a, b = (torch.randn(batch, side, side, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.bmm(a, b, out=out), 2 * batch * side**3 / flops


def fla_rule(job: Write) -> Run | None:
    """fla's chunk_gated_delta_rule with given values of 3 K columns, all tokens read out; None if it disagrees."""
    rule = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule

    def split(part: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = part.unflatten(0, (job.rows, job.tokens))
        return rows

    gates = Gates(job.rates[..., 0], job.rates[..., 1])
    given = as_gated_delta_rule(job.residuals.float(), gates)
    key, query = split(job.key), split(job.query)
    values, beta, decay = split(given.values).to(job.dtype), split(given.beta), split(given.log_decay)
    start = job.start.clone()

    def run() -> Any:
        return rule(query, key, values, decay, beta, scale=1.0, initial_state=start, output_final_state=True)

    job.reset()
    job.run()
    off = error(run()[1], job.memories)
    if not off <= 2e-2:
        print(f"fla: its memories differ from ours by {off:.1e}, not compared", flush=True)
        return None
    return run


def measure(clock: Clock, device: torch.device, barriers: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of the section "chunk", the largest heads last."""
    if find_spec("fla") is None:
        print("fla: not installed, not compared", flush=True)
    toy = clock.is_toy
    sizes = [(1, 16)] if toy else [(rows, size) for rows in (4, 16, 1) for size in (64, 128)]
    heads, tokens, chunk_size = (1, 9, 8) if toy else (HEADS, TOKENS, CHUNK)
    for rows, size in sizes:
        for kind in (Advance, Write):
            name, case = ("advance", "advance") if kind is Advance else ("write, residuals given", "residuals")
            title = f"{name}: B*H {rows * heads}, K {size}, T {tokens}"
            barrier = barred(title, barriers, f"{case} {'fp16' if toy else 'bf16'} K={size} ")
            if barrier is not None:
                yield barrier
                continue
            sizes_of = (rows, heads, size, tokens, chunk_size, device)
            yield from attempts(title, partial(_compare, kind, sizes_of, name, title, clock))
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _compare(
    kind: type[Advance] | type[Write], sizes: tuple[Any, ...], name: str, title: str, clock: Clock
) -> Iterator[dict[str, Any]]:
    """One operator at one size, beside everything, if it is right on the very tensors that are timed."""
    job, device = kind(*sizes), clock.device
    gate = job.gate()
    if not gate <= 1:
        yield {"kind": "failed", "title": title, "reason": f"off by {gate:.2g} times its limit, not timed"}
        return
    run, mode = capture(job.run, device)
    heads = job.rows * job.heads
    product, share = product_of(job.flops(), heads, job.dtype, device)
    sides: dict[str, Run] = {"ours": run, "cuBLAS": product, "copy": clock.copy_of(job.num_bytes())}
    rule = fla_rule(job if isinstance(job, Write) else Write(*sizes)) if find_spec("fla") is not None else None
    if rule is not None:
        sides["fla"] = capture(rule, device)[0]
    taken = clock.in_turns(sides, job.reset)
    common = {"mode": mode, "gate": gate, "heads": heads, "K": job.size, "operator": name}
    over = "cuBLAS bmm, same FLOPs"
    yield ratio_row(title, over, taken["ours"], taken["cuBLAS"], job.flops() / 1e12, "TFLOP/s", share) | common
    over = "copy, same bytes"
    yield ratio_row(title, over, taken["ours"], taken["copy"], job.num_bytes() / 1e9, "GB/s") | common
    if rule is not None:
        millions = job.rows * job.tokens / 1e6
        yield ratio_row(title, "fla", taken["ours"], taken["fla"], millions, "M tokens/s") | common
