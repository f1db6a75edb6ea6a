"""What stands between the products of a step, in single calls: most of all of a decoding step, one token a row.

float32 on a CPU by the compiled operators; `can_compute` says whether there are any. A step that is made of torch's
operations spends much of its time between them: a row's numbers are few.
Shapes: R rows, H heads, U key-value heads, K head size, N ring places, n of them in use, D width, F inner width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hope_kernels import native
from hope_kernels.native import can_compute

__all__ = ["TokenAttention", "add_norm", "can_compute", "gate"]

Angles = tuple[torch.Tensor, torch.Tensor]


class _Attend(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("projected", "cos", "sin", "far_cos", "far_sin", "mask", "out")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "places")),
        *((name, ctypes.c_int64) for name in ("offset", "num_rows", "num_heads", "num_shared", "head_dim")),
        *((name, ctypes.c_int64) for name in ("capacity", "num_places", "num_sinks", "is_rounded")),
    )


class _AddNorm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("hidden", "added", "weight", "out")),
        *((name, ctypes.c_int64) for name in ("num_rows", "width", "row", "column")),
        ("eps", ctypes.c_float),
    )


@dataclass(frozen=True)
class Heads:
    """num_heads H share num_shared U keys and values of head_dim K. num_sinks: first keys seen under far angles.

    is_rounded: keys and values are kept to bfloat16's precision.
    """

    num_heads: int
    num_shared: int
    head_dim: int
    num_sinks: int
    is_rounded: bool


class TokenAttention:
    """Attention of one token a row through rings of keys and values that lie wherever they lie: one call a block."""

    def __init__(
        self,
        heads: Heads,
        rings: Sequence[tuple[torch.Tensor, torch.Tensor]],
        places: torch.Tensor,
        angles: Angles,
        far_angles: Angles | None,
        mask: torch.Tensor,
    ) -> None:
        """Lay a step out; the tensors must outlive it.

        rings: keys and values [L, B, U, N, K] of rows one behind the other, R in all. places [R]: where the tokens'
        own keys and values are written. angles, far_angles: cosines and sines [R, K]. mask [R, n], added to the scores;
        every row sees something. Raises ValueError for shapes or types that do not fit.
        """
        count = sum(keys.shape[1] for keys, _ in rings)
        size, capacity = heads.head_dim, rings[0][0].shape[3]
        if heads.num_heads % heads.num_shared or size % 2:
            raise ValueError(f"{heads.num_heads} heads of {size} cannot share {heads.num_shared} keys")
        self._block_bytes = rings[0][0].stride(0) * 4
        for ring in rings:
            for tensor in ring:
                shape = (rings[0][0].shape[0], tensor.shape[1], heads.num_shared, capacity, size)
                _check("rings", tensor, shape, is_contiguous=False)
                if tensor.stride()[2:] != (capacity * size, size, 1) or tensor.stride(0) * 4 != self._block_bytes:
                    raise ValueError("rings: a row's keys must lie together, and all rings be laid out alike")
        for name, pair in (("angles", angles), ("far_angles", far_angles or angles)):
            for tensor in pair:
                _check(name, tensor, (count, size))
        _check("mask", mask, (count, mask.shape[-1]))
        if not 0 < mask.shape[1] <= capacity or bool((places < 0).any()) or int(places.max()) >= mask.shape[1]:
            raise ValueError(f"places must be among the first {mask.shape[1]} of {capacity}")
        addresses = [torch.tensor([row for ring in rings for row in _rows(ring[which])]) for which in (0, 1)]
        self._heads, self._count, self._num_blocks = heads, count, rings[0][0].shape[0]
        self._kept = (*angles, *(far_angles or ()), mask, *addresses, places.long().contiguous(), list(rings))
        far = (None, None) if far_angles is None else tuple(tensor.data_ptr() for tensor in far_angles)
        pointers = (*(tensor.data_ptr() for tensor in angles), *far, mask.data_ptr(), None)
        rows = (tensor.data_ptr() for tensor in (*addresses, self._kept[-2]))
        sizes = (heads.num_heads, heads.num_shared, size, capacity, mask.shape[1], heads.num_sinks, heads.is_rounded)
        self._call = _Attend(None, *pointers, *rows, 0, count, *sizes)

    def attend(self, block: int, projected: torch.Tensor) -> torch.Tensor:
        """Write the tokens' keys and values into a block's rings and return what they attend to [R, H K].

        projected [R, (H + 2 U) K]: queries, keys and values of all heads. Raises ValueError where it does not fit.
        """
        heads = self._heads
        _check("projected", projected, (self._count, (heads.num_heads + 2 * heads.num_shared) * heads.head_dim))
        if not 0 <= block < self._num_blocks:
            raise ValueError(f"block: expected 0 to {self._num_blocks - 1}, got {block}")
        out = torch.empty(self._count, heads.num_heads * heads.head_dim)
        call = self._call
        call.projected, call.out, call.offset = projected.data_ptr(), out.data_ptr(), block * self._block_bytes
        native.needed().hope_attend_token(ctypes.byref(call), torch.get_num_threads())
        return out


def add_norm(hidden: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add to hidden [R, D], in place, then return it brought to a root mean square of 1 and weighed [R, D].

    added [R, D], laid out in any way; weight [D]; eps: added to the mean square. Raises ValueError for shapes or types
    that do not fit.
    """
    rows, width = hidden.shape
    _check("hidden", hidden, (rows, width))
    _check("weight", weight, (width,))
    out = torch.empty_like(hidden)
    pointer, strides = None, (0, 0)
    if added is not None:
        _check("added", added, (rows, width), is_contiguous=False)
        pointer, strides = added.data_ptr(), (added.stride(0), added.stride(1))
    call = _AddNorm(hidden.data_ptr(), pointer, weight.data_ptr(), out.data_ptr(), rows, width, *strides, eps)
    native.needed().hope_add_norm(ctypes.byref(call), torch.get_num_threads())
    return out


def gate(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of gate_up [R, 2 F], gates first: [R, F], laid out by rows or columns as gate_up is.

    Raises ValueError for shapes, types or layouts that do not fit.
    """
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    _check("gate_up", gate_up, (rows, 2 * inner), is_contiguous=False)
    if gate_up.is_contiguous():
        out, blocks, size, step, between = torch.empty(rows, inner), rows, inner, 2 * inner, inner
    elif gate_up.T.is_contiguous():
        out, blocks, size, step, between = torch.empty(inner, rows).T, 1, inner * rows, 0, inner * rows
    else:
        raise ValueError("gate_up: must lie by rows or by columns")
    start = gate_up.data_ptr()
    pointers = (ctypes.c_void_p(start), ctypes.c_void_p(start + 4 * between), ctypes.c_void_p(out.data_ptr()))
    counts = (ctypes.c_int64(blocks), ctypes.c_int64(size), ctypes.c_int64(step))
    native.needed().hope_gate(*pointers, *counts, torch.get_num_threads())
    return out


def _rows(tensor: torch.Tensor) -> list[int]:
    start, step = tensor.data_ptr(), tensor.stride(1) * 4
    return [start + step * row for row in range(tensor.shape[1])]


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], *, is_contiguous: bool = True) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected float32 on a CPU, got {tensor.dtype} on {tensor.device}")
    if is_contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name}: must be contiguous")
