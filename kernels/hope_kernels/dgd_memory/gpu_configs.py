"""How each kernel of the matrix memory is compiled for a layout: its constants, tile sizes and warps.

Shapes: K key size, BT tokens of a tile, BM and BN columns of a block, BK keys of a slab.
"""

from __future__ import annotations

from typing import Any

import torch

from hope_kernels.dgd_memory.gpu_decode import cursor_kernel, read_kernel
from hope_kernels.dgd_memory.gpu_kernels import BY_ROW, PACKED, address_kernel, write_kernel
from hope_kernels.dgd_memory.layout import MAIN, MIN_LOG_RETENTION, Layout
from hope_kernels.launch import POINTERS, KernelConfig

HEAD_DIMS = (16, 32, 64, 128)
MAX_MOMENTUM_HEAD_DIM = 64
"""A memory and its surprise side by side do not fit the registers of a block of threads beyond this key size."""


def precision_of(dtype: torch.dtype) -> str:
    """How products are taken for inputs of a type: three tf32 products come to float32, one is finer than 16 bits."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def address_config(
    layout: Layout,
    heads: int,
    dtype: torch.dtype,
    rate_dtype: torch.dtype,
    *,
    is_read: bool,
    has_query: bool = True,
    in_ring: bool = False,
    is_forced: bool = False,
    is_packed: bool = False,
    chunk_size: int = 0,
) -> KernelConfig:
    """`address_kernel` for inputs of a type; see there. is_packed: what is made lies as its inputs do."""
    size = layout.head_dim
    signature = _pointers(key=dtype, value=dtype, slow=rate_dtype, pool=torch.float32, slots=torch.int32)
    signature |= _pointers(out_key=torch.float32, out_value=torch.float32, out_rates=torch.float32)
    signature |= _pointers(cursors=torch.int32) if in_ring else _pointers(bounds=torch.int32)
    if has_query:
        signature |= _pointers(query=dtype, out_query=dtype if is_read else torch.float32)
    signature |= {"num_slots": "i32", "start": "i32", "limit": "i32", "total": "i32"}
    constants = _sizes(layout, heads, chunk_size) | _rate_constants(layout)
    constants |= {
        "BT": 16,
        "BK": min(size, 32),
        "COLUMN_Q": _column(layout, "q"),
        "HAS_MOMENTUM": layout.has_momentum,
        "IS_RESIDUAL": layout.is_residual,
        "HAS_QUERY": has_query,
        "IS_READ": is_read,
        "IN_RING": in_ring,
        "IS_FORCED": is_forced,
        "OUT": (PACKED if is_packed else BY_ROW).value,
        "PRECISION": precision_of(dtype),
    }
    label = f"address K={size} {_name(dtype)}" + (" ring" if in_ring else "") + (" read" if is_read else "")
    label += (" forced" if is_forced else "") + (" packed" if is_packed else "")
    label += "" if rate_dtype == torch.float32 else f" rates {_name(rate_dtype)}"
    warps = 8 if size == 128 and not is_packed else 4
    return _config(label + _kind(layout), address_kernel, signature, constants, warps)


def write_config(
    layout: Layout,
    heads: int,
    dtype: torch.dtype,
    precision: str,
    *,
    in_ring: bool = False,
    is_forced: bool = False,
    is_packed: bool = False,
    writes_tail: bool = True,
    chunk_size: int = 0,
) -> KernelConfig:
    """`write_kernel` for residuals that the memories make, with keys of a type; see there."""
    constants = _sizes(layout, heads, chunk_size) | {
        "NUM_VECTOR_COLUMNS": layout.num_vector_columns,
        "COLUMN_MAIN": _column(layout, MAIN),
        "IS_RESIDUAL": layout.is_residual,
        "IS_SQUARED": layout.squared,
        "SELF_TARGETS": layout.self_targets,
        "HAS_DELTA": layout.delta,
        "HAS_MOMENTUM": layout.has_momentum,
        "HAS_RESIDUALS": False,
        "IN_RING": in_ring,
        "IS_FORCED": is_forced,
        "WRITES_TAIL": writes_tail,
        "PLACE": (PACKED if is_packed else BY_ROW).value,
        "PRECISION": precision,
    }
    label = f"write K={layout.head_dim} {_name(dtype)} {precision}" + (" ring" if in_ring else "")
    label += (" forced" if is_forced else "") + (" packed" if is_packed else "") + ("" if writes_tail else " no tail")
    label += _kind(layout)
    return _write(label, constants, _pointers(value=dtype), dtype)


def residual_config(
    head_dim: int, num_columns: int, heads: int, dtype: torch.dtype, *, has_delta: bool, has_momentum: bool
) -> KernelConfig:
    """`write_kernel` for residuals that are given, of the keys' type."""
    constants: dict[str, Any] = {
        "H": heads,
        "K": head_dim,
        "M": num_columns,
        "C": 0,
        "NUM_VECTOR_COLUMNS": num_columns,
        "COLUMN_MAIN": 0,
    }
    flags = ("IS_RESIDUAL", "IS_SQUARED", "SELF_TARGETS", "IN_RING", "IS_FORCED")
    constants |= dict.fromkeys(flags, False)
    constants |= {"HAS_RESIDUALS": True, "WRITES_TAIL": True, "PLACE": PACKED.value}
    constants |= {"HAS_DELTA": has_delta, "HAS_MOMENTUM": has_momentum, "PRECISION": precision_of(dtype)}
    label = f"residuals K={head_dim} {_name(dtype)}" + (" momentum" if has_momentum else "")
    return _write(label, constants, _pointers(residual=dtype), dtype)


