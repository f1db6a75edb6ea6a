"""The self-modifying matrix memory on a GPU: Triton kernels behind functions that change a pool of memories in place.

Shapes: B rows, T tokens of all rows one after the other, H heads, K key size (values alike), C tokens of a chunk, n
slow rates of a token, M columns of the tall matrix that `Layout` describes. A row's slot is its place in the pool
[slots, H, K, M], keys first. A row with a negative slot does nothing, and what it would put out is 0; where the slot
lies beyond the pool it is NaN (on a CPU, ValueError). No two rows of a call may share a slot. Row b's tokens are
cu_seqlens[b]..cu_seqlens[b + 1] - 1; those behind the last row are not written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hope_kernels.dgd_memory.gpu_configs import (
    HEAD_DIMS,
    MAX_MOMENTUM_HEAD_DIM,
    address_config,
    configs,
    cursor_config,
    precision_of,
    read_config,
    residual_config,
    write_config,
)
from hope_kernels.dgd_memory.layout import Layout
from hope_kernels.launch import FLOATS, KernelConfig, require, require_device, require_tensor

__all__ = ["Ring", "address", "advance", "configs", "flush", "read_step", "write_chunk", "write_residuals"]

NUM_FINAL_RATES = 3
"""lr, log retention and momentum."""
NO_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Ring:
    """Raw inputs of tokens that were read but not written yet, per slot.

    keys, values [slots, H, C, K]; rates [slots, H, C, n] float32; cursors [slots] int32: how many of the C places are
    taken.
    """

    keys: torch.Tensor
    values: torch.Tensor
    rates: torch.Tensor
    cursors: torch.Tensor

    @classmethod
    def empty(
        cls, num_slots: int, num_heads: int, chunk_size: int, layout: Layout, dtype: torch.dtype, device: torch.device
    ) -> Ring:
        """A ring that holds nothing, for inputs of this type."""
        shape = (num_slots, num_heads, chunk_size)
        keys = torch.zeros(*shape, layout.head_dim, dtype=dtype, device=device)
        rates = torch.zeros(*shape, layout.num_rates, dtype=torch.float32, device=device)
        cursors = torch.zeros(num_slots, dtype=torch.int32, device=device)
        return cls(keys, torch.zeros_like(keys), rates, cursors)


def address(
    pool: torch.Tensor,
    slots: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rates: torch.Tensor,
    cu_seqlens: torch.Tensor,
    layout: Layout,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make final queries, keys, values and rates of raw ones, from the memories as they are: all at one chunk's start.

    pool [slots, H, K, M] float32; slots [B], cu_seqlens [B + 1] int32; query, key, value [T, H, K], all float32,
    float16 or bfloat16, each vector of length 1; rates [T, H, n]: slow rates before their sigmoid or softplus.
    Returns queries, keys, values [T, H, K] and rates [T, H, 3] (lr, log retention, momentum), float32.
    Raises ValueError for shapes, types or devices other than these. Source: NL eq. 76-81.
    """
    _check(pool, slots, layout, query=query, key=key, value=value, rates=rates, cu_seqlens=cu_seqlens)
    made = [torch.empty(query.shape, dtype=torch.float32, device=pool.device) for _ in range(3)]
    final = torch.empty(*query.shape[:2], NUM_FINAL_RATES, dtype=torch.float32, device=pool.device)
    config = address_config(layout, pool.shape[1], query.dtype, rates.dtype, is_read=False, is_packed=True)
    inputs = {"query": query, "key": key, "value": value, "slow": rates}
    outputs = {"out_query": made[0], "out_key": made[1], "out_value": made[2], "out_rates": final}
    place = {
        "pool": pool,
        "slots": slots,
        "num_slots": len(pool),
        "bounds": cu_seqlens,
        "start": 0,
        "limit": NO_LIMIT,
        "total": len(query),
    }
    _launch_tiles(config, len(query), len(slots), pool.shape[1], inputs | outputs | place)
    return made[0], made[1], made[2], final


def write_chunk(
    pool: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rates: torch.Tensor,
    cu_seqlens: torch.Tensor,
    layout: Layout,
    surprises: torch.Tensor | None = None,
) -> None:
    """Write each row's tokens, one chunk, into its memories, in place; residuals are those of the chunk's start.

    pool, slots, cu_seqlens as for `address`; keys, values [T, H, K] and rates [T, H, 3] float32 as it returns them.
    surprises: like pool, the momenta, changed too; needed where the layout has momentum.
    Raises ValueError for shapes, types or devices other than these. Source: NL eq. 83-93; momentum Titans eq. 9-10.
    """
    _check(pool, slots, layout, keys=keys, values=values, cu_seqlens=cu_seqlens)
    _check_momenta(layout, pool, surprises)
    shape = (len(keys), pool.shape[1], NUM_FINAL_RATES)
    require_tensor(rates, "rates", shape, (torch.float32,), pool.device)
    precision = precision_of(keys.dtype)
    config = write_config(layout, pool.shape[1], keys.dtype, precision, is_packed=True)
    given = {"key": keys, "value": values, "rates": rates, "bounds": cu_seqlens}
    _launch_write(config, pool, slots, surprises, given, total=len(keys))


