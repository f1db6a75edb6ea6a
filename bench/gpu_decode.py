"""Decode on a GPU: a network's dense products and memories as captured steps, and the memories' reads alone.

Shapes: B rows, L layers, H heads, K head size, D model width, F hidden units, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_checks import attempts, barred
from gpu_timing import Clock, Run, capture, ratio_row
from hope_kernels.dgd_memory import gpu
from hope_kernels.dgd_memory.layout import Layout
from machine import median
from torch.nn import functional

CHUNK = 64
STATE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a network; weights are drawn."""

    name: str
    layers: int
    heads: int
    head_dim: int
    width: int
    hidden: int
    vocabulary: int

    def num_weights(self) -> int:
        """Those of the products of a step."""
        inner = self.heads * self.head_dim
        layer = self.width * (4 * inner + 2 * self.heads + 3 * self.hidden)
        return self.layers * layer + self.width * self.vocabulary

    def state_bytes(self, columns: int) -> int:
        """Bytes of this many columns of every memory of a session."""
        return self.layers * self.heads * self.head_dim * columns * STATE_BYTES


SMALL = Shape("135M", 30, 9, 64, 576, 1536, 49_152)
# Eight thirds of the width, rounded up to a multiple of 128.
LARGE = Shape("1.3B", 24, 16, 128, 2048, 5504, 49_152)
TOY = {"135M": Shape("135M", 2, 1, 16, 32, 48, 64), "1.3B": Shape("1.3B", 1, 1, 16, 32, 80, 64)}
SHAPES = {shape.name: shape for shape in (SMALL, LARGE)}


