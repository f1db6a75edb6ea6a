"""What `gpu_kernels.write_kernel` does with one tile of tokens: errors, the triangular system, the moving memory.

Keys are loaded twice, as they are and turned, so that no product is ever taken of a turned result of another one.
Shapes: columns of the memory come first here: a memory is a tuple of slabs [BM, BK], errors and steps are [BM, BT];
BT tokens of a tile, BM columns of a block, BK keys of a slab.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = tl.constexpr(16)


@triton.jit
def _inverse(coupling, BT: tl.constexpr):
    """(I + L)^-1 for L, the part of coupling [BT, BT] above its diagonal.

    Blocks of 16 on the diagonal by forward substitution, side by side; what lies between two blocks by two products.
    """
    o = tl.arange(0, BT)
    same = (o[:, None] // BLOCK) == (o[None, :] // BLOCK)
    inverse = tl.where((o[:, None] < o[None, :]) & same, -coupling, 0.0)
    for i in range(2, BLOCK):
        here = (o % BLOCK == i)[None, :] & same
        column = tl.sum(tl.where(here, inverse, 0.0), 1)
        # Columns from i on have no part in it: this one is zero there.
        column = column + tl.sum(inverse * column[None, :], 1)
        inverse = tl.where(here, column[:, None], inverse)
    inverse = inverse + tl.where(o[:, None] == o[None, :], 1.0, 0.0)
    if BT > BLOCK:
        tl.static_assert(BT == 2 * BLOCK)
        between = tl.where(same | (o[:, None] > o[None, :]), 0.0, coupling)
        after = tl.dot(inverse, between, input_precision="tf32x3")
        inverse = inverse - tl.dot(after, inverse, input_precision="tf32x3")
    return inverse


@triton.jit
def _nothing(fence):
    """0, which the compiler cannot know: added to an index, it keeps addresses from being kept in registers for later.

    fence: where a row's slot stands, which is not negative.
    """
    tl.debug_barrier()
    return tl.minimum(tl.load(fence), 0)


@triton.jit
def load_slabs(memory, fence, columns, K: tl.constexpr, M: tl.constexpr, BK: tl.constexpr):
    """Columns of a tall matrix as a tuple of [BM, BK]: what a product needs of a whole one would not fit registers."""
    slabs = ()
    for slab in tl.static_range(0, K, BK):
        k = slab + _nothing(fence) + tl.arange(0, BK)
        at = memory + columns[:, None] + k[None, :] * M
        slabs = slabs + (tl.load(at, mask=(columns < M)[:, None], other=0.0),)  # noqa: RUF005
    return slabs


@triton.jit
def store_slabs(memory, fence, slabs, columns, K: tl.constexpr, M: tl.constexpr, BK: tl.constexpr):
    """Put back what `_load_slabs` gave."""
    for i in tl.static_range(K // BK):
        k = i * BK + _nothing(fence) + tl.arange(0, BK)
        tl.store(memory + columns[:, None] + k[None, :] * M, slabs[i], mask=(columns < M)[:, None])


@triton.jit
def _rows(vectors, places, live, K: tl.constexpr, BK: tl.constexpr, slab):
    """A slab of each token's vector, [BT, BK]."""
    at = places[:, None] * K + slab + tl.arange(0, BK)[None, :]
    return tl.load(vectors + at, mask=live[:, None], other=0.0).to(tl.float32)


@triton.jit
def _turned(vectors, places, live, K: tl.constexpr, BK: tl.constexpr, slab):
    """A slab of each token's vector, [BK, BT]."""
    at = places[None, :] * K + slab + tl.arange(0, BK)[:, None]
    return tl.load(vectors + at, mask=live[None, :], other=0.0).to(tl.float32)


