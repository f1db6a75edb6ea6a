"""The work of a self-modifying layer in single calls: address, read, write and guard, for all rows and heads.

Both kinds of memories, `dgd_memory` and `mlp_memory`, in whole chunks or in parts. float32 on a CPU, by the compiled
operators; where `is_fused` says no, a layer composes the same numbers of the operators' torch forms.
Shapes: B rows, H heads, T tokens, C tokens of a chunk, K head size, n raw rates.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch

from hope_kernels import native
from hope_kernels.dgd_memory.layout import MAIN, MIN_LOG_RETENTION, RATES, VECTORS, Layout

Weights = dict[str, torch.Tensor]
"""The tensors of `Layout.shapes` by name, [B, H, ...] each."""

MAX_GROWTH = 1.5
"""A write that makes a memory's norm grow by more is taken at half the step size, then refused."""
_ADVANCE, _ADDRESS, _WRITE, _READ = range(4)
_NAMES = ("first", "second", "rate_first", "rate_second")


class _Tokens(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("row", "head", "token", "last")))


class _Options(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("has_retention", "has_momentum", "squared", "self_targets")),
        *((name, ctypes.c_int32) for name in ("is_residual", "num_sums", "is_guarded", "reads_current")),
        *((name, ctypes.c_float) for name in ("max_lr", "lr_share", "min_log_retention", "max_growth")),
        *((name, ctypes.c_float) for name in ("delta", "hidden_delta")),
    )


class _Call(ctypes.Structure):
    """A call as csrc/layer.h has it."""

    _fields_ = (
        *((name, ctypes.c_void_p * 4) for name in ("memories", "surprises", "memories_out", "surprises_out")),
        *((name, ctypes.c_void_p) for name in ("found", "keys_out", "values_out", "rates_out")),
        *((name, _Tokens) for name in ("query", "key", "value", "rates")),
        *((name, ctypes.c_int64) for name in ("mode", "num_rows", "num_heads", "num_tokens", "chunk_size")),
        *((name, ctypes.c_int64) for name in ("key_size", "hidden_size", "num_vectors", "num_rates")),
        *((f"place_{name}", ctypes.c_int64) for name in ("k", "v", "q", MAIN, "lr", "retention")),
        ("options", _Options),
    )


def is_fused(memories: Weights, *inputs: torch.Tensor) -> bool:
    """Whether the compiled operators serve these tensors: float32 on a CPU, no gradients wanted, a compiler found."""
    return native.can_compute(*memories.values(), *inputs)


def advance(
    layout: Layout,
    memories: Weights,
    surprises: Weights,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rates: torch.Tensor,
    chunk_size: int,
    *,
    is_guarded: bool = True,
) -> tuple[torch.Tensor, Weights, Weights]:
    """Read and write whole chunks; keys, values, rates, targets are those of a chunk's start, reads as `layout` says.

    memories, surprises: the memories and their momenta (empty without); query, key, value [B, H, T, K]: unit
    projections; rates [B, H, T, n]: raw. T is a multiple of chunk_size. is_guarded: a head whose memory would grow
    by more than MAX_GROWTH in a chunk, or not stay finite, is written at half the step size, then not at all.
    Returns what the queries find [B, H, T, K], memories and momenta after the last chunk; the arguments stay as they
    were. Raises ValueError for arguments that do not fit. Source: NL eq. 76-86, 88-93.
    """
    _check(layout, memories, key, {"query": query, "value": value}, rates, layout.num_rates)
    _check_surprises(layout, memories, surprises)
    if chunk_size < 1 or key.shape[2] % chunk_size:
        raise ValueError(f"key: expected whole chunks of {chunk_size} tokens, 1 or more, got {key.shape[2]} tokens")
    found = torch.empty(key.shape)
    after = [{name: torch.empty(tensor.shape) for name, tensor in group.items()} for group in (memories, surprises)]
    call = _call(layout, _ADVANCE, key, chunk_size, is_guarded=is_guarded)
    call.found = found.data_ptr()
    _run(layout, call, (memories, surprises), after, query=query, key=key, value=value, rates=rates)
    return found, after[0], after[1]


