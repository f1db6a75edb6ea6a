"""Triton kernels of the self-modifying matrix memory: what it makes of a chunk's inputs, and its write.

A program serves one row and head, and a block of the memory's columns or a tile of tokens.
Shapes: pool [slots, H, K, M], rows' tokens packed [T, H, ...], by slot [slots, H, C, ...] or by row [B, H, C, ...];
BT tokens of a tile, BM columns of a block, BK keys of a slab.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hope_kernels.dgd_memory.gpu_tiles import errors, load_slabs, store_slabs, write_tile

PACKED = tl.constexpr(0)
BY_SLOT = tl.constexpr(1)
BY_ROW = tl.constexpr(2)
"""Where a row's tokens lie: packed with those of other rows, in its slot's ring, or in scratch of its own."""


@triton.jit
def _slot(slots, row, num_slots):
    """A row's slot, int64, -1 for none or one beyond the pool; and what the row puts out then: 0, or NaN."""
    stated = tl.load(slots + row)
    is_beyond = stated >= num_slots
    return tl.where(is_beyond, -1, stated).to(tl.int64), tl.where(is_beyond, float("nan"), 0.0)


@triton.jit
def _span(
    row, slot, bounds, cursors, start, limit, total, C: tl.constexpr, IN_RING: tl.constexpr, IS_FORCED: tl.constexpr
):
    """Where a row's tokens begin among the packed ones, and how many there are from `start` on."""
    if IN_RING:
        first = start * 0
        held = tl.minimum(tl.load(cursors + slot, mask=slot >= 0, other=0), C)
        # A row whose chunk is not full yet has nothing to do.
        count = held if IS_FORCED else tl.where(held >= C, held, 0)
    else:
        begin = tl.load(bounds + row)
        end = tl.minimum(tl.load(bounds + row + 1), total)
        first = begin + start
        count = tl.minimum(end - first, limit)
    return first, count


@triton.jit
def _home(first, row, slot, head, H: tl.constexpr, C: tl.constexpr, PLACE: tl.constexpr):
    """The number of a row's first vector in a tensor laid out as PLACE says, int64; the next ones are `_step` apart."""
    if PLACE == PACKED:
        return first.to(tl.int64) * H + head
    elif PLACE == BY_SLOT:
        return (slot * H + head) * C
    else:
        return (row.to(tl.int64) * H + head) * C


@triton.jit
def _step(H: tl.constexpr, PLACE: tl.constexpr):
    """How far apart a row's vectors lie: the heads of a token lie between packed ones."""
    return H if PLACE == PACKED else 1


@triton.jit
def _unit(vectors):
    """Rows [BT, K] of length 1; zeros stay zeros."""
    return vectors / tl.maximum(tl.sqrt(tl.sum(vectors * vectors, 1)), 1e-12)[:, None]


@triton.jit
def _log1p(x):
    """log(1 + x) for x in [0, 1]; the ratio undoes the rounding of the sum."""
    raised = 1.0 + x
    return tl.where(raised == 1.0, x, tl.log(raised) * (x / tl.where(raised == 1.0, 1.0, raised - 1.0)))


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)) without an exponential that could overflow."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def _final_rates(
    slow, places, live, lr, retention, NUM_RATES: tl.constexpr, HAS_RETENTION: tl.constexpr, HAS_MOMENTUM: tl.constexpr,
    MAX_LR: tl.constexpr, MIN_LOG_RETENTION: tl.constexpr,
):  # fmt: skip
    """lr, log retention and momentum [BT] of slow rates and what memories add to them; tokens that are not live: 0."""
    step = MAX_LR * _sigmoid(tl.load(slow + places * NUM_RATES, mask=live, other=0.0).to(tl.float32) + lr)
    log_retention = tl.zeros_like(step)
    momentum = tl.zeros_like(step)
    if HAS_RETENTION:
        raw = tl.load(slow + places * NUM_RATES + 1, mask=live, other=0.0).to(tl.float32) + retention
        forgetting = tl.maximum(raw, 0.0) + _log1p(tl.exp(-tl.abs(raw)))
        log_retention = tl.maximum(-forgetting, MIN_LOG_RETENTION)
        step = step * tl.exp(log_retention)
    if HAS_MOMENTUM:
        momentum = _sigmoid(tl.load(slow + places * NUM_RATES + NUM_RATES - 1, mask=live, other=0.0).to(tl.float32))
    return tl.where(live, step, 0.0), tl.where(live, log_retention, 0.0), tl.where(live, momentum, 0.0)