class Memories:
    """A pool and a ring for each layer, every row's cursor at another place of its chunk."""

    def __init__(self, shape: Shape, rows: int, chunk_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.rows, self.chunk_size, self.layout = shape, rows, chunk_size, Layout(shape.head_dim)
        size = (rows, shape.heads, shape.head_dim, self.layout.num_columns)
        self.slots = torch.arange(rows, dtype=torch.int32, device=device)
        self.first = [(row * chunk_size // rows if rows < chunk_size else row) % chunk_size for row in range(rows)]
        self.starts = torch.tensor(self.first, dtype=torch.int32, device=device)
        self.pools, self.rings = [], []
        for _ in range(shape.layers):
            pool = torch.empty(size, device=device).normal_(std=shape.head_dim**-0.5)
            ring = gpu.Ring.empty(rows, shape.heads, chunk_size, self.layout, dtype, device)
            ring.keys.copy_(functional.normalize(torch.randn_like(ring.keys), dim=-1))
            ring.values.copy_(functional.normalize(torch.randn_like(ring.values), dim=-1))
            self.pools.append(pool)
            self.rings.append(ring)
        # Which rows' chunks end with each step: at most so many at once, -1 where there are fewer.
        self.most_due = -(-rows // chunk_size)
        table = torch.full((chunk_size, self.most_due), -1, dtype=torch.int32)
        for step in range(chunk_size):
            due = [row for row, first in enumerate(self.first) if (first + step + 1) % chunk_size == 0]
            table[step, : len(due)] = torch.tensor(due, dtype=torch.int32)
        self.table = table.to(device)
        self.has_due = (table[:, 0] >= 0).tolist()
        self.due = self.table[0].clone()

    def reset(self) -> None:
        """Put every cursor back to where its row began."""
        for ring in self.rings:
            ring.cursors.copy_(self.starts)

    def flush(self) -> None:
        """Write the chunks of the rows that are due, in every layer."""
        for pool, ring in zip(self.pools, self.rings, strict=True):
            gpu.flush(pool, self.due, ring, self.layout)


class Network:
    """Dense products in half precision and the memories: no attention, no sampling; norms and SwiGLU if asked for."""

    def __init__(self, memories: Memories, dtype: torch.dtype, device: torch.device, *, has_norms: bool) -> None:
        self.memories, self.shape, self.has_norms = memories, memories.shape, has_norms
        shape, inner = self.shape, self.shape.heads * self.shape.head_dim

        def drawn(*size: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(*size, dtype=dtype, device=device).mul_(scale * size[-2] ** -0.5)

        layers = range(shape.layers)
        self.inputs = [drawn(3, shape.width, inner) for _ in layers]
        self.rates = [drawn(shape.width, shape.heads * 2) for _ in layers]
        # Small, so that nothing grows over the layers.
        self.outputs = [drawn(inner, shape.width, scale=0.1) for _ in layers]
        self.gate_up = [drawn(shape.width, 2 * shape.hidden) for _ in layers]
        self.down = [drawn(shape.hidden, shape.width, scale=0.1) for _ in layers]
        self.head = drawn(shape.width, shape.vocabulary)
        self.x = torch.randn(memories.rows, shape.width, dtype=dtype, device=device)
        self.unit = torch.full((shape.head_dim,), shape.head_dim**-0.5, dtype=dtype, device=device)
        self.logits = torch.zeros(memories.rows, shape.vocabulary, dtype=dtype, device=device)

    def step(self) -> None:
        """One token of every row."""
        shape, memories, x = self.shape, self.memories, self.x
        per_head = (memories.rows, shape.heads, shape.head_dim)
        for layer in range(shape.layers):
            given = functional.rms_norm(x, x.shape[-1:]) if self.has_norms else x
            made = torch.bmm(given.expand(3, *given.shape), self.inputs[layer]).view(3, *per_head)
            if self.has_norms:
                made = functional.rms_norm(made, self.unit.shape, self.unit)
            rates = (given @ self.rates[layer]).view(memories.rows, shape.heads, 2)
            read = gpu.read_step(
                memories.pools[layer], memories.slots, made[0], made[1], made[2], rates, memories.rings[layer],
                memories.layout,
            )  # fmt: skip
            x = torch.addmm(x, read.view(memories.rows, -1), self.outputs[layer])
            given = functional.rms_norm(x, x.shape[-1:]) if self.has_norms else x
            both = given @ self.gate_up[layer]
            gate, up = both[:, : shape.hidden], both[:, shape.hidden :]
            x = torch.addmm(x, functional.silu(gate) * up if self.has_norms else gate, self.down[layer])
        self.logits.copy_(x @ self.head)

    def step_and_flush(self) -> None:
        """One token of every row, and the write of the chunks that it ends."""
        self.step()
        self.memories.flush()


def floor_seconds(shape: Shape, rows: int, chunk_size: int, bytes_per_second: float) -> float:
    """Weights once, each row's main memories once, and its whole state read and written once a chunk."""
    columns = Layout(shape.head_dim).num_columns
    row = shape.state_bytes(shape.head_dim) + 2 * shape.state_bytes(columns) / chunk_size
    return (2 * shape.num_weights() + rows * row) / bytes_per_second


def decode(shape: Shape, rows: int, clock: Clock, rate: float, *, has_norms: bool = False) -> dict[str, Any]:
    """One row: mean and p99 of steps over whole chunks, every write where it falls."""
    device = clock.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    chunk_size = 2 if clock.is_toy else CHUNK
    memories = Memories(shape, rows, chunk_size, dtype, device)
    network = Network(memories, dtype, device, has_norms=has_norms)
    memories.reset()
    plain, mode = capture(network.step, device)
    memories.reset()
    flushing, _ = capture(network.step_and_flush, device)
    num_steps = (1 if clock.is_toy else 4) * chunk_size

    def steps() -> list[Run]:
        def one(number: int) -> Run:
            if not memories.has_due[number % chunk_size]:
                return plain

            def run() -> None:
                memories.due.copy_(memories.table[number % chunk_size])
                flushing()

            return run

        return [one(number) for number in range(num_steps)]

    memories.reset()
    clock.spans(steps())
    clock.empty_cache()
    taken = sorted(clock.spans(steps()))
    expected = [(first + 2 * num_steps) % chunk_size for first in memories.first]
    for ring in memories.rings:
        if ring.cursors.tolist() != expected:
            raise RuntimeError("cursors are not where the steps should have left them")
    if not bool(network.logits.isfinite().all()):
        raise RuntimeError("outputs are not finite: a token was not kept, or a memory exploded")
    mean = sum(taken) / len(taken)
    floor = floor_seconds(shape, rows, chunk_size, rate)
    return {
        "kind": "decode",
        "model": shape.name,
        "rows": rows,
        "mode": mode,
        "has_norms": has_norms,
        "steps": num_steps,
        "mean_us": 1e6 * mean,
        "median_us": 1e6 * median(taken),
        "p99_us": 1e6 * taken[math.ceil(0.99 * len(taken)) - 1],
        "tokens_per_second": rows / mean,
        "floor_tokens_per_second": rows / floor,
        "share_of_floor": floor / mean,
        "copy_gb_per_second": rate / 1e9,
    }


def measure(name: str, clock: Clock, device: torch.device, barriers: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of the sections "decode 135M" and "decode 1.3B"."""
    shape = TOY[name] if clock.is_toy else SHAPES[name]
    barrier = _barred(f"decode {name}", shape, clock, barriers)
    if barrier is not None:
        yield barrier
        return
    rate = clock.copy_rate()
    sizes = (1, 3) if clock.is_toy else (1, 64, 8, 256)
    for rows, has_norms in [(rows, False) for rows in sizes] + [(rows, True) for rows in sizes[:2]]:
        one = partial(decode, shape, rows, clock, rate, has_norms=has_norms)
        yield from attempts(f"{shape.name}, {rows} rows", lambda one=one: [one()])  # type: ignore[misc]
        if device.type == "cuda":
            torch.cuda.empty_cache()


def reads(shape: Shape, rows: int, clock: Clock) -> dict[str, Any]:
    """read_step of every layer by itself, over a copy of as many bytes."""
    device = clock.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    memories = Memories(shape, rows, 2 if clock.is_toy else CHUNK, dtype, device)
    size = (rows, shape.heads, shape.head_dim)
    query, key, value = (functional.normalize(torch.randn(size, device=device), dim=-1).to(dtype) for _ in range(3))
    rates = torch.randn(rows, shape.heads, 2, dtype=dtype, device=device)
    found: list[torch.Tensor] = []

    def run() -> None:
        found[:] = [
            gpu.read_step(pool, memories.slots, query, key, value, rates, ring, memories.layout)
            for pool, ring in zip(memories.pools, memories.rings, strict=True)
        ]

    memories.reset()
    replay, mode = capture(run, device)
    # Of a layer: main, three vectors and rates in, two vectors and rates kept, one vector out.
    vectors = rows * shape.heads * (6 * shape.head_dim * dtype.itemsize + 2 * dtype.itemsize + 2 * STATE_BYTES)
    num_bytes = rows * shape.state_bytes(shape.head_dim) + shape.layers * vectors
    taken = clock.in_turns({"ours": replay, "copy": clock.copy_of(num_bytes)}, memories.reset)
    exact = torch.einsum(
        "bhk,bhkm->bhm", query.double(), memories.pools[-1][..., memories.layout.columns("main")].double()
    )
    off = float((found[-1].double() - exact - query.double()).norm() / exact.norm())
    if not off <= 1e-2:
        raise RuntimeError(f"what was read is off by {off:.1e}")
    title = f"read_step alone, {shape.name}, {rows} rows, {num_bytes / 1e6:,.0f} MB"
    row = ratio_row(title, "copy, same bytes", taken["ours"], taken["copy"], num_bytes / 1e9, "GB/s")
    return row | {"mode": mode, "model": shape.name, "rows": rows, "operator": "read_step"}


def measure_reads(clock: Clock, device: torch.device, barriers: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of the section "bandwidth"."""
    for shape in TOY.values() if clock.is_toy else SHAPES.values():
        barrier = _barred(f"read_step alone, {shape.name}", shape, clock, barriers)
        if barrier is not None:
            yield barrier
            continue
        for rows in (1, 3) if clock.is_toy else (64, 256, 8, 1):
            one = partial(reads, shape, rows, clock)
            yield from attempts(f"read_step alone, {shape.name}, {rows} rows", lambda one=one: [one()])  # type: ignore[misc]
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _barred(title: str, shape: Shape, clock: Clock, barriers: dict[str, str]) -> dict[str, Any] | None:
    name = f"{'fp16' if clock.is_toy else 'bf16'} K={shape.head_dim} "
    return barred(title, barriers, f"decode {name}", f"captured {name}")
