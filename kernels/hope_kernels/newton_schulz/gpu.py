"""The Triton form of `newton_schulz`: one program takes one matrix through all its steps, for any number of matrices.

Shapes: B matrices, M the smaller side of each (at most 128) and N the larger; a tile is M by `tile` of its columns.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from hope_kernels.launch import POINTERS, KernelConfig, require_device

_KINDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_TILE = 32
# By padded smaller side: rows of a product that are held at once, terms of it that are added at once, warps. They are
# what keeps every product in registers, on both architectures and both versions of Triton.
_SPLITS = {16: (16, 16, 4), 32: (32, 16, 4), 64: (64, 16, 8), 128: (64, 16, 8)}
_HALF_SPLITS = {16: (16, 16, 4), 32: (32, 16, 4), 64: (32, 32, 4), 128: (16, 16, 8)}


@triton.jit
def _steps(
    matrix,
    slots,
    x,
    gram,
    factor,
    out,
    side,
    length,
    num_slots,
    num_steps,
    matrix_step,
    side_step,
    length_step,
    out_side,
    out_length,
    a,
    b,
    c,
    HAS_SLOTS: tl.constexpr,
    KIND: tl.constexpr,
    SIDE: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps of one matrix. x [B, M, N], gram and factor [B, SIDE, SIDE] are float32 scratch.

    Distances in elements: matrix_step from matrix to matrix, side_step and length_step along its smaller and its larger
    side, out_side and out_length along those of `out`.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = row
    if HAS_SLOTS:
        slot = tl.load(slots + row).to(tl.int64)
    is_there = (slot >= 0) & (slot < num_slots)
    rows = tl.arange(0, SIDE)
    columns = tl.arange(0, TILE)
    matrix += tl.where(is_there, slot, 0) * matrix_step
    x += row * side * length
    gram += row * SIDE * SIDE
    factor += row * SIDE * SIDE
    out += row * side * length

    total = tl.zeros([SIDE], tl.float32)
    for start in range(0, length, TILE):
        place = start + columns
        inside = (rows < side)[:, None] & (place < length)[None, :] & is_there
        found = tl.load(matrix + rows[:, None] * side_step + place[None, :] * length_step, mask=inside, other=0.0)
        found = found.to(tl.float32)
        total += tl.sum(found * found, axis=1)
    scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(total, axis=0)), 1e-7)
    # A slot beyond the pool is a fault of the caller's: its answer must not pass for one.
    scale = tl.where(slot < num_slots, scale, float("nan"))
    for start in range(0, length, TILE):
        place = start + columns
        inside = (rows < side)[:, None] & (place < length)[None, :]
        source = matrix + rows[:, None] * side_step + place[None, :] * length_step
        found = tl.load(source, mask=inside & is_there, other=0.0).to(tl.float32)
        tl.store(x + rows[:, None] * length + place[None, :], found * scale, mask=inside)

    inner = tl.arange(0, DEPTH)
    block = tl.arange(0, BLOCK)
    for _ in range(num_steps):
        # What a product reads was stored by other threads than those that read it: a barrier before each.
        tl.debug_barrier()
        for top in range(0, SIDE, BLOCK):
            some = top + block
            product = tl.zeros([BLOCK, SIDE], tl.float32)
            for start in range(0, length, DEPTH):
                place = start + inner
                is_place = (place < length)[None, :]
                part = tl.load(
                    x + some[:, None] * length + place[None, :], mask=(some < side)[:, None] & is_place, other=0.0
                )
                other = tl.load(
                    x + rows[:, None] * length + place[None, :], mask=(rows < side)[:, None] & is_place, other=0.0
                )
                product = tl.dot(part.to(KIND), tl.trans(other.to(KIND)), product, input_precision=PRECISION)
            tl.store(gram + some[:, None] * SIDE + rows[None, :], product)
        tl.debug_barrier()
        for top in range(0, SIDE, BLOCK):
            some = top + block
            product = tl.zeros([BLOCK, SIDE], tl.float32)
            for start in range(0, SIDE, DEPTH):
                part = tl.load(gram + some[:, None] * SIDE + (start + inner)[None, :]).to(KIND)
                other = tl.load(gram + (start + inner)[:, None] * SIDE + rows[None, :]).to(KIND)
                product = tl.dot(part, other, product, input_precision=PRECISION)
            square = some[:, None] * SIDE + rows[None, :]
            tl.store(factor + square, b * tl.load(gram + square) + c * product)
        tl.debug_barrier()
        for start in range(0, length, TILE):
            place = start + columns
            inside = (rows < side)[:, None] & (place < length)[None, :]
            moved = a * tl.load(x + rows[:, None] * length + place[None, :], mask=inside, other=0.0)
            for depth in range(0, SIDE, DEPTH):
                part = tl.load(factor + rows[:, None] * SIDE + (depth + inner)[None, :]).to(KIND)
                across = (depth + inner < side)[:, None] & (place < length)[None, :]
                other = tl.load(x + (depth + inner)[:, None] * length + place[None, :], mask=across, other=0.0)
                moved = tl.dot(part, other.to(KIND), moved, input_precision=PRECISION)
            # A column of x moves by itself alone, so that a tile may be stored once all have read it.
            tl.debug_barrier()
            tl.store(x + rows[:, None] * length + place[None, :], moved, mask=inside)
    tl.debug_barrier()
    for start in range(0, length, TILE):
        place = start + columns
        inside = (rows < side)[:, None] & (place < length)[None, :]
        found = tl.load(x + rows[:, None] * length + place[None, :], mask=inside, other=0.0)
        target = out + rows[:, None] * out_side + place[None, :] * out_length
        tl.store(target, found.to(out.dtype.element_ty), mask=inside)


def _config(dtype: torch.dtype, has_slots: bool, side: int) -> KernelConfig:
    """The configuration for matrices of this type whose smaller side is padded to `side`."""
    signature = {"matrix": POINTERS[dtype], "x": "*fp32", "gram": "*fp32", "factor": "*fp32", "out": POINTERS[dtype]}
    signature |= dict.fromkeys(("side", "length", "num_slots", "num_steps"), "i32")
    signature |= {"matrix_step": "i64"}
    signature |= dict.fromkeys(("side_step", "length_step", "out_side", "out_length"), "i32")
    signature |= dict.fromkeys(("a", "b", "c"), "fp32")
    constants = {"HAS_SLOTS": has_slots, "KIND": _KINDS[dtype], "SIDE": side, "PRECISION": "tf32x3"}
    block, depth, num_warps = (_SPLITS if dtype == torch.float32 else _HALF_SPLITS)[side]
    constants |= {"TILE": _TILE, "DEPTH": depth, "BLOCK": block}
    if has_slots:
        signature["slots"] = "*i32"
    else:
        constants["slots"] = None
    return KernelConfig(
        label=f"steps {POINTERS[dtype][1:]} side {side}{', slots' if has_slots else ''}",
        kernel=_steps,
        signature=signature,
        constants=constants,
        num_warps=num_warps,
        num_stages=1,
    )


def configs() -> tuple[KernelConfig, ...]:
    """Every configuration that `newton_schulz` chooses from."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(_config(dtype, has_slots, side) for dtype in dtypes for has_slots in (False, True) for side in _SPLITS)


