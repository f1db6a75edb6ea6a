"""The Triton form of `fast_linear`: shared weight, dense delta and low-rank delta of all rows in one launch.

Shapes: B rows, T tokens, I inputs, O outputs, r rank, S slots. A program makes a tile of one row's outputs: some of its
tokens by some of the outputs, or one token by some of the outputs (decode). Each row reads the weights of its own slot.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from hope_kernels.launch import POINTERS, KernelConfig, require, require_device

_KINDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# What a row's own weights may add, and whether the shared weight is taken along: base, dense, low rank.
_PARTS = ((False, True, False), (False, False, True), (True, True, False), (True, False, True), (True, True, True))


@triton.jit
def _product(
    total, x, x_token, weight, weight_row, tokens, outputs, num_tokens, num_outputs, num_inputs,
    KIND: tl.constexpr, INPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total [tokens, outputs] and what weight [O, I] makes of x [T, I]; no inputs add nothing."""
    inputs = tl.arange(0, INPUTS)
    for start in range(0, num_inputs, INPUTS):
        place = start + inputs
        given = tl.load(
            x + tokens[:, None] * x_token + place[None, :],
            mask=(tokens < num_tokens)[:, None] & (place < num_inputs)[None, :],
            other=0.0,
        )
        turned = tl.load(
            weight + place[:, None] + outputs[None, :] * weight_row,
            mask=(place < num_inputs)[:, None] & (outputs < num_outputs)[None, :],
            other=0.0,
        )
        total = tl.dot(given.to(KIND), turned.to(KIND), total, input_precision=PRECISION)
    return total