def address(
    layout: Layout, memories: Weights, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Read tokens of one chunk and make what they will be written by; any number of tokens, memories unchanged.

    Arguments as those of `advance`. Returns what the queries find or, where reads are current, the unit queries for
    `read`; unit keys, unit values [B, H, T, K] and final rates [B, H, T, 3]: step size, log retention, momentum.
    Raises ValueError. Source: NL eq. 76-81, 86.
    """
    _check(layout, memories, key, {"query": query, "value": value}, rates, layout.num_rates)
    found, keys, values = (torch.empty(key.shape) for _ in range(3))
    final = torch.empty(*key.shape[:3], 3)
    call = _call(layout, _ADDRESS, key, max(1, key.shape[2]))
    call.found, call.keys_out, call.values_out = found.data_ptr(), keys.data_ptr(), values.data_ptr()
    call.rates_out = final.data_ptr()
    _run(layout, call, (memories, {}), [{}, {}], query=query, key=key, value=value, rates=rates)
    return found, keys, values, final


def read(
    layout: Layout,
    memories: Weights,
    surprises: Weights,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rates: torch.Tensor,
) -> torch.Tensor:
    """What each query [B, H, n, K] finds after its own token's write, for the first n tokens of a chunk.

    The rest as `address` made it; memories at the chunk's start, unchanged. Returns [B, H, n, K]. Raises ValueError.
    Source: NL eq. 93 read at W_t.
    """
    _check(layout, memories, keys, {"queries": queries, "values": values}, rates, 3)
    _check_surprises(layout, memories, surprises)
    found = torch.empty(keys.shape)
    call = _call(layout, _READ, keys, max(1, keys.shape[2]))
    call.found = found.data_ptr()
    _run(layout, call, (memories, surprises), [{}, {}], query=queries, key=keys, value=values, rates=rates)
    return found


def write(
    layout: Layout,
    memories: Weights,
    surprises: Weights,
    keys: torch.Tensor,
    values: torch.Tensor,
    rates: torch.Tensor,
    *,
    is_guarded: bool = True,
) -> tuple[Weights, Weights]:
    """Write one chunk of what `address` made: keys, values [B, H, C, K], rates [B, H, C, 3].

    Returns memories and momenta after it; the rest as `advance`. Source: NL eq. 83-85, 88-93.
    """
    _check(layout, memories, keys, {"values": values}, rates, 3)
    _check_surprises(layout, memories, surprises)
    after = [{name: torch.empty(tensor.shape) for name, tensor in group.items()} for group in (memories, surprises)]
    call = _call(layout, _WRITE, keys, max(1, keys.shape[2]), is_guarded=is_guarded)
    _run(layout, call, (memories, surprises), after, key=keys, value=values, rates=rates)
    return after[0], after[1]


def _call(layout: Layout, mode: int, key: torch.Tensor, chunk_size: int, *, is_guarded: bool = False) -> _Call:
    call = _Call(mode=mode, chunk_size=chunk_size, key_size=layout.head_dim, hidden_size=layout.hidden_size)
    call.num_rows, call.num_heads, call.num_tokens = key.shape[:3]
    call.num_vectors, call.num_rates = len(layout.vectors), len(layout.rates)
    for names, own in (((*VECTORS, MAIN), layout.vectors), (RATES, layout.rates)):
        for name in names:
            setattr(call, f"place_{name}", own.index(name) if name in own else -1)
    call.options = _Options(
        layout.has_retention,
        layout.has_momentum,
        layout.squared,
        layout.self_targets,
        layout.is_residual,
        layout.num_sums,
        is_guarded,
        layout.reads_current,
        layout.max_lr,
        layout.lr_share,
        MIN_LOG_RETENTION,
        MAX_GROWTH,
        float(layout.delta),
        float(layout.hidden_delta),
    )
    return call


def _run(
    layout: Layout, call: _Call, before: tuple[Weights, Weights], after: list[Weights], **tokens: torch.Tensor
) -> None:
    library = native.needed()
    # Held until the call is over: the operators see addresses only.
    kept = [{name: tensor.contiguous() for name, tensor in group.items()} for group in before]
    inputs = {name: _by_tokens(tensor, is_rate=name == "rates") for name, tensor in tokens.items()}
    fields = zip(("memories", "surprises", "memories_out", "surprises_out"), (*kept, *after), strict=True)
    for field, group in fields:
        setattr(call, field, (ctypes.c_void_p * 4)(*_addresses(layout, group)))
    for name, tensor in inputs.items():
        setattr(call, name, _Tokens(tensor.data_ptr(), *tensor.stride()))
    run = library.hope_mlp_run if layout.hidden_size else library.hope_dgd_run
    run(ctypes.byref(call), torch.get_num_threads())


def _addresses(layout: Layout, group: Weights) -> Iterable[int | None]:
    names = _NAMES if layout.hidden_size else ("weights",)
    return [group[name].data_ptr() if name in group else None for name in names]


def _by_tokens(tensor: torch.Tensor, *, is_rate: bool) -> torch.Tensor:
    return tensor if is_rate or tensor.stride(-1) == 1 else tensor.contiguous()


def _check(
    layout: Layout, memories: Weights, key: torch.Tensor, beside: Weights, rates: torch.Tensor, num_rates: int
) -> None:
    if key.dim() != 4 or key.shape[3] != layout.head_dim:
        raise ValueError(f"key: expected [B, H, T, {layout.head_dim}] for this layout, got {tuple(key.shape)}")
    rows, heads, tokens, _ = key.shape
    expected = {name: (rows, heads, *shape) for name, shape in layout.shapes().items()}
    found = {name: tuple(tensor.shape) for name, tensor in memories.items()}
    if found != expected:
        raise ValueError(f"memories: expected {expected} for this layout, got {found}")
    for name, tensor in beside.items():
        if tensor.shape != key.shape:
            raise ValueError(f"{name}: expected {tuple(key.shape)} as the keys, got {tuple(tensor.shape)}")
    if rates.shape != (rows, heads, tokens, num_rates):
        raise ValueError(f"rates: expected {(rows, heads, tokens, num_rates)}, got {tuple(rates.shape)}")
    for name, tensor in {"key": key, "rates": rates, **beside, **memories}.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ValueError(f"{name}: expected float32 on a CPU, got {tensor.dtype} on {tensor.device}")


def _check_surprises(layout: Layout, memories: Weights, surprises: Weights) -> None:
    expected = {name: tensor.shape for name, tensor in memories.items()} if layout.has_momentum else {}
    found = {name: tensor.shape for name, tensor in surprises.items()}
    if found != expected:
        raise ValueError(f"surprises: expected those of the memories with momentum, none without, got {found}")
    if any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in surprises.values()):
        raise ValueError("surprises: expected float32 on a CPU")