def newton_schulz(
    matrix: torch.Tensor,
    num_steps: int,
    coefficients: tuple[float, float, float],
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `hope_kernels.newton_schulz.newton_schulz`, which checks the arguments; at least one step."""
    require_device(matrix.device)
    *leading, tall, wide = matrix.shape
    if slots is not None:
        leading = [len(slots)]
    flat = matrix.reshape(-1, tall, wide)
    out = matrix.new_empty(*leading, tall, wide)
    num_matrices, size = math.prod(leading), tall * wide
    if not num_matrices * size:
        return out
    is_tall = tall > wide
    side, length = min(tall, wide), max(tall, wide)
    config = _config(matrix.dtype, slots is not None, next(padded for padded in _SPLITS if padded >= side))
    squares = (2, num_matrices, config.constants["SIDE"], config.constants["SIDE"])
    gram, factor = matrix.new_empty(squares, dtype=torch.float32)
    arguments = {
        "matrix": flat,
        "x": matrix.new_empty(num_matrices * size, dtype=torch.float32),
        "gram": gram,
        "factor": factor,
        "out": out,
        "side": side,
        "length": length,
        "num_slots": len(flat),
        "num_steps": num_steps,
        "matrix_step": flat.stride(0),
        "side_step": flat.stride(2 if is_tall else 1),
        "length_step": flat.stride(1 if is_tall else 2),
        "out_side": 1 if is_tall else length,
        "out_length": side if is_tall else 1,
        "a": coefficients[0],
        "b": coefficients[1],
        "c": coefficients[2],
    }
    if slots is not None:
        arguments["slots"] = slots.to(torch.int32)
    config.launch((num_matrices,), arguments)
    return out
