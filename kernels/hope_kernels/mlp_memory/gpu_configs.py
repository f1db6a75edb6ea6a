"""How each kernel of the MLP memories is compiled: its constants, tile sizes and warps.

Shapes: K key size, F hidden size, V value size, n memories; BT tokens of a tile, BK, BF and BV of a block.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hope_kernels.dgd_memory.gpu_configs import precision_of, residual_config
from hope_kernels.launch import POINTERS, KernelConfig
from hope_kernels.mlp_memory.gpu_kernels import decode_kernel, gradient_kernel, read_kernel

SIZES = (16, 32, 64, 128)
"""Sizes of keys, hidden activations and values."""
RATE_SIZE = 1
"""Values of memories that make rates."""

Shape = tuple[int, int, int]
"""K, F and V."""


def gradient_config(
    shape: Shape, heads: int, memories: int, dtype: torch.dtype, *, is_residual: bool, is_squared: bool
) -> KernelConfig:
    """`gradient_kernel` for keys and targets of a type; see there."""
    signature = _pointers(key=dtype, target=dtype, lr=torch.float32, log_retention=torch.float32)
    made = ("out_key", "out_hidden", "out_inner", "out_error", "first_rates", "second_rates", "first", "second")
    signature |= _pointers(**dict.fromkeys(made, torch.float32)) | _pointers(slots=torch.int32, bounds=torch.int32)
    signature |= {"num_slots": "i32", "total": "i32"}
    constants = _tiles(shape, heads, memories) | {
        "IS_RESIDUAL": is_residual,
        "IS_SQUARED": is_squared,
        "PRECISION": precision_of(dtype),
    }
    label = f"gradient {_name(shape, dtype)}" + ("" if is_squared else " dot")
    return KernelConfig(label, gradient_kernel, signature, constants, num_warps=4, num_stages=1)


def linear_config(
    size: int, num_columns: int, matrices: int, precision: str, *, has_delta: bool = True
) -> KernelConfig:
    """The write of one layer, [size, num_columns] each, in `precision`: that of matrix memories of given residuals."""
    given = residual_config(size, num_columns, matrices, torch.float32, has_delta=has_delta, has_momentum=False)
    label = f"write {size}x{num_columns} {precision}"
    warps = given.num_warps
    if num_columns == RATE_SIZE:
        # A block of which one column is there compiles to other code, which keeps to registers with other warps.
        warps = 1 if size == 32 else 4
    return replace(given, label=label, constants=given.constants | {"PRECISION": precision}, num_warps=warps)


def read_config(shape: Shape, heads: int, memories: int, dtype: torch.dtype, *, is_residual: bool) -> KernelConfig:
    """`read_kernel` for queries of a type."""
    signature = _read_signature(dtype) | _pointers(bounds=torch.int32) | {"total": "i32"}
    constants = _tiles(shape, heads, memories) | {"IS_RESIDUAL": is_residual, "PRECISION": precision_of(dtype)}
    # Warps were chosen so that nothing leaves registers: long keys in three tf32 products need more threads.
    warps = 8 if shape[0] == 128 and dtype == torch.float32 else 4
    return KernelConfig(f"read {_name(shape, dtype)}", read_kernel, signature, constants, warps, num_stages=1)


def decode_config(shape: Shape, heads: int, memories: int, dtype: torch.dtype, *, is_residual: bool) -> KernelConfig:
    """`decode_kernel` for queries of a type."""
    constants = _sizes(shape, heads, memories) | {
        "WIDTH": max(shape[2], 16),
        "BK": min(shape[0], 32),
        "BF": min(shape[1], 32),
        "IS_RESIDUAL": is_residual,
    }
    label = f"decode {_name(shape, dtype)}"
    return KernelConfig(label, decode_kernel, _read_signature(dtype), constants, num_warps=4, num_stages=1)


def configs() -> tuple[KernelConfig, ...]:
    """Every choice of sizes with the residual path, which needs K = V, and memories that make rates.

    Without that path, and with the dot product, a kernel compiles to less of the same code; so it does without the
    decay along the key.
    """
    heads, memories = 16, 3
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for key_size in SIZES:
            for hidden_size in SIZES:
                for value_size in (key_size, RATE_SIZE):
                    shape = (key_size, hidden_size, value_size)
                    is_residual = value_size == key_size
                    found.append(
                        gradient_config(shape, heads, memories, dtype, is_residual=is_residual, is_squared=True)
                    )
                    found.append(read_config(shape, heads, memories, dtype, is_residual=is_residual))
                    found.append(decode_config(shape, heads, memories, dtype, is_residual=is_residual))
        for size in SIZES:
            # Blocks of columns are alike whatever their number, but for the one that is not full.
            for num_columns in (SIZES[-1], RATE_SIZE):
                found.append(linear_config(size, num_columns, heads * memories, precision_of(dtype)))
    return tuple(found)


def _read_signature(dtype: torch.dtype) -> dict[str, str]:
    signature = _pointers(query=dtype, out=dtype, first=torch.float32, second=torch.float32, slots=torch.int32)
    return signature | {"num_slots": "i32", "memory_index": "i32"}


def _sizes(shape: Shape, heads: int, memories: int) -> dict[str, Any]:
    key_size, hidden_size, value_size = shape
    return {"H": heads, "N": memories, "K": key_size, "F": hidden_size, "V": value_size}


def _tiles(shape: Shape, heads: int, memories: int) -> dict[str, Any]:
    key_size, hidden_size, value_size = shape
    block = min(hidden_size, 32)
    # A single block of hidden units is no loop: narrower blocks of the outputs keep what is unrolled in registers.
    blocks = {"BT": 16, "BK": min(key_size, 32), "BF": block, "BV": min(max(value_size, 16), block)}
    return _sizes(shape, heads, memories) | blocks


def _pointers(**dtypes: torch.dtype) -> dict[str, str]:
    return {name: POINTERS[dtype] for name, dtype in dtypes.items()}


def _name(shape: Shape, dtype: torch.dtype) -> str:
    return "x".join(map(str, shape)) + f" {POINTERS[dtype].removeprefix('*')}"
