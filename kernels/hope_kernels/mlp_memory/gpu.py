"""MLP memories on a GPU: Triton kernels behind functions that read a pool of memories, or change it in place.

Shapes: B rows, T tokens of all rows one after the other, H heads, n memories of a head that share keys, K key size, F
hidden size, V value size: 16, 32, 64 or 128 each, or V = 1 for rates; K = V with the residual path. A row's slot is its
place in the pools, first [slots, H, n, K, F] and second [slots, H, n, F, V]. A row with a negative slot does nothing,
and what it would put out is 0; where the slot lies beyond the pool it is NaN (on a CPU, ValueError). Row b's tokens are
cu_seqlens[b]..cu_seqlens[b + 1] - 1; those behind the last row are not written.
"""

from __future__ import annotations

import torch

from hope_kernels.dgd_memory.gates import Gates
from hope_kernels.dgd_memory.gpu_configs import precision_of
from hope_kernels.launch import FLOATS, require, require_device, require_tensor
from hope_kernels.mlp_memory.chunk import Scope
from hope_kernels.mlp_memory.gpu_configs import (
    RATE_SIZE,
    SIZES,
    configs,
    decode_config,
    gradient_config,
    linear_config,
    read_config,
)

__all__ = ["configs", "read", "write_chunk"]

NO_LIMIT = 2**31 - 1
MAX_WRITES = 65535
"""Matrices that one launch can write: what the second axis of a grid may have."""
NUM_RATES = 3
"""lr, log retention and momentum, as the write of matrix memories takes them."""


def read(
    first_pool: torch.Tensor,
    second_pool: torch.Tensor,
    slots: torch.Tensor,
    memory_index: int,
    query: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    *,
    is_residual: bool = True,
) -> torch.Tensor:
    """Retrieve from one memory of every row and head, as it is in the pools: at the start of the chunk.

    first_pool [slots, H, n, K, F], second_pool [slots, H, n, F, V] float32; slots [B] int32, which rows may share;
    memory_index: 0..n - 1; query [T, H, K] float32, float16 or bfloat16; cu_seqlens [B + 1] int32, None: one token a
    row (decode). is_residual: the query is added. No value on the device is looked at: the call can be captured in a
    CUDA graph. Returns [T, H, V] of query's type.
    Raises ValueError for shapes, types or devices other than these. Source: NL eq. 89, read as in eq. 90.
    """
    shape = _check_pools(first_pool, second_pool, is_residual)
    _check_slots(slots, cu_seqlens, first_pool)
    heads, memories = first_pool.shape[1:3]
    require(0 <= memory_index < memories, "memory_index", f"must be from 0 to {memories - 1}, is {memory_index}")
    is_decode = cu_seqlens is None
    num_tokens = len(slots) if is_decode else None
    require_tensor(query, "query", (num_tokens, heads, shape[0]), FLOATS, first_pool.device)
    out = query.new_empty(len(query), heads, shape[2])
    config = (decode_config if is_decode else read_config)(shape, heads, memories, query.dtype, is_residual=is_residual)
    place = {"slots": slots, "num_slots": len(first_pool), "memory_index": memory_index}
    arguments = {"query": query, "out": out, "first": first_pool, "second": second_pool, **place}
    if is_decode:
        config.launch((len(slots) * heads,), arguments)
        return out
    arguments |= {"bounds": cu_seqlens, "total": len(query)}
    config.launch((len(slots) * heads, _num_tiles(query, slots, config.constants["BT"])), arguments)
    return out