@triton.jit
def _products(key, fence, places, live, K: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """Dot products of the keys of a tile [BT, BT]."""
    found = tl.zeros([BT, BT], dtype=tl.float32)
    for slab in range(0, K, BK):
        here = places + _nothing(fence)
        keys = _rows(key, here, live, K, BK, slab)
        found = tl.dot(keys, _turned(key, here, live, K, BK, slab), found, input_precision=PRECISION)
    return found


@triton.jit
def _read_slabs(
    key, fence, places, live, slabs, BT: tl.constexpr, BM: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What a moving memory makes of the keys of a tile [BM, BT]."""
    found = tl.zeros([BM, BT], dtype=tl.float32)
    for i in tl.static_range(K // BK):
        here = places + _nothing(fence)
        found = tl.dot(slabs[i], _turned(key, here, live, K, BK, i * BK), found, input_precision=PRECISION)
    return found


@triton.jit
def _moved_slabs(
    key, fence, places, live, slabs, kept, share, steps, K: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr
):
    """A moving memory times `kept`, and the products of steps [BM, BT] and the tile's keys, by their shares [BT]."""
    moved = ()
    for i in tl.static_range(K // BK):
        keys = _rows(key, places + _nothing(fence), live, K, BK, i * BK) * share[:, None]
        moved = moved + (tl.dot(steps, keys, slabs[i] * kept, input_precision=PRECISION),)  # noqa: RUF005
    return moved


@triton.jit
def errors(
    key, value, memory, fence, places, live, columns, K: tl.constexpr, M: tl.constexpr, BT: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr, NUM_VECTOR_COLUMNS: tl.constexpr, COLUMN_MAIN: tl.constexpr, IS_RESIDUAL: tl.constexpr,
    IS_SQUARED: tl.constexpr, SELF_TARGETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients at the outputs [BM, BT], by the snapshot in the pool.

    Without targets of their own, vectors and rates take different ways: a block must not hold columns of both.
    """
    is_vector = columns < NUM_VECTOR_COLUMNS
    share = tl.where(is_vector, 1.0, 0.0)
    if not IS_RESIDUAL:
        share = tl.where((columns >= COLUMN_MAIN) & (columns < COLUMN_MAIN + K), 0.0, share)
    beside = places[None, :] * K + (columns % K)[:, None]
    there = live[None, :] & is_vector[:, None]
    error = -tl.load(value + beside, mask=there, other=0.0).to(tl.float32)
    if SELF_TARGETS:
        error *= share[:, None]
    if IS_SQUARED:
        error += share[:, None] * tl.load(key + beside, mask=there, other=0.0).to(tl.float32)
    for slab in range(0, K, BK):
        nothing = _nothing(fence)
        through = -_turned(value, places + nothing, live, K, BK, slab)
        if not SELF_TARGETS:
            # A rate has no value of its own to aim at: its target is always what it makes of the value.
            through *= tl.where(tl.min(columns, 0) < NUM_VECTOR_COLUMNS, 0.0, 1.0)
        if IS_SQUARED:
            through += _turned(key, places + nothing, live, K, BK, slab)
        k = slab + nothing + tl.arange(0, BK)
        snapshot = tl.load(memory + columns[:, None] + k[None, :] * M, mask=(columns < M)[:, None], other=0.0)
        error = tl.dot(snapshot, through, error, input_precision=PRECISION)
    return error


@triton.jit
def write_tile(
    key, fence, places, live, size, error, lr, log_retention, momentum, weights, surprise, K: tl.constexpr,
    BT: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, HAS_DELTA: tl.constexpr, HAS_MOMENTUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The moving memories and surprise, slabs of [BM, BK], after a tile of `size` tokens with these errors [BM, BT].

    What lies behind the last token has neither step nor decay: it changes nothing.
    """
    o = tl.arange(0, BT)
    total_log = tl.cumsum(log_retention, 0)
    before = total_log - log_retention
    whole = tl.sum(log_retention, 0)
    # Masked before the exponential: differences on the other side of the diagonal overflow.
    shares = tl.exp(tl.where(o[:, None] < o[None, :], before[None, :] - total_log[:, None], float("-inf")))
    steps = -lr[None, :] * error
    if HAS_DELTA:
        held = tl.exp(before)[None, :] * _read_slabs(key, fence, places, live, weights, BT, BM, K, BK, PRECISION)
        products = _products(key, fence, places, live, K, BT, BK, PRECISION)
        inverse = _inverse(lr[None, :] * shares * products, BT)
    if HAS_MOMENTUM:
        last = size - 1
        # Momentum may be 0, so its products cannot be differences of logarithms.
        factors = tl.where(o[:, None] < o[None, :], momentum[None, :], 1.0)
        carried = tl.where(o[:, None] <= o[None, :], tl.cumprod(factors, 1), 0.0)
        kept = tl.cumprod(momentum, 0)
        left = tl.exp(tl.where(o <= last, whole - total_log, float("-inf")))
        if HAS_DELTA:
            found = _read_slabs(key, fence, places, live, surprise, BT, BM, K, BK, PRECISION)
            held += tl.sum(shares * kept[:, None], 0)[None, :] * found
            mixed = products * tl.dot(carried, shares, input_precision="tf32x3")
            held = tl.dot(steps, mixed, held, input_precision=PRECISION)
            pulls = tl.dot(-lr[None, :] * held, inverse, input_precision=PRECISION)
        of_surprise = tl.sum(left * kept, 0)
        kept_last = tl.sum(tl.where(o == last, kept, 0.0), 0)
        of_steps = tl.sum(carried * left[None, :], 1)[:, None]
        of_last = tl.sum(tl.where(o[None, :] == last, carried, 0.0), 1)[:, None]
        moved, moved_surprise = (), ()
        for i in tl.static_range(K // BK):
            keys = _rows(key, places + _nothing(fence), live, K, BK, i * BK)
            slab = weights[i] * tl.exp(whole) + surprise[i] * of_surprise
            slab = tl.dot(steps, keys * of_steps, slab, input_precision=PRECISION)
            if HAS_DELTA:
                slab = tl.dot(pulls, keys * left[:, None], slab, input_precision=PRECISION)
            moved = moved + (slab,)  # noqa: RUF005
            slab = tl.dot(steps, keys * of_last, surprise[i] * kept_last, input_precision=PRECISION)
            moved_surprise = moved_surprise + (slab,)  # noqa: RUF005
        weights, surprise = moved, moved_surprise
    else:
        if HAS_DELTA:
            steps = tl.dot(steps - lr[None, :] * held, inverse, input_precision=PRECISION)
        left = tl.exp(whole - total_log)
        weights = _moved_slabs(key, fence, places, live, weights, tl.exp(whole), left, steps, K, BK, PRECISION)
    return weights, surprise
