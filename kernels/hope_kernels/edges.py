"""What stands around a layer's memories, in single calls: convolution and unit vectors before, norm and gate behind.

float32 on a CPU by the compiled operators; `self_modifying.is_fused` says whether there are any.
Shapes: B rows, T tokens, H heads, K head size, n raw rates, W window of the convolution, P = (3 K + n) H channels.
"""

from __future__ import annotations

import ctypes

import torch

from hope_kernels import native


class _Prepare(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tail", "qkv", "raw", "conv", "bias", "inputs", "vectors", "rates")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_tokens", "num_heads", "head_dim")),
        *((name, ctypes.c_int64) for name in ("num_rates", "window")),
    )


class _Finish(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("found", "gate", "weight", "out")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_tokens", "num_heads", "head_dim")),
        ("eps", ctypes.c_float),
    )


def prepare(
    tail: torch.Tensor, qkv: torch.Tensor, raw: torch.Tensor, conv: torch.Tensor, bias: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Convolve what was projected, make unit vectors of queries, keys and values, add the rates' bias.

    tail [B, W - 1, P]: the convolution's last inputs; qkv [B, T, 3 H K] and raw [B, T, n H]: projections; conv [P, W];
    bias [n H]. Returns all inputs of the convolution [B, W - 1 + T, P], unit queries, keys, values [B, H, T, K] and raw
    rates [B, H, T, n]. Raises ValueError for shapes, types or devices that do not fit. Source: NL §8.3.
    """
    rows, tokens, inner = qkv.shape
    window, num_rates = conv.shape[1], bias.shape[0] // num_heads
    channels = inner + num_rates * num_heads
    _check("tail", tail, (rows, window - 1, channels))
    _check("qkv", qkv, (rows, tokens, inner))
    _check("raw", raw, (rows, tokens, num_rates * num_heads))
    _check("conv", conv, (channels, window))
    _check("bias", bias, (num_rates * num_heads,))
    if inner % (3 * num_heads):
        raise ValueError(f"qkv: {inner} channels cannot be queries, keys and values of {num_heads} heads")
    head_dim = inner // (3 * num_heads)
    given = [tensor.contiguous() for tensor in (tail, qkv, raw, conv, bias)]
    inputs = torch.empty(rows, window - 1 + tokens, channels)
    vectors = torch.empty(rows, tokens, 3, num_heads, head_dim)
    rates = torch.empty(rows, tokens, num_rates, num_heads)
    pointers = [tensor.data_ptr() for tensor in (*given, inputs, vectors, rates)]
    call = _Prepare(*pointers, rows, tokens, num_heads, head_dim, num_rates, window)
    native.needed().hope_prepare(ctypes.byref(call), torch.get_num_threads())
    query, key, value = vectors.permute(2, 0, 3, 1, 4)
    return inputs, query, key, value, rates.permute(0, 3, 1, 2)


def finish(found: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise what each head found to a root mean square of 1, weigh it, and gate it by silu(gate).

    found [B, H, T, K]; gate [B, T, H K]; weight [K]; eps: added to the mean square. Returns [B, T, H K].
    Raises ValueError for shapes, types or devices that do not fit.
    """
    rows, heads, tokens, size = found.shape
    _check("found", found, (rows, heads, tokens, size))
    _check("gate", gate, (rows, tokens, heads * size))
    _check("weight", weight, (size,))
    given = [tensor.contiguous() for tensor in (found, gate, weight)]
    out = torch.empty(rows, tokens, heads * size)
    call = _Finish(*(tensor.data_ptr() for tensor in (*given, out)), rows, tokens, heads, size, eps)
    native.needed().hope_finish(ctypes.byref(call), torch.get_num_threads())
    return out


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected float32 on a CPU, got {tensor.dtype} on {tensor.device}")