def read_config(
    layout: Layout, heads: int, chunk_size: int, dtype: torch.dtype, rate_dtype: torch.dtype
) -> KernelConfig:
    """`read_kernel` for inputs of a type."""
    size = layout.head_dim
    signature = _pointers(query=dtype, key=dtype, value=dtype, out=dtype, slow=rate_dtype)
    signature |= _pointers(ring_keys=dtype, ring_values=dtype, ring_rates=torch.float32, cursors=torch.int32)
    signature |= _pointers(pool=torch.float32, slots=torch.int32) | {"num_slots": "i32"}
    constants = _sizes(layout, heads, chunk_size) | {
        "BN": min(size, 32),
        "COLUMN_Q": _column(layout, "q"),
        "COLUMN_MAIN": _column(layout, MAIN),
        "NUM_RATES": layout.num_rates,
        "NUM_SUMS": layout.num_sums,
        "IS_RESIDUAL": layout.is_residual,
    }
    warps = 8 if size == 128 else 4
    label = f"read K={size} {_name(dtype)}" + ("" if rate_dtype == torch.float32 else f" rates {_name(rate_dtype)}")
    return _config(label + _kind(layout), read_kernel, signature, constants, warps)


def cursor_config(chunk_size: int, *, is_flush: bool = False, is_forced: bool = False) -> KernelConfig:
    """`cursor_kernel`: one more token, or after a flush."""
    constants = {"C": chunk_size, "IS_FLUSH": is_flush, "IS_FORCED": is_forced}
    signature = _pointers(cursors=torch.int32, slots=torch.int32) | {"num_slots": "i32"}
    return _config("cursors" + (" flush" if is_flush else ""), cursor_kernel, signature, constants, 1)


