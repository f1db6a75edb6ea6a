"""Triton kernels of MLP memories: what they retrieve, and the gradients that a write of both layers starts from.

A program serves one row, head and memory, and every so many tiles of its tokens. Products are taken in blocks, for a
whole tile of a wide layer would not fit registers; each is loaded the way it is multiplied, never turned afterwards.
Shapes: pools first [slots, H, N, K, F] and second [slots, H, N, F, V], tokens of all rows one after the other [T, ...];
BT tokens of a tile, BK, BF and BV of a block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hope_kernels.dgd_memory.gpu_kernels import _slot
from hope_kernels.dgd_memory.gpu_tiles import _nothing


@triton.jit
def _gelu(before):
    """The exact GELU and its slope."""
    share = 0.5 * (1.0 + tl.math.erf(before * 0.7071067811865476))
    return before * share, share + before * 0.3989422804014327 * tl.exp(-0.5 * before * before)


@triton.jit
def _before(
    vectors, places, live, first, units, K: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    BF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the first layer makes of a tile's vectors, before the GELU: a block of hidden units [BT, BF]."""
    found = tl.zeros([BT, BF], dtype=tl.float32)
    for slab in range(0, K, BK):
        k = slab + tl.arange(0, BK)
        part = tl.load(vectors + places[:, None] * K + k[None, :], mask=live[:, None], other=0.0).to(tl.float32)
        weights = tl.load(first + k[:, None] * F + units[None, :])
        found = tl.dot(part, weights, found, input_precision=PRECISION)
    return found


@triton.jit
def _beside(
    vectors, places, live, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr, HAS_PATH: tl.constexpr
):
    """What the residual path gives, as blocks of the outputs [BT, BV]; zeros where there is none."""
    blocks = ()
    for v in tl.static_range(0, V, BV):
        block = tl.zeros([BT, BV], dtype=tl.float32)
        if HAS_PATH:
            at = places[:, None] * K + v + tl.arange(0, BV)[None, :]
            block += tl.load(vectors + at, mask=live[:, None], other=0.0).to(tl.float32)
        blocks = blocks + (block,)  # noqa: RUF005
    return blocks