def write_residuals(
    pool: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    residuals: torch.Tensor,
    rates: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    has_delta: bool = True,
    surprises: torch.Tensor | None = None,
) -> None:
    """Write each row's tokens, one chunk, with residuals that are given: `reference.write_tokens` for a pool.

    pool [slots, H, K, M] float32 of any M; keys [T, H, K], residuals [T, H, M], both float32, float16 or bfloat16; the
    rest as for `write_chunk`. has_delta: decay along the key; surprises: with momentum, else the third rate is left
    unused.
    Raises ValueError for shapes, types or devices other than these. Source: NL eq. 88, 90, 92, 93.
    """
    require_device(pool.device)
    require_tensor(pool, "pool", (None, None, None, None), (torch.float32,), pool.device)
    heads, size, num_columns = pool.shape[1:]
    require(size in HEAD_DIMS, "pool", f"its key size must be one of {HEAD_DIMS}, is {size}")
    _check_rows(slots, cu_seqlens, pool)
    require_tensor(keys, "keys", (None, heads, size), FLOATS, pool.device)
    require_tensor(residuals, "residuals", (len(keys), heads, num_columns), (keys.dtype,), pool.device)
    require_tensor(rates, "rates", (len(keys), heads, NUM_FINAL_RATES), (torch.float32,), pool.device)
    if surprises is not None:
        rule = f"cannot be used at a key size above {MAX_MOMENTUM_HEAD_DIM}, the pool has {size}"
        require(size <= MAX_MOMENTUM_HEAD_DIM, "surprises", rule)
        require_tensor(surprises, "surprises", tuple(pool.shape), (torch.float32,), pool.device)
    config = residual_config(
        size, num_columns, heads, keys.dtype, has_delta=has_delta, has_momentum=surprises is not None
    )
    given = {"key": keys, "residual": residuals, "rates": rates, "bounds": cu_seqlens}
    _launch_write(config, pool, slots, surprises, given, total=len(keys))


def advance(
    pool: torch.Tensor,
    slots: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rates: torch.Tensor,
    cu_seqlens: torch.Tensor,
    layout: Layout,
    chunk_size: int,
    *,
    surprises: torch.Tensor | None = None,
    writes_tail: bool = True,
    max_tokens: int | None = None,
) -> torch.Tensor:
    """Read and write whole rows, chunk by chunk, in place; every row begins a chunk.

    Arguments as for `address` and `write_chunk`. writes_tail: also write a last chunk that is not full; else its tokens
    are read alone, and are the caller's to keep. max_tokens: at least the length of the longest row (T if not given):
    what the host need not wait for. Returns what main gives for each query at its chunk's start, [T, H, K], of query's
    type. Raises ValueError for shapes, types or devices other than these, or a chunk below 1.
    Source: NL eq. 76-93, read as in eq. 90.
    """
    _check(pool, slots, layout, query=query, key=key, value=value, rates=rates, cu_seqlens=cu_seqlens)
    _check_momenta(layout, pool, surprises)
    require(chunk_size >= 1, "chunk_size", f"must be at least 1, is {chunk_size}")
    require(max_tokens is None or max_tokens >= 0, "max_tokens", f"must be 0 or more, is {max_tokens}")
    heads, rows = pool.shape[1], len(slots)
    out = torch.empty_like(query)
    inputs = {"query": query, "key": key, "value": value, "slow": rates}
    rows_of = {"pool": pool, "slots": slots, "num_slots": len(pool), "bounds": cu_seqlens, "total": len(query)}
    keys, values = (_scratch(pool, rows, chunk_size, layout.head_dim) for _ in range(2))
    final = _scratch(pool, rows, chunk_size, NUM_FINAL_RATES)
    make = address_config(layout, heads, query.dtype, rates.dtype, is_read=True, chunk_size=chunk_size)
    write = write_config(
        layout, heads, torch.float32, precision_of(query.dtype), chunk_size=chunk_size, writes_tail=writes_tail
    )
    outputs = {"out_query": out, "out_key": keys, "out_value": values, "out_rates": final}
    for start in range(0, len(query) if max_tokens is None else max_tokens, chunk_size):
        span = {"start": start, "limit": chunk_size}
        _launch_tiles(make, chunk_size, rows, heads, inputs | outputs | rows_of | span)
        given = {"key": keys, "value": values, "rates": final, "bounds": cu_seqlens}
        _launch_write(write, pool, slots, surprises, given, total=len(query), **span)
    return out


