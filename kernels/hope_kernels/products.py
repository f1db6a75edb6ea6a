"""Which library multiplies float32 matrices on a CPU, and how: oneDNN where that is faster and as exact, else MKL.

torch's default (MKL) takes slower ways on AMD processors with AVX-512. The precision called "medium" hands products to
oneDNN, which computes in float32 there, but may round factors to bfloat16 on processors with matrix units: hence a
probe. The choice follows from the processor and the shapes alone, never from a clock, so that a server computes the
same bits after a restart. Measured on two cores of an EPYC with AVX-512 (docs/LOG.md, "products of few tokens").
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional

FEWEST_TOKENS = 16
"""Below this `fast_products` leaves products to MKL."""
FEWEST_FOR_ONEDNN = 6
"""Below this MKL is faster than oneDNN with the weight first, without gradients."""
FEWEST_FOR_WEIGHT_FIRST = 16
"""At so many tokens a product is faster with the weight first, whatever multiplies."""
MOST_TO_TURN = 32
"""Up to so many tokens it pays to compute a product with the weight first and to copy it into rows."""
LARGEST_ERROR = 1e-6
"""Relative error, root mean square, above which factors were rounded: float32 makes 4e-7, bfloat16 2e-3."""


@contextmanager
def fast_products(num_tokens: int) -> Iterator[None]:
    """Multiply matrices of this many tokens inside by the faster library; float32 on a CPU is all that changes.

    For the whole process: what other threads multiply meanwhile is multiplied so, too.
    """
    if num_tokens < FEWEST_TOKENS or not _uses_onednn():
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, n] times weight [m, n] transposed: [T, m], laid out by columns where that is faster."""
    tokens = len(x)
    if not _is_single(x, weight) or not _uses_onednn():
        if tokens < FEWEST_FOR_WEIGHT_FIRST or x.device.type != "cpu":
            return functional.linear(x, weight)
        return (weight @ x.T).T
    if tokens == 1:
        # MKL takes half the time for two columns that it takes for one.
        return (weight @ torch.cat([x, x]).T).T[:1].contiguous()
    if tokens < FEWEST_FOR_ONEDNN or _is_learned(x, weight):
        return (weight @ x.T).T
    return _by_onednn(weight, x).T


def product_in_rows(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same, laid out by rows: for attention, which by columns falls back to a slower form, and for logits."""
    if _is_single(x, weight) and _uses_onednn():
        if len(x) <= MOST_TO_TURN:
            return product(x, weight).contiguous()
        if not _is_learned(x, weight):
            return _by_onednn(x, weight)
    return functional.linear(x, weight)


def product_of_pairs(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [..., n, k] times right [..., m, k] transposed, one by one: [..., n, m]."""
    if not _is_single(left, right) or left.shape[-2] < FEWEST_TOKENS or _is_learned(left, right) or not _uses_onednn():
        return torch.matmul(left, right.transpose(-2, -1))
    pairs = zip(left.flatten(0, -3), right.flatten(0, -3), strict=True)
    return torch.stack([_by_onednn(*pair) for pair in pairs]).view(*left.shape[:-1], -1)


def _by_onednn(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [n, k] times right [m, k] transposed, without gradients.

    What `fast_products` chooses by precision, by name: the precision is the whole process's, not a thread's.
    """
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return found


def _is_learned(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _is_single(x: torch.Tensor, weight: torch.Tensor) -> bool:
    is_rounded = torch.is_autocast_enabled(x.device.type)
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not is_rounded


@contextmanager
def half_products(dtype: torch.dtype) -> Iterator[None]:
    """Round the factors of products inside to bfloat16 where the processor multiplies those several times as fast.

    For gradients of this dtype, float32, whose noise is larger than that: sums stay in float32. Elsewhere and for other
    dtypes nothing changes. The processor is torch's default device. HOPE_HALF=0 leaves it out.
    """
    if factor_dtype(dtype) == dtype:
        yield
        return
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        yield


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """What `half_products` rounds factors of this dtype to; who uses a factor often may round it once."""
    return torch.bfloat16 if dtype == torch.float32 and _multiplies_halves() else dtype


def _multiplies_halves() -> bool:
    if os.environ.get("HOPE_HALF", "1") == "0":
        return False
    return torch.get_default_device().type == "cuda" or _processor_multiplies_halves()


@cache
def _processor_multiplies_halves() -> bool:
    return bool({"avx512_bf16", "amx_bf16"} & set(_cpu_info().split()))


@cache
def _uses_onednn() -> bool:
    return _is_amd() and torch.backends.cpu.get_cpu_capability() == "AVX512" and onednn_error() <= LARGEST_ERROR


def onednn_error() -> float:
    """Relative error of a product by oneDNN, against float64: sums of 576 and 1,536 numbers as a model has them."""
    generator = torch.Generator().manual_seed(0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        worst = 0.0
        for size in (576, 1536):
            left, right = (torch.randn(64, size, generator=generator) for _ in range(2))
            exact = left.double() @ right.double().T
            worst = max(worst, float((left @ right.T - exact).norm() / exact.norm()))
        return worst
    finally:
        torch.set_float32_matmul_precision(before)


def _is_amd() -> bool:
    return "AuthenticAMD" in _cpu_info()


@cache
def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