@triton.jit
def _through_second(blocks, hidden, second, units, V: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr):
    """Blocks of the outputs [BT, BV], and what a block of hidden units [BT, BF] adds to them."""
    moved = ()
    for i in tl.static_range((V + BV - 1) // BV):
        columns = i * BV + tl.arange(0, BV)
        at = second + units[:, None] * V + columns[None, :]
        weights = tl.load(at, mask=(columns < V)[None, :], other=0.0)
        moved = moved + (tl.dot(hidden, weights, blocks[i], input_precision=PRECISION),)  # noqa: RUF005
    return moved


@triton.jit
def _back_through_second(
    blocks, second, units, V: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr, BV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients at a block of hidden units [BT, BF] from those at the outputs, blocks of [BT, BV]."""
    found = tl.zeros([BT, BF], dtype=tl.float32)
    for i in tl.static_range((V + BV - 1) // BV):
        columns = i * BV + tl.arange(0, BV)
        turned = tl.load(second + units[None, :] * V + columns[:, None], mask=(columns < V)[:, None], other=0.0)
        found = tl.dot(blocks[i], turned, found, input_precision=PRECISION)
    return found


@triton.jit
def _errors(found, target, out, places, live, V: tl.constexpr, BV: tl.constexpr):
    """Blocks of the outputs [BT, BV] less those of the targets; stored, too."""
    off = ()
    for i in tl.static_range((V + BV - 1) // BV):
        columns = i * BV + tl.arange(0, BV)
        at = places[:, None] * V + columns[None, :]
        there = live[:, None] & (columns < V)[None, :]
        error = found[i] - tl.load(target + at, mask=there, other=0.0).to(tl.float32)
        tl.store(out + at, error, mask=there)
        off = off + (error,)  # noqa: RUF005
    return off


@triton.jit
def _copy(vectors, places, out, out_places, live, K: tl.constexpr, BK: tl.constexpr):
    """Put a tile's vectors [BT, K] elsewhere, as float32."""
    for slab in range(0, K, BK):
        k = slab + tl.arange(0, BK)
        part = tl.load(vectors + places[:, None] * K + k[None, :], mask=live[:, None], other=0.0)
        tl.store(out + out_places[:, None] * K + k[None, :], part.to(tl.float32), mask=live[:, None])


@triton.jit
def _store_rates(out, places, live, lr, log_retention):
    """Rates of a tile's tokens, as `dgd_memory.gpu.write_residuals` takes them; there is no momentum."""
    tl.store(out + places * 3, lr, mask=live)
    tl.store(out + places * 3 + 1, log_retention, mask=live)
    tl.store(out + places * 3 + 2, tl.zeros_like(lr), mask=live)


@triton.jit(do_not_specialize=["num_slots", "total"])
def gradient_kernel(
    key, target, lr, log_retention, out_key, out_hidden, out_inner, out_error, first_rates, second_rates, first, second,
    slots, num_slots, bounds, total, H: tl.constexpr, N: tl.constexpr, K: tl.constexpr, F: tl.constexpr,
    V: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr, BV: tl.constexpr, IS_RESIDUAL: tl.constexpr,
    IS_SQUARED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys, residuals and rates of both layers' writes, for every token by the memory as it is in the pools.

    Program: (row, head and memory; tile of BT tokens, the first of every so many). A row without a slot has no output.
    """
    memory = tl.program_id(0) % N
    head = tl.program_id(0) // N % H
    row = tl.program_id(0) // (N * H)
    slot, _ = _slot(slots, row, num_slots)
    if slot < 0:
        return
    first += ((slot * H + head) * N + memory) * K * F
    second += ((slot * H + head) * N + memory) * F * V
    begin = tl.load(bounds + row) + tl.program_id(1) * BT
    count = tl.minimum(tl.load(bounds + row + 1), total) - begin
    fence = slots + row
    o = tl.arange(0, BT)
    places = o * H
    own_places = o * H * N
    for t in tl.range(0, count, tl.num_programs(1) * BT, disable_licm=True):
        live = t + o < count
        home = (begin.to(tl.int64) + t) * H + head
        own_home = home * N + memory
        errors = _beside(key + home * K, places, live, K, V, BT, BV, IS_RESIDUAL and IS_SQUARED)
        squares = tl.zeros([BT], dtype=tl.float32)
        for f in tl.range(0, F, BF, disable_licm=True):
            units = f + _nothing(fence) + tl.arange(0, BF)
            before = _before(key + home * K, places, live, first, units, K, F, BT, BK, BF, PRECISION)
            hidden, slope = _gelu(before)
            at = own_places[:, None] * F + units[None, :]
            tl.store(out_hidden + own_home * F + at, hidden, mask=live[:, None])
            # Kept there until the errors are known: all of them at once would not fit registers.
            tl.store(out_inner + own_home * F + at, slope, mask=live[:, None])
            squares += tl.sum(hidden * hidden, 1)
            if IS_SQUARED:
                errors = _through_second(errors, hidden, second, units, V, BV, PRECISION)
        errors = _errors(errors, target + own_home * V, out_error + own_home * V, own_places, live, V, BV)
        # The threads that load a slope are not those that stored it.
        tl.debug_barrier()
        for f in tl.range(0, F, BF, disable_licm=True):
            units = f + _nothing(fence) + tl.arange(0, BF)
            inner = _back_through_second(errors, second, units, V, BT, BF, BV, PRECISION)
            at = own_places[:, None] * F + units[None, :]
            inner *= tl.load(out_inner + own_home * F + at, mask=live[:, None], other=0.0)
            tl.store(out_inner + own_home * F + at, inner, mask=live[:, None])
        # Every memory has keys of its own in the write that follows, which knows nothing of shared ones.
        _copy(key + home * K, places, out_key + own_home * K, own_places, live, K, BK)
        rate = tl.load(lr + home + places, mask=live, other=0.0)
        kept = tl.load(log_retention + home + places, mask=live, other=0.0)
        _store_rates(first_rates + own_home * 3, own_places, live, rate, kept)
        _store_rates(second_rates + own_home * 3, own_places, live, rate / (1.0 + squares), kept)


@triton.jit(do_not_specialize=["num_slots", "memory_index", "total"])
def read_kernel(
    query, out, first, second, slots, num_slots, memory_index, bounds, total, H: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr, F: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr,
    BV: tl.constexpr, IS_RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one memory makes of the queries. Program: (row and head; tile of BT tokens, the first of every so many)."""
    head = tl.program_id(0) % H
    row = tl.program_id(0) // H
    slot, fill = _slot(slots, row, num_slots)
    begin = tl.load(bounds + row) + tl.program_id(1) * BT
    count = tl.minimum(tl.load(bounds + row + 1), total) - begin
    place = (tl.maximum(slot, 0) * H + head) * N + memory_index
    first += place * K * F
    second += place * F * V
    fence = slots + row
    o = tl.arange(0, BT)
    places = o * H
    for t in tl.range(0, count, tl.num_programs(1) * BT, disable_licm=True):
        live = t + o < count
        is_read = live & (slot >= 0)
        home = (begin.to(tl.int64) + t) * H + head
        found = _beside(query + home * K, places, is_read, K, V, BT, BV, IS_RESIDUAL)
        if slot >= 0:
            for f in tl.range(0, F, BF, disable_licm=True):
                units = f + _nothing(fence) + tl.arange(0, BF)
                before = _before(query + home * K, places, is_read, first, units, K, F, BT, BK, BF, PRECISION)
                hidden, _ = _gelu(before)
                found = _through_second(found, hidden, second, units, V, BV, PRECISION)
        for i in tl.static_range((V + BV - 1) // BV):
            columns = i * BV + tl.arange(0, BV)
            at = places[:, None] * V + columns[None, :]
            given = (found[i] + fill).to(out.dtype.element_ty)
            tl.store(out + home * V + at, given, mask=live[:, None] & (columns < V)[None, :])


@triton.jit(do_not_specialize=["num_slots", "memory_index"])
def decode_kernel(
    query, out, first, second, slots, num_slots, memory_index, H: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    F: tl.constexpr, V: tl.constexpr, WIDTH: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr,
    IS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """What one memory makes of one query a row, in float32 whatever its type. Program: (row and head).

    WIDTH: V, or the next number that a block may have.
    """
    head = tl.program_id(0) % H
    slot, fill = _slot(slots, tl.program_id(0) // H, num_slots)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    is_there = columns < V
    if slot < 0:
        empty = (tl.zeros([WIDTH], dtype=tl.float32) + fill).to(out.dtype.element_ty)
        tl.store(out + token * V + columns, empty, mask=is_there)
        return
    place = (slot * H + head) * N + memory_index
    first += place * K * F
    second += place * F * V
    found = tl.zeros([WIDTH], dtype=tl.float32)
    if IS_RESIDUAL:
        found += tl.load(query + token * K + columns, mask=is_there, other=0.0).to(tl.float32)
    for f in tl.static_range(0, F, BF):
        units = f + _nothing(slots + tl.program_id(0) // H) + tl.arange(0, BF)
        before = tl.zeros([BF], dtype=tl.float32)
        for slab in range(0, K, BK):
            k = slab + tl.arange(0, BK)
            part = tl.load(query + token * K + k).to(tl.float32)
            before += tl.sum(part[:, None] * tl.load(first + k[:, None] * F + units[None, :]), 0)
        hidden, _ = _gelu(before)
        at = second + units[:, None] * V + columns[None, :]
        found += tl.sum(hidden[:, None] * tl.load(at, mask=is_there[None, :], other=0.0), 0)
    tl.store(out + token * V + columns, found.to(out.dtype.element_ty), mask=is_there)