def read_step(
    pool: torch.Tensor,
    slots: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rates: torch.Tensor,
    ring: Ring,
    layout: Layout,
) -> torch.Tensor:
    """Read main with one token a row and keep its inputs for a later `flush`; the memories are left as they are.

    query, key, value [B, H, K] of the ring's type; rates [B, H, n]; ring, changed in place: a place more is taken.
    No value is looked at on the host: the call can be captured in a CUDA graph. A row whose ring is full reads NaN, and
    its token is not kept. Returns [B, H, K] of query's type. Raises ValueError for shapes, types or devices other than
    these. Source: NL eq. 86, 90.
    """
    _check(pool, slots, layout, query=query, key=key, value=value, rates=rates)
    require(len(query) == len(slots), "query", f"must have one token for each of {len(slots)} rows, has {len(query)}")
    _check_ring(ring, pool, layout)
    require(ring.keys.dtype == query.dtype, "ring.keys", f"must have query's type {query.dtype}, has {ring.keys.dtype}")
    heads, chunk_size = pool.shape[1], ring.keys.shape[2]
    out = torch.empty_like(query)
    config = read_config(layout, heads, chunk_size, query.dtype, rates.dtype)
    kept = {"ring_keys": ring.keys, "ring_values": ring.values, "ring_rates": ring.rates, "cursors": ring.cursors}
    inputs = {
        "query": query,
        "key": key,
        "value": value,
        "slow": rates,
        "out": out,
        "pool": pool,
        "slots": slots,
        "num_slots": len(pool),
    }
    grid = (layout.head_dim // config.constants["BN"], len(slots) * heads)
    config.launch(grid, inputs | kept)
    cursor_config(chunk_size).launch((len(slots),), {"cursors": ring.cursors, "slots": slots, "num_slots": len(pool)})
    return out


def flush(
    pool: torch.Tensor,
    slots: torch.Tensor,
    ring: Ring,
    layout: Layout,
    *,
    is_forced: bool = False,
    surprises: torch.Tensor | None = None,
) -> None:
    """Write what the ring holds of the rows whose chunk is full, and empty their part of it; others are left alone.

    pool, ring.cursors and surprises are changed in place. is_forced: write unfinished chunks too. No value is looked at
    on the host: the call can be captured in a CUDA graph. Raises ValueError for shapes, types or devices other than
    those of `read_step`. Source: NL eq. 76-93.
    """
    _check(pool, slots, layout)
    _check_momenta(layout, pool, surprises)
    _check_ring(ring, pool, layout)
    heads, chunk_size, rows = pool.shape[1], ring.keys.shape[2], len(slots)
    keys, values = (_scratch(pool, rows, chunk_size, layout.head_dim) for _ in range(2))
    final = _scratch(pool, rows, chunk_size, NUM_FINAL_RATES)
    held: dict[str, Any] = {"in_ring": True, "is_forced": is_forced, "chunk_size": chunk_size}
    dtype = ring.keys.dtype
    make = address_config(layout, heads, dtype, torch.float32, is_read=False, has_query=False, **held)
    write = write_config(layout, heads, torch.float32, precision_of(dtype), **held)
    inputs = {"key": ring.keys, "value": ring.values, "slow": ring.rates}
    outputs = {"out_key": keys, "out_value": values, "out_rates": final}
    span = {
        "pool": pool,
        "slots": slots,
        "num_slots": len(pool),
        "cursors": ring.cursors,
        "start": 0,
        "limit": chunk_size,
        "total": chunk_size,
    }
    _launch_tiles(make, chunk_size, rows, heads, inputs | outputs | span)
    given = {"key": keys, "value": values, "rates": final, "cursors": ring.cursors}
    _launch_write(write, pool, slots, surprises, given, total=chunk_size)
    clear = cursor_config(chunk_size, is_flush=True, is_forced=is_forced)
    clear.launch((rows,), {"cursors": ring.cursors, "slots": slots, "num_slots": len(pool)})


def _launch_tiles(config: KernelConfig, longest: int, rows: int, heads: int, arguments: dict[str, Any]) -> None:
    """Launch the kernel that makes a chunk's inputs, one program for each tile of the longest row."""
    tiles = -(-longest // config.constants["BT"])
    config.launch((tiles, rows * heads), {name: arguments[name] for name in config.signature})


def _launch_write(
    config: KernelConfig,
    pool: torch.Tensor,
    slots: torch.Tensor,
    surprises: torch.Tensor | None,
    given: dict[str, Any],
    *,
    total: int,
    start: int = 0,
    limit: int = NO_LIMIT,
) -> None:
    """Launch the kernel that writes a chunk, one program for each block of columns."""
    _, heads, _, num_columns = pool.shape
    arguments = given | {
        "pool": pool,
        "slots": slots,
        "num_slots": len(pool),
        "start": start,
        "limit": limit,
        "total": total,
    }
    if surprises is not None:
        arguments["surprises"] = surprises
    blocks = -(-num_columns // config.constants["BM"])
    config.launch((blocks, len(slots) * heads), arguments)


def _scratch(pool: torch.Tensor, rows: int, tokens: int, size: int) -> torch.Tensor:
    return torch.empty(rows, pool.shape[1], tokens, size, dtype=torch.float32, device=pool.device)


def _check(
    pool: torch.Tensor,
    slots: torch.Tensor,
    layout: Layout,
    *,
    cu_seqlens: torch.Tensor | None = None,
    rates: torch.Tensor | None = None,
    **vectors: torch.Tensor,
) -> None:
    """Refuse a layout without kernels, and tensors that do not fit it; vectors [any, H, K] of one type, by name."""
    size = layout.head_dim
    require(size in HEAD_DIMS, "layout.head_dim", f"must be one of {HEAD_DIMS}, is {size}")
    require(layout.hidden_size == 0, "layout.hidden_size", "must be 0: these are the kernels of matrices")
    momentum_rule = f"must be False at a head size above {MAX_MOMENTUM_HEAD_DIM}, is True at {size}"
    require(not layout.has_momentum or size <= MAX_MOMENTUM_HEAD_DIM, "layout.has_momentum", momentum_rule)
    require(
        layout.has_retention or "retention" not in layout.adaptive, "layout.adaptive", "has a retention it cannot use"
    )
    require_device(pool.device)
    require_tensor(pool, "pool", (None, None, size, layout.num_columns), (torch.float32,), pool.device)
    _check_rows(slots, cu_seqlens, pool)
    first = next(iter(vectors.values()), None)
    for name, tensor in vectors.items():
        assert first is not None
        types = FLOATS if tensor is first else (first.dtype,)
        require_tensor(tensor, name, (len(first) if first.dim() else None, pool.shape[1], size), types, pool.device)
    if rates is not None and first is not None:
        require_tensor(rates, "rates", (len(first), pool.shape[1], layout.num_rates), FLOATS, pool.device)


def _check_momenta(layout: Layout, pool: torch.Tensor, surprises: torch.Tensor | None) -> None:
    """Refuse a write that lacks its momenta, or has some that it would not use."""
    wanted = "must be given, for the layout has momentum" if layout.has_momentum else "the layout has no momentum"
    require((surprises is not None) == layout.has_momentum, "surprises", wanted)
    if surprises is not None:
        require_tensor(surprises, "surprises", tuple(pool.shape), (torch.float32,), pool.device)


def _check_rows(slots: torch.Tensor, cu_seqlens: torch.Tensor | None, pool: torch.Tensor) -> None:
    require_tensor(slots, "slots", (None,), (torch.int32,), pool.device)
    if cu_seqlens is not None:
        require_tensor(cu_seqlens, "cu_seqlens", (len(slots) + 1,), (torch.int32,), pool.device)
    if pool.device.type == "cpu":
        # On a GPU a look at their values would wait for all that was launched before.
        used = slots[slots >= 0]
        require(bool((used < len(pool)).all()), "slots", f"must be below {len(pool)}, the slots of the pool")
        require(len(used.unique()) == len(used), "slots", "no two rows may share one")


def _check_ring(ring: Ring, pool: torch.Tensor, layout: Layout) -> None:
    num_slots, heads = pool.shape[:2]
    require_tensor(ring.keys, "ring.keys", (num_slots, heads, None, layout.head_dim), FLOATS, pool.device)
    chunk_size = ring.keys.shape[2]
    require(chunk_size >= 1, "ring.keys", "must have a place for a token")
    require_tensor(ring.values, "ring.values", tuple(ring.keys.shape), (ring.keys.dtype,), pool.device)
    shape = (num_slots, heads, chunk_size, layout.num_rates)
    require_tensor(ring.rates, "ring.rates", shape, (torch.float32,), pool.device)
    require_tensor(ring.cursors, "ring.cursors", (num_slots,), (torch.int32,), pool.device)