def write_chunk(
    first_pool: torch.Tensor,
    second_pool: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    targets: torch.Tensor,
    gates: Gates,
    cu_seqlens: torch.Tensor,
    *,
    objective: str = "l2",
    dgd_scope: Scope = "layer_input",
    is_residual: bool = True,
) -> None:
    """Write each row's tokens, one chunk, into its memories, in place; all gradients are those of the chunk's start.

    Pools and cu_seqlens as for `read`; slots [B] int32, none shared by two rows; keys [T, H, K], targets [T, H, n, V],
    both float32, float16 or bfloat16; gates [T, H] float32, without momentum. What `mlp_memory.write_chunk` does with
    objective, dgd_scope and is_residual, in three launches: gradients, then each layer's linear write.
    Raises ValueError for shapes, types or devices other than these, for momentum, and for more than 65535 matrices of
    all rows. Source: NL eq. 88-90 (l2), 92 (dot).
    """
    shape = _check_pools(first_pool, second_pool, is_residual)
    _check_slots(slots, cu_seqlens, first_pool)
    _check_write(first_pool, slots, gates)
    require(objective in ("l2", "dot"), "objective", f"must be 'l2' or 'dot', is {objective!r}")
    scopes = ("layer_input", "k_only", "none")
    require(dgd_scope in scopes, "dgd_scope", f"must be one of {scopes}, is {dgd_scope!r}")
    key_size, hidden_size, value_size = shape
    num_slots, heads, memories = first_pool.shape[:3]
    device, matrices = first_pool.device, heads * memories
    require_tensor(keys, "keys", (None, heads, key_size), FLOATS, device)
    require_tensor(targets, "targets", (len(keys), heads, memories, value_size), (keys.dtype,), device)
    for name, rate in (("gates.lr", gates.lr), ("gates.log_retention", gates.log_retention)):
        require_tensor(rate, name, (len(keys), heads), (torch.float32,), device)

    def scratch(size: int) -> torch.Tensor:
        return torch.empty(len(keys), matrices, size, dtype=torch.float32, device=device)

    own_keys, hidden, inner, error = (scratch(size) for size in (key_size, hidden_size, hidden_size, value_size))
    first_rates, second_rates = scratch(NUM_RATES), scratch(NUM_RATES)
    config = gradient_config(shape, heads, memories, keys.dtype, is_residual=is_residual, is_squared=objective == "l2")
    rows = {"slots": slots, "num_slots": num_slots, "bounds": cu_seqlens, "total": len(keys)}
    arguments = {
        "key": keys,
        "target": targets,
        "lr": gates.lr,
        "log_retention": gates.log_retention,
        "out_key": own_keys,
        "out_hidden": hidden,
        "out_inner": inner,
        "out_error": error,
        "first_rates": first_rates,
        "second_rates": second_rates,
        "first": first_pool,
        "second": second_pool,
    }
    tiles = _num_tiles(keys, slots, config.constants["BT"])
    config.launch((len(slots) * matrices, tiles), arguments | rows)
    # Each memory of a head is a head of its own to the write of matrix memories.
    for pool, inputs, residuals, rates, has_delta in (
        (first_pool, own_keys, inner, first_rates, dgd_scope != "none"),
        (second_pool, hidden, error, second_rates, dgd_scope == "layer_input"),
    ):
        size, num_columns = pool.shape[3:]
        write = linear_config(size, num_columns, matrices, precision_of(keys.dtype), has_delta=has_delta)
        given = {"key": inputs, "residual": residuals, "rates": rates, "pool": pool, "start": 0, "limit": NO_LIMIT}
        write.launch((-(-num_columns // write.constants["BM"]), len(slots) * matrices), given | rows)


def _num_tiles(tokens: torch.Tensor, slots: torch.Tensor, tile: int) -> int:
    """Programs along a row of mean length, which the host knows: those of a longer one take several tiles each."""
    return max(-(-len(tokens) // (tile * max(len(slots), 1))), 1)


def _check_pools(first_pool: torch.Tensor, second_pool: torch.Tensor, is_residual: bool) -> tuple[int, int, int]:
    """Refuse pools that have no kernels; returns K, F and V."""
    require_device(first_pool.device)
    require_tensor(first_pool, "first_pool", (None,) * 5, (torch.float32,), first_pool.device)
    num_slots, heads, memories, key_size, hidden_size = first_pool.shape
    require(key_size in SIZES, "first_pool", f"its key size must be one of {SIZES}, is {key_size}")
    require(hidden_size in SIZES, "first_pool", f"its hidden size must be one of {SIZES}, is {hidden_size}")
    shape = (num_slots, heads, memories, hidden_size, None)
    require_tensor(second_pool, "second_pool", shape, (torch.float32,), first_pool.device)
    value_size = second_pool.shape[4]
    sizes = (RATE_SIZE, *SIZES)
    require(value_size in sizes, "second_pool", f"its value size must be one of {sizes}, is {value_size}")
    rule = f"must be False unless keys and values have one size, are {key_size} and {value_size}"
    require(not is_residual or key_size == value_size, "is_residual", rule)
    return key_size, hidden_size, value_size


def _check_slots(slots: torch.Tensor, cu_seqlens: torch.Tensor | None, pool: torch.Tensor) -> None:
    require_tensor(slots, "slots", (None,), (torch.int32,), pool.device)
    if cu_seqlens is not None:
        require_tensor(cu_seqlens, "cu_seqlens", (len(slots) + 1,), (torch.int32,), pool.device)
    if pool.device.type == "cpu":
        # On a GPU a look at their values would wait for all that was launched before.
        require(bool((slots < len(pool)).all()), "slots", f"must be below {len(pool)}, the slots of the pool")


def _check_write(pool: torch.Tensor, slots: torch.Tensor, gates: Gates) -> None:
    require(gates.momentum is None, "gates.momentum", "must be None: MLP memories have no GPU kernel with momentum")
    _, heads, memories = pool.shape[:3]
    rule = f"at most {MAX_WRITES} matrices of all rows and heads fit a launch, are {len(slots) * heads * memories}"
    require(len(slots) * heads * memories <= MAX_WRITES, "slots", rule)
    if pool.device.type == "cpu":
        used = slots[slots >= 0]
        require(len(used.unique()) == len(used), "slots", "no two rows may share one")
