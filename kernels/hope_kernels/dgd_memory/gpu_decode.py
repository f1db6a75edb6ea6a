"""Triton kernels of deferred decoding: a read that keeps the token's inputs, and the count of what is kept.

Shapes: pool [slots, H, K, M], tokens [B, H, ...], rings [slots, H, C, ...].
"""

from __future__ import annotations

import triton
import triton.language as tl

from hope_kernels.dgd_memory.gpu_kernels import _slot


@triton.jit(do_not_specialize=["num_slots"])
def read_kernel(
    query, key, value, slow, out, ring_keys, ring_values, ring_rates, cursors, pool, slots, num_slots,
    H: tl.constexpr, K: tl.constexpr, M: tl.constexpr, C: tl.constexpr, BN: tl.constexpr, COLUMN_Q: tl.constexpr,
    COLUMN_MAIN: tl.constexpr, NUM_RATES: tl.constexpr, NUM_SUMS: tl.constexpr, IS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """What main gives for one query a row, and the token's inputs put into the ring; the memory is left alone.

    Program: (block of BN columns, row and head); the first block's keeps the inputs.
    """
    row = tl.program_id(1) // H
    head = tl.program_id(1) % H
    slot, fill = _slot(slots, row, num_slots)
    k = tl.arange(0, K)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    token = tl.program_id(1).to(tl.int64)
    if slot < 0:
        tl.store(out + token * K + n, (tl.zeros([BN], dtype=tl.float32) + fill).to(out.dtype.element_ty))
        return
    memory = pool + (slot * H + head) * K * M
    held = tl.load(cursors + slot)
    is_room = held < C
    queries = tl.load(query + token * K + k).to(tl.float32)
    beside = tl.load(query + token * K + n).to(tl.float32)
    if COLUMN_Q >= 0 and head >= NUM_SUMS:
        found = tl.sum(queries[:, None] * tl.load(memory + k[:, None] * M + COLUMN_Q + k[None, :]), 0)
        # One vector is needed along both sides of the next product; the sum along the other side turns it.
        turned = tl.sum(tl.where(k[:, None] == k[None, :], found[None, :], 0.0), 1)
        mine = tl.sum(tl.where(n[:, None] == k[None, :], found[None, :], 0.0), 1)
        queries += turned
        length = tl.maximum(tl.sqrt(tl.sum(queries * queries, 0)), 1e-12)
        queries = queries / length
        beside = (beside + mine) / length
    found = tl.sum(queries[:, None] * tl.load(memory + k[:, None] * M + COLUMN_MAIN + n[None, :]), 0)
    if IS_RESIDUAL:
        found += beside
    # A chunk that nobody wrote must not go unnoticed, and the host is not asked.
    found = tl.where(is_room, found, float("nan"))
    tl.store(out + token * K + n, found.to(out.dtype.element_ty))
    if tl.program_id(0) == 0:
        place = (slot * H + head) * C + held
        tl.store(ring_keys + place * K + k, tl.load(key + token * K + k), mask=is_room)
        tl.store(ring_values + place * K + k, tl.load(value + token * K + k), mask=is_room)
        for rate in tl.static_range(NUM_RATES):
            raw = tl.load(slow + token * NUM_RATES + rate).to(tl.float32)
            tl.store(ring_rates + place * NUM_RATES + rate, raw, mask=is_room)


@triton.jit(do_not_specialize=["num_slots"])
def cursor_kernel(cursors, slots, num_slots, C: tl.constexpr, IS_FLUSH: tl.constexpr, IS_FORCED: tl.constexpr):
    """Count one more token, or none after a flush, once every program of the launch before has read the cursor.

    Program: (row).
    """
    slot, _ = _slot(slots, tl.program_id(0), num_slots)
    held = tl.load(cursors + slot, mask=slot >= 0, other=0)
    if IS_FLUSH:
        moved = tl.where((held >= C) | IS_FORCED, 0, held)
    else:
        # One beyond full stays: a row that overran its ring reads NaN until it is cleared.
        moved = tl.minimum(held + 1, C + 1)
    tl.store(cursors + slot, moved, mask=slot >= 0)