@triton.jit
def _chunk(
    x, base, dense, a, b, slots, out,
    num_tokens, num_inputs, num_outputs, rank, num_slots,
    x_row, x_token, base_row, dense_slot, dense_row, a_slot, a_row, b_slot, b_row,
    HAS_BASE: tl.constexpr, HAS_DENSE: tl.constexpr, HAS_LOW_RANK: tl.constexpr, KIND: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Many tokens a row: products on the tensor cores, a tile of [TOKENS, OUTPUTS] a program."""
    row = tl.program_id(2).to(tl.int64)
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    slot = tl.load(slots + row).to(tl.int64)
    # A row without a slot runs its own products over no inputs.
    own_inputs = tl.where((slot >= 0) & (slot < num_slots), num_inputs, 0)
    slot = tl.where((slot >= 0) & (slot < num_slots), slot, tl.where(slot < 0, -1, -2))
    place = tl.where(slot >= 0, slot, 0)
    x += row * x_row
    total = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    if HAS_BASE:
        total = _product(
            total, x, x_token, base, base_row, tokens, outputs, num_tokens, num_outputs, num_inputs,
            KIND, INPUTS, PRECISION,
        )  # fmt: skip
    if HAS_DENSE:
        total = _product(
            total, x, x_token, dense + place * dense_slot, dense_row, tokens, outputs, num_tokens, num_outputs,
            own_inputs, KIND, INPUTS, PRECISION,
        )  # fmt: skip
    if HAS_LOW_RANK:
        for first in range(0, tl.where(slot >= 0, rank, 0), RANK):
            ranks = first + tl.arange(0, RANK)
            inner = tl.zeros([TOKENS, RANK], tl.float32)
            inner = _product(
                inner, x, x_token, a + place * a_slot, a_row, tokens, ranks, num_tokens, rank,
                own_inputs, KIND, INPUTS, PRECISION,
            )  # fmt: skip
            turned = tl.load(
                b + place * b_slot + ranks[:, None] + outputs[None, :] * b_row,
                mask=(ranks < rank)[:, None] & (outputs < num_outputs)[None, :],
                other=0.0,
            )
            total = tl.dot(inner.to(KIND), turned.to(KIND), total, input_precision=PRECISION)
    # A slot beyond the pool is a fault of the caller's: its answer must not pass for one.
    total = tl.where(slot == -2, float("nan"), total)
    place = (row * num_tokens + tokens)[:, None] * num_outputs + outputs[None, :]
    inside = (tokens < num_tokens)[:, None] & (outputs < num_outputs)[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _read(
    x, weight, weight_row, outputs, num_outputs, num_inputs,
    KIND: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """What weight [O, I] makes of one token x [I], in float32; no inputs make zeros."""
    total = tl.zeros([OUTPUTS, INPUTS], tl.float32)
    inputs = tl.arange(0, INPUTS)
    for start in range(0, num_inputs, INPUTS):
        place = start + inputs
        given = tl.load(x + place, mask=place < num_inputs, other=0.0).to(tl.float32)
        inside = (outputs < num_outputs)[:, None] & (place < num_inputs)[None, :]
        read = tl.load(weight + outputs[:, None] * weight_row + place[None, :], mask=inside, other=0.0)
        # Through x's type, as the products of many tokens take them.
        total += read.to(KIND).to(tl.float32) * given[None, :]
    return tl.sum(total, axis=1)


@triton.jit
def _decode(
    x, base, dense, a, b, slots, out,
    num_inputs, num_outputs, rank, num_slots,
    x_row, base_row, dense_slot, dense_row, a_slot, a_row, b_slot, b_row,
    HAS_BASE: tl.constexpr, HAS_DENSE: tl.constexpr, HAS_LOW_RANK: tl.constexpr, KIND: tl.constexpr,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """One token a row: every weight is read once and multiplied as it comes, OUTPUTS outputs a program."""
    row = tl.program_id(1).to(tl.int64)
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    slot = tl.load(slots + row).to(tl.int64)
    own_inputs = tl.where((slot >= 0) & (slot < num_slots), num_inputs, 0)
    slot = tl.where((slot >= 0) & (slot < num_slots), slot, tl.where(slot < 0, -1, -2))
    place = tl.where(slot >= 0, slot, 0)
    x += row * x_row
    total = tl.zeros([OUTPUTS], tl.float32)
    if HAS_BASE:
        total += _read(x, base, base_row, outputs, num_outputs, num_inputs, KIND, INPUTS, OUTPUTS)
    if HAS_DENSE:
        total += _read(
            x, dense + place * dense_slot, dense_row, outputs, num_outputs, own_inputs, KIND, INPUTS, OUTPUTS
        )
    if HAS_LOW_RANK:
        for first in range(0, tl.where(slot >= 0, rank, 0), RANK):
            ranks = first + tl.arange(0, RANK)
            inner = _read(x, a + place * a_slot, a_row, ranks, rank, own_inputs, KIND, INPUTS, RANK)
            inside = (outputs < num_outputs)[:, None] & (ranks < rank)[None, :]
            read = tl.load(b + place * b_slot + outputs[:, None] * b_row + ranks[None, :], mask=inside, other=0.0)
            total += tl.sum(read.to(KIND).to(tl.float32) * inner[None, :], axis=1)
    total = tl.where(slot == -2, float("nan"), total)
    tl.store(out + row * num_outputs + outputs, total.to(out.dtype.element_ty), mask=outputs < num_outputs)


def _config(dtype: torch.dtype, own: torch.dtype, parts: tuple[bool, bool, bool], is_decode: bool) -> KernelConfig:
    """The configuration for x of `dtype` and rows' own weights of type `own`; parts: base, dense, low rank."""
    has_base, has_dense, has_low_rank = parts
    pointers = {"base": POINTERS[dtype], "dense": POINTERS[own], "a": POINTERS[own], "b": POINTERS[own]}
    given = {"base": has_base, "dense": has_dense, "a": has_low_rank, "b": has_low_rank}
    constants: dict[str, Any] = {name: None for name, is_given in given.items() if not is_given}
    signature = {"x": POINTERS[dtype], "out": POINTERS[dtype], "slots": "*i32"}
    signature |= {name: pointers[name] for name, is_given in given.items() if is_given}
    sizes = ["num_inputs", "num_outputs", "rank", "num_slots", "base_row", "dense_row", "a_row", "b_row"]
    sizes += [] if is_decode else ["num_tokens", "x_token"]
    signature |= dict.fromkeys(sizes, "i32") | dict.fromkeys(("x_row", "dense_slot", "a_slot", "b_slot"), "i64")
    constants |= {"HAS_BASE": has_base, "HAS_DENSE": has_dense, "HAS_LOW_RANK": has_low_rank, "KIND": _KINDS[dtype]}
    if is_decode:
        constants |= {"OUTPUTS": 16, "INPUTS": 128, "RANK": 16}
    else:
        # Three products in tf32 stand for one in float32, and take the registers of more than one.
        outputs = 32 if dtype == torch.float32 else 64
        constants |= {"TOKENS": 32, "OUTPUTS": outputs, "INPUTS": 32, "RANK": 16, "PRECISION": "tf32x3"}
    names = "+".join(name for name, is_given in zip(("base", "dense", "rank"), parts, strict=True) if is_given)
    return KernelConfig(
        label=f"{'decode' if is_decode else 'chunk'} {POINTERS[dtype][1:]} own {POINTERS[own][1:]} {names}",
        kernel=_decode if is_decode else _chunk,
        signature=signature,
        constants=constants,
        num_warps=4,
        num_stages=1 if is_decode else 3,
    )


def configs() -> tuple[KernelConfig, ...]:
    """Every configuration that `fast_linear` chooses from."""
    types = [(dtype, own) for dtype in _KINDS for own in dict.fromkeys((dtype, torch.float32))]
    return tuple(_config(*types_, parts, decode) for types_ in types for parts in _PARTS for decode in (False, True))


def fast_linear(
    x: torch.Tensor,
    base: torch.Tensor | None,
    dense: torch.Tensor | None,
    low_rank: tuple[torch.Tensor, torch.Tensor] | None,
    slots: torch.Tensor | None,
) -> torch.Tensor:
    """See `hope_kernels.fast_linear.fast_linear`, which checks the arguments; base [O, I] may be left out.

    Inputs of every weight must lie side by side. Raises ValueError where they do not.
    """
    require_device(x.device)
    a, b = low_rank or (None, None)
    if dense is None and a is None:
        assert base is not None
        return torch.nn.functional.linear(x, base)
    weights = {"base": base, "dense": dense, "a": a, "b": b}
    for name, weight in weights.items():
        is_packed = weight is None or weight.stride(-1) == 1 or weight.shape[-1] == 1
        require(is_packed, "w" if name == "dense" else name, "must have its inputs side by side (last stride 1)")
    num_rows, num_tokens, num_inputs = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    last = next(weight for weight in (b, dense) if weight is not None)
    num_outputs, num_slots = last.shape[1], num_rows if slots is None else len(last)
    out = x.new_empty(num_rows, num_tokens, num_outputs)
    if not out.numel():
        return out
    is_decode = num_tokens == 1
    config = _config(x.dtype, last.dtype, (base is not None, dense is not None, a is not None), is_decode)
    strides = {}
    for name, weight in (("dense", dense), ("a", a), ("b", b)):
        # One row of weights serves every row of x: all slots are the same place.
        is_shared = slots is None and weight is not None and len(weight) == 1
        strides[f"{name}_slot"] = 0 if weight is None or is_shared else weight.stride(0)
        strides[f"{name}_row"] = 0 if weight is None else weight.stride(1)
    chosen = torch.arange(num_rows, dtype=torch.int32, device=x.device) if slots is None else slots
    arguments: dict[str, Any] = {name: weight for name, weight in weights.items() if weight is not None}
    arguments |= {"x": x, "out": out, "slots": chosen.to(torch.int32), "x_row": x.stride(0), **strides}
    arguments |= {"num_inputs": num_inputs, "num_outputs": num_outputs, "num_slots": num_slots}
    arguments |= {"rank": 0 if a is None else a.shape[1], "base_row": 0 if base is None else base.stride(0)}
    tiles = triton.cdiv(num_outputs, config.constants["OUTPUTS"])
    if is_decode:
        config.launch((tiles, num_rows), arguments)
    else:
        arguments |= {"num_tokens": num_tokens, "x_token": x.stride(1)}
        config.launch((tiles, triton.cdiv(num_tokens, config.constants["TOKENS"]), num_rows), arguments)
    return out
