"""What a layer's memories must compute, and how fast this processor multiplies matrices: what bounds `kernels.py`.

Counts are of the chunk form's products alone, without what is computed and thrown away, and of no other arithmetic.
"""

from __future__ import annotations

import time

import torch
from hope_kernels.products import fast_products

TILE, MOMENTUM_TILE = 64, 32
"""Tokens that the fused operator solves at once; a longer chunk is written tile by tile."""


def flops_of_head(
    memory: str, num_memories: int, size: int, chunk_size: int, has_momentum: bool = False, is_whole_layer: bool = False
) -> float:
    """Floating-point operations for one token of one head.

    memory: "matrix", or "mlp" with as many hidden units as inputs. num_memories: 5 (keys, values, what is remembered,
    two rates) or 1. is_whole_layer: with the projections of queries, keys, values and outputs from a width of `size`.
    """
    vectors, rates = (3, 2) if num_memories == 5 else (1, 0)
    tile = min(chunk_size, MOMENTUM_TILE if has_momentum else TILE)
    count = _matrix if memory == "matrix" else _mlp
    products = count(vectors, rates, size, tile, has_momentum)
    return 2 * (products + (4 * size * size if is_whole_layer else 0))


def _write(inputs: int, outputs: int, tile: int, has_momentum: bool, is_predicted: bool) -> float:
    """Multiply-adds a token of a linear memory's write: prediction, keys' products, triangle, what is added."""
    once = inputs * (tile + 1) / 2 + outputs * (tile - 1) / 2 + inputs * outputs
    predicted = 0 if is_predicted else inputs * outputs
    # The surprise is read and written too, and each pull is rolled on.
    rolled = 3 * inputs * outputs + outputs * (tile - 1) / 2 if has_momentum else 0
    return once + predicted + rolled


def _matrix(vectors: int, rates: int, size: int, tile: int, has_momentum: bool) -> float:
    reads, tall = (vectors * size + rates) * size, vectors * size + rates
    # One product finds the residuals at the chunk's start, and without momentum the prediction in the same.
    return reads + tall * size + _write(size, tall, tile, has_momentum, is_predicted=not has_momentum)


def _mlp(vectors: int, rates: int, size: int, tile: int, has_momentum: bool) -> float:
    one = size * size
    read = vectors * 2 * one + rates * (one + size)
    # Targets are what the memories make of the value; a lone memory's target is the value.
    targets = read if rates else 0
    found = read
    back = vectors * one + rates * size
    first = _write(size, (vectors + rates) * size, tile, has_momentum, is_predicted=True)
    second = vectors * _write(size, size, tile, has_momentum, is_predicted=True)
    second += rates * _write(size, 1, tile, has_momentum, is_predicted=True)
    return read + targets + found + back + first + second


def sgemm_seconds(size: int = 512) -> float:
    """This thread's processor time for one product of square matrices by the faster library; 2 size^3 operations."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    with fast_products(size):
        torch.mm(left, right, out=out)
        start = time.thread_time()
        torch.mm(left, right, out=out)
        return time.thread_time() - start