@triton.jit
def _address_memory(
    vectors, places, live, memory, column, is_alive, K: tl.constexpr, M: tl.constexpr, BT: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one memory, columns from `column` on, makes of vectors in memory: [BT, K]."""
    found = tl.zeros([BT, K], dtype=tl.float32)
    columns = tl.arange(0, K)
    for slab in tl.static_range(0, K, BK):
        k = slab + tl.arange(0, BK)
        part = tl.load(vectors + places[:, None] * K + k[None, :], mask=live[:, None], other=0.0).to(tl.float32)
        weights = tl.load(memory + k[:, None] * M + column + columns[None, :], mask=is_alive, other=0.0)
        found = tl.dot(part, weights, found, input_precision=PRECISION)
    return found


@triton.jit
def _address_rate(vectors, memory, column: tl.constexpr, is_alive, is_own, K: tl.constexpr, M: tl.constexpr):
    """What a rate memory adds to a rate [BT]; nothing where there is none, or the head sums."""
    added = tl.zeros([vectors.shape[0]], dtype=tl.float32)
    if column >= 0:
        weights = tl.load(memory + tl.arange(0, K) * M + column, mask=is_alive & is_own, other=0.0)
        added = tl.sum(vectors * weights[None, :], 1)
    return added


@triton.jit(do_not_specialize=["num_slots", "start", "limit", "total"])
def address_kernel(
    query, key, value, slow, out_query, out_key, out_value, out_rates, pool, slots, num_slots, bounds, cursors, start,
    limit, total,
    H: tl.constexpr, K: tl.constexpr, M: tl.constexpr, C: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    COLUMN_K: tl.constexpr, COLUMN_V: tl.constexpr, COLUMN_Q: tl.constexpr, COLUMN_MAIN: tl.constexpr,
    COLUMN_LR: tl.constexpr, COLUMN_RETENTION: tl.constexpr, NUM_RATES: tl.constexpr, HAS_RETENTION: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr, MAX_LR: tl.constexpr, MIN_LOG_RETENTION: tl.constexpr, NUM_SUMS: tl.constexpr,
    IS_RESIDUAL: tl.constexpr, HAS_QUERY: tl.constexpr, IS_READ: tl.constexpr, IN_RING: tl.constexpr,
    IS_FORCED: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the memories make of the inputs of one tile; with IS_READ, out_query has what main gives for the queries.

    Program: (tile of BT tokens, row and head).
    """
    row = tl.program_id(1) // H
    head = tl.program_id(1) % H
    slot, fill = _slot(slots, row, num_slots)
    first, count = _span(row, slot, bounds, cursors, start, limit, total, C, IN_RING, IS_FORCED)
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    if tl.program_id(0) * BT >= count:
        return
    live = tokens < count
    is_alive = slot >= 0
    is_own = head >= NUM_SUMS
    home = _home(first, row, slot, head, H, C, BY_SLOT if IN_RING else PACKED)
    places = tokens * _step(H, BY_SLOT if IN_RING else PACKED)
    out_home = _home(first, row, slot, head, H, C, OUT)
    out_places = tokens * _step(H, OUT)
    key += home * K
    value += home * K
    slow += home * NUM_RATES
    out_key += out_home * K
    out_value += out_home * K
    out_rates += out_home * 3
    if HAS_QUERY:
        query += home * K
        out_query += (home if IS_READ else out_home) * K
    columns = tl.arange(0, K)
    at = places[:, None] * K + columns[None, :]
    out_at = out_places[:, None] * K + columns[None, :]
    memory = pool + (slot * H + head) * K * M
    keys = tl.load(key + at, mask=live[:, None], other=0.0).to(tl.float32)
    lr = _address_rate(keys, memory, COLUMN_LR, is_alive, is_own, K, M)
    retention = _address_rate(keys, memory, COLUMN_RETENTION, is_alive, is_own, K, M)
    lr, log_retention, momentum = _final_rates(
        slow, places, live & is_alive, lr, retention, NUM_RATES, HAS_RETENTION, HAS_MOMENTUM, MAX_LR, MIN_LOG_RETENTION
    )
    lr, log_retention, momentum = lr + fill, log_retention + fill, momentum + fill
    tl.store(out_rates + out_places * 3, lr, mask=live)
    tl.store(out_rates + out_places * 3 + 1, log_retention, mask=live)
    tl.store(out_rates + out_places * 3 + 2, momentum, mask=live)
    if COLUMN_K >= 0:
        found = _address_memory(key, places, live, memory, COLUMN_K, is_alive, K, M, BT, BK, PRECISION)
        keys = _unit(keys + tl.where(is_own, found, 0.0))
    tl.store(out_key + out_at, tl.where(is_alive, keys, fill), mask=live[:, None])
    values = tl.load(value + at, mask=live[:, None], other=0.0).to(tl.float32)
    if COLUMN_V >= 0:
        found = _address_memory(value, places, live, memory, COLUMN_V, is_alive, K, M, BT, BK, PRECISION)
        values = _unit(values + tl.where(is_own, found, 0.0))
    tl.store(out_value + out_at, tl.where(is_alive, values, fill), mask=live[:, None])
    if HAS_QUERY:
        queries = tl.load(query + at, mask=live[:, None], other=0.0).to(tl.float32)
        if COLUMN_Q >= 0:
            found = _address_memory(query, places, live, memory, COLUMN_Q, is_alive, K, M, BT, BK, PRECISION)
            queries = _unit(queries + tl.where(is_own, found, 0.0))
        if IS_READ:
            if COLUMN_Q >= 0:
                weights = tl.load(
                    memory + columns[:, None] * M + COLUMN_MAIN + columns[None, :], mask=is_alive, other=0.0
                )
                found = tl.dot(queries, weights, input_precision=PRECISION)
            else:
                found = _address_memory(query, places, live, memory, COLUMN_MAIN, is_alive, K, M, BT, BK, PRECISION)
            if IS_RESIDUAL:
                found += queries
            tl.store(out_query + at, tl.where(is_alive, found, fill).to(out_query.dtype.element_ty), mask=live[:, None])
        else:
            tl.store(out_query + out_at, tl.where(is_alive, queries, fill), mask=live[:, None])


@triton.jit(do_not_specialize=["num_slots", "start", "limit", "total"])
def write_kernel(
    key, value, rates, residual, pool, surprises, slots, num_slots, bounds, cursors, start, limit, total,
    H: tl.constexpr, K: tl.constexpr, M: tl.constexpr, C: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, NUM_VECTOR_COLUMNS: tl.constexpr, COLUMN_MAIN: tl.constexpr, IS_RESIDUAL: tl.constexpr,
    IS_SQUARED: tl.constexpr,
    SELF_TARGETS: tl.constexpr, HAS_DELTA: tl.constexpr, HAS_MOMENTUM: tl.constexpr, HAS_RESIDUALS: tl.constexpr,
    IN_RING: tl.constexpr, IS_FORCED: tl.constexpr, WRITES_TAIL: tl.constexpr, PLACE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write a row's tokens as one chunk, in tiles: residuals of the snapshot in the pool, pulls of the moving memory.

    Program: (block of BM columns, row and head). The pool holds the snapshot until the last tile is done.
    """
    row = tl.program_id(1) // H
    head = tl.program_id(1) % H
    slot, _ = _slot(slots, row, num_slots)
    first, count = _span(row, slot, bounds, cursors, start, limit, total, C, IN_RING, IS_FORCED)
    if not WRITES_TAIL:
        count = tl.where(count < C, 0, count)
    if slot < 0:
        return
    if count <= 0:
        return
    columns = tl.program_id(0) * BM + tl.arange(0, BM)
    memory = pool + (slot * H + head) * K * M
    fence = slots + row
    weights = load_slabs(memory, fence, columns, K, M, BK)
    surprise = ()
    if HAS_MOMENTUM:
        momenta = surprises + (slot * H + head) * K * M
        surprise = load_slabs(momenta, fence, columns, K, M, BK)
    home = _home(first, row, slot, head, H, C, PLACE)
    key += home * K
    rates += home * 3
    if HAS_RESIDUALS:
        residual += home * M
    else:
        value += home * K
    for t in tl.range(0, count, BT, disable_licm=True):
        tokens = t + tl.arange(0, BT)
        live = tokens < count
        places = tokens * _step(H, PLACE)
        if HAS_RESIDUALS:
            there = live[None, :] & (columns < M)[:, None]
            error = tl.load(residual + places[None, :] * M + columns[:, None], mask=there, other=0.0).to(tl.float32)
        else:
            error = errors(
                key, value, memory, fence, places, live, columns, K, M, BT, BM, BK, NUM_VECTOR_COLUMNS, COLUMN_MAIN,
                IS_RESIDUAL, IS_SQUARED, SELF_TARGETS, PRECISION,
            )  # fmt: skip
        lr = tl.load(rates + places * 3, mask=live, other=0.0)
        log_retention = tl.load(rates + places * 3 + 1, mask=live, other=0.0)
        momentum = tl.load(rates + places * 3 + 2, mask=live, other=0.0)
        weights, surprise = write_tile(
            key, fence, places, live, tl.minimum(count - t, BT), error, lr, log_retention, momentum, weights,
            surprise, K, BT, BM,
            BK, HAS_DELTA, HAS_MOMENTUM, PRECISION,
        )  # fmt: skip
    store_slabs(memory, fence, weights, columns, K, M, BK)
    if HAS_MOMENTUM:
        store_slabs(momenta, fence, surprise, columns, K, M, BK)