def configs() -> tuple[KernelConfig, ...]:
    """Everything that is launched for the default layout, and the largest: with a memory for queries, with momentum.

    Layouts between them compile to parts of the same code; float16 to what bfloat16 does. What is launched and not
    here is for the first launch on a device to judge: `make bench-gpu` prints its spills.
    """
    rates, heads, chunk = torch.float32, 16, 64
    found = [cursor_config(chunk), cursor_config(chunk, is_flush=True)]
    for size in HEAD_DIMS:
        plain = Layout(size)
        has_momentum = size <= MAX_MOMENTUM_HEAD_DIM
        full = Layout(size, adaptive=("k", "v", "q", "lr", "retention"), has_momentum=has_momentum)
        for dtype in (torch.float32, torch.bfloat16):
            precision = precision_of(dtype)
            for layout in (plain, full):
                found.append(read_config(layout, heads, chunk, dtype, rates))
                found.append(address_config(layout, heads, dtype, rates, is_read=True, chunk_size=chunk))
                found.append(write_config(layout, heads, torch.float32, precision, chunk_size=chunk))
            found.append(
                residual_config(size, plain.num_columns, heads, dtype, has_delta=True, has_momentum=has_momentum)
            )
            for is_forced in (False, True):
                found.append(
                    address_config(
                        plain,
                        heads,
                        dtype,
                        rates,
                        is_read=False,
                        has_query=False,
                        in_ring=True,
                        is_forced=is_forced,
                        chunk_size=chunk,
                    )
                )
                found.append(
                    write_config(
                        plain, heads, torch.float32, precision, in_ring=True, is_forced=is_forced, chunk_size=chunk
                    )
                )
            if dtype != torch.float32:
                found.append(read_config(plain, heads, chunk, dtype, dtype))
                found.append(address_config(plain, heads, dtype, dtype, is_read=True, chunk_size=chunk))
            found.append(address_config(plain, heads, dtype, rates, is_read=False, is_packed=True))
            found.append(write_config(plain, heads, dtype, precision, is_packed=True))
            found.append(write_config(plain, heads, torch.float32, precision, writes_tail=False, chunk_size=chunk))
    return tuple(found)


def _write(label: str, constants: dict[str, Any], extra: dict[str, str], dtype: torch.dtype) -> KernelConfig:
    size = constants["K"]
    signature = extra | _pointers(key=dtype, rates=torch.float32, pool=torch.float32, slots=torch.int32)
    signature |= _pointers(cursors=torch.int32) if constants["IN_RING"] else _pointers(bounds=torch.int32)
    if constants["HAS_MOMENTUM"]:
        signature |= _pointers(surprises=torch.float32)
    signature |= {"num_slots": "i32", "start": "i32", "limit": "i32", "total": "i32"}
    # Larger blocks or tiles do not fit registers at every head size. The warps are what compiles without a spill with
    # both versions of Triton: with more, the assembler prefers a spilled word to a register more in one form or other.
    constants = constants | {"BT": 16, "BM": 16, "BK": min(size, 32)}
    warps = {32: 1, 64: 2 if constants["IN_RING"] else 4, 128: 2}.get(size, 4)
    return _config(label, write_kernel, signature, constants, warps)


def _config(label: str, kernel: Any, signature: dict[str, str], constants: dict[str, Any], warps: int) -> KernelConfig:
    """A configuration; a pointer that the signature does not name is None."""
    absent = {name: None for name in kernel.arg_names if name not in signature and name not in constants}
    return KernelConfig(label, kernel, signature, constants | absent, num_warps=warps, num_stages=1)


def _sizes(layout: Layout, heads: int, chunk_size: int) -> dict[str, Any]:
    return {"H": heads, "K": layout.head_dim, "M": layout.num_columns, "C": chunk_size}


def _rate_constants(layout: Layout) -> dict[str, Any]:
    """Where the memories lie that make a chunk's inputs, and how rates come of them."""
    columns = {"K": "k", "V": "v", "MAIN": MAIN, "LR": "lr", "RETENTION": "retention"}
    return {f"COLUMN_{suffix}": _column(layout, name) for suffix, name in columns.items()} | {
        "NUM_RATES": layout.num_rates,
        "HAS_RETENTION": layout.has_retention,
        "MAX_LR": layout.max_lr * layout.lr_share,
        "MIN_LOG_RETENTION": MIN_LOG_RETENTION,
        "NUM_SUMS": layout.num_sums,
    }


def _column(layout: Layout, name: str) -> int:
    """Where a memory begins, -1 if there is none."""
    is_there = name in layout.vectors or name in layout.rates
    return layout.columns(name).start if is_there else -1


def _pointers(**dtypes: torch.dtype) -> dict[str, str]:
    return {name: POINTERS[dtype] for name, dtype in dtypes.items()}


def _name(dtype: torch.dtype) -> str:
    return POINTERS[dtype].removeprefix("*")


def _kind(layout: Layout) -> str:
    return (" with q" if "q" in layout.adaptive else "") + (" momentum" if layout.has_momentum else "")
